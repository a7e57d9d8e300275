"""The one exception that means "your input, not our bug"."""


class InputError(ValueError):
    """Bad input from a person: one line saying what was expected, what came and where.

    The command line prints the line and exits with code 2, without a traceback.
    """


class CacheWarning(UserWarning):
    """Compiled code cannot be kept: the next process compiles again, with the same results."""
