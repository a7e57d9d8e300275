"""`Scenario`: one world, a device, the limits of its server and the requests that come to it.

The one form in which environments, evaluations and searches say where a policy acts. A person writes it as text,

    WORKLOAD[@PROFILE[@SERVER]]    poisson:load=0.8,lengths=fixed:512,64@h100-mistral-7b:speed=2@num_blocks=4x

or as a mapping of the fields below in YAML (`engine.scenarios.suite`), where it can have tiers and a name, too.

The load is an arrival rate (``rate=1.8``, requests/s) or a share of what the server carries (``load=0.8``): of the
`capacity` that the scenario states, else of the rate that no scheduler sustains (`engine.device.bounds`), which takes
no simulation. A rate, or a share of a stated capacity, is the same whatever becomes of the code; a share of the bound
moves when the bound is sharpened, so that what is to be compared over the years states its capacity.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from typing import Annotated, Any

from engine.config import EngineConfig
from engine.demand.requests import DEFAULT_TIERS, Tier
from engine.demand.tiers import parse_tiers
from engine.demand.workload import Workload, fields_said, parse_workload
from engine.device.bounds import capacity_bound, least_seconds
from engine.device.latency import DEFAULT_PROFILE, LatencyModel, load_profile
from engine.device.memory import server_of
from engine.errors import InputError
from engine.fields import checked, from_mapping, types_of
from engine.ranges import number
from engine.spec import Spec, parse_value, read_settings

SAMPLE = 2000
"""Requests, drawn from seed 0, whose lengths stand for all where a load is a share of the bound."""
AT = "@"
"""Between the parts of a scenario that is written as text."""
_FACTOR = number(0.0, 1e6, above=True)


@dataclass(frozen=True)
class Scenario:
    """One world: requests, a device, its server."""

    workload: str = "poisson"
    """Arrivals and lengths (`engine.demand.workload.parse_workload`); ``load=SHARE`` for ``rate=`` becomes `load`."""
    profile: str = DEFAULT_PROFILE
    """Latency profile: a shipped name, perhaps with changes (h100-mistral-7b:speed=2,mixed=2), or a .json file."""
    server: str = ""
    """What differs from the server of that device (`engine.device.memory.server_of`): settings of `EngineConfig`,
    ``max_num_seqs=256,num_blocks=4x``; a number with an x is a multiple of the device's own."""
    tiers: tuple[Tier, ...] = field(default=DEFAULT_TIERS, metadata={"read": parse_tiers})
    """Service tiers."""
    load: Annotated[float, number(0.0, 1e3)] = 0.0
    """Arrival rate as a share of what the server carries; 0: the rate of the workload."""
    capacity: Annotated[float, number(0.0, 1e9)] = 0.0
    """Requests/s of which `load` is a share; 0: the rate that no scheduler sustains."""
    name: str = ""
    """What it is called; empty: its text."""

    def __post_init__(self) -> None:
        """Check every field, and that the parts fit.

        Raises:
            InputError: an unknown workload, profile or limit, a load beside a rate, or a capacity without a load.
        """
        checked(self, "scenario")
        self._take_load()
        if self.load and "rate" in fields_said(self.workload):
            raise InputError(f"scenario: workload: expected a rate or a load, got both in {self.text!r}")
        if self.capacity and not self.load:
            raise InputError("scenario: capacity: expected a load that is a share of it, got none")
        if not self.name:
            object.__setattr__(self, "name", self.text)
        self._check_parts()

    def _take_load(self) -> None:
        """Move a load that stands in the workload to its field."""
        spec = Spec.parse(self.workload)
        if "load" not in spec.given:
            return
        given = read_settings(spec.rest, f"workload {self.workload!r}", None, commas=True)
        if self.load:
            raise InputError(f"scenario: load: expected once, got it in the workload {self.workload!r} and beside it")
        range_ = number(0.0, 1e3, above=True)
        object.__setattr__(self, "load", float(range_.parse(given.pop("load"), "scenario: load")))
        rest = ",".join(f"{key}={value}" for key, value in given.items())
        object.__setattr__(self, "workload", str(Spec(spec.name, rest)))

    def _check_parts(self) -> None:
        workload = parse_workload(self.workload, self.tiers)
        if self.load and not workload.process.has_rate:
            raise InputError(f"scenario: load: expected arrivals with a rate, got {workload.arrivals!r}")
        if "num_requests" in Spec.parse(self.workload).given:
            raise InputError("scenario: num_requests: expected none, since who runs it says how many; got some")
        _ = self.engine

    @property
    def text(self) -> str:
        """The scenario as it is written; its tiers and its capacity are not in it."""
        workload = Spec.parse(self.workload)
        if self.load:
            workload = Spec(workload.name, ",".join(filter(None, (f"load={self.load:g}", workload.rest))))
        parts = [str(workload), self.profile, self.server]
        if not self.server:
            del parts[2:]
            if self.profile == DEFAULT_PROFILE:
                del parts[1:]
        return AT.join(parts)

    @property
    def model(self) -> LatencyModel:
        """The latency model of the device."""
        return load_profile(self.profile)

    @property
    def engine(self) -> EngineConfig:
        """The server: that of the device, with the changes."""
        return changed_server(server_of(self.model), self.server)

    @property
    def rate(self) -> float:
        """Arrival rate in requests/s."""
        return self.load * self.carries if self.load else parse_workload(self.workload).rate

    @property
    def carries(self) -> float:
        """What `load` is a share of: the stated capacity, or the rate that no scheduler sustains."""
        return self.capacity or _bound(self.workload, self.profile, self.server)

    def requests(self, count: int) -> Workload:
        """The workload of so many requests, at the scenario's rate."""
        return replace(parse_workload(self.workload, self.tiers), rate=self.rate, num_requests=count)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: the fields that differ from their default."""
        default = {own.name: own.default for own in fields(self)}
        given = {name: value for name, value in vars(self).items() if name in default and value != default[name]}
        return given | ({"tiers": [vars(tier) for tier in self.tiers]} if "tiers" in given else {})


def changed_server(server: EngineConfig, text: str) -> EngineConfig:
    """A server with the settings of a text, ``max_num_seqs=256,num_blocks=4x``.

    Raises:
        InputError: no field of `EngineConfig`, or a value that does not fit.
    """
    kinds = types_of(EngineConfig, with_ranges=True)
    given = read_settings(text, "scenario: server", kinds)
    changes: dict[str, Any] = {}
    for key, value in given.items():
        where = f"scenario: server: {key}"
        if value.endswith("x") and isinstance(own := getattr(server, key), int) and not isinstance(own, bool):
            changes[key] = max(1, math.floor(_FACTOR.parse(value[:-1], where) * own))
        else:
            changes[key] = parse_value(value, kinds[key], where)
    return server.replace(**changes)


@lru_cache(maxsize=1024)
def _bound(workload: str, profile: str, server: str) -> float:
    """Requests/s that no scheduler sustains.

    Raises:
        InputError: there is no such rate: requests need no time on this device.
    """
    model = load_profile(profile)
    requests = replace(parse_workload(workload), num_requests=SAMPLE).generate(0)
    bound = capacity_bound(least_seconds(model, changed_server(server_of(model), server), requests))
    if bound is None:
        raise InputError(f"scenario: load: expected a device on which requests take time, got {profile!r}")
    return bound


def read_scenario(given: object, where: str = "scenario") -> Scenario:
    """A scenario from its text, a mapping of its fields, or itself.

    Raises:
        InputError: something else, or parts that do not fit.
    """
    if isinstance(given, Scenario):
        return given
    if isinstance(given, Mapping):
        return from_mapping(Scenario, given, where)
    if not isinstance(given, str) or not given:
        raise InputError(f"{where}: expected WORKLOAD[@PROFILE[@SERVER]] or a mapping of its fields, got {given!r:.80}")
    workload, profile, server, *more = [*given.split(AT), "", ""]
    if any(more):
        raise InputError(f"{where}: expected WORKLOAD[@PROFILE[@SERVER]], got {given!r:.80}")
    given = {"workload": workload, "profile": profile or DEFAULT_PROFILE, "server": server}
    return from_mapping(Scenario, given, where)
