"""The device matrix: policies on many devices, each at the same shares of what that device can carry.

The capacity of a device is what the best of the policies makes of it: the largest arrival rate at which one of them
still meets the sound criterion (`engine.runs.metrics`), by bisection on the requests of each seed, mean over the seeds.
Then every policy serves shares of it, and is compared, seed by seed on the same requests, with the best of the rivals
there: the one among them, other than itself, with the most requests per second that met every deadline.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from agents.evaluation.points import bisect, measure
from agents.evaluation.setup import Setup, run_cells
from agents.evaluation.statistics import mean_interval
from agents.studies.devices.judging import balance_of, standings_of
from agents.studies.devices.records import Ceiling, Cell, Device, DeviceMatrix
from agents.work.cells import Keyed, kept_cells
from agents.work.progress import OnProgress, unseen
from agents.work.provenance import config_hash, versions
from engine.device.latency import load_profile, profile_names
from engine.errors import InputError

RESOLUTION = 1.0 / 128.0
"""Width of the last bracket of a capacity, as a share of what no scheduler sustains on the device."""
FIRST = "ceilings.jsonl"
"""File of the stage that comes first."""

Task = TypeVar("Task")
Kept = TypeVar("Kept", bound=Keyed)


def device_names() -> tuple[str, ...]:
    """The shipped profiles of devices that serve models: those that say their KV blocks and the range they hold in."""
    told = {name: load_profile(name).provenance for name in profile_names()}
    return tuple(name for name, about in told.items() if about.get("num_blocks") and about.get("validity"))


def _check_each_once(what: str, given: Sequence[object]) -> None:
    if not given or len(set(given)) < len(given):
        raise InputError(f"{what}: expected at least one, each once, got {', '.join(map(str, given)) or 'none'}")


@dataclass(frozen=True, kw_only=True)
class Devices:
    """Who is compared on which devices, and at which loads."""

    setups: tuple[Setup, ...]
    """One for each device: the same policies, requests and seeds."""
    shares: tuple[float, ...]
    """Arrival rates, as shares of the capacity of each device."""
    rivals: tuple[str, ...]
    """The policies with whose best every one is compared."""

    def __post_init__(self) -> None:
        """Check what the setups do not check themselves.

        Raises:
            InputError: no device or one twice, a share twice, a rival that is not run, or requests whose rate cannot
                be set.
        """
        _check_each_once("profiles", [setup.profile.name for setup in self.setups])
        _check_each_once("shares", self.shares)
        _check_each_once("rivals", self.rivals)
        if loop := self.setups[0].source.closed_loop:
            raise InputError(f"devices: expected an open loop, in which rates can be set; got {loop}")
        for rival in self.rivals:
            if rival not in self.policies:
                raise InputError(f"rivals: expected policies among {', '.join(self.policies)}, got {rival!r}")

    @property
    def policies(self) -> tuple[str, ...]:
        """What the policies are called."""
        return self.setups[0].labels

    @property
    def reference(self) -> str:
        """The policy whose deadlines the others have to keep, too."""
        return str(self.setups[0].reference)

    @property
    def seeds(self) -> range:
        """The seeds."""
        return range(self.setups[0].seeds)

    def to_dict(self) -> dict[str, Any]:
        """JSON form: what is common to all devices, then each with its server."""
        first, *_ = (setup.to_dict() for setup in self.setups)
        devices = [{key: setup.to_dict()[key] for key in ("profile", "engine")} for setup in self.setups]
        common = {key: value for key, value in first.items() if key not in ("profile", "engine")}
        own = {"shares": list(self.shares), "rivals": list(self.rivals), "reference": self.reference}
        return common | own | {"devices": devices}

    def digest(self) -> str:
        """16 hexadecimal digits of the SHA-256 of what the runs depend on: everything but who is compared with whom."""
        return config_hash({key: value for key, value in self.to_dict().items() if key not in ("rivals", "reference")})


class CeilingTask(NamedTuple):
    """One device and seed."""

    setup: Setup
    bound: float
    """Requests/s that no scheduler sustains."""
    seed: int


def find_ceiling(task: CeilingTask) -> Ceiling:
    """Bisect the rate at which some policy still meets the sound criterion."""
    able, best = list(task.setup.labels), [""]

    def meets(rate: float) -> bool:
        for tried, policy in enumerate(able):
            if measure(task.setup, policy, task.seed, rate).sound:
                best[0] = policy
                # Only higher rates follow, which those that failed here do not carry either.
                del able[:tried]
                return True
        return False

    rate = bisect(meets, 0.0, task.bound, RESOLUTION * task.bound)
    return Ceiling(task.setup.profile.name, task.seed, rate, best[0])


class CellTask(NamedTuple):
    """What a cell is measured of."""

    setup: Setup
    policy: str
    share: float
    rate: float
    """Requests/s."""
    seed: int


def run_cell(task: CellTask) -> Cell:
    """Serve one load and seed on a device with one policy."""
    point = measure(task.setup, task.policy, task.seed, task.rate)
    return Cell(task.setup.profile.name, task.policy, task.share, task.seed, point)


@dataclass(frozen=True)
class _Work:
    """How the pieces of a comparison are run and kept."""

    devices: Devices
    workers: int
    folder: Path | None
    resume: bool
    progress: OnProgress

    def run(
        self, stage: str, name: str, kind: type[Kept], function: Callable[[Task], Kept], tasks: Mapping[Hashable, Task]
    ) -> list[Kept]:
        """The pieces of one stage in their order, with those that the file of this name already has."""
        path = self.folder and self.folder / name
        # An interruption may have come before a later stage began.
        resumes = self.resume and (name == FIRST or (path is not None and path.exists()))
        with kept_cells(path, self.devices.digest(), kind, resumes) as file:
            on_cell = partial(self.progress, stage)
            return run_cells(self.devices.setups[0], function, tasks, file, workers=self.workers, on_cell=on_cell)


def compare_devices(
    devices: Devices,
    *,
    workers: int = 1,
    folder: Path | None = None,
    resume: bool = False,
    progress: OnProgress = unseen,
) -> DeviceMatrix:
    """Find the capacity of every device, then run every policy at shares of it.

    Args:
        devices: who is compared on what.
        workers: processes; the result is the same for any number.
        folder: keep finished work in ceilings.jsonl and cells.jsonl there.
        resume: take what these already have.
        progress: called after each piece of work.

    Raises:
        InputError: bad input, or kept work of another configuration.
        PolicyError: a policy broke the rules.
    """
    for setup in devices.setups:
        setup.check(None)
    work = _Work(devices, workers, folder, resume, progress)
    bounds = {setup.profile.name: _bound(setup) for setup in devices.setups}
    ceilings = _find_ceilings(work, bounds)
    about = tuple(_device(setup, bounds[setup.profile.name], ceilings) for setup in devices.setups)
    cells = _run_cells(work, about)
    deadlines = {tier.name: tier.tbt_s for tier in devices.setups[0].source.tiers}
    standings = tuple(standings_of(cells, devices.rivals, deadlines))
    return DeviceMatrix(
        config=devices.to_dict(),
        config_hash=devices.digest(),
        reference=devices.reference,
        rivals=devices.rivals,
        versions=versions(),
        devices=about,
        standings=standings,
        balances=tuple(balance_of(standings, policy, devices.reference) for policy in devices.policies),
        ceilings=tuple(ceilings),
        cells=tuple(cells),
    )


def _bound(setup: Setup) -> float:
    bound = setup.bound(None)
    if bound is None:
        raise InputError(f"profiles: expected devices on which requests take time, got {setup.profile.name!r}")
    return bound


def _find_ceilings(work: _Work, bounds: Mapping[str, float]) -> list[Ceiling]:
    """The capacity of every device and seed."""
    order = product(work.devices.setups, work.devices.seeds)
    tasks: dict[Hashable, CeilingTask] = {
        (setup.profile.name, seed): CeilingTask(setup, bounds[setup.profile.name], seed) for setup, seed in order
    }
    return work.run("capacity of the devices", FIRST, Ceiling, find_ceiling, tasks)


def _device(setup: Setup, bound: float, ceilings: Sequence[Ceiling]) -> Device:
    found = [ceiling for ceiling in ceilings if ceiling.profile == setup.profile.name]
    return Device(
        profile=setup.profile.name,
        num_blocks=setup.config.num_blocks,
        bound=bound,
        capacity=mean_interval([ceiling.rate for ceiling in found]),
        by_seed=tuple(ceiling.rate for ceiling in found),
        best=tuple(ceiling.policy for ceiling in found),
        notes=tuple(setup.training_remarks(None)),
    )


def _run_cells(work: _Work, about: Sequence[Device]) -> list[Cell]:
    """Every policy on every device at every share with every seed; none on a device that carries nothing."""
    devices = work.devices
    pairs = [(setup, one) for setup, one in zip(devices.setups, about, strict=True) if one.capacity.mean > 0.0]
    order = [
        CellTask(setup, policy, share, share * one.capacity.mean, seed)
        for (setup, one), share, seed in product(pairs, devices.shares, devices.seeds)
        for policy in setup.policies
    ]
    tasks: dict[Hashable, CellTask] = {
        (task.setup.profile.name, str(task.policy), task.share, task.seed): task for task in order
    }
    return work.run("cells", "cells.jsonl", Cell, run_cell, tasks)
