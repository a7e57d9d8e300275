"""A policy serves a trace: `simulate`, its record, its numbers."""
