"""Requests to a server with OpenAI's API, streamed: `/v1/completions` of vLLM, with prompts of token ids."""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

from agents.vllm.cell_files import Sent
from agents.vllm.open_loop import Prompt
from engine.errors import InputError

if TYPE_CHECKING:
    from aiohttp import ClientSession

_EVENT, _DONE = b"data: ", b"[DONE]"
_CONNECT_S, _CHECK_S = 10.0, 60.0
KEEP_S = 2.0
"""A connection that was idle for longer is not used again: vLLM closes it after 5 s, maybe while a request is sent."""


class Completions(NamedTuple):
    """A server that can be reached."""

    session: "ClientSession"
    url: str
    model: str

    async def send(self, prompt: Prompt, sent: Sent) -> AsyncGenerator[int, None]:
        """Send a request now; how many tokens came each time.

        Raises:
            RuntimeError: the server refuses it.
        """
        asked = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": sent.output,
            "ignore_eos": True,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            "vllm_xargs": {"tier": sent.tier},
        }
        there = 0
        async with self.session.post(f"{self.url}/v1/completions", json=asked) as response:
            if response.status != 200:
                raise RuntimeError(f"status {response.status}: {(await response.text())[:200]}")
            async for line in response.content:
                if line.startswith(_EVENT) and not line.startswith(_EVENT + _DONE):
                    now = _tokens(line[len(_EVENT) :])
                    if now > there:
                        yield now - there
                        there = now

    async def check(self) -> None:
        """Make sure that the server is still there.

        Raises:
            InputError: it is not.
        """
        await _get(self.session, f"{self.url}/health")


def _tokens(event: bytes) -> int:
    """Output tokens that there are by an event of the stream.

    Raises:
        RuntimeError: it is an error, or does not say so.
    """
    found = json.loads(event)
    if "error" in found:
        raise RuntimeError(f"{found['error']}")
    if not found.get("usage"):
        raise RuntimeError("expected usage in every event of the stream (stream_options of vLLM), got one without it")
    return int(found["usage"]["completion_tokens"])


async def _get(session: "ClientSession", url: str) -> str:
    from aiohttp import ClientError, ClientTimeout

    try:
        async with session.get(url, timeout=ClientTimeout(total=_CHECK_S)) as response:
            text, status = await response.text(), response.status
    except (ClientError, OSError, ValueError) as error:
        raise InputError(f"{url}: expected a server that answers, got {type(error).__name__} ({error})") from None
    if status != 200:
        raise InputError(f"{url}: expected a server that answers, got status {status}")
    return text


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Completions]:
    """The server at an address such as http://127.0.0.1:8000.

    Raises:
        InputError: nobody answers there, or somebody else.
    """
    from aiohttp import ClientSession, ClientTimeout, TCPConnector

    connector, timeout = (
        TCPConnector(limit=0, keepalive_timeout=KEEP_S),
        ClientTimeout(total=None, sock_connect=_CONNECT_S),
    )
    async with ClientSession(connector=connector, timeout=timeout) as session:
        place = f"{url.rstrip('/')}/v1/models"
        text = await _get(session, place)
        try:
            model = json.loads(text)["data"][0]["id"]
        except (ValueError, LookupError, TypeError):
            raise InputError(f"{place}: expected the models of a server with OpenAI's API, got {text[:60]!r}") from None
        yield Completions(session, url.rstrip("/"), model)
