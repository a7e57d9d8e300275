"""Options that say which replicas stand behind a router."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from agents.policies import resolve
from engine.cluster.seats import MOST_REPLICAS, Seat, equal, read_fleet
from engine.errors import InputError
from engine.ranges import whole


@dataclass(frozen=True, kw_only=True)
class FleetOptions:
    """Options of the commands that have several servers."""

    replicas: Annotated[int, whole(1, MOST_REPLICAS)] | None = None
    """How many replicas, all alike."""
    fleet: Path | None = None
    """YAML file with kinds of replicas instead: {replicas: [{count: 2}, {count: 2, profile: NAME:speed=3, server:
    num_blocks=2x, policy: sarathi}]}; what a kind does not say is as in the options."""

    def seats(self, seat: Seat, usual: int = 1) -> tuple[Seat, ...]:
        """The replicas.

        Args:
            seat: says what a file does not.
            usual: how many there are if nobody says it.

        Raises:
            InputError: both options, or a file that holds something else.
        """
        if self.fleet is None:
            return equal(usual if self.replicas is None else self.replicas, seat)
        if self.replicas is not None:
            raise InputError("replicas, fleet: expected one of them, got both")
        fleet = read_fleet(self.fleet, seat)
        for policy in {one.policy for one in fleet} - {seat.policy}:
            try:
                resolve(policy)
            except InputError as error:
                raise InputError(f"{self.fleet}: {error}") from None
        return fleet
