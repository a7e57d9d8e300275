"""Requests are sent when they are due, whatever has become of those before, for as long as there is a server."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import numpy as np

from agents.vllm.cell_files import Sent
from engine.demand.requests import Requests

Prompt = list[int]
"""Token ids."""
Send = Callable[[Prompt, Sent], AsyncIterator[int]]
"""Sends a request now, and says how many output tokens came each time that some did."""
Check = Callable[[], Awaitable[None]]
"""Raises an `InputError` if the server is gone; asked when a request fails."""
WARM_UP = ((0.0, 16), (0.02, 300), (0.04, 40), (0.06, 700))
"""Times (s) and prompt tokens of requests that do not count, so that everything is compiled."""


def sent_of(requests: Requests) -> list[Sent]:
    """What is to be sent, the first request at 0 s."""
    rows = zip(requests.arrival, requests.prompt, requests.output, requests.tier, strict=True)
    return [Sent(float(a - requests.arrival[0]), int(p), int(o), int(t)) for a, p, o, t in rows]


def prompts(sent: Sequence[Sent], vocabulary: int, seed: int) -> list[Prompt]:
    """Random tokens for each request, the same ones for the same seed."""
    rng = np.random.default_rng([seed, 17])
    return [rng.integers(3, vocabulary, one.prompt).tolist() for one in sent]


async def _one(send: Send, check: Check, prompt: Prompt, sent: Sent, start: float) -> None:
    await asyncio.sleep(max(0.0, start + sent.due - time.monotonic()))
    sent.sent = time.monotonic() - start
    try:
        async for tokens in send(prompt, sent):
            sent.times += [time.monotonic() - start] * tokens
    except Exception as error:
        sent.error = f"{type(error).__name__}: {' '.join(str(error).split())}"
        await check()


async def serve(send: Send, check: Check, given: Sequence[Prompt], sent: Sequence[Sent], within_s: float) -> bool:
    """Send all requests and wait for their tokens, which are kept in `sent`; False if that took too long.

    Raises:
        InputError: the server is gone; what was still to be sent is not.
    """
    start, pairs = time.monotonic() + 0.1, zip(given, sent, strict=True)
    tasks = [asyncio.create_task(_one(send, check, prompt, one, start)) for prompt, one in pairs]
    done, open_ones = await asyncio.wait(tasks, timeout=within_s, return_when=asyncio.FIRST_EXCEPTION)
    for task in open_ones:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for gone in filter(None, (task.exception() for task in done)):
        raise gone
    return not open_ones


async def warm(send: Send, check: Check, vocabulary: int) -> None:
    """Send a few requests that do not count.

    Raises:
        InputError: the server is gone.
        RuntimeError: one of them was not served.
    """
    sent = [Sent(due, prompt, 8, 0) for due, prompt in WARM_UP]
    await serve(send, check, prompts(sent, vocabulary, 1), sent, 600.0)
    if failed := [one.error or "no tokens" for one in sent if one.error or not one.times]:
        raise RuntimeError(failed[0])
