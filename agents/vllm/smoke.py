"""`python -m agents.vllm smoke`: does a real engine of this vLLM do what the scheduler here promises?

A tiny model with random weights, an engine core in this process, requests that come at given steps of it (so that what
stock vLLM decides can be repeated). vLLM's own scheduler, `PolicyScheduler` in stock mode and policies serve the same
requests in turn. Checked: stock mode takes vLLM's decisions and costs less than OVERHEAD of a step; under a policy all
requests get all their tokens, the same ones as from vLLM alone, held requests do not run, no batch is larger than its
budget, and the policy decides every step.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from agents.vllm.plan import Plan
from agents.vllm.settings import STOCK, VARIABLE, Settings
from agents.vllm.versions import check_version
from engine.demand.requests import Requests
from engine.errors import InputError

POLICIES = ("slackfit", "slai:token_budget=256", "pretrained")
OVERHEAD = 0.03
"""Most that stock mode may add to a step, as a share of it."""
NEVER = ("fallbacks", "passed", "stalled", "held_ran", "over_budget", "rebuilt", "refused")
"""Counters that stay 0 under a policy."""
LOGGED = "stock, with a log"
"""Stock mode that writes what `llmsched fit --from vllm-log` takes."""
LIMITS = {"max_num_seqs": 64, "max_num_batched_tokens": 1024, "max_model_len": 2304}
_REQUESTS_PER_STEP = 0.2


@dataclass
class Run:
    """What came of the requests under one scheduler."""

    policy: str
    """Empty: vLLM's own class."""
    step_s: list[float] = field(default_factory=list)
    """Seconds of each step of the engine core."""
    schedule_s: list[float] = field(default_factory=list)
    update_s: list[float] = field(default_factory=list)
    """Seconds of processor time in each `schedule` and each `update_from_output`."""
    batches: list[dict[str, int]] = field(default_factory=list)
    """Tokens of each request, batch by batch."""
    tokens: dict[str, list[int]] = field(default_factory=dict)
    """Output of each request."""
    counters: dict[str, Any] = field(default_factory=dict)

    @property
    def scheduling(self) -> float:
        """Seconds of processor time that scheduling takes a step: medians, which a busy machine moves least."""
        return float(np.median(self.schedule_s) + np.median(self.update_s))


class Bench:
    """One engine core, whose scheduler is replaced between runs."""

    def __init__(self, folder: Path, scale: float) -> None:
        """Start it; lengths of requests are those of ShareGPT times `scale`."""
        os.environ[VARIABLE] = str(folder / "settings.json")
        self.folder, self.scale = folder, scale
        self.plan = Plan(policies=POLICIES, rates=(1.0,), model="tiny")
        Settings().write(folder / "settings.json")
        self.core = _core(_with_weights(self.plan.model_folder(folder)))

    def load(self, count: int, seed: int) -> Requests:
        """The requests of a run."""
        lengths = {"prompt": 2048, "output": 224}
        drawn = replace(self.plan.workload(1.0), num_requests=count).generate(seed)
        cut = {k: np.clip((getattr(drawn, k) * self.scale).astype(int), 1, most) for k, most in lengths.items()}
        return replace(drawn, **cut)

    def run(self, policy: str, requests: Requests, seed: int) -> Run:
        """Serve the requests with a policy; with vLLM's own class if that is empty."""
        counters, run = self.folder / "counters.json", Run(policy)
        self._settings(policy, counters).write(self.folder / "settings.json")
        scheduler = self._scheduler(policy)
        scheduler.schedule = _timed(scheduler.schedule, run.schedule_s, run.batches)
        scheduler.update_from_output = _timed(scheduler.update_from_output, run.update_s)
        due = np.floor((requests.arrival - requests.arrival[0]) / _REQUESTS_PER_STEP)
        made = [_request(requests, k, seed) for k in range(len(requests))]
        while made or scheduler.has_requests() or self.core.batch_queue:
            while made and due[len(requests) - len(made)] <= len(run.step_s):
                scheduler.add_request(made.pop(0))
            began = time.perf_counter()
            _keep(self.core.step_fn()[0] or {}, run)
            run.step_s.append(time.perf_counter() - began)
        run.counters = json.loads(counters.read_text()) if policy else {}
        return run

    def _settings(self, policy: str, counters: Path) -> Settings:
        log = str(self.folder / "steps.csv") if policy == LOGGED else ""
        return Settings(policy if policy in POLICIES else STOCK, counters=str(counters), log=log)

    def _scheduler(self, policy: str) -> Any:
        """Put a new scheduler into the core."""
        from vllm.v1.core.sched.async_scheduler import AsyncScheduler

        from agents.vllm.scheduler import PolicyScheduler

        old = self.core.scheduler
        given = {name: getattr(old, name) for name in ("vllm_config", "kv_cache_config", "block_size")}
        further = {"structured_output_manager": old.structured_output_manager, "log_stats": False}
        self.core.scheduler = (PolicyScheduler if policy else AsyncScheduler)(**given, **further)
        return self.core.scheduler


def _with_weights(model: Path) -> Path:
    """The folder of a model, with random weights in it: those that vLLM makes up itself say one token for ever."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    made: Any = AutoModelForCausalLM
    made.from_config(AutoConfig.from_pretrained(model)).save_pretrained(model)
    return model


def _core(model: Path) -> Any:
    """The engine core with its worker, in this process."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.executor import Executor

    args = EngineArgs(
        model=str(model),
        skip_tokenizer_init=True,
        dtype="float32",
        enforce_eager=True,
        enable_prefix_caching=False,
        scheduler_cls="agents.vllm.scheduler.PolicyScheduler",
        disable_log_stats=True,
        **LIMITS,
    )
    config = args.create_engine_config()
    return EngineCore(config, Executor.get_class(config), log_stats=False)


def _timed(method: Callable[..., Any], seconds: list[float], batches: list[dict[str, int]] | None = None) -> Any:
    """The method, its processor time and the batches that it returns kept."""

    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.thread_time()
        found = method(*args, **kwargs)
        seconds.append(time.thread_time() - began)
        if batches is not None:
            batches.append(dict(found.num_scheduled_tokens))
        return found

    return timed


def _keep(outputs: dict[int, Any], run: Run) -> None:
    for core in outputs.values():
        for one in core.outputs:
            run.tokens.setdefault(one.request_id, []).extend(one.new_token_ids)


def _request(requests: Requests, k: int, seed: int) -> Any:
    from vllm.sampling_params import SamplingParams
    from vllm.v1.request import Request

    prompt = np.random.default_rng([seed, k]).integers(3, 1024, requests.prompt[k]).tolist()
    tier = {"tier": int(requests.tier[k])}
    params = SamplingParams(temperature=0.0, max_tokens=int(requests.output[k]), ignore_eos=True, extra_args=tier)
    given = {"sampling_params": params, "pooling_params": None, "arrival_time": time.time()}
    return Request(request_id=f"r{k}", prompt_token_ids=prompt, **given)


def faults(run: Run, stock: Run, requests: Requests) -> list[str]:
    """What a run under `PolicyScheduler` does not keep of what is promised."""
    largest = max(sum(batch.values()) for batch in run.batches)
    counted = {
        "decides otherwise than vLLM": run.policy in (STOCK, LOGGED) and run.batches != stock.batches,
        "requests without all their tokens": _short(run, requests),
        "requests with other tokens than from vLLM": sum(
            run.tokens.get(name) != tokens for name, tokens in stock.tokens.items()
        ),
        "tokens over the limit in a batch": max(0, largest - LIMITS["max_num_batched_tokens"]),
        **{name: run.counters[name] for name in NEVER},
    }
    return [f"{what}: {count:d}" for what, count in counted.items() if count]


def _short(run: Run, requests: Requests) -> int:
    return sum(len(run.tokens.get(f"r{k}", [])) != requests.output[k] for k in range(len(requests)))


def overhead(stock: Sequence[Run], ours: Sequence[Run]) -> float:
    """What stock mode adds to a step, as a share of it: medians over the runs."""
    own, theirs = (float(np.median([run.scheduling for run in runs])) for runs in (ours, stock))
    return (own - theirs) / float(np.median([s for run in stock for s in run.step_s]))


def _times(run: Run) -> dict[str, float]:
    return {"step_s": float(np.median(run.step_s)), "scheduling_s": run.scheduling, "seconds": sum(run.step_s)}


def _line(run: Run, found: list[str]) -> str:
    c = run.counters
    us = c.get("decision_us_all", {"before_p50_p99": (0.0, 0.0)})["before_p50_p99"]
    steps = f"{len(run.step_s)} steps of {1e3 * float(np.median(run.step_s)):.2f} ms"
    numbers = f"{steps}, scheduling {1e6 * run.scheduling:.0f} us, deciding {us[0]:.0f} us (p99 {us[1]:.0f})"
    kept = ", ".join(found) or "as promised"
    return f"{run.policy:24} {numbers}, held {c['held']}, preempted {c['preemptions']}: {kept}"


def smoke(requests: int, runs: int, scale: float) -> dict[str, Any]:
    """All runs; prints a line for each, returns figures and faults."""
    with tempfile.TemporaryDirectory(prefix="llmsched-smoke-") as folder:
        bench, report = Bench(Path(folder), scale), []
        stock: list[Run] = []
        ours: dict[str, list[Run]] = {STOCK: [], LOGGED: []}
        for seed in range(runs):
            load = bench.load(requests, seed)
            stock.append(bench.run("", load, seed))
            for policy in (*ours, *POLICIES):
                run = bench.run(policy, load, seed)
                found = faults(run, stock[-1], load)
                print(_line(run, found), flush=True)
                report.append({"seed": seed, "counters": run.counters, "faults": found} | _times(run))
                if policy in ours:
                    ours[policy].append(run)
        bench.core.shutdown()
    added = {policy: overhead(stock, own) for policy, own in ours.items()}
    for policy, share in added.items():
        print(f"{policy}: adds {100 * share:.1f} % to a step of vLLM", flush=True)
    is_good = added[STOCK] <= OVERHEAD and not any(run["faults"] for run in report)
    return {"runs": report, "overhead": added, "is_good": is_good}


def main(arguments: Sequence[str]) -> int:
    """Parse, run; returns the exit code: 1 if something is not as promised."""
    parser = argparse.ArgumentParser(
        prog="python -m agents.vllm smoke", description="A real engine under our policies."
    )
    parser.add_argument("--requests", type=int, default=300, help="of each run")
    parser.add_argument("--runs", type=int, default=3, help="of each policy, with other requests")
    parser.add_argument("--scale", type=float, default=0.25, help="of ShareGPT's lengths")
    parser.add_argument("--json", type=Path, help="also write every figure to this file")
    given = parser.parse_args(arguments)
    try:
        check_version("python -m agents.vllm smoke")
    except InputError as error:
        print(f"llmsched: {error}", file=sys.stderr)
        return 2
    found = smoke(given.requests, given.runs, given.scale)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if found["is_good"] else 1
