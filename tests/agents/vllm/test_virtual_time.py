"""The scheduler inside vLLM, on a clock of its own, decides what a simulation decides: the shadow is the server."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import agents.vllm.steering as steering
from agents.policies import resolve
from agents.vllm.settings import VARIABLE, Settings
from engine.config import EngineConfig
from engine.demand.requests import Requests
from engine.demand.workload import Workload
from engine.device.latency import iteration_seconds, load_profile
from engine.runs.metrics import summarize
from engine.runs.simulate import simulate
from tests.agents.vllm import fake

PROFILE = "h200-mistral-7b"
LIMITS = EngineConfig(
    num_blocks=20_000, max_num_seqs=128, max_batched_tokens=8192, max_model_len=8448, async_scheduling=True
)


class Clock:
    """Time that passes only when an engine says so."""

    now = 1000.0

    def time(self) -> float:
        return self.now

    monotonic = perf_counter = time


class Engine:
    """Serves requests by the seconds of a profile, with a batch launched ahead as vLLM's engine core does."""

    def __init__(self, clock: Clock, profile: str) -> None:
        self.clock, self.latency, self.ends = clock, load_profile(profile).compiled(), 0.0
        self.scheduler = fake.FakePolicyScheduler(
            LIMITS.num_blocks, LIMITS.max_num_seqs, LIMITS.max_batched_tokens, LIMITS.max_model_len
        )
        self.queue: list[tuple[Any, float]] = []
        self.first: dict[str, float] = {}

    def _schedule(self) -> None:
        output = self.scheduler.schedule()
        if output.total_num_scheduled_tokens:
            features = self.scheduler._shadow._features  # of the batch that was scheduled last
            self.ends = max(self.clock.now, self.ends) + iteration_seconds(self.latency, features)
            self.queue.append((output, self.ends))

    def _see(self) -> None:
        output, ends = self.queue.pop(0)
        self.clock.now = max(self.clock.now, ends)
        self.scheduler.update_from_output(output, None)
        for name in output.emits:
            self.first.setdefault(name, self.clock.now)

    def serve(self, requests: Requests) -> np.ndarray:
        """TTFT of each request (s)."""
        due = self.clock.now + requests.arrival - requests.arrival[0]
        come = 0
        for _ in itertools.count():
            while come < len(due) and due[come] <= self.clock.now:
                length = int(requests.prompt[come]), int(requests.output[come])
                request = fake.FakeRequest(str(come), *length, tier=int(requests.tier[come]))
                request.arrival_time = due[come]
                self.scheduler.add_request(request)
                come += 1
            if self.scheduler.requests and len(self.queue) < 2:
                before = len(self.queue)
                self._schedule()
                if len(self.queue) == 1 and before == 0:
                    continue
            if self.queue:
                self._see()
            elif come < len(due):
                self.clock.now = max(due[come], self.clock.now + 1e-6)
            elif not self.scheduler.requests:
                break
        return np.array([self.first[str(k)] for k in range(len(due))]) - due


@pytest.mark.parametrize("policy", ["sarathi:token_budget=1024", "slai", "slackfit", "pretrained-ppo"])
@pytest.mark.parametrize("device", [PROFILE, f"{PROFILE}:eager=0.034"])
def test_a_shadow_in_time_is_the_simulation(
    policy: str, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(steering, "time", clock)
    monkeypatch.setattr(fake, "time", clock)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "settings.json"))
    Settings(policy, device, counters=str(tmp_path / "counters.json")).write(tmp_path / "settings.json")
    requests = Workload(rate=7.0, num_requests=120, lengths="openchat_sharegpt4").generate(0)
    ttft = Engine(clock, device).serve(requests)
    said = summarize(simulate(resolve(policy), requests, load_profile(device), LIMITS)).ttft
    assert np.mean(ttft) == pytest.approx(said.mean, rel=0.06)
    assert np.median(ttft) == pytest.approx(said.p50, rel=0.06)
    counted = (tmp_path / "counters.json").read_text()
    assert '"fallbacks": 0' in counted
    assert '"rebuilt": 0' in counted
