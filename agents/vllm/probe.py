"""Known batches for an engine, so that a profile can be fitted to what it logs of them before any policy runs.

Decodes alone, and beside them prompts of chosen lengths, one at a time as vLLM decides by itself; then prompts in a row
in batches of a few hundred tokens each, as policies make them and vLLM does not.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np

from agents.vllm.cell_files import Sent
from agents.vllm.open_loop import Send, prompts
from agents.vllm.settings import STOCK, Settings

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
_LONG = 4000
"""Output tokens of a decode that is to last."""


class Probe:
    """Sends them.

    Args:
        send: of the engine.
        vocabulary: tokens that the model knows.
        longest: prompt tokens that a batch may have.
        seats: requests that it may have.
    """

    def __init__(self, send: Send, vocabulary: int, longest: int, seats: int) -> None:
        self._send, self._vocabulary, self._longest, self._seats = send, vocabulary, longest, seats
        self._seeds: Iterator[int] = itertools.count()

    async def _serve(self, prompt: int, output: int, began: asyncio.Event | None = None) -> None:
        sent = Sent(0.0, prompt, output, 0)
        (tokens,) = prompts([sent], self._vocabulary, next(self._seeds))
        async for _ in self._send(tokens, sent):
            if began:
                began.set()

    @asynccontextmanager
    async def _decodes(self, count: int) -> AsyncIterator[None]:
        """So many decodes under way."""
        lengths = np.linspace(*_CONTEXTS, max(count, 1), dtype=int)[:count].clip(max=self._longest)
        begun = [asyncio.Event() for _ in lengths]
        tasks = [
            asyncio.create_task(self._serve(int(n), _LONG, event)) for n, event in zip(lengths, begun, strict=True)
        ]
        try:
            await asyncio.gather(*(event.wait() for event in begun))
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def apart(self) -> None:
        """Prompts one at a time, beside more and more decodes."""
        for level in LEVELS:
            if level < self._seats:
                async with self._decodes(level):
                    for length in [n for n in LENGTHS if n + level <= self._longest]:
                        await asyncio.sleep(_QUIET_S)
                        await self._serve(length, 1)

    async def in_a_row(self) -> None:
        """Prompts that come together, alone and beside decodes."""
        for level in (0, min(24, self._seats // 2)):
            async with self._decodes(level):
                await asyncio.sleep(_QUIET_S)
                await asyncio.gather(*(self._serve(min(1500, self._longest), 1) for _ in range(ROW)))

    async def run(self, tell: Callable[[Settings], None], settings: Settings) -> None:
        """All of it; `tell` gives the scheduler its settings, which it reads when no request is present."""
        tell(replace(settings, policy=STOCK))
        await self.apart()
        for budget in [n for n in BUDGETS if n <= self._longest]:
            await asyncio.sleep(_QUIET_S)
            tell(replace(settings, policy=f"sarathi:token_budget={budget}"))
            await self.in_a_row()
