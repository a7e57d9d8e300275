"""What `print` shows of records, requests and the rest: a line that says what it is, never arrays."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import baselines
from agents.evaluation.statistics import Interval
from engine.demand.requests import DEFAULT_TIERS, Requests
from engine.demand.workload import Workload
from engine.device.latency import load_profile
from engine.runs.metrics import summarize
from engine.runs.record import Record
from engine.runs.simulate import simulate

DEVICE = load_profile("rtx6000ada-mistral-7b")


@pytest.fixture(scope="module")
def record() -> Record:
    return simulate(baselines.make("slai"), Workload(num_requests=60).generate(0), DEVICE, log_steps=True)


def test_each_is_one_short_line(record: Record) -> None:
    for thing in (record, record.requests, record.steps, summarize(record), Workload(), Interval(1.0, 0.5, 1.5, 3)):
        text = repr(thing)
        assert text.startswith(f"{type(thing).__name__}(")
        assert len(text) < 260
        assert "\n" not in text
        assert "array" not in text
        assert str(thing) == text


def test_a_record_shows_the_medians_of_its_report(record: Record) -> None:
    report = summarize(record)
    for text in (repr(record), repr(report)):
        assert "slai: 60 of 60 requests finished in" in text
        assert f"TTFT {report.ttft.p50:.3f} s" in text
        assert f"TBT {report.itl.p50:.3f} s" in text
        assert report.verdict in text
    assert f"{record.row['iterations'][0]} iterations" in repr(record)


def test_requests_say_how_many_how_fast_and_whose() -> None:
    text = repr(Requests.create([0.0, 1.0, 2.0], [10, 20, 30], [1, 2, 3], [0, 1, 1], tiers=DEFAULT_TIERS))
    assert text == ("Requests(3 at 1/s, median prompt 20, output 2 tokens, strict 33.3%, relaxed 66.7%; no source)")


def test_nothing_served_and_one_request_have_a_line_too() -> None:
    one = Requests.create([0.0], [10], [1])
    assert "1 at inf/s" in repr(one)
    nothing = simulate(baselines.make("sarathi"), one, DEVICE, horizon_s=0.0, log_steps=True)
    assert "0 of " in repr(nothing)
    assert "nan" not in repr(nothing)
    assert repr(nothing.steps) == "StepLog(0 iterations until 0.0 s)"


def test_a_workload_is_written_as_it_would_be_made() -> None:
    changes: dict[str, Any] = {"rate": 2.5, "arrivals": "gamma", "cv": 2.0}
    assert repr(Workload()) == "Workload()"
    changed = replace(Workload(), **changes)
    assert repr(changed) == "Workload(rate=2.5, arrivals='gamma', cv=2.0)"
    assert eval(repr(changed), {"Workload": Workload}) == changed
    assert repr(Interval(np.nan, np.nan, np.nan, 1)) == "Interval(nan [nan, nan], n = 1)"
