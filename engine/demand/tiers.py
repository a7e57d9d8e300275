"""Service tiers from what a person writes: ``name=strict,share=0.05,tbt=0.1,ttft=2``, or the same keys in YAML.

`name` and `tbt` (s, every gap between tokens) are needed; `ttft` is 2 s and `weight` 1 unless given. One tier may leave
out its `share` and gets what the others leave. `strict` says who counts as a paying user: SLAI and `strict_spf` serve
these first, the observation counts them apart. Unless given, tiers with at most STRICT_TBT_S between tokens are strict.
slackfit and its action go by the deadlines themselves.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from engine.demand.requests import DEFAULT_TIERS, Tier, check_shares
from engine.errors import InputError
from engine.ranges import number
from engine.spec import read_settings

STRICT_TBT_S = 0.2
"""Up to this deadline between tokens (s) a tier is strict unless it says otherwise."""
KEYS = ("name", "share", "tbt", "ttft", "weight", "strict")
_NUMBER = number(noun="a finite number")
_LONG = {"tbt_s": "tbt", "ttft_s": "ttft"}
_FLAGS = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}


def parse_tiers(given: Sequence[Any], where: str = "tiers") -> tuple[Tier, ...]:
    """The tiers that a list describes; an empty one stands for the default tiers.

    Args:
        given: for each tier its text, a mapping of the same keys, or a `Tier`.
        where: what a message calls the list.

    Raises:
        InputError: an unknown key, a value out of range, a name twice, shares that do not sum to 1.
    """
    if isinstance(given, str | Mapping) or not isinstance(given, Sequence):
        raise InputError(f"{where}: expected a list of tiers, got {given!r}")
    if not given:
        return DEFAULT_TIERS
    parts = [one if isinstance(one, Tier) else _values(one, where) for one in given]
    _fill_in_share(parts, where)
    tiers = tuple(part if isinstance(part, Tier) else _tier(part) for part in parts)
    check_shares(tiers)
    return tiers


def parse_slo(pairs: Sequence[str]) -> tuple[Tier, ...]:
    """The one tier of users who all have the same SLO, from pairs such as ``("ttft:2", "tbt:0.1")`` (s).

    Raises:
        InputError: another name, a name twice, no tbt, or no number of seconds > 0.
    """
    given: dict[str, str] = {}
    for pair in pairs:
        name, colon, text = pair.partition(":")
        if name not in ("ttft", "tbt") or not colon or name in given:
            raise InputError(f"slo: expected ttft:SECONDS and tbt:SECONDS, each once, got {pair!r}")
        given[name] = text
    if "tbt" not in given:
        raise InputError(f"slo: expected tbt:SECONDS, got {' '.join(pairs) or 'nothing'}")
    return parse_tiers(["name=all,share=1," + ",".join(f"{name}={text}" for name, text in given.items())], "slo")


def _fill_in_share(parts: list[Any], where: str) -> None:
    """Give the one tier without a share what the others leave."""
    without = [part for part in parts if isinstance(part, dict) and "share" not in part]
    if len(without) > 1:
        raise InputError(f"{where}: expected share=FRACTION in all tiers but one, got none in {without[0]['name']!r}")
    for last in without:
        others = (part.share if isinstance(part, Tier) else part["share"] for part in parts if part is not last)
        # Rounded, so that 1 - 0.05 is the 0.95 that a person would have written.
        last["share"] = max(0.0, round(1.0 - math.fsum(others), 12))


def _values(given: object, where: str) -> dict[str, Any]:
    expected = f"key=value with keys among {', '.join(KEYS)}"
    pairs = read_settings(given, where, None, expected) if isinstance(given, str) else given
    if not isinstance(pairs, Mapping):
        raise InputError(f"{where}: expected name=...,share=...,tbt=... or a mapping of these, got {given!r}")
    values: dict[str, Any] = {}
    for key, value in pairs.items():
        short = _LONG.get(key, key)
        if short not in KEYS:
            raise InputError(f"{where}: expected keys among {', '.join(KEYS)}, got {key!r}")
        if short in values:
            raise InputError(f"{where}: expected each key once, got {short!r} twice")
        values[short] = _value(short, value, where, isinstance(given, str))
    for key in ("name", "tbt"):
        if key not in values:
            raise InputError(f"{where}: expected {key}=..., got none in {given!r}")
    return values


def _value(key: str, value: Any, where: str, written: bool) -> Any:
    if key == "name":
        if not isinstance(value, str):
            raise InputError(f"{where}: name: expected a word, got {value!r}")
        return value
    if key == "strict":
        found = value if isinstance(value, bool) else _FLAGS.get(str(value).lower())
        if found is None:
            raise InputError(f"{where}: strict: expected yes or no, got {value!r}")
        return found
    read = _NUMBER.parse if written else _NUMBER.check  # in YAML text is no number
    return float(read(value, f"{where}: {key}"))


def _tier(values: dict[str, Any]) -> Tier:
    tbt = values["tbt"]
    strict = values.get("strict", tbt <= STRICT_TBT_S)
    further = {key: values[short] for short, key in (("ttft", "ttft_s"), ("weight", "weight")) if short in values}
    return Tier(values["name"], values["share"], tbt, strict=strict, **further)


def describe_tiers(tiers: tuple[Tier, ...]) -> str:
    """The tiers in one line, for reports."""
    return "; ".join(
        f"{tier.name}{' (strict)' if tier.strict and tier.name != 'strict' else ''} {100 * tier.share:.4g} %, "
        f"TTFT {tier.ttft_s:g} s, TBT {tier.tbt_s:g} s{'' if tier.weight == 1.0 else f', weight {tier.weight:g}'}"
        for tier in tiers
    )
