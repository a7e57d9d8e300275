"""What a device matrix consists of, as records; their fields are the keys of devices.json."""

from dataclasses import dataclass
from typing import Any

from agents.evaluation import standing
from agents.evaluation.points import Point
from agents.evaluation.statistics import Interval
from agents.work.records import as_file

FORMAT = "llmsched-devices/1"
FULL = 0.995
"""Where the best rival meets the deadlines of this share of the requests, hardly anything is left to win."""


@dataclass(frozen=True)
class Ceiling:
    """What the best policy makes of a device with the requests of one seed."""

    profile: str
    seed: int
    rate: float
    """Requests/s, a multiple of RESOLUTION of the bound; 0: nobody meets the criterion at its lowest multiple."""
    policy: str
    """One that meets the criterion there; "" where nobody does."""

    @property
    def key(self) -> tuple[str, int]:
        """What tells them apart."""
        return self.profile, self.seed


@dataclass(frozen=True)
class Cell:
    """One run: a policy on a device at a share of its capacity with one seed."""

    profile: str
    policy: str
    share: float
    seed: int
    point: Point

    @property
    def key(self) -> tuple[str, str, float, int]:
        """What tells them apart."""
        return self.profile, self.policy, self.share, self.seed


@dataclass(frozen=True)
class Device:
    """A device and what it can carry."""

    profile: str
    num_blocks: int
    """KV blocks of its server."""
    bound: float
    """Requests/s that no scheduler sustains."""
    capacity: Interval
    """Requests/s that the best policy sustains by the sound criterion, over the seeds; 0 where nobody sustains any."""
    by_seed: tuple[float, ...]
    """The same of each seed."""
    best: tuple[str, ...]
    """A policy that sustains it, by seed."""
    notes: tuple[str, ...]
    """Policies that were trained for something else."""


@dataclass(frozen=True, kw_only=True)
class Standing(standing.Standing):
    """How a policy does on a device at one load, over the seeds."""

    profile: str
    share: float

    @property
    def place(self) -> "Place":
        """Where it is."""
        return Place(self.profile, self.share)


@dataclass(frozen=True, order=True)
class Place:
    """A device, a load and, where it is about deadlines, the tier."""

    profile: str
    share: float
    tier: str = ""


@dataclass(frozen=True)
class Balance:
    """What a policy keeps of what is asked of it over all devices and loads."""

    policy: str
    points: int
    """Devices times loads."""
    full: int
    """Points where the best rival meets FULL of the deadlines or more."""
    wins: int
    """Points with more goodput than the best rival for sure ..."""
    loses: int
    """... and with less."""
    behind: tuple[Place, ...]
    """Where it loses more than BEHIND."""
    deadlines: int
    """Points and tiers whose deadline the reference keeps (p99 TBT, mean over the seeds) ..."""
    late: tuple[Place, ...]
    """... and those of them where this policy does not."""

    @property
    def ties(self) -> int:
        """Points with neither."""
        return self.points - self.wins - self.loses


@dataclass(frozen=True)
class DeviceMatrix:
    """What came of it; `to_dict` is what devices.json holds."""

    config: dict[str, Any]
    """The comparison as plain data."""
    config_hash: str
    reference: str
    rivals: tuple[str, ...]
    versions: dict[str, str]
    devices: tuple[Device, ...]
    standings: tuple[Standing, ...]
    """By device, share and policy."""
    balances: tuple[Balance, ...]
    """By policy."""
    ceilings: tuple[Ceiling, ...]
    cells: tuple[Cell, ...]
    """Every run at a share of the capacity."""

    @property
    def seeds(self) -> int:
        """Number of seeds."""
        return int(self.config["seeds"])

    @property
    def tiers(self) -> dict[str, float]:
        """Deadline of each tier between tokens, s."""
        return {tier["name"]: tier["tbt_s"] for tier in self.config["tiers"]}

    @property
    def policies(self) -> tuple[str, ...]:
        """What the policies are called."""
        return tuple(row.policy for row in self.balances)

    def on(self, profile: str) -> list[Standing]:
        """The standings on one device."""
        return [row for row in self.standings if row.profile == profile]

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return as_file(self, FORMAT)
