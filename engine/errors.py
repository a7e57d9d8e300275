"""The one exception that means "your input, not our bug"."""

LONGEST_LINE = 1500
"""Characters of a message that are shown."""


class InputError(ValueError):
    """Bad input from a person: one line saying what was expected, what came and where.

    The command line prints the line and exits with code 2, without a traceback. What is endless in it is shortened.
    """

    def __init__(self, message: str = "") -> None:
        """Keep the line, at most `LONGEST_LINE` characters of it."""
        if len(message) > LONGEST_LINE:
            message = f"{message[: LONGEST_LINE - 300]} ... {message[-290:]}"
        super().__init__(message)


class CacheWarning(UserWarning):
    """Compiled code cannot be kept: the next process compiles again, with the same results."""


def expect(fits: bool, name: str, expected: str, value: object) -> None:
    """Refuse what stands in the place of an object of another kind: a name, a class, a list.

    Raises:
        InputError: it does not fit.
    """
    if not fits:
        raise InputError(f"{name}: expected {expected}, got {repr(value)[:80]}")
