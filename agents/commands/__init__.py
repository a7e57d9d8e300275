"""One module per command of `llmsched`, each with one dataclass `Command`: its fields are the flags."""
