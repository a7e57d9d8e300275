"""`RouterConfig`: everything that makes an environment of a router, as one frozen record."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Annotated, Any, Self, TypeVar

import baselines
from engine.cluster.fleet import Replicas
from engine.cluster.router import Age
from engine.cluster.seats import MOST_REPLICAS, Kind, Seat, equal, read_kinds, seats_of
from engine.demand.predictions import parse_channel
from engine.demand.workload import Workload
from engine.device.latency import DEFAULT_PROFILE
from engine.errors import InputError
from engine.fields import checked, convert, from_mapping
from engine.files.reading import kind_of
from engine.ranges import Rate, Seconds, whole
from engine.scenarios.scenario import Scenario
from llmsched_env.own import read_reward
from llmsched_env.reward import RewardWeights


@dataclass(frozen=True)
class Drain:
    """A replica that is given no request from some time on: it is to be taken away, or fails."""

    replica: Annotated[int, whole(0, MOST_REPLICAS)]
    """Its place."""
    from_s: Seconds = 0.0
    """Time in seconds."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InputError: one is out of range.
        """
        checked(self, "drain")


def _read_fleet(value: object, where: str) -> tuple[Kind, ...]:
    """Kinds of replicas: the file that says them (as `llmsched route --fleet` takes it), or a list of them."""
    if isinstance(value, str):
        return read_kinds(value)
    kinds: tuple[Kind, ...] = convert(value, tuple[Kind, ...], where)
    return kinds


@dataclass(frozen=True)
class RouterConfig:
    """A fleet of servers behind a router as an environment."""

    replicas: Annotated[int, whole(1, MOST_REPLICAS)] = 4
    """How many there are, all alike, where no fleet says otherwise."""
    policy: str = "slai"
    """What schedules on each of them: spec of a baseline with a compiled kernel."""
    profile: str = DEFAULT_PROFILE
    """Latency profile of each: a shipped name, perhaps with changes (h100-mistral-7b:speed=2), or a JSON file."""
    server: str = ""
    """What differs from the server of that device (``num_blocks=2x,max_num_seqs=256``)."""
    fleet: tuple[Kind, ...] = field(default=(), metadata={"read": _read_fleet})
    """Replicas that differ: kinds of them (count, profile, server, policy), or a YAML file with these. What a kind does
    not say is said above."""
    workload: Workload = field(default_factory=lambda: Workload(rate=6.4, num_requests=512))
    """Arrivals, lengths and tiers of an episode; the rate is that of the whole fleet."""
    rates: tuple[Rate, ...] = ()
    """Arrival rates in requests per second, one drawn for each episode (empty: the workload's own rate)."""
    ages: tuple[Age, ...] = (0.0,)
    """Seconds from one report of the replicas to the next, drawn for each episode; 0: reports are as of now."""
    drains: tuple[Drain, ...] = ()
    """Replicas that get no request from some time on."""
    max_steps: Annotated[int, whole(0)] = 0
    """Truncate an episode after this many decisions (0: no limit)."""
    horizon_s: Seconds = 0.0
    """Truncate an episode at this time in seconds (0: no limit)."""
    prediction: str = ""
    """Channel of output-length predictions, one for each request (empty: that of a policy that needs some)."""
    reward: RewardWeights = field(default_factory=lambda: RewardWeights(tbt=0.0), metadata={"read": read_reward})
    """Weights of the reward terms; by default only the wait for first tokens counts."""

    def __post_init__(self) -> None:
        """Check every field, and that they fit together.

        Raises:
            InputError: one of them does not fit.
        """
        checked(self, "router env")
        if self.reward.function:
            raise InputError(f"router env.reward: expected weights, got a function ({self.reward.function})")
        if self.workload.is_closed:
            raise InputError("router env.workload: expected an open loop in front of a router, got a closed one")
        if self.workload.arrivals == "recorded" and self.rates:
            raise InputError(f"router env.rates: expected none with recorded arrivals, got {self.rates}")
        if not self.ages:
            raise InputError("router env.ages: expected at least one, got none")
        if self.channel and parse_channel(self.channel).refreshes:
            raise InputError(
                f"router env.prediction: expected a channel with one prediction per request, got {self.channel!r}"
            )
        self._check_drains()

    def _check_drains(self) -> None:
        """Check that drains name replicas that there are, and leave one."""
        count = len(self.seats)
        for k, drain in enumerate(self.drains):
            if drain.replica >= count:
                raise InputError(f"router env.drains[{k}]: expected a replica 0..{count - 1}, got {drain.replica}")
        if len({drain.replica for drain in self.drains}) == count:
            raise InputError(f"router env.drains: expected one of {count} replicas to stay, got drains of all")

    @cached_property
    def seats(self) -> tuple[Seat, ...]:
        """The replicas, one by one.

        Raises:
            InputError: an unknown profile or limit.
        """
        place = Scenario(profile=self.profile, server=self.server)
        usual = Seat(self.policy, place.model, place.engine)
        return seats_of(self.fleet, usual, "router env.fleet") if self.fleet else equal(self.replicas, usual)

    @cached_property
    def channel(self) -> str:
        """The channel of the predictions that the requests have, "": none.

        Raises:
            InputError: an unknown policy, or policies of which each wants other predictions.
        """
        wanted = dict.fromkeys(filter(None, (baselines.make(seat.policy).channel for seat in self.seats)))
        if self.prediction or not wanted:
            return self.prediction
        if len(wanted) > 1:
            raise InputError(f"router env.prediction: expected one for policies that want {', '.join(wanted)}")
        return next(iter(wanted))

    def build(self) -> Replicas:
        """The replicas with their policies.

        Raises:
            InputError: a policy without a compiled kernel.
        """
        seats = self.seats
        policies = [baselines.make(seat.policy) for seat in seats]
        return Replicas.of(policies, [seat.profile for seat in seats], [seat.config for seat in seats])

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON.

        Raises:
            InputError: the workload holds a length model that is an object, which has no name to save.
        """
        if not isinstance(self.workload.lengths, str):
            raise InputError("router env.workload.lengths: expected a name to be able to save it, got an object")
        return asdict(self)

    @classmethod
    def from_dict(cls, data: object, where: str = "router env") -> Self:
        """Build a configuration from (part of) what `to_dict` gives; what is absent keeps its default.

        Raises:
            InputError: an unknown key, or a value of the wrong kind.
        """
        if not isinstance(data, Mapping):
            raise InputError(f"{where}: expected a mapping, got {kind_of(data)}")
        return from_mapping(cls, data, where)

    def changed(self, changes: Mapping[str, object], further: Sequence[str]) -> Self:
        """This configuration with other values in some fields.

        Args:
            changes: by the name of the field.
            further: keywords that an environment takes besides, for the message.

        Raises:
            InputError: an unknown field, or a value that does not fit.
        """
        known = [one.name for one in fields(self)]
        for name in changes:
            if name not in known:
                raise InputError(f"{name}: unknown keyword, known: {', '.join([*further, *known])}")
        present = {name: getattr(self, name) for name in known}
        return from_mapping(type(self), {**present, **changes}, "router env") if changes else self


C = TypeVar("C", bound=RouterConfig)


def configured(kind: type[C], config: C | None, changes: Mapping[str, object], further: Sequence[str]) -> C:
    """The configuration that the arguments of an environment's constructor describe.

    Args:
        kind: its class.
        config: what the keywords change (None: the defaults).
        changes: fields of it.
        further: keywords that the constructor takes besides, for the message.

    Raises:
        InputError: no such configuration, an unknown keyword, or a value that does not fit.
    """
    if config is not None and type(config) is not kind:
        raise InputError(f"config: expected a {kind.__name__}, got {kind_of(config)}")
    return (config or kind()).changed(changes, further)
