"""`python -m agents.vllm replay PLAN.json OUT`: serve the same arrivals with each policy in one vLLM engine.

No HTTP: one `AsyncLLM` in this process, its engine core in another one, random weights, prompts of random tokens.
Requests are sent when they are due, whatever has become of those before (open loop). In OUT afterwards:

- `meta.json`: the plan, the machine, the versions.
- `requests.jsonl.gz`: for each cell a line with the cell and what the scheduler counted, then one for each request.
- `steps.csv.gz`: what the scheduler logged of each batch, the number of the cell first.

A cell is written when it is complete; a run that finds cells in OUT goes on behind them.
"""

import asyncio
import gzip
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from agents.vllm.plan import Cell, Plan
from agents.vllm.settings import VARIABLE, Settings
from agents.vllm.versions import check_version
from engine.demand.requests import Requests
from engine.errors import InputError

FORMAT = "llmsched-ab/1"
REQUESTS, STEPS, META = "requests.jsonl.gz", "steps.csv.gz", "meta.json"
_COMMAND = "python -m agents.vllm replay"
_SPARE_S = 15.0
"""No cell begins that would not have as much time left as its arrivals take, and so many seconds."""


def finished_cells(out: Path) -> list[dict[str, Any]]:
    """The heads of the cells in a folder."""
    if not (out / REQUESTS).exists():
        return []
    with gzip.open(out / REQUESTS, "rt") as file:
        return [head for head in map(json.loads, file) if "cell" in head]


@dataclass
class Sent:
    """What became of a request; times in s from the start of the cell."""

    due: float
    sent: float
    prompt: int
    output: int
    tier: int
    times: list[float]
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


class Engine(Protocol):
    """What is used of `vllm.v1.engine.async_llm.AsyncLLM`."""

    def generate(self, prompt: dict[str, list[int]], sampling_params: object, request_id: str) -> AsyncIterator[Any]:
        """The outputs of a request as they come."""

    def shutdown(self) -> None:
        """The end."""


class Replay:
    """Sends the requests of cells to an engine."""

    def __init__(self, engine: Engine, plan: Plan, out: Path, scratch: Path, vocabulary: int) -> None:
        self.engine, self.plan, self.out, self.vocabulary = engine, plan, out, vocabulary
        self.settings, self.scratch = Path(os.environ[VARIABLE]), scratch
        self._number = 0

    async def _send(self, prompt: list[int], sent: Sent, start: float) -> None:
        """One request, from the time that it is due."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        await asyncio.sleep(max(0.0, start + sent.due - time.monotonic()))
        params = SamplingParams(
            temperature=0.0,
            max_tokens=sent.output,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            extra_args={"tier": sent.tier},
        )
        self._number += 1
        sent.sent = time.monotonic() - start
        try:
            async for got in self.engine.generate({"prompt_token_ids": prompt}, params, f"r{self._number}"):
                now = time.monotonic() - start
                sent.times += [now] * len(got.outputs[0].token_ids)
        except Exception as error:
            sent.error = f"{type(error).__name__}: {error}"

    def _prompts(self, lengths: np.ndarray, seed: int) -> list[list[int]]:
        rng = np.random.default_rng([seed, 17])
        return [rng.integers(3, self.vocabulary, n).tolist() for n in lengths]

    async def warm(self) -> None:
        """A few requests that do not count, so that everything is compiled."""
        sent = [Sent(0.02 * k, 0.0, n, 8, 0, []) for k, n in enumerate((16, 300, 40, 700))]
        prompts = self._prompts(np.array([one.prompt for one in sent]), 1)
        start = time.monotonic()
        await asyncio.gather(*(self._send(p, one, start) for p, one in zip(prompts, sent, strict=True)))
        if failed := [one.error for one in sent if one.error]:
            raise RuntimeError(failed[0])

    async def cell(self, cell: Cell, requests: Requests, number: int, until: float) -> bool:
        """Serve a cell and write it; False if the time was over before that."""
        files = {kind: self.scratch / f"{number}.{kind}" for kind in ("csv", "json")}
        for file in files.values():
            file.unlink(missing_ok=True)
        settings = Settings(cell.policy, self.plan.profile, self.plan.tiers, label="warm-up")
        settings.write(self.settings)
        await self.warm()
        log, counters = str(files["csv"]), str(files["json"])
        replace(settings, log=log, counters=counters, label=str(number)).write(self.settings)
        rows = zip(requests.arrival, requests.prompt, requests.output, requests.tier, strict=True)
        sent = [Sent(float(a - requests.arrival[0]), 0.0, int(p), int(o), int(t), []) for a, p, o, t in rows]
        prompts = self._prompts(requests.prompt, cell.seed)
        start = time.monotonic() + 0.1
        tasks = [asyncio.create_task(self._send(p, one, start)) for p, one in zip(prompts, sent, strict=True)]
        _, open_ones = await asyncio.wait(tasks, timeout=max(1.0, until - time.monotonic()))
        for task in open_ones:
            task.cancel()
        await asyncio.gather(*open_ones, return_exceptions=True)
        if open_ones:
            return False
        self._write(cell, sent, files, number)
        return True

    def _write(self, cell: Cell, sent: list[Sent], files: dict[str, Path], number: int) -> None:
        counters = json.loads(files["json"].read_text())
        head = {"cell": number, **asdict(cell), "requests": len(sent), "counters": counters}
        lines = files["csv"].read_text().splitlines()
        with gzip.open(self.out / STEPS, "at") as steps:
            if number == 0:
                steps.write(f"cell,{lines[0]}\n")
            steps.writelines(f"{number},{line}\n" for line in lines[1:])
        with gzip.open(self.out / REQUESTS, "at") as file:
            file.writelines(json.dumps(line) + "\n" for line in [head, *(one.line() for one in sent)])


def _engine(plan: Plan, scratch: Path) -> Engine:
    """The engine, which reads its settings from a file in `scratch`."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    settings = scratch / "settings.json"
    os.environ[VARIABLE] = str(settings)
    Settings(profile=plan.profile, tiers=plan.tiers).write(settings)
    given = {
        "model": str(plan.model_folder(scratch).absolute()),
        "skip_tokenizer_init": True,
        "load_format": "dummy",
        "dtype": "bfloat16",
        "max_model_len": 8448,
        "enable_prefix_caching": False,
        "scheduler_cls": "agents.vllm.scheduler.PolicyScheduler",
        "disable_log_stats": True,
    }
    engine: Engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**(given | plan.engine)))
    return engine


def _machine() -> dict[str, Any]:
    import torch
    import vllm

    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"
    return {"device": device, "vllm": vllm.__version__, "torch": torch.__version__, "cores": os.cpu_count()}


async def _run(plan: Plan, out: Path) -> None:
    began = time.monotonic()
    until = began + plan.limit_s
    out.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="llmsched-ab-"))
    engine = _engine(plan, scratch)
    config = json.loads((plan.model_folder(scratch) / "config.json").read_text())
    replay = Replay(engine, plan, out, scratch, config["vocab_size"])
    print(f"engine up after {time.monotonic() - began:.0f} s", flush=True)
    try:
        await replay.warm()
        heads = finished_cells(out)
        (out / META).write_text(json.dumps({"format": FORMAT, "plan": asdict(plan), **_machine()}, indent=1) + "\n")
        done = {(head["policy"], head["rate"], head["seed"]) for head in heads}
        number = 1 + max((head["cell"] for head in heads), default=-1)
        for cell in plan.cells():
            requests = plan.requests(cell)
            if (cell.policy, cell.rate, cell.seed) in done:
                continue
            cell_began = time.monotonic()
            if cell_began + float(requests.arrival[-1] - requests.arrival[0]) + _SPARE_S > until:
                print(f"no time left for {cell}", flush=True)
                break
            if not await replay.cell(cell, requests, number, until):
                print(f"time was over in {cell}", flush=True)
                break
            print(f"{number}: {cell} {time.monotonic() - cell_began:.1f} s", flush=True)
            number += 1
    finally:
        engine.shutdown()


def main(arguments: list[str]) -> int:
    """Run a plan; returns the exit code."""
    try:
        if len(arguments) != 2:
            raise InputError(f"{_COMMAND}: expected PLAN.json OUT, got {len(arguments)} arguments")
        plan = Plan.read(Path(arguments[0]))
        plan.check()
        check_version(_COMMAND)
    except InputError as error:
        print(f"llmsched: {error}", file=sys.stderr)
        return 2
    asyncio.run(_run(plan, Path(arguments[1])))
    return 0
