"""`llmsched profile`: measure batches on a real executor, for `llmsched fit`."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from agents.device import profiling
from agents.device.profiling import Limits
from agents.options import ProgressOptions, UpToMillion
from agents.work.files import check_writable, is_stdout, locked
from agents.work.progress import bars
from engine.device.fitting import Clock
from engine.errors import InputError
from engine.extras import need
from engine.ranges import Seed


@dataclass(frozen=True, kw_only=True)
class Command(ProgressOptions):
    """Measure batches on a real executor into a CSV table; an interrupted one goes on where it stopped."""

    executor: str = "transformers"
    """transformers (Mistral-7B on CUDA, random weights), transformers:tiny (CPU), transformers:FOLDER."""
    out: Path = Path("out/profile.csv")
    """The table; beside it OUT.json says what was measured."""
    rounds: UpToMillion = profiling.ROUNDS
    """Times that the whole grid is measured."""
    grid: Limits = field(default_factory=Limits)
    """The batches to measure."""
    clock: Clock = "wall"
    """wall: seconds until a batch's tokens are on the host. device (CUDA): those of the GPU alone, without the time in
    which it waits for this executor's host; `fit --overhead` adds the host of the engine that the profile is for."""
    seed: Seed = 0
    """Draws weights, tokens and the held-out batches."""

    def run(self) -> None:
        """Build, estimate, measure.

        Raises:
            InputError: no such device, a number out of range, a table of something else, or not enough memory.
        """
        if is_stdout(self.out):
            raise InputError(f"out: expected a file, which is added to, got {self.out}")
        check_writable(self.out, self.out.with_name(self.out.name + ".json"))
        with locked(self.out):
            self._measure()

    def _measure(self) -> None:
        need("real", "executor")
        from engine.device.real.executor import make_executor

        executor = make_executor(self.executor, self.grid.capacity_tokens, self.seed)
        provenance = {**executor.provenance(), "clock": self.clock, "date": datetime.now(UTC).date().isoformat()}
        points = profiling.todo(self.out, profiling.grid(self.grid, self.seed), provenance, self.rounds)
        print(f"{len(points)} measurements to make, about {profiling.estimate_s(executor, points, self.clock):.0f} s")
        with bars(self.progress) as progress:
            for done, _ in enumerate(profiling.measure(executor, self.out, points, self.clock)):
                progress("batches", done + 1, len(points))
        print(f"written: {self.out}")
