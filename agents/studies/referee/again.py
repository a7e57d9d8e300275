"""How a result is run again: from what its file says back to what its command ran."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from agents.evaluation.capacity import FORMAT as CAPACITY
from agents.evaluation.capacity import Search, search_capacity
from agents.evaluation.evaluate import Evaluation, evaluate
from agents.evaluation.fleet import Fleet
from agents.evaluation.result import FORMAT as EVALUATION
from agents.evaluation.result import Comparison
from agents.evaluation.setup import Setup
from agents.evaluation.suite_runs import RunOptions
from agents.source import Source
from agents.studies.devices.matrix import Devices, compare_devices
from agents.studies.devices.records import FORMAT as DEVICES
from agents.studies.referee.records import FORMAT as COMPARE
from agents.studies.referee.run import OptionStudy, compare_options
from agents.studies.score.headroom import FORMAT as HEADROOM
from agents.studies.score.headroom import Search as HeadroomSearch
from agents.studies.score.records import FORMAT as SCORE
from agents.studies.score.run import Contest, run_contest, serve_contest
from agents.work.records import part, picked
from engine.config import EngineConfig
from engine.device.latency import LatencyModel
from engine.errors import InputError
from engine.ranges import whole
from engine.runs.goodput import Goodput
from engine.scenarios.suite import Suite

UP_TO_MILLION = whole(1, 10**6)
"""Seeds and settings, as commands take them."""


class Again(NamedTuple):
    """What it takes to run a result again."""

    data: Mapping[str, Any]
    """What the file holds."""
    trace: str | None
    """The trace that was served, if there was one."""
    how: RunOptions


@dataclass(frozen=True)
class _OfSuite:
    suite: dict[str, Any]


@dataclass(frozen=True)
class _Policy:
    policy: str


@dataclass(frozen=True)
class _Place:
    """A server of a configuration."""

    profile: LatencyModel
    engine: EngineConfig


@dataclass(frozen=True)
class _Common:
    """What configurations of any setup have beside its server."""

    source: dict[str, Any]
    seeds: int
    horizon_s: float | None
    warmup_s: float
    goodput: Goodput | None


@dataclass(frozen=True)
class _Scored:
    scored: tuple[str, ...]
    config: _OfSuite = field(metadata=part(_OfSuite))


@dataclass(frozen=True)
class _Compared:
    policy: str
    options: dict[str, tuple[str, ...]]
    baseline: str
    config: _OfSuite = field(metadata=part(_OfSuite))


@dataclass(frozen=True)
class _Loads:
    loads: tuple[float | None, ...]


@dataclass(frozen=True)
class _Searched:
    rates: tuple[float, ...] | None
    bisection: tuple[float, float, float] | None
    fleet: Fleet | None = None


@dataclass(frozen=True)
class _Matrix:
    shares: tuple[float, ...]
    rivals: tuple[str, ...]
    reference: str
    devices: tuple[_Place, ...]


@dataclass(frozen=True)
class _Hindsight:
    tries: int
    rows: tuple[dict[str, Any], ...]
    config: _OfSuite = field(metadata=part(_OfSuite))


@dataclass(frozen=True)
class _Balanced:
    config: dict[str, Any]
    balances: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class _Rowed:
    config: dict[str, Any]
    reference: str
    rows: tuple[dict[str, Any], ...]


def _suite(stored: _OfSuite) -> Suite:
    return Suite.from_dict(stored.suite, "config.suite")


def _policies(rows: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """The policies of rows, each once."""
    return tuple(dict.fromkeys(picked(_Policy, row, "row").policy for row in rows))


def _setup(
    config: Mapping[str, Any], place: _Place, policies: Iterable[str], reference: str, trace: str | None
) -> dict[str, Any]:
    """The arguments of `Setup`, from its JSON form."""
    stored = picked(_Common, config, "config")
    limits = {} if stored.horizon_s is None else {"horizon_s": stored.horizon_s}
    return limits | {
        "policies": tuple(policies),
        "source": Source.from_dict(stored.source, place.engine, trace, "config.source"),
        "seeds": UP_TO_MILLION.check(stored.seeds, "config: seeds"),
        "reference": reference,
        "profile": place.profile,
        "config": place.engine,
        "warmup_s": stored.warmup_s,
        "goodput": stored.goodput,
    }


def _evaluation(again: Again) -> object:
    result = Comparison.from_dict(again.data)
    place, of = picked(_Place, result.config, "config"), picked(_Loads, result.config, "config")
    evaluation = Evaluation(
        loads=of.loads, **_setup(result.config, place, result.labels, result.reference, again.trace)
    )
    return evaluate(
        evaluation,
        workers=again.how.workers,
        with_windows=result.windows is not None,
        with_behaviour=bool(result.behaviour),
        progress=again.how.progress,
    )


def _capacity(again: Again) -> object:
    stored = picked(_Rowed, again.data, "capacity")
    place, where = picked(_Place, stored.config, "config"), picked(_Searched, stored.config, "config")
    setup = _setup(stored.config, place, _policies(stored.rows), stored.reference, again.trace)
    if where.bisection is not None:
        setup |= dict(zip(("low", "high", "tolerance"), where.bisection, strict=True))
    return search_capacity(Search(rates=where.rates, fleet=where.fleet, **setup), workers=again.how.workers)


def _devices(again: Again) -> object:
    stored = picked(_Balanced, again.data, "devices")
    of = picked(_Matrix, stored.config, "config")
    policies = _policies(stored.balances)
    setups = (Setup(**_setup(stored.config, place, policies, of.reference, again.trace)) for place in of.devices)
    return compare_devices(Devices(setups=tuple(setups), shares=of.shares, rivals=of.rivals), workers=again.how.workers)


def _score(again: Again) -> object:
    stored = picked(_Scored, again.data, "score")
    return run_contest(Contest(_suite(stored.config), stored.scored), again.how)


def _headroom(again: Again) -> object:
    stored = picked(_Hindsight, again.data, "headroom")
    tries = UP_TO_MILLION.check(stored.tries, "headroom: tries")
    search = HeadroomSearch(_suite(stored.config), _policies(stored.rows), tries)
    return search.judge(serve_contest(search.contest, again.how))


def _compare(again: Again) -> object:
    stored = picked(_Compared, again.data, "compare")
    study = OptionStudy(_suite(stored.config), stored.policy, stored.options, stored.baseline)
    return compare_options(study, again.how)


KINDS: dict[str, Callable[[Again], object]] = {
    COMPARE: _compare,
    SCORE: _score,
    EVALUATION: _evaluation,
    CAPACITY: _capacity,
    DEVICES: _devices,
    HEADROOM: _headroom,
}
"""What runs a result again, by its format."""
WITH_TRACE = (EVALUATION, CAPACITY, DEVICES)
"""Of these the requests may come from a trace."""


def run_again(again: Again) -> object:
    """The result as it comes out this time.

    Raises:
        InputError: the file does not say what to run, or it cannot be run here.
        PolicyError: a policy broke the rules.
    """
    if again.trace is not None and again.data["format"] not in WITH_TRACE:
        raise InputError(f"trace: expected none beside a result of a suite, got {again.trace}")
    return KINDS[again.data["format"]](again)
