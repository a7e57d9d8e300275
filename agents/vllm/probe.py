"""Known batches for an engine, so that a profile can be fitted to what it logs of them before any policy runs.

Decodes alone, and beside them prompts of chosen lengths, one at a time as vLLM decides by itself; then prompts in a row
in batches of a few hundred tokens each, as policies make them and vLLM does not.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from agents.vllm.cell_files import CellFiles, Sent
from agents.vllm.open_loop import Send, prompts
from agents.vllm.plan import MODEL_LEN, Plan
from agents.vllm.settings import PROBING, STOCK, Settings
from engine.errors import InputError

LEVELS = (0, 1, 4, 12, 32, 96)
"""Decodes beside the prompts."""
LENGTHS = (16, 48, 96, 160, 256, 384, 480, 560, 640, 768, 960, 1200, 1500, 1800, 2400, 3200, 4800, 7000)
"""Tokens of the prompts."""
BUDGETS = (320, 640, 1024, 1536)
"""Tokens of a batch, where prompts come in a row."""
ROW = 12
"""So many prompts."""
_CONTEXTS = (200, 2200)
"""Prompt tokens of the decodes, evenly spread."""
_QUIET_S = 0.06
"""Pause before a prompt, so that decodes run alone."""
_BEGIN_S = 20.0
"""Decodes that are not under way by then have no room."""
_LONG, _SHORT = 4000, 2
"""Output tokens of a decode that is to last, and of a prompt."""
_WRITTEN_S = 0.5
"""Until the scheduler has written its log."""


async def _all(events: Sequence[asyncio.Event]) -> None:
    for event in events:
        await event.wait()


class Probe:
    """Sends them.

    Args:
        send: of the engine.
        vocabulary: tokens that the model knows.
        longest: prompt tokens that a batch may have.
        seats: requests that it may have.
        model_len: longest prompt and output.
    """

    def __init__(self, send: Send, vocabulary: int, longest: int, seats: int, model_len: int = MODEL_LEN) -> None:
        self._send, self._vocabulary, self._seats, self._model_len = send, vocabulary, seats, model_len
        self._longest = min(longest, model_len - 8)
        self._seeds: Iterator[int] = itertools.count()

    async def _serve(self, prompt: int, output: int, began: asyncio.Event | None = None) -> None:
        sent = Sent(0.0, prompt, output, 0)
        (tokens,) = prompts([sent], self._vocabulary, next(self._seeds))
        async for _ in self._send(tokens, sent):
            if began:
                began.set()

    @asynccontextmanager
    async def _decodes(self, count: int) -> AsyncIterator[bool]:
        """So many decodes under way; False: they are not, there is no room for all of them.

        Raises:
            Exception: what the engine says.
        """
        lengths = np.linspace(*_CONTEXTS, max(count, 1), dtype=int)[:count].clip(max=self._model_len // 4)
        output = min(_LONG, self._model_len // 2)
        begun = [asyncio.Event() for _ in lengths]
        tasks = [
            asyncio.create_task(self._serve(int(n), output, event)) for n, event in zip(lengths, begun, strict=True)
        ]
        waiting = asyncio.create_task(_all(begun))
        try:
            await asyncio.wait({waiting, *tasks}, timeout=_BEGIN_S, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
            yield waiting.done()
        finally:
            for task in (waiting, *tasks):
                task.cancel()
            await asyncio.gather(waiting, *tasks, return_exceptions=True)

    async def apart(self) -> None:
        """Prompts one at a time, beside more and more decodes."""
        for level in [n for n in LEVELS if n < self._seats]:
            async with self._decodes(level) as is_under_way:
                if not is_under_way:
                    return
                for length in [n for n in LENGTHS if n + level <= self._longest]:
                    await asyncio.sleep(_QUIET_S)
                    await self._serve(length, _SHORT)

    async def in_a_row(self) -> None:
        """Prompts that come together, alone and beside decodes."""
        for level in (0, min(24, self._seats // 2)):
            async with self._decodes(level) as is_under_way:
                if not is_under_way:
                    return
                await asyncio.sleep(_QUIET_S)
                await asyncio.gather(*(self._serve(min(1500, self._longest), _SHORT) for _ in range(ROW)))

    @classmethod
    def of(cls, send: Send, plan: Plan) -> "Probe":
        """The probe of an engine that serves a plan."""
        longest = int(plan.engine.get("max_num_batched_tokens", LENGTHS[-1] + LEVELS[-1]))
        seats = int(plan.engine.get("max_num_seqs", LEVELS[-1] + 1))
        return cls(send, plan.vocabulary(), longest, seats, int(plan.engine.get("max_model_len", MODEL_LEN)))

    async def run(self, tell: Callable[[Settings], None], settings: Settings) -> None:
        """All of it; `tell` gives the scheduler its settings, which it reads when no request is present.

        Raises:
            InputError: the engine fails.
        """
        try:
            tell(replace(settings, policy=STOCK))
            await self.apart()
            for budget in [n for n in BUDGETS if n <= self._longest]:
                await asyncio.sleep(_QUIET_S)
                tell(replace(settings, policy=f"sarathi:token_budget={budget}"))
                await self.in_a_row()
            await asyncio.sleep(_QUIET_S)
            await self._serve(LENGTHS[0], _SHORT)  # the scheduler writes its log when its last request has ended
            await asyncio.sleep(_WRITTEN_S)
        except Exception as error:
            said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise InputError(f"probe: expected an engine that serves known batches, got {said}") from None


async def probe(send: Send, plan: Plan, settings: Path, files: CellFiles) -> None:
    """Run known batches, and write what the scheduler logged of them with the profile that fits it.

    Args:
        send: of the engine.
        plan: that it serves.
        settings: the file that its scheduler reads.
        files: of the A/B.

    Raises:
        InputError: the engine fails, or too few batches were logged.
    """
    log = settings.with_name("probe.csv")
    await Probe.of(send, plan).run(lambda told: told.write(settings), Settings(log=str(log), label=PROBING))
    files.write_probe(log)
