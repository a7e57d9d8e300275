"""The replicas in front of which routers stand: equal ones, or kinds as a YAML file has them.

    replicas:
      - count: 2
      - count: 2
        profile: rtx6000ada-mistral-7b:speed=3
        server: num_blocks=2x,max_num_seqs=256
        policy: sarathi

What a kind does not say is what the command says for all: policy, profile, and with that profile its limits.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from engine.config import EngineConfig
from engine.device.latency import LatencyModel
from engine.errors import InputError
from engine.fields import checked, from_mapping
from engine.files.reading import kind_of
from engine.files.yaml_text import read_yaml
from engine.ranges import whole
from engine.scenarios.scenario import Scenario

MOST_REPLICAS = 4096


@dataclass(frozen=True)
class Seat:
    """One replica."""

    policy: str
    profile: LatencyModel
    config: EngineConfig

    @property
    def text(self) -> str:
        """Its policy and its device."""
        return f"{self.policy} on {self.profile.name}"

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"policy": self.policy, "profile": asdict(self.profile), "engine": asdict(self.config)}


@dataclass(frozen=True)
class Kind:
    """Replicas that are alike, as a file has them."""

    count: Annotated[int, whole(1, MOST_REPLICAS)] = 1
    """How many."""
    profile: str = ""
    """Their device; empty: the command's, with its limits."""
    server: str = ""
    """What differs from the server of that device (`engine.scenarios.scenario.Scenario.server`)."""
    policy: str = ""
    """What schedules on them; empty: what the command says."""

    def __post_init__(self) -> None:
        """Check the number.

        Raises:
            InputError: it is out of range.
        """
        checked(self, "")

    def seat(self, other: Seat) -> Seat:
        """One of them, where another one says what they do not."""
        policy = self.policy or other.policy
        if not self.profile and not self.server:
            return Seat(policy, other.profile, other.config)
        place = Scenario(profile=self.profile or other.profile.name, server=self.server)
        return Seat(policy, place.model, place.engine)


def equal(count: int, seat: Seat) -> tuple[Seat, ...]:
    """So many replicas that are alike.

    Raises:
        InputError: none, or too many.
    """
    return (seat,) * whole(1, MOST_REPLICAS).check(count, "replicas")


def read_fleet(path: Path, other: Seat) -> tuple[Seat, ...]:
    """The replicas in a file.

    Args:
        path: the YAML file.
        other: says what the kinds do not.

    Raises:
        InputError: no such file, or something else in it.
    """
    return seats_of(read_kinds(path), other, str(path))


def read_kinds(path: str | Path) -> tuple[Kind, ...]:
    """The kinds of replicas in a file.

    Raises:
        InputError: no such file, or something else in it.
    """
    data = read_yaml(path, "a fleet")
    if not isinstance(data, Mapping) or set(data) != {"replicas"}:
        got = f"the keys {', '.join(map(str, data)) or 'none'}" if isinstance(data, Mapping) else kind_of(data)
        raise InputError(f"{path}: expected a mapping with one key, replicas, got {got}")
    if not isinstance(data["replicas"], list):
        raise InputError(f"{path}: replicas: expected a list of kinds, got {kind_of(data['replicas'])}")
    return tuple(from_mapping(Kind, one, f"{path}: replicas[{k}]") for k, one in enumerate(data["replicas"]))


def seats_of(kinds: Sequence[Kind], other: Seat, where: str) -> tuple[Seat, ...]:
    """The replicas of these kinds, one by one.

    Args:
        kinds: in order.
        other: says what they do not.
        where: what a message calls them.

    Raises:
        InputError: none, too many, or a kind that cannot be.
    """
    fleet = tuple(
        seat for k, kind in enumerate(kinds) for seat in (_seat(kind, other, f"{where}: replicas[{k}]"),) * kind.count
    )
    if not 1 <= len(fleet) <= MOST_REPLICAS:
        raise InputError(f"{where}: expected 1 to {MOST_REPLICAS} replicas, got {len(fleet) or 'none'}")
    return fleet


def _seat(kind: Kind, other: Seat, where: str) -> Seat:
    """A replica of a kind; what cannot be is said to be there."""
    try:
        return kind.seat(other)
    except InputError as error:
        raise InputError(f"{where}: {str(error).removeprefix('scenario: ')}") from None


def described(fleet: Sequence[Seat]) -> str:
    """A fleet in a few words."""
    kinds = Counter(seat.text for seat in fleet)
    if len(kinds) == 1:
        return f"{len(fleet)} replicas, each with {fleet[0].policy}"
    return f"{len(fleet)} replicas, {', '.join(f'{count} of {text}' for text, count in kinds.items())}"
