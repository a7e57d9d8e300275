"""What the scheduler inside vLLM is told: a small JSON file, named by the environment variable LLMSCHED_VLLM.

    {"policy": "slackfit", "profile": "h100-mistral-7b", "log": "steps.csv", "counters": "counters.json"}

The file is read again whenever it has changed and no request is present, so that one engine serves policies in turn.

Who belongs to which tier: a request says so by `extra_args` of its sampling parameters (`vllm_xargs` in the HTTP API),
{"tier": "strict"} or {"tier": 0}, the name of a tier or its place in `tiers`. Without it, a `priority` below 0 puts a
request into the first tier, any other into the last one.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from engine.demand.requests import Tier
from engine.demand.tiers import parse_tiers
from engine.device.latency import DEFAULT_PROFILE
from engine.errors import InputError
from engine.fields import checked, from_mapping
from engine.files.reading import read_json
from engine.ranges import number

VARIABLE = "LLMSCHED_VLLM"
"""Environment variable with the place of the file."""
PROBING = "probe"
"""Label of a run that finds out what batches take: the profile is not to be judged by it."""
STOCK = "stock"
"""The policy that leaves every decision to vLLM."""


@dataclass(frozen=True)
class Settings:
    """What to run, and what to write of it."""

    policy: str = STOCK
    """Spec of a policy (`agents.policies.resolve`), or stock."""
    profile: str = DEFAULT_PROFILE
    """Latency profile of the device: its name or its file."""
    tiers: tuple[dict[str, Any], ...] = field(default=())
    """The tiers of the users, as in a workload; the shares say nothing here."""
    watermark: Annotated[float, number(0.0, 1.0, below=True)] = 0.01
    """Share of the KV blocks that policies leave free when they admit."""
    margin: Annotated[float, number(0.0, 1.0, below=True)] = 0.0
    """Share of every deadline between tokens that policies are not told of: batches take longer than predicted."""
    log: str = ""
    """CSV file with a line for each batch, as `llmsched fit --from vllm-log` takes it; none if empty."""
    counters: str = ""
    """JSON file with what the scheduler counted, written whenever no request is present; none if empty."""
    metrics: str = ""
    """File with these counters as Prometheus reads them, also written every ten seconds; none if empty."""
    label: str = ""
    """What this run is called in these files."""

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            InputError: one is out of range.
        """
        checked(self, "")

    def service_tiers(self) -> tuple[Tier, ...]:
        """The tiers.

        Raises:
            InputError: they do not fit.
        """
        return parse_tiers(self.tiers)

    def told_tiers(self) -> tuple[Tier, ...]:
        """The tiers as policies see them: without the margin of each deadline between tokens.

        Raises:
            InputError: they do not fit.
        """
        tiers = self.service_tiers()
        return tuple(replace(tier, tbt_s=tier.tbt_s * (1.0 - self.margin)) for tier in tiers)

    @classmethod
    def read(cls, path: Path) -> "Settings":
        """The settings in a file.

        Raises:
            InputError: it is not there, no JSON, or has an unknown key or a value that does not fit.
        """
        return from_mapping(cls, read_json(path, "settings of the scheduler inside vLLM"), f"{path}")

    def write(self, path: Path) -> None:
        """Put these settings into a file, at once."""
        temporary = path.with_name(path.name + ".new")
        temporary.write_text(json.dumps(vars(self)) + "\n")
        temporary.replace(path)


class Watched:
    """The settings file of a running engine."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        """Remember where it is.

        Raises:
            InputError: the environment names none.
        """
        if not environment.get(VARIABLE):
            raise InputError(f"{VARIABLE}: expected the place of a settings file, got nothing")
        self.path = Path(environment[VARIABLE])
        self._seen = 0

    def changed(self) -> bool:
        """Whether the file was written since the last time that this was asked."""
        try:
            written = self.path.stat().st_mtime_ns
        except OSError:
            return False
        changed, self._seen = written != self._seen, written
        return changed
