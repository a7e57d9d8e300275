"""`python -m agents.vllm smoke`: does a real engine of this vLLM do what the scheduler here promises?

A tiny model with random weights, an engine core in this process, requests that come at given steps of it (so that what
stock vLLM decides can be repeated). vLLM's own scheduler, `PolicyScheduler` in stock mode and policies serve the same
requests in turn. Checked: stock mode takes vLLM's decisions and costs less than OVERHEAD of a step; under a policy all
requests get all their tokens, the same ones as from vLLM alone, held requests do not run, no batch is larger than its
budget, and the policy decides every step.

What stock mode costs is processor time of what vLLM calls, call by call against vLLM's own scheduler, the least of
ROUNDS runs that take turns; the same figure of vLLM's own scheduler against itself says how much of it is chance.
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

from agents.policies import resolve, split_policies
from agents.vllm.plan import PLAIN, Plan
from agents.vllm.settings import STOCK, VARIABLE, Settings
from agents.vllm.versions import check_version
from agents.work.files import check_writable, write_json
from engine.demand.requests import Requests
from engine.errors import InputError
from engine.ranges import COUNT, number, whole

COMMAND = "python -m agents.vllm smoke"
POLICIES = "slackfit,slai:token_budget=256,pretrained,pretrained-ppo"
OVERHEAD = 0.03
"""Most that stock mode may add to a step, as a share of it."""
NEVER = ("fallbacks", "passed", "stalled", "held_ran", "over_budget", "rebuilt", "refused", "unwritten")
"""Counters that stay 0 under a policy."""
LOGGED = "stock, with a log"
"""Stock mode that writes what `llmsched fit --from vllm-log` takes."""
AGAIN = "plain, again"
"""vLLM's own scheduler once more."""
NOT_STEERED = (PLAIN, STOCK, LOGGED, AGAIN)
ROUNDS = 3
"""Runs of each of these on the same requests."""
LIMITS = {"max_num_seqs": 64, "max_num_batched_tokens": 1024, "max_model_len": 2304}
_REQUESTS_PER_STEP = 0.2
_CALLS = ("add_request", "schedule", "update_from_output")
"""What vLLM calls of a scheduler."""


@dataclass
class Run:
    """What came of the requests under one scheduler."""

    policy: str
    """PLAIN or AGAIN: vLLM's own class."""
    step_s: list[float] = field(default_factory=list)
    """Seconds of each step of the engine core."""
    call_s: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in _CALLS})
    """Seconds of processor time in each call of the scheduler."""
    batches: list[dict[str, int]] = field(default_factory=list)
    """Tokens of each request, batch by batch."""
    tokens: dict[str, list[int]] = field(default_factory=dict)
    """Output of each request."""
    counters: dict[str, Any] = field(default_factory=dict)

    @property
    def scheduling(self) -> float:
        """Seconds of processor time that scheduling takes a step: medians, which a busy machine moves least."""
        return float(np.median(self.call_s["schedule"]) + np.median(self.call_s["update_from_output"]))


class Bench:
    """One engine core, whose scheduler is replaced between runs."""

    def __init__(self, folder: Path, scale: float, blocks: int, prefix_cache: bool) -> None:
        """Start it.

        Args:
            folder: for its files.
            scale: lengths of requests are those of ShareGPT times this.
            blocks: of KV; 0: as there are.
            prefix_cache: whether there is one; half of every prompt is then the beginning of one text.
        """
        os.environ[VARIABLE] = str(folder / "settings.json")
        self.folder, self.scale, self.prefix_cache = folder, scale, prefix_cache
        self.plan = Plan(policies=(STOCK,), rates=(1.0,), model="tiny")
        Settings().write(folder / "settings.json")
        self.core = _core(_with_weights(self.plan.model_folder(folder)), blocks, prefix_cache)

    def load(self, count: int, seed: int) -> Requests:
        """The requests of a run."""
        lengths = {"prompt": 2048, "output": 224}
        drawn = replace(self.plan.workload(1.0), num_requests=count).generate(seed)
        cut = {k: np.clip((getattr(drawn, k) * self.scale).astype(int), 1, most) for k, most in lengths.items()}
        return replace(drawn, **cut)

    def run(self, policy: str, requests: Requests, seed: int) -> Run:
        """Serve the requests with a policy, or with vLLM's own class."""
        counters, run, is_ours = self.folder / "counters.json", Run(policy), policy not in (PLAIN, AGAIN)
        self._settings(policy, counters).write(self.folder / "settings.json")
        scheduler = self._scheduler(is_ours)
        for name in _CALLS:
            setattr(scheduler, name, _timed(getattr(scheduler, name), run.call_s[name]))
        scheduler.schedule = _kept(scheduler.schedule, run.batches)
        due = np.floor((requests.arrival - requests.arrival[0]) / _REQUESTS_PER_STEP)
        made = [self._request(requests, k, seed) for k in range(len(requests))]
        while made or scheduler.has_requests() or self.core.batch_queue:
            while made and due[len(requests) - len(made)] <= len(run.step_s):
                scheduler.add_request(made.pop(0))
            began = time.perf_counter()
            _keep(self.core.step_fn()[0] or {}, run)
            run.step_s.append(time.perf_counter() - began)
        run.counters = json.loads(counters.read_text()) if is_ours else {}
        return run

    def _settings(self, policy: str, counters: Path) -> Settings:
        log = str(self.folder / "steps.csv") if policy == LOGGED else ""
        return Settings(STOCK if policy in NOT_STEERED else policy, counters=str(counters), log=log)

    def _request(self, requests: Requests, k: int, seed: int) -> Any:
        from vllm.sampling_params import SamplingParams
        from vllm.v1.request import Request

        prompt = np.random.default_rng([seed, k]).integers(3, 1024, requests.prompt[k])
        if self.prefix_cache:
            prompt[: len(prompt) // 2] = np.random.default_rng(seed).integers(3, 1024, len(prompt) // 2)
        tier = {"tier": int(requests.tier[k])}
        params = SamplingParams(temperature=0.0, max_tokens=int(requests.output[k]), ignore_eos=True, extra_args=tier)
        given = {"sampling_params": params, "pooling_params": None, "arrival_time": time.time()}
        given["block_hasher"] = self.core.request_block_hasher
        return Request(request_id=f"r{k}", prompt_token_ids=prompt.tolist(), **given)

    def _scheduler(self, is_ours: bool) -> Any:
        """Put a new scheduler into the core: ours, or the one that vLLM would take (on CPUs no asynchronous one)."""
        from vllm.v1.core.sched.async_scheduler import AsyncScheduler
        from vllm.v1.core.sched.scheduler import Scheduler

        from agents.vllm.scheduler import PolicyScheduler

        old = self.core.scheduler
        given = {name: getattr(old, name) for name in ("vllm_config", "kv_cache_config", "block_size")}
        further = {"structured_output_manager": old.structured_output_manager, "log_stats": False}
        is_async = old.vllm_config.scheduler_config.async_scheduling
        kind = PolicyScheduler if is_ours else AsyncScheduler if is_async else Scheduler
        self.core.scheduler = kind(**given, **further)
        return self.core.scheduler


def _with_weights(model: Path) -> Path:
    """The folder of a model, with random weights in it: those that vLLM makes up itself say one token for ever."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    made: Any = AutoModelForCausalLM
    made.from_config(AutoConfig.from_pretrained(model)).save_pretrained(model)
    return model


def _core(model: Path, blocks: int, prefix_cache: bool) -> Any:
    """The engine core with its worker, in this process."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.executor import Executor

    args = EngineArgs(
        model=str(model),
        skip_tokenizer_init=True,
        dtype="float32",
        enforce_eager=True,
        enable_prefix_caching=prefix_cache,
        scheduler_cls="agents.vllm.scheduler.PolicyScheduler",
        disable_log_stats=True,
        num_gpu_blocks_override=blocks or None,
        **LIMITS,
    )
    config = args.create_engine_config()
    return EngineCore(config, Executor.get_class(config), log_stats=False)


def _timed(method: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """The method, its processor time kept."""

    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.thread_time()
        found = method(*args, **kwargs)
        seconds.append(time.thread_time() - began)
        return found

    return timed


def _kept(schedule: Callable[..., Any], batches: list[dict[str, int]]) -> Callable[..., Any]:
    """The method, the batches that it returns kept."""

    def kept(*args: Any, **kwargs: Any) -> Any:
        found = schedule(*args, **kwargs)
        batches.append(dict(found.num_scheduled_tokens))
        return found

    return kept


def _keep(outputs: dict[int, Any], run: Run) -> None:
    for core in outputs.values():
        for one in core.outputs:
            run.tokens.setdefault(one.request_id, []).extend(one.new_token_ids)


def faults(run: Run, plain: Run, requests: Requests) -> list[str]:
    """What a run does not keep of what is promised."""
    largest = max(sum(batch.values()) for batch in run.batches)
    counted = {
        "decides otherwise than vLLM": run.policy in NOT_STEERED and run.batches != plain.batches,
        "requests without all their tokens": _short(run, requests),
        "requests with other tokens than from vLLM": sum(
            run.tokens.get(name) != tokens for name, tokens in plain.tokens.items()
        ),
        "tokens over the limit in a batch": max(0, largest - LIMITS["max_num_batched_tokens"]),
        **{name: run.counters.get(name, 0) for name in NEVER},
    }
    return [f"{what}: {count:d}" for what, count in counted.items() if count]


def _short(run: Run, requests: Requests) -> int:
    return sum(len(run.tokens.get(f"r{k}", [])) != requests.output[k] for k in range(len(requests)))


def overhead(ours: Sequence[Run], plain: Sequence[Run]) -> float:
    """What a mode adds to a step of vLLM, as a share of it, of runs that take the same decisions."""
    more = 0.0
    for name in _CALLS:
        own, theirs = (np.min([run.call_s[name] for run in runs], axis=0) for runs in (ours, plain))
        more += float(np.median(own - theirs)) * len(own) / len(ours[0].call_s["schedule"])
    return more / float(np.median(np.min([run.step_s for run in plain], axis=0)))


def _times(run: Run) -> dict[str, float]:
    return {"step_s": float(np.median(run.step_s)), "scheduling_s": run.scheduling, "seconds": sum(run.step_s)}


def _line(run: Run, found: list[str]) -> str:
    steps = f"{len(run.step_s)} steps of {1e3 * float(np.median(run.step_s)):.2f} ms"
    numbers = f"{run.policy:24} {steps}, scheduling {1e6 * run.scheduling:.0f} us"
    if (c := run.counters) and "decision_us_all" in c:
        median, p99 = c["decision_us_all"]["before_p50_p99"]
        numbers += f", deciding {median:.0f} us (p99 {p99:.0f}), held {c['held']}, preempted {c['preemptions']}"
    return f"{numbers}: {', '.join(found) or 'as promised'}"


def _draw(bench: Bench, policies: Sequence[str], requests: int, seed: int) -> tuple[list[dict[str, Any]], list[Run]]:
    """Every run on one draw of the requests; prints a line for each, returns figures and faults, and the runs."""
    load, report, done = bench.load(requests, seed), list[dict[str, Any]](), list[Run]()
    for policy in (*(NOT_STEERED * ROUNDS), *policies):
        run = bench.run(policy, load, seed)
        done.append(run)
        found = faults(run, done[0], load)
        print(_line(run, found), flush=True)
        report.append({"policy": policy, "seed": seed, "counters": run.counters, "faults": found} | _times(run))
    return report, done


def _added(done: Sequence[Run]) -> dict[str, float]:
    """What each mode adds to a step; nan if it does not decide as vLLM does."""
    by_mode = {policy: [run for run in done if run.policy == policy] for policy in NOT_STEERED}
    plain = by_mode.pop(PLAIN)
    same = {policy: all(run.batches == plain[0].batches for run in runs) for policy, runs in by_mode.items()}
    return {policy: overhead(runs, plain) if same[policy] else float("nan") for policy, runs in by_mode.items()}


def smoke(bench: Bench, policies: Sequence[str], requests: int, runs: int) -> dict[str, Any]:
    """All runs; returns figures and faults."""
    report: list[dict[str, Any]] = []
    added: dict[str, list[float]] = {}
    for seed in range(runs):
        reported, done = _draw(bench, policies, requests, seed)
        report += reported
        for policy, share in _added(done).items():
            added.setdefault(policy, []).append(share)
    for policy, shares in added.items():
        print(f"{policy}: adds {', '.join(f'{100 * share:.1f}' for share in shares)} % to a step of vLLM", flush=True)
    is_cheap = bool(np.median(added[LOGGED]) <= OVERHEAD)
    faulty = sum(bool(run["faults"]) for run in report)
    costs = "" if is_cheap else f", and {LOGGED}, costs more than {100 * OVERHEAD:g} % of a step"
    print(f"{len(report)} runs, {faulty} of them not as promised{costs}", flush=True)
    return {"runs": report, "overhead": added, "is_good": is_cheap and not faulty}


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=COMMAND, description="A real engine under our policies.")
    parser.add_argument("--policies", default=POLICIES, help="separated by commas (default: %(default)s)")
    parser.add_argument("--requests", default="300", help="of each run (default: %(default)s)")
    parser.add_argument("--runs", default="3", help="draws of the requests (default: %(default)s)")
    parser.add_argument("--scale", default="0.25", help="of ShareGPT's lengths (default: %(default)s)")
    parser.add_argument("--blocks", default="", help="KV blocks, so few that vLLM preempts (default: as there are)")
    parser.add_argument("--prefix-cache", action="store_true", help="with one, and prompts that begin alike")
    parser.add_argument("--json", type=Path, help="also write every figure to this file")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Parse, run; returns the exit code: 1 if something is not as promised."""
    given = _options().parse_args(arguments)
    try:
        requests, runs = COUNT.parse(given.requests, "--requests"), COUNT.parse(given.runs, "--runs")
        scale = number(0.0, 1.0, above=True).parse(given.scale, "--scale")
        blocks = whole(2).parse(given.blocks, "--blocks") if given.blocks else 0
        policies = split_policies(given.policies)
        for policy in policies:
            resolve(policy)
        check_writable(given.json)
        check_version(COMMAND)
    except InputError as error:
        print(f"llmsched: {error}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="llmsched-smoke-") as folder:
        bench = Bench(Path(folder), scale, blocks, given.prefix_cache)
        found = smoke(bench, policies, requests, runs)
        bench.core.shutdown()
    write_json(given.json, found)
    return 0 if found["is_good"] else 1
