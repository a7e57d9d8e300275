"""`python -m agents.vllm replay PLAN.json OUT`: serve the same arrivals with each policy in one vLLM engine.

No HTTP: one `AsyncLLM` in this process, its engine core in another one, random weights, prompts of random tokens. Where
all policies of the plan are plain it runs vLLM's own scheduler, or the one that the plan's `engine` names. What it
writes: `agents.vllm.cell_files`.
"""

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from agents.vllm.cell_files import CellFiles, Sent
from agents.vllm.open_loop import Prompt, prompts, sent_of, serve, warm
from agents.vllm.plan import MODEL_LEN, PLAIN, Cell, Plan
from agents.vllm.probe import probe
from agents.vllm.serve import OURS
from agents.vllm.settings import VARIABLE, Settings
from agents.vllm.versions import check_version
from engine.demand.requests import Requests
from engine.errors import InputError

_COMMAND = "python -m agents.vllm replay"
_SPARE_S = 15.0
"""No cell begins that would not have as much time left as its arrivals take, and so many seconds."""


class Engine(Protocol):
    """What is used of `vllm.v1.engine.async_llm.AsyncLLM`."""

    def generate(self, prompt: dict[str, list[int]], sampling_params: object, request_id: str) -> AsyncIterator[Any]:
        """The outputs of a request as they come."""

    async def check_health(self) -> None:
        """Raise whatever says that the engine is dead."""

    def shutdown(self) -> None:
        """The end."""


class Replay:
    """Sends the requests of cells to an engine."""

    def __init__(self, engine: Engine, plan: Plan, files: CellFiles, scratch: Path, vocabulary: int) -> None:
        self.engine, self.plan, self.files, self.vocabulary = engine, plan, files, vocabulary
        self.settings, self.scratch = Path(os.environ[VARIABLE]), scratch
        self._number = 0

    async def send(self, prompt: Prompt, sent: Sent) -> AsyncIterator[int]:
        """Send a request now; how many tokens came each time."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            temperature=0.0,
            max_tokens=sent.output,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            extra_args={"tier": sent.tier},
        )
        self._number += 1
        async for got in self.engine.generate({"prompt_token_ids": prompt}, params, f"r{self._number}"):
            yield len(got.outputs[0].token_ids)

    async def check(self) -> None:
        """Make sure that the engine is alive.

        Raises:
            InputError: it is not.
        """
        try:
            await self.engine.check_health()
        except Exception as error:
            raise InputError(f"{_COMMAND}: expected an engine that lives, got {type(error).__name__}") from None

    async def cell(self, cell: Cell, requests: Requests, number: int, until: float) -> bool:
        """Serve a cell and write it; False if the time was over before that."""
        log, counters = (self.scratch / f"{number}.{kind}" for kind in ("csv", "json"))
        for file in (log, counters):
            file.unlink(missing_ok=True)
        settings, is_ours = self.plan.settings(cell.policy, "warm-up"), not self.plan.is_plain(cell.policy)
        settings.write(self.settings)
        await warm(self.send, self.check, self.vocabulary)
        replace(settings, log=str(log), counters=str(counters), label=str(number)).write(self.settings)
        sent = sent_of(requests)
        given = prompts(sent, self.vocabulary, cell.seed)
        if not await serve(self.send, self.check, given, sent, max(1.0, until - time.monotonic())):
            return False
        self.files.write(number, cell, sent, counters if is_ours else None, log if is_ours else None)
        return True


def _engine(plan: Plan, scratch: Path) -> Engine:
    """The engine, which reads its settings from a file in `scratch`."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    settings = scratch / "settings.json"
    os.environ[VARIABLE] = str(settings)
    Settings(tiers=plan.tiers).write(settings)
    given = {
        "model": str(plan.model_folder(scratch).absolute()),
        "skip_tokenizer_init": True,
        "load_format": "dummy",
        "dtype": "bfloat16",
        "max_model_len": MODEL_LEN,
        "enable_prefix_caching": False,
        "disable_log_stats": True,
    }
    if not plan.is_plain(plan.policies[0]):
        given["scheduler_cls"] = OURS
    engine: Engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**(given | plan.engine)))
    return engine


def _machine() -> dict[str, Any]:
    import torch
    import vllm

    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"
    return {"device": device, "vllm": vllm.__version__, "torch": torch.__version__, "cores": os.cpu_count()}


async def _run(plan: Plan, files: CellFiles, scratch: Path) -> None:
    began = time.monotonic()
    until = began + plan.limit_s
    files.check(plan)
    engine = _engine(plan, scratch)
    replay = Replay(engine, plan, files, scratch, plan.vocabulary())
    print(f"engine up after {time.monotonic() - began:.0f} s", flush=True)
    try:
        await warm(replay.send, replay.check, replay.vocabulary)
        files.write_meta(plan, _machine())
        if files.lacks_profile(plan) and not plan.is_plain(plan.policies[0]):
            await probe(replay.send, plan, replay.settings, files)
        replay.plan = plan.knowing(files.folder)
        for number, cell in files.missing(plan.cells()):
            requests = plan.requests(cell)
            cell_began = time.monotonic()
            if cell_began + float(requests.arrival[-1] - requests.arrival[0]) + _SPARE_S > until:
                print(f"no time left for {cell}", flush=True)
                break
            if not await replay.cell(cell, requests, number, until):
                print(f"time was over in {cell}", flush=True)
                break
            print(f"{number}: {cell} {time.monotonic() - cell_began:.1f} s", flush=True)
    finally:
        engine.shutdown()


def main(arguments: list[str]) -> int:
    """Run a plan; returns the exit code."""
    try:
        if len(arguments) != 2:
            raise InputError(f"{_COMMAND}: expected PLAN.json OUT, got {len(arguments)} arguments")
        plan = Plan.read(Path(arguments[0]))
        plan.check()
        if len({plan.is_plain(policy) for policy in plan.policies}) > 1:
            raise InputError(f"policies: expected {PLAIN} in a plan of its own, since one engine runs all of a plan")
        check_version(_COMMAND)
        with tempfile.TemporaryDirectory(prefix="llmsched-ab-", ignore_cleanup_errors=True) as scratch:
            asyncio.run(_run(plan, CellFiles(Path(arguments[1])), Path(scratch)))
    except InputError as error:
        print(f"llmsched: {error}", file=sys.stderr)
        return 2
    return 0
