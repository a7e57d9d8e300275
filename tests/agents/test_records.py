"""Records and their JSON form: what is written is read again as it was, anything else is named with its place."""

import json
import math
from dataclasses import dataclass, field

import pytest

from agents.evaluation.statistics import Interval
from agents.studies.tuning import Cost
from agents.work.records import OR_NAN, as_json, part, picked
from engine.errors import InputError
from engine.fields import from_mapping


@dataclass(frozen=True)
class Inner:
    name: str


@dataclass(frozen=True)
class Outer:
    load: float | None
    means: dict[str, Interval]
    rates: tuple[float, ...]
    inner: Inner = field(metadata=part(Inner))
    late: float = field(default=math.nan, metadata=OR_NAN)


WHOLE = Outer(None, {"ttft": Interval(1.5, math.nan, math.nan, 1)}, (1.0, 2), Inner("a"))


def test_a_record_is_written_and_read_again() -> None:
    data = json.loads(json.dumps(as_json(WHOLE), allow_nan=False))
    assert data["means"] == {"ttft": {"mean": 1.5, "low": None, "high": None, "n": 1}}
    assert data["late"] is None
    again = from_mapping(Outer, data, "file")
    assert as_json(again) == data
    assert again.means["ttft"].mean == 1.5
    assert math.isnan(again.means["ttft"].low)


def test_a_part_may_hold_more_than_is_looked_at_but_not_less() -> None:
    data = as_json(WHOLE)
    assert from_mapping(Outer, data | {"inner": {"name": "b", "more": 1}}, "file").inner == Inner("b")
    assert picked(Inner, {"name": "c", "other": 2}, "x") == Inner("c")
    with pytest.raises(InputError, match=r"^file\.inner: missing key 'name'$"):
        from_mapping(Outer, data | {"inner": {"more": 1}}, "file")
    with pytest.raises(InputError, match=r"^file\.inner: expected a mapping, got "):
        from_mapping(Outer, data | {"inner": 3}, "file")


@pytest.mark.parametrize("value", ["fast", True, [1.0]])
def test_what_is_neither_a_number_nor_null_is_refused(value: object) -> None:
    with pytest.raises(InputError, match=r"^file\.late: expected a number or null, got "):
        from_mapping(Outer, as_json(WHOLE) | {"late": value}, "file")


def test_a_setting_that_broke_down_costs_null_in_the_file() -> None:
    broken = Cost("slai", 1.4, 3, math.inf)
    assert as_json(broken) == {"policy": "slai", "rate": 1.4, "seed": 3, "cost": None}
    assert from_mapping(Cost, as_json(broken), "cell") == broken
