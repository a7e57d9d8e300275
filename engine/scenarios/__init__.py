"""Worlds: which server meets which requests, one by one (`scenario`) and in named collections (`suite`)."""
