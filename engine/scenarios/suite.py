"""`Suite`: scenarios under one name, with the seeds and the number of requests that comparisons of them use.

A suite is a YAML file: one of those that ship (`suite_names`) or a person's own.

    about: what it is for, in a line
    seeds: 5
    requests: 2000
    scenarios:
      - poisson:rate=1.8                      # a scenario as text
      - name: four times the KV               # or as a mapping of its fields
        workload: poisson:lengths=lognormal:7,1,5,1
        server: num_blocks=4x,max_num_seqs=256
        loads: [0.7, 0.9]                     # or rates: one scenario for each, "four times the KV 0.7" and so on
        capacity: 2.4
    traces:                                   # where the suite is frozen: the digests of the requests, by scenario
      four times the KV 0.7: 0123456789abcdef fedcba9876543210
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import Annotated, Any

from engine.errors import InputError
from engine.fields import checked, convert, from_mapping
from engine.files.reading import kind_of
from engine.files.yaml_text import parse_yaml, read_yaml
from engine.ranges import Count, number, whole
from engine.scenarios.scenario import Scenario, read_scenario
from engine.spec import Spec

ENDINGS = (".yml", ".yaml")
LISTS = {"rates": "rate", "loads": "load"}
"""Entries that stand for several scenarios, and the setting of a workload that each of their values is."""
_LOAD = number(0.0, 1e9, above=True)


def _digests(given: object, where: str) -> dict[str, tuple[str, ...]]:
    """Digests by scenario, each a list or a text with blanks between them."""
    if not isinstance(given, Mapping):
        raise InputError(f"{where}: expected a mapping from scenarios to digests, got {kind_of(given)}")
    lists = {name: text.split() if isinstance(text, str) else text for name, text in given.items()}
    return convert(lists, dict[str, tuple[str, ...]], where)


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Scenarios with what a comparison of them needs besides."""

    name: str
    """How commands call it."""
    about: str = ""
    """What it is for, in a line."""
    seeds: Annotated[int, whole(1, 10**6)] = 5
    """Seeds 0 ... seeds - 1."""
    requests: Count = 2000
    """Requests of each run."""
    overload: bool = False
    """Whether more may come than anybody serves; else a scenario in which nobody keeps up is skipped and named."""
    scenarios: tuple[Scenario, ...]
    """The worlds, each with a name of its own."""
    traces: dict[str, tuple[str, ...]] = field(default_factory=dict, metadata={"read": _digests})
    """Digests of the requests (`engine.demand.requests.Requests.digest`) of seeds 0, 1, ... by scenario, as they were
    when the suite was frozen; none where it was not."""

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            InputError: one does not fit, no scenario, or two of one name.
        """
        checked(self, f"suite {self.name!r}: ")
        names = [one.name for one in self.scenarios]
        if not names:
            raise InputError(f"suite {self.name!r}: scenarios: expected at least one, got none")
        if twice := [name for name in names if names.count(name) > 1]:
            raise InputError(f"suite {self.name!r}: scenarios: expected each name once, got {twice[0]!r} twice")
        if unknown := [name for name in self.traces if name not in names]:
            raise InputError(f"suite {self.name!r}: traces: expected names of scenarios, got {unknown[0]!r}")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; digests only of a suite that is frozen."""
        data = {**vars(self), "scenarios": [one.to_dict() for one in self.scenarios]}
        del data["traces"]
        return data | (
            {"traces": {name: list(digests) for name, digests in self.traces.items()}} if self.traces else {}
        )

    @classmethod
    def from_dict(cls, data: object, where: str = "suite") -> "Suite":
        """The suite that `to_dict` wrote.

        Raises:
            InputError: something else.
        """
        if not isinstance(data, Mapping) or not isinstance(data.get("name"), str):
            raise InputError(f"{where}: expected a suite, got {kind_of(data)}")
        return _suite(data, data["name"], where)


def suite_names() -> tuple[str, ...]:
    """The suites that ship with the package."""
    names = (entry.name for entry in _folder().iterdir())
    return tuple(sorted(name.removesuffix(ENDINGS[0]) for name in names if name.endswith(ENDINGS[0])))


def _folder() -> Any:
    return resources.files("engine") / "data" / "suites"


def load_suite(name: str, seeds: int | None = None, requests: int | None = None) -> Suite:
    """A shipped suite by name, or one of a YAML file by path.

    Args:
        name: what it is called, or its file.
        seeds: instead of its own.
        requests: of each run, instead of its own; with others than its own it is not frozen.

    Raises:
        InputError: no such suite, or a file that holds none.
    """
    suite = _load(name)
    suite = suite if seeds is None else replace(suite, seeds=seeds)
    if requests is None or requests == suite.requests:
        return suite
    return replace(suite, requests=requests, traces={})


def _load(name: str) -> Suite:
    if name in suite_names():
        return _suite(parse_yaml((_folder() / f"{name}{ENDINGS[0]}").read_text(encoding="utf-8"), name), name, name)
    if name.endswith(ENDINGS):
        return _suite(read_yaml(name, "a suite"), name, name)
    raise InputError(f"suite: expected one of {', '.join(suite_names())} or a .yml file, got {name!r:.80}")


def _suite(data: object, name: str, where: str) -> Suite:
    if not isinstance(data, Mapping) or not isinstance(data.get("scenarios"), list):
        raise InputError(f"{where}: expected a mapping with a list of scenarios")
    entries = enumerate(data["scenarios"])
    found = tuple(one for k, entry in entries for one in _entry(entry, f"{where}: scenarios[{k}]"))
    return from_mapping(Suite, {**data, "name": name, "scenarios": found}, where)


def _entry(given: object, where: str) -> Iterator[Scenario]:
    """The scenarios of one entry: one, or one for each of its rates or loads."""
    if isinstance(given, Mapping) and (lists := [key for key in LISTS if key in given]):
        yield from _levels(given, lists, where)
    else:
        yield read_scenario(given, where)


def _levels(given: Mapping[str, Any], lists: list[str], where: str) -> Iterator[Scenario]:
    """A scenario for each value of the list of rates or loads."""
    key, *more = lists
    if more or not isinstance(given[key], list) or not given[key]:
        raise InputError(f"{where}: expected a list of rates or a list of loads")
    plain = Spec.parse(str(given.get("workload", Scenario.workload)))
    for value in given[key]:
        level = f"{_LOAD.check(value, f'{where}: {key}'):g}"
        changes = {"workload": str(plain.with_setting(LISTS[key], level))}
        if "name" in given:
            changes["name"] = f"{given['name']} {level}"
        yield read_scenario({name: one for name, one in given.items() if name != key} | changes, where)


def read_scenarios(given: object, where: str = "scenarios") -> tuple[Scenario, ...]:
    """The scenarios of a suite (by name or file), or of a list of scenarios in any of their forms.

    Raises:
        InputError: something else.
    """
    if isinstance(given, str):
        return load_suite(given).scenarios if given else ()
    if not isinstance(given, list | tuple):
        raise InputError(f"{where}: expected the name of a suite or a list of scenarios, got {given!r:.80}")
    return tuple(read_scenario(one, f"{where}[{k}]") for k, one in enumerate(given))
