"""Learned policies, evaluation, reports, studies and the `llmsched` command."""
