"""A probe of an engine sends known batches, and a plan may ask for the profile that fits them."""

import asyncio
import gzip
import itertools
import json
from collections.abc import AsyncIterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from agents.cli import main
from agents.vllm import probe as probing
from agents.vllm.cell_files import FORMAT, META, PROBE_STEPS, REQUESTS, STEPS, CellFiles, Sent
from agents.vllm.plan import PROBED, PROFILE, Plan
from agents.vllm.probe import BUDGETS, LENGTHS, LEVELS, ROW, Probe
from agents.vllm.results import read_cells
from agents.vllm.settings import STOCK, Settings
from agents.vllm.step_log import COLUMNS, Counters
from engine.device.fitting import Batch, Point, predicted
from engine.device.latency import load_profile
from engine.errors import InputError

MODEL = load_profile("h200-mistral-7b:eager=0.03")
PLAN = Plan(policies=("slackfit",), rates=(4.0,), profile=PROBED)


SHORT = 2


class Engine:
    """Gives a token per turn of the loop; knows who is present, and serves no more than have room."""

    def __init__(self, room: int = 1000) -> None:
        self.room = asyncio.Semaphore(room)
        self.present: list[Sent] = []
        self.probes: list[tuple[int, int]] = []  # prompt, decodes beside it

    async def send(self, prompt: list[int], sent: Sent) -> AsyncIterator[int]:
        assert len(prompt) == sent.prompt
        if sent.output == SHORT:
            self.probes.append((sent.prompt, sum(one.output > SHORT for one in self.present)))
        async with self.room:
            self.present.append(sent)
            try:
                for _ in itertools.repeat(None, sent.output):
                    await asyncio.sleep(0)
                    yield 1
            finally:
                self.present.remove(sent)


def test_prompts_of_every_length_come_beside_every_number_of_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "_QUIET_S", 0.0)
    engine, told = Engine(), []

    def tell(settings: Settings) -> None:
        assert not engine.present
        told.append(settings)

    asyncio.run(Probe(engine.send, 1000, longest=2000, seats=40).run(tell, Settings(log="steps.csv")))
    assert [one.policy for one in told] == [STOCK, *(f"sarathi:token_budget={n}" for n in BUDGETS)]
    assert all(one.log == "steps.csv" for one in told)
    apart = {(n, level) for level in LEVELS if level < 40 for n in LENGTHS if n + level <= 2000}
    assert apart < set(engine.probes)
    assert sum(n == 1500 for n, _ in engine.probes) >= 2 * ROW * len(BUDGETS)
    assert not engine.present


def _log(count: int = 900) -> str:
    """Lines of a step log of a server that is MODEL."""
    rng, lines = np.random.default_rng(0), [",".join(COLUMNS)]
    for k in range(count):
        prompt = int(np.exp(rng.uniform(3, 8.5))) if k % 3 == 0 else 0
        decodes = int(rng.integers(1, 60))
        batch = Batch(((prompt, 0),) if prompt else (), (700,) * decodes)
        seconds = float(predicted(MODEL, [Point("mixed", batch, 1.0)])[0])
        lines.append(f"0.0,{seconds:.6f},{prompt},{decodes},{700 * decodes},1,0,{decodes},0,0,-1,10.0")
    return "\n".join(lines) + "\n"


def test_a_plan_that_was_probed_is_predicted_with_what_was_fitted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, out = tmp_path / "steps.csv", tmp_path / "ab"
    log.write_text(_log())
    files = CellFiles(out)
    assert files.lacks_profile(PLAN)
    files.write_probe(log)
    assert not files.lacks_profile(PLAN)
    assert gzip.decompress((out / PROBE_STEPS).read_bytes()).decode() == log.read_text()
    model = load_profile(str(out / PROFILE))
    assert model.graph_tokens == 512.0
    assert model.eager_floor == pytest.approx(0.03, rel=0.1)

    (out / META).write_text(json.dumps({"format": FORMAT, "plan": asdict(PLAN)}))
    requests = PLAN.requests(PLAN.cells()[0])
    sent = [
        Sent(float(a), int(p), int(o), int(t), float(a), [float(a) + 0.1 + 0.02 * k for k in range(int(o))])
        for a, p, o, t in zip(requests.arrival, requests.prompt, requests.output, requests.tier, strict=True)
    ]
    with gzip.open(out / REQUESTS, "wt") as file, gzip.open(out / STEPS, "wt") as steps:
        steps.write(f"cell,{','.join(COLUMNS)}\n")
        counters = asdict(Counters()) | {
            "limits": {"num_blocks": 20_000, "max_batched_tokens": 8192, "async_scheduling": True}
        }
        head = {"cell": 0, **asdict(PLAN.cells()[0]), "requests": len(sent), "counters": counters}
        file.writelines(json.dumps(line) + "\n" for line in [head, *(one.line() for one in sent)])
    (cell,) = read_cells(out)
    assert cell.settings().profile == str(out / PROFILE)
    assert main(["ab", str(out), "--json", str(tmp_path / "ab.json")]) == 0
    capsys.readouterr()
    written = json.loads((tmp_path / "ab.json").read_text())
    assert written["profile"] == "engine"
    assert written["cells"][0]["predicted"]["mean_ttft_s"] > 0.0


def test_decodes_for_which_there_is_no_room_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "_QUIET_S", 0.0)
    monkeypatch.setattr(probing, "_BEGIN_S", 0.5)
    monkeypatch.setattr(probing, "_LONG", 10**6)
    engine = Engine(room=20)
    asyncio.run(Probe(engine.send, 1000, longest=2000, seats=256, model_len=3 * 10**6).run(lambda _: None, Settings()))
    beside = {level for n, level in engine.probes if n != 1500 and n > LENGTHS[0]}
    assert beside == {level for level in LEVELS if level < 20}
    assert engine.probes[-1] == (LENGTHS[0], 0)  # with it the scheduler writes its log
    assert not engine.present


@pytest.mark.parametrize("fails_from", [0, 30])
def test_an_engine_that_fails_ends_the_probe_in_one_line(fails_from: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "_QUIET_S", 0.0)
    engine, asked = Engine(), itertools.count()

    async def send(prompt: list[int], sent: Sent) -> AsyncIterator[int]:
        if next(asked) >= fails_from:
            raise RuntimeError("engine is dead")
        async for tokens in engine.send(prompt, sent):
            yield tokens

    with pytest.raises(InputError, match="probe: expected an engine that serves known batches, got RuntimeError: engi"):
        asyncio.run(Probe(send, 1000, longest=2000, seats=40).run(lambda _: None, Settings()))
    assert not engine.present


def test_a_plan_may_ask_for_a_probe(tmp_path: Path) -> None:
    PLAN.check()
    assert PLAN.knowing(tmp_path).profile == str(tmp_path / PROFILE)
    named = replace(PLAN, profile="h200-mistral-7b")
    assert named.knowing(tmp_path) is named
    other = replace(named, policies=("slackfit", "one"), variants={"one": {"policy": "slai", "profile": PROBED}})
    with pytest.raises(InputError, match=r"variants\.one: profile: expected a name or a file"):
        other.check()
