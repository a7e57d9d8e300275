"""Malformed inputs from valid ones, by seed: cut, flipped, swapped, nested, huge, in other encodings."""

import copy
import json
import random
import re
from collections.abc import Iterator
from typing import Any

HUGE = "@@huge@@"
"""Stands in structured data for a whole number of 5000 digits."""
HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, -1, 5, 1.5, -0.0, 1e300, -1e300, 5e-324, 2**31, 2**32, 2**63, 2**64, 10**30, 10**400, HUGE,
    float("nan"), float("inf"), float("-inf"), "", "x", "5", "nan", "1e999", "\x00", "\x1b[31m", "\ud800", "٣", "../..",
    "/dev/zero", "a" * 5000, [], {}, [[]], [5], ["x"], [None], {"": 1}, {"x": {"y": []}}, [[[[[[1]]]]]],
)  # fmt: skip
"""What stands where something else is expected."""
NUMBERS = (
    "nan", "inf", "-inf", "1e999", "-1", "-0.0", "0", "1_000", "1e300", "5e-324", "0x10", "010", "1,5", "٣", "", " ",
    "9" * 30, "9" * 400, "9" * 5000, "1e-320", "true", "None", "1:30", "2024-01-01", "½", "1e", "--1", "+1", ".", "1.5",
)  # fmt: skip
"""What stands in text where a number does."""


def paths(data: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in nested data."""
    yield at
    if isinstance(data, dict):
        for key, value in data.items():
            yield from paths(value, (*at, key))
    elif isinstance(data, list):
        for index, value in list(enumerate(data))[:4]:
            yield from paths(value, (*at, index))


def replaced(data: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with another value in one place."""
    if not path:
        return value
    changed = copy.deepcopy(data)
    inside = changed
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = value
    return changed


def structured(rng: random.Random, data: Any) -> Any:
    """Data with one place of another kind, gone, under another name, or wrapped."""
    places = list(paths(data))
    path = rng.choice(places)
    how = rng.randrange(8)
    if how < 5 or not path:
        return replaced(data, path, rng.choice(HOSTILE))
    inside = changed = copy.deepcopy(data)
    for key in path[:-1]:
        inside = inside[key]
    if how == 5:
        del inside[path[-1]]
    elif how == 6 and isinstance(inside, dict):
        inside[rng.choice(["extra", "", "n" * 300, f"{path[-1]} "])] = inside.pop(path[-1])
    else:
        value = inside[path[-1]]
        for _ in range(rng.choice([1, 3, 70, 500])):
            value = [value]
        inside[path[-1]] = value
    return changed


def json_bytes(data: Any) -> bytes:
    """Data as JSON with all that strict JSON forbids."""
    return json.dumps(data).replace(f'"{HUGE}"', "9" * 5000).encode("utf-8", "surrogatepass")


def textual(rng: random.Random, valid: bytes) -> bytes:
    """Bytes with one piece cut, flipped, doubled, of another encoding, or another number."""
    how, at = rng.randrange(12), rng.randrange(max(1, len(valid)))
    if how == 0:
        return valid[:at]
    if how == 1:
        return valid[:at] + bytes([valid[at] ^ (1 << rng.randrange(8))]) + valid[at + 1 :] if valid else b""
    if how == 2:
        return valid[:at] + rng.randbytes(rng.choice([1, 4, 100])) + valid[at:]
    if how == 3:
        return valid + valid
    if how == 4:
        return valid.decode("utf-8", "replace").encode(rng.choice(["utf-16", "utf-16-be", "utf-32", "utf-8-sig"]))
    if how == 5:
        return valid[:at] + rng.choice([b"\0", b"\r", b'"', b"{", b"]", b",", b":", b"\xff\xfe", b"&a *a"]) + valid[at:]
    if how == 6:
        return valid[:at] + valid[at + rng.choice([1, 5, 50]) :]
    if how == 7:
        lines = valid.splitlines(keepends=True)
        rng.shuffle(lines)
        return b"".join(lines)
    if how == 8:
        return rng.choice([b"", b" ", b"\n\n", b"[" * 100_000, b"{}", b"[]", b"null", b"0", b'"x"', b"\xef\xbb\xbf"])
    numbers = list(re.finditer(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?", valid))
    if not numbers:
        return valid[:at]
    found = rng.choice(numbers)
    return valid[: found.start()] + rng.choice(NUMBERS).encode() + valid[found.end() :]


def spec(rng: random.Random, valid: str) -> str:
    """A spec with another number, key or mark."""
    how = rng.randrange(6)
    numbers = list(re.finditer(r"\d+(?:\.\d+)?", valid))
    if how < 3 and numbers:
        found = rng.choice(numbers)
        return valid[: found.start()] + rng.choice(NUMBERS) + valid[found.end() :]
    at = rng.randrange(len(valid) + 1)
    if how == 3:
        return valid[:at]
    if how == 4:
        return valid[:at] + rng.choice([":", ",", "=", ";", "\0", "\n", " ", "é", "٣", "\ud800", "tuned="]) + valid[at:]
    return valid + rng.choice([",", ":", ",rate=1,rate=2", ",x=1", "=", ":tuned=/dev/zero", ",seed=" + "9" * 5000])
