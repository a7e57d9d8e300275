"""Policies steer vLLM's scheduler: what they plan runs, what they hold does not, and where they fail vLLM decides."""

import json
import random
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.device.importing.vllm_log import iterations
from agents.vllm.settings import PROBING, VARIABLE, Settings
from agents.vllm.shadow import Flight
from agents.vllm.steering import tier_of
from engine.errors import InputError
from engine.server.features import EMPTY, add
from tests.agents.vllm.failing import RAISES, UNREADABLE
from tests.agents.vllm.fake import Core, FakePolicyScheduler, FakeRequest, FakeScheduler

POLICIES = ("sarathi:token_budget=128", "slai:token_budget=128", "slackfit", "pretrained")
AMPLE, SHORT = 1000, 150


class Watching(FakePolicyScheduler):
    """Remembers what was held and planned in each step, and compares the shadow with the server."""

    steps: list[tuple[set[str], int, Any]]

    def _check(self, output: Any, arranged: Any, note: Any) -> None:
        super()._check(output, arranged, note)
        held = {request.request_id for request in arranged.held}
        self.__dict__.setdefault("steps", []).append((held, arranged.budget, output))

    def _plan(self) -> Any:
        steps = super()._plan()
        rows = self._shadow.view.request
        for request in (*self.running, *self.waiting):
            r, coming = rows[self._shadow.index[request.request_id]], request.num_output_placeholders
            assert r["generated"] == request.num_output_tokens + coming
            if request in self.running:
                decodes = r["prefilled"] == r["prompt"]
                assert (r["length"] - 1 if decodes else r["prefilled"]) == request.num_computed_tokens
            else:
                assert r["prefilled"] == 0
        return steps


Make = Callable[..., Any]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes a scheduler that runs a policy, with its files in `tmp_path`."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "settings.json"))

    def make_one(policy: str, cls: type = Watching, **limits: int) -> Any:
        log, counters = tmp_path / "steps.csv", tmp_path / "counters.json"
        Settings(policy=policy, log=str(log), counters=str(counters)).write(tmp_path / "settings.json")
        return cls(**limits)

    return make_one


def serve(scheduler: Any, count: int = 50, aborts: float = 0.0) -> tuple[list[FakeRequest], list[Any]]:
    """Let requests come and be served to the end; some are aborted. Returns them and every batch."""
    rng, core = random.Random(1), Core(scheduler)
    requests = [FakeRequest(f"r{k}", rng.randint(1, 900), rng.randint(1, 60), tier=k % 2) for k in range(count)]
    come, alive = 0, True
    while alive or come < count:
        if come < count and rng.random() < 0.3:
            scheduler.add_request(requests[come])
            come += 1
        if scheduler.requests and rng.random() < aborts:
            scheduler.finish(rng.choice(list(scheduler.requests)))
        alive = core.step()
        assert len(core.outputs) < 50_000
    return requests, core.outputs


def counters(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "counters.json").read_text()))


@pytest.mark.parametrize("blocks", [AMPLE, SHORT])
def test_stock_decides_as_vllm_does(make: Make, blocks: int) -> None:
    ours, theirs = make("stock", blocks=blocks), FakeScheduler(blocks=blocks)
    batches = [[one.num_scheduled_tokens for one in serve(scheduler)[1]] for scheduler in (ours, theirs)]
    assert batches[0] == batches[1]


@pytest.mark.parametrize("blocks", [AMPLE, SHORT])
@pytest.mark.parametrize("policy", POLICIES)
def test_what_is_planned_runs_and_what_is_held_does_not(make: Make, tmp_path: Path, policy: str, blocks: int) -> None:
    scheduler = make(policy, blocks=blocks)
    requests, _ = serve(scheduler)
    assert all(request.num_output_tokens == request.max_tokens for request in requests)
    assert scheduler.free == blocks
    for held, budget, output in scheduler.steps:
        assert not held & set(output.num_scheduled_tokens)
        assert output.total_num_scheduled_tokens <= budget
    found = counters(tmp_path)
    assert found["decided"] >= found["steps"] > 0
    assert [found[name] for name in ("fallbacks", "passed", "stalled", "held_ran", "over_budget", "rebuilt")] == [0] * 6
    if blocks == AMPLE:
        assert found["under_plan"] == 0 == found["preemptions"]


def test_decodes_are_held(make: Make, tmp_path: Path) -> None:
    serve(make("slai:token_budget=128"))
    assert counters(tmp_path)["held"] > 0


def test_where_a_policy_raises_vllm_decides(make: Make, tmp_path: Path) -> None:
    file = tmp_path / "raises.py"
    file.write_text(RAISES)
    requests, _ = serve(make(f"{file}:Raises:every=3"))
    found = counters(tmp_path)
    assert all(request.num_output_tokens == request.max_tokens for request in requests)
    assert found["fallbacks"] == pytest.approx((found["fallbacks"] + found["decided"]) / 3, abs=1)
    assert "not this time" in found["last_error"]
    assert found["rebuilt"] == 0


def test_aborted_requests_leave_nothing_behind(make: Make, tmp_path: Path) -> None:
    scheduler = make("slackfit", blocks=SHORT)
    requests, _ = serve(scheduler, 150, aborts=0.2)
    assert sum(request.num_output_tokens < request.max_tokens for request in requests) > 50
    assert scheduler.free == SHORT
    assert not scheduler.running
    found = counters(tmp_path)
    assert (found["fallbacks"], found["rebuilt"], found["held_ran"]) == (0, 0, 0)


def test_nothing_is_lost_under_a_policy_that_fails_and_many_aborts(make: Make, tmp_path: Path) -> None:
    file = tmp_path / "raises.py"
    file.write_text(RAISES)
    scheduler, rng = (
        make(f"{file}:Raises", cls=FakePolicyScheduler, seats=128, budget=2048, blocks=3000),
        random.Random(2),
    )
    core, count = Core(scheduler), 10_000
    requests = [FakeRequest(f"r{k}", rng.randint(1, 200), rng.randint(1, 6), tier=k % 2) for k in range(count)]
    come, aborted, steps, alive = 0, 0, 0, True
    while alive or come < count:
        for request in requests[come : come + 4 if len(scheduler.requests) < 200 else come]:
            scheduler.add_request(request)
            come += 1
        if steps % 100 == 99:  # at once, in all states, while two batches are under way
            gone = rng.sample(list(scheduler.requests), min(50, len(scheduler.requests)))
            aborted += len(gone)
            for name in gone:
                scheduler.finish(name)
        alive = core.step()
        steps += 1
        assert steps < 50_000
    found = counters(tmp_path)
    assert aborted >= 250
    assert sum(request.num_output_tokens == request.max_tokens for request in requests) >= count - aborted
    assert all(request.status == "finished" for request in requests)
    assert (scheduler.free, scheduler.running, len(scheduler.waiting)) == (3000, [], 0)
    assert found["fallbacks"] == pytest.approx((found["fallbacks"] + found["decided"]) / 3, abs=1)
    assert (found["held_ran"], found["over_budget"], found["rebuilt"]) == (0, 0, 0)


def test_where_a_plan_holds_nan_vllm_decides(make: Make, tmp_path: Path) -> None:
    file = tmp_path / "unreadable.py"
    file.write_text(UNREADABLE)
    requests, _ = serve(make(f"{file}:Unreadable:every=4"))
    found = counters(tmp_path)
    assert all(request.num_output_tokens == request.max_tokens for request in requests)
    assert found["fallbacks"] == pytest.approx((found["fallbacks"] + found["decided"]) / 4, abs=1)
    assert (found["held_ran"], found["rebuilt"]) == (0, 0)


def test_margin_shortens_the_deadlines_that_a_policy_sees(make: Make, tmp_path: Path) -> None:
    make("slackfit")
    Settings(policy="slackfit", margin=0.2).write(tmp_path / "settings.json")
    scheduler = FakePolicyScheduler()
    for tier in (0, 1):
        scheduler.add_request(FakeRequest(f"r{tier}", 5, 5, tier=tier))
    assert scheduler._shadow.view.request["tbt"][:2].tolist() == pytest.approx([0.08, 0.4])


@pytest.mark.parametrize(("speed", "label", "says"), [(1.0, "", False), (0.25, "", True), (0.25, PROBING, False)])
def test_a_profile_of_another_engine_is_told_once(
    speed: float, label: str, says: bool, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    make("slackfit", cls=FakePolicyScheduler)
    Settings("slackfit", label=label, counters=str(tmp_path / "counters.json")).write(tmp_path / "settings.json")
    scheduler = FakePolicyScheduler()
    end = scheduler._shadow.end
    monkeypatch.setattr(
        scheduler._shadow, "end", lambda flight, _: end(flight, flight_end(scheduler, flight, flight.predicted / speed))
    )
    with caplog.at_level("WARNING"):
        for _ in range(2):
            serve(scheduler, 30)
    told = [record.getMessage() for record in caplog.records if "probe this engine" in record.getMessage()]
    assert len(told) == says
    decodes, prompts = counters(tmp_path)["over_predicted"]
    assert decodes == pytest.approx(1.0 / speed, rel=0.05)
    assert prompts == pytest.approx(1.0 / speed, rel=0.05)


def flight_end(scheduler: Any, flight: Any, seconds: float) -> float:
    """When a batch ends that took so long."""
    return float(max(flight.start, scheduler._shadow.last_end)) + seconds


def test_a_shadow_that_differs_is_made_anew(make: Make, tmp_path: Path) -> None:
    scheduler = make("slackfit", cls=FakePolicyScheduler)
    core, rng = Core(scheduler), random.Random(3)
    requests = [FakeRequest(f"r{k}", rng.randint(1, 500), 30) for k in range(20)]
    for request in requests:
        scheduler.add_request(request)
    for k in range(400):
        if k in (5, 20):
            scheduler._shadow.leave(rng.choice(list(scheduler._shadow.index)))
        if not core.step():
            break
    assert all(request.num_output_tokens == 30 for request in requests)
    found = counters(tmp_path)
    assert (found["rebuilt"], found["fallbacks"]) == (2, 0)


def test_full_shadow_is_made_anew(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.vllm.steering.CAPACITY", 60)
    requests, _ = serve(make("slackfit"), 300)
    assert all(request.num_output_tokens == request.max_tokens for request in requests)
    found = counters(tmp_path)
    assert found["rebuilt"] > 3
    assert found["decided"] > found["fallbacks"]


def test_policy_changes_while_nobody_is_there(make: Make, tmp_path: Path) -> None:
    scheduler = make("stock")
    serve(scheduler, 5)
    for policy, refused in (("slackfit", 0), ("no-such-policy", 1)):
        Settings(policy=policy, counters=str(tmp_path / "counters.json")).write(tmp_path / "settings.json")
        serve(scheduler, 5)
        found = counters(tmp_path)
        assert (found["policy"], found["refused"], found["decided"] > 0) == ("slackfit", refused, True)


BROKEN = """
from dataclasses import dataclass
from engine import Policy

@dataclass(frozen=True)
class Broken(Policy):
    name = "broken"

    def memory(self, config, num_requests):
        raise KeyError("no memory")

    def plan(self, view, memory, plan):
        pass
"""


def test_settings_that_do_not_fit_leave_those_of_before(make: Make, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    (tmp_path / "file").touch()
    scheduler = make("slackfit")
    for refused, told in enumerate(
        ({"policy": f"{tmp_path}/broken.py:Broken"}, {"policy": "stock", "log": str(tmp_path / "file" / "steps.csv")}),
        1,
    ):
        (tmp_path / "settings.json").write_text(json.dumps(told))
        requests, _ = serve(scheduler, 5)
        assert all(request.num_output_tokens == request.max_tokens for request in requests)
        found = counters(tmp_path)
        assert (found["policy"], found["refused"], found["fallbacks"]) == ("slackfit", refused, 0)


def test_files_that_cannot_be_written_lose_no_request(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("log", "counters", "metrics"):
        (tmp_path / name).mkdir()
    make("slackfit")
    files = {name: str(tmp_path / name) for name in ("log", "counters", "metrics")}
    (tmp_path / "settings.json").write_text(json.dumps({"policy": "slackfit"} | files))
    monkeypatch.setattr("agents.vllm.step_log.METRICS_S", 0.0)
    scheduler = FakePolicyScheduler()
    requests, outputs = serve(scheduler)
    assert all(request.num_output_tokens == request.max_tokens for request in requests)
    assert scheduler._log.count.unwritten > len(outputs) / 2
    assert (scheduler._log.count.fallbacks, scheduler._log.count.rebuilt) == (0, 0)


def test_metrics_are_the_counters(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make("slackfit")
    counted, metrics = tmp_path / "counters.json", tmp_path / "metrics.prom"
    Settings(policy="slackfit", counters=str(counted), metrics=str(metrics)).write(tmp_path / "settings.json")
    monkeypatch.setattr("agents.vllm.step_log.METRICS_S", 0.0)
    scheduler = FakePolicyScheduler()
    core, request = Core(scheduler), FakeRequest("r", 100, 30)
    scheduler.add_request(request)
    while request.num_output_tokens < 10:
        core.step()
    assert "llmsched:steps_total" in metrics.read_text()  # while a request is present
    while core.step():
        pass
    lines = [line for line in metrics.read_text().splitlines() if not line.startswith("# TYPE llmsched:")]
    found = {name.partition("{")[0]: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}
    assert all(line.partition("{")[2].startswith('policy="slackfit"} ') for line in lines)
    for name, value in asdict(scheduler._log.count).items():
        assert found[f"llmsched:{name}_total"] == value == counters(tmp_path)[name]
    assert found["llmsched:decision_seconds_count"] >= found["llmsched:steps_total"] == 30
    assert found["llmsched:decision_seconds_sum"] > 0.0


def test_log_is_one_that_a_profile_can_be_fitted_to(make: Make, tmp_path: Path) -> None:
    _, outputs = serve(make("slackfit"))
    batches = [batch for batch, _ in iterations(tmp_path / "steps.csv")[0]]
    tokens = sum(one.total_num_scheduled_tokens for one in outputs)
    assert sum(batch.tokens for batch in batches) == tokens


@pytest.mark.parametrize(("tier", "priority", "expected"), [("strict", 0, 0), (1, -1, 1), (None, -1, 0), (None, 0, 1)])
def test_tier_of_a_request(tier: Any, priority: int, expected: int) -> None:
    assert tier_of(FakeRequest("a", 1, 1, tier, priority), ["strict", "relaxed"]) == expected


def test_late_results_of_short_batches_do_not_make_all_batches_seem_longer(make: Make) -> None:
    """Every second batch is short, and its result is seen when the long one behind it has been launched."""
    shadow, nobody, prompt = make("slackfit")._shadow, np.zeros((0, 2), np.int64), add(EMPTY, 0.0, 64.0, False)
    for predicted, seconds in 100 * [(0.01, 0.03), (0.07, 0.05)]:
        shadow.end(Flight(nobody, -1, shadow.last_end, prompt, predicted), shadow.last_end + seconds)
    assert shadow.correction.ratio[1] == pytest.approx(1.0, abs=0.02)
    for _ in range(100):
        shadow.end(Flight(nobody, -1, shadow.last_end, prompt, 0.01), shadow.last_end + 0.02)
    assert shadow.correction.ratio[1] == pytest.approx(2.0, abs=0.05)


def test_settings_that_do_not_fit_are_one_line(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no-such-policy"):
        make("no-such-policy")
    (tmp_path / "settings.json").write_text('{"polcy": "slai"}')
    with pytest.raises(InputError, match="polcy"):
        FakePolicyScheduler()
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(InputError, match=VARIABLE):
        FakePolicyScheduler()
