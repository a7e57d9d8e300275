"""The files of an A/B: what was asked for and on what, each request as it was served, each batch as it was scheduled.

- `meta.json`: the plan, the machine, the versions.
- `requests.jsonl.gz`: for each cell a line with the cell and what the scheduler counted, then one for each request.
- `probe.csv.gz`, `profile.json`: what the scheduler logged of a probe (`agents.vllm.probe`), and what was fitted to it.
- `steps.csv.gz`: what the scheduler logged of each batch, the number of the cell first.

A cell is written when it is complete; a run that finds cells goes on behind them, if they are of a plan that differs in
what is measured only.
"""

import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from agents.vllm.fitted import profile_of
from agents.vllm.plan import PROBED, PROFILE, Cell, Plan
from agents.vllm.step_log import COLUMNS
from engine.errors import InputError
from engine.fields import from_mapping
from engine.files.reading import read_mapping

FORMAT = "llmsched-ab/1"
_SAME = ("num_requests", "lengths", "tiers", "model", "engine", "profile", "margin")
"""Fields of a plan that are the same in all runs into one folder."""
REQUESTS, STEPS, META = "requests.jsonl.gz", "steps.csv.gz", "meta.json"
PROBE_STEPS = "probe.csv.gz"


@dataclass
class Sent:
    """What became of a request; times in s from the start of the cell."""

    due: float
    prompt: int
    output: int
    tier: int
    sent: float = 0.0
    times: list[float] = field(default_factory=list)
    """When each output token came."""
    error: str = ""

    def line(self) -> dict[str, Any]:
        """As it is written: gaps between tokens in units of 0.1 ms."""
        gaps = np.rint(1e4 * np.diff(self.times)).astype(int).tolist()
        first = round(self.times[0], 6) if self.times else None
        finish = round(self.times[-1], 6) if len(self.times) == self.output else None
        told = {"due": round(self.due, 6), "sent": round(self.sent, 6), "first": first, "finish": finish}
        found = told | {"prompt": self.prompt, "output": self.output, "tier": self.tier, "gaps": gaps}
        return found | ({"error": self.error} if self.error else {})


def read_meta(folder: Path) -> dict[str, Any]:
    """What `META` says.

    Raises:
        InputError: no such folder, or one of something else.
    """
    meta = read_mapping(folder / META, "what an A/B wrote")
    if meta.get("format") != FORMAT or not isinstance(meta.get("plan"), dict):
        raise InputError(f"{folder / META}: expected format {FORMAT!r} and a plan, got {meta.get('format')!r}")
    return meta


def read_lines(path: Path) -> list[str]:
    """The lines of a compressed file.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with gzip.open(path, "rt") as file:
            return file.read().splitlines()
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise InputError(f"{path}: cannot read ({error})") from None


class CellFiles:
    """The files of an A/B in a folder, which is made."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder

    def heads(self) -> list[dict[str, Any]]:
        """The heads of the cells that are there.

        Raises:
            InputError: the file is not one of ours, or its end is missing.
        """
        if not (self.folder / REQUESTS).exists():
            return []
        return [head for head in map(json.loads, read_lines(self.folder / REQUESTS)) if "cell" in head]

    def missing(self, cells: Sequence[Cell]) -> list[tuple[int, Cell]]:
        """Those of these cells that are not there, with the numbers that they will have."""
        heads = self.heads()
        done = {(head["policy"], head["rate"], head["seed"]) for head in heads}
        left = [cell for cell in cells if (cell.policy, cell.rate, cell.seed) not in done]
        steps = read_lines(self.folder / STEPS)[1:] if (self.folder / STEPS).exists() else []
        cut_off = (int(line.partition(",")[0]) for line in steps[-1:])  # a cell without requests
        return list(enumerate(left, 1 + max([*(head["cell"] for head in heads), *cut_off], default=-1)))

    def lacks_profile(self, plan: Plan) -> bool:
        """Whether a plan asks for a profile that fits a probe, and there is none yet."""
        return plan.profile == PROBED and not (self.folder / PROFILE).exists()

    def write_meta(self, plan: Plan, about: Mapping[str, Any]) -> None:
        """Write the plan, and on what it is run.

        Raises:
            InputError: as `check`.
        """
        if old := self.check(plan):
            there, server = read_meta(self.folder).get("server"), about.get("server")
            if there != server:
                raise InputError(
                    f"{self.folder}: server: expected {there} as for the cells that are there, got {server}"
                )
            others = [name for name in old.policies if name not in plan.policies]
            plan = replace(plan, policies=(*plan.policies, *others), variants={**old.variants, **plan.variants})
        text = json.dumps({"format": FORMAT, "plan": asdict(plan), **about}, indent=1)
        (self.folder / META).write_text(text + "\n")

    def check(self, plan: Plan) -> Plan | None:
        """Make sure that the cells that are there are of the same requests, engine and settings; their plan.

        Raises:
            InputError: they are not, or the folder is one of something else.
        """
        if not (self.folder / META).exists():
            return None
        old = from_mapping(Plan, read_meta(self.folder)["plan"], f"{self.folder / META}: plan")
        told = [{name: one.settings(name) for name in {*plan.policies} & {*old.policies}} for one in (plan, old)]
        pairs = [(name, getattr(plan, name), getattr(old, name)) for name in _SAME]
        for name, new, there in [*pairs, ("settings", *told)]:
            if new != there:
                raise InputError(f"{self.folder}: {name}: expected {there} as for the cells that are there, got {new}")
        return old

    def write_probe(self, log: Path) -> None:
        """Keep the log of a probe, and fit the profile of the engine to it.

        Raises:
            InputError: too few batches.
        """
        if not log.exists():
            raise InputError(f"{self.folder}: expected the log of a probe, got none (vLLM's scheduler wrote nothing)")
        text = log.read_text()
        profile = profile_of(text, "engine")
        with gzip.open(self.folder / PROBE_STEPS, "wt") as file:
            file.write(text)
        profile.save(self.folder / PROFILE)

    def write(self, number: int, cell: Cell, sent: Sequence[Sent], counters: Path | None, log: Path | None) -> None:
        """Add a cell; of a server without our scheduler there are no counters and there is no log.

        Raises:
            InputError: the scheduler did not run the policy of the cell.
        """
        if counters and not counters.exists():
            raise InputError(
                f"{cell.policy}: expected vLLM's scheduler to run it, got settings that it refused (see its log)"
            )
        counted = json.loads(counters.read_text()) if counters else None
        head = {"cell": number, **asdict(cell), "requests": len(sent), "counters": counted}
        lines = log.read_text().splitlines()[1:] if log else []
        is_new = not (self.folder / STEPS).exists()
        with gzip.open(self.folder / STEPS, "at") as steps:
            if is_new:
                steps.write(f"cell,{','.join(COLUMNS)}\n")
            steps.writelines(f"{number},{line}\n" for line in lines)
        with gzip.open(self.folder / REQUESTS, "at") as file:
            file.writelines(json.dumps(line) + "\n" for line in [head, *(one.line() for one in sent)])
