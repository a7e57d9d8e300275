"""Where two results are not the same: data of JSON files, compared to the last bit."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from engine.files.reading import kind_of

NOTHING = "no such entry"
"""Said of what one of the two does not have."""


@dataclass(frozen=True)
class Difference:
    """One place at which they are not the same."""

    place: str
    """``cells[3].numbers.p99_ttft_ms``."""
    stored: str
    again: str

    def __str__(self) -> str:
        """As a line says it."""
        return f"{self.place}: stored {self.stored}, again {self.again}"


def differences(stored: object, again: object, place: str = "") -> Iterator[Difference]:
    """Every place at which two results differ, in the order of the stored one.

    Args:
        stored: data of a JSON file.
        again: the same, as it came out again.
        place: where they are, for messages.
    """
    if isinstance(stored, Mapping) and isinstance(again, Mapping):
        dot = "." if place else ""
        for key in dict.fromkeys((*stored, *again)):
            yield from _parts(stored, again, key, f"{place}{dot}{key}")
    elif isinstance(stored, list) and isinstance(again, list):
        for index in range(min(len(stored), len(again))):
            yield from differences(stored[index], again[index], f"{place}[{index}]")
        if len(stored) != len(again):
            yield Difference(place, f"{len(stored)} entries", str(len(again)))
    elif not _is_same(stored, again):
        yield Difference(place, _shown(stored), _shown(again))


def _parts(stored: Mapping[str, object], again: Mapping[str, object], key: str, place: str) -> Iterator[Difference]:
    if key not in again:
        yield Difference(place, _shown(stored[key]), NOTHING)
    elif key not in stored:
        yield Difference(place, NOTHING, _shown(again[key]))
    else:
        yield from differences(stored[key], again[key], place)


def _is_same(stored: object, again: object) -> bool:
    """Whether two values are; 1 and 1.0 are one number, 1 and true are not."""
    return stored == again and isinstance(stored, bool) is isinstance(again, bool)


def _shown(value: object) -> str:
    """A value with every digit; of a list or mapping how large it is."""
    if isinstance(value, Mapping | Sequence) and not isinstance(value, str):
        return f"{len(value)} entries"
    return repr(value) if isinstance(value, int | float) else kind_of(value)
