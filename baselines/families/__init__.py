"""What several schedulers share: batches by priority, by quota, by peak memory, by predicted duration."""
