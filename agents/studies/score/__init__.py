"""Policies over a suite of scenarios: one number for each, and where it breaks what others keep."""
