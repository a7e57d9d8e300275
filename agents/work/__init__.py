"""How work is done: pieces in processes, results on disk, locks, progress bars."""
