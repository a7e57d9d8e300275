"""An A/B over HTTP: the same arrivals to servers that are started in turn, or that are there already."""

import asyncio
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from agents.vllm import serve as servers
from agents.vllm.cell_files import CellFiles, Sent
from agents.vllm.completions import Completions, connected
from agents.vllm.open_loop import prompts, sent_of, serve, warm
from agents.vllm.plan import PLAIN, Cell, Plan
from agents.vllm.probe import probe
from agents.vllm.settings import Settings
from engine.errors import InputError

_MOST_S = 3600.0
Tell = Callable[[str], None]
"""Takes a line about what has been done."""


class _Watched(NamedTuple):
    """A server that we have started with our scheduler: it is told what to do by a file, and says what it did."""

    settings: Path

    def files(self, number: int) -> tuple[Path, Path]:
        """Of the counters and of the log of a cell."""
        return self.settings.with_name(f"{number}.json"), self.settings.with_name(f"{number}.csv")


async def _cell(
    server: Completions, watched: _Watched | None, plan: Plan, number: int, cell: Cell, files: CellFiles
) -> list[Sent]:
    """Serve a cell and write it.

    Raises:
        InputError: the server does not answer, or goes away meanwhile.
    """
    counters, log = watched.files(number) if watched else (None, None)
    settings = plan.settings(cell.policy, "warm-up")
    if watched:
        settings.write(watched.settings)
    try:
        await warm(server.send, server.check, plan.vocabulary())
    except RuntimeError as error:
        raise InputError(f"{server.url}: expected a server of this model, got {error}") from None
    if watched:
        replace(settings, log=str(log), counters=str(counters), label=str(number)).write(watched.settings)
    sent = sent_of(plan.requests(cell))
    within_s = _MOST_S + sent[-1].due
    if not await serve(server.send, server.check, prompts(sent, plan.vocabulary(), cell.seed), sent, within_s):
        raise InputError(f"{server.url}: expected all answers within {within_s:.0f} s, got fewer")
    if not any(one.times for one in sent):
        raise InputError(f"{server.url}: expected tokens, got none ({sent[0].error})")
    files.write(number, cell, sent, counters, log)
    return sent


async def _cells(
    url: str, watched: _Watched | None, plan: Plan, cells: Sequence[tuple[int, Cell]], files: CellFiles, tell: Tell
) -> None:
    async with connected(url) as server:
        if watched and files.lacks_profile(plan):
            await probe(server.send, plan, watched.settings, files)
            tell("probed, and a profile fitted")
        plan = plan.knowing(files.folder)
        for number, cell in cells:
            began = time.monotonic()
            sent = await _cell(server, watched, plan, number, cell, files)
            failed = [one.error for one in sent if one.error]
            said = f", {len(failed)} failed: {failed[0]}" if failed else ""
            tell(f"{cell.policy} at {cell.rate:g}/s, seed {cell.seed}: {time.monotonic() - began:.0f} s{said}")


def at_urls(plan: Plan, urls: Sequence[str], out: Path, tell: Tell) -> None:
    """Send the plan's requests to servers that are there; what they run is called by their addresses.

    Raises:
        InputError: one cannot be reached, or is given twice.
    """
    if len(set(urls)) < len(urls):
        raise InputError(f"urls: expected each once, got {' '.join(urls)}")
    asked = replace(plan, policies=tuple(urls))
    files = CellFiles(out)
    missing = files.missing(asked.cells())
    files.write_meta(asked, {"server": "given"})
    for number, cell in missing:
        asyncio.run(_cells(cell.policy, None, plan, [(number, cell)], files, tell))


def in_turn(plan: Plan, vllm: str, out: Path, tell: Tell) -> None:
    """Start vLLM without our scheduler for the cells of `PLAIN`, with it for all others, and serve them.

    Raises:
        InputError: the plan cannot be run, or a server does not come up or goes away.
    """
    plan.check()
    files = CellFiles(out)
    missing = files.missing(plan.cells())
    files.write_meta(plan, {"server": "vllm serve"})
    with tempfile.TemporaryDirectory(prefix="llmsched-ab-") as folder:
        scratch = Path(folder)
        model = plan.model_folder(scratch).absolute()
        for ours in (False, True):
            cells = [(number, cell) for number, cell in missing if plan.is_plain(cell.policy) is not ours]
            if not cells:
                continue
            settings, port = scratch / "settings.json", servers.free_port()
            Settings(tiers=plan.tiers).write(settings)
            words = servers.command(vllm, plan, model, port, ours)
            with servers.running(words, port, settings, out / f"server-{'ours' if ours else PLAIN}.log") as url:
                asyncio.run(_cells(url, _Watched(settings) if ours else None, plan, cells, files, tell))
