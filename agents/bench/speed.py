"""Speed and memory, each measured by one function in a process of its own with one thread.

`measure` starts ``python -m agents.bench.speed NAME SCALE`` and reads the JSON object that it prints. Rates are
medians over rounds; where a peer is named, ours and the peer's rounds alternate in the same process, so that both meet
the same machine. The peers: CartPole-v1 through `gymnasium.make`, and the same learner on an environment that costs
nothing.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import baselines
from agents.bench.cluster import cluster, cluster_peak, router_env
from agents.bench.timing import alternate, peak_mib
from agents.work.processes import child_environment, end_with_parent
from agents.work.progress import OnProgress, unseen
from engine.config import EngineConfig
from engine.demand.predictions import predict
from engine.demand.requests import Requests
from engine.demand.workload import Workload
from engine.device.latency import load_profile
from engine.runs.metrics import summarize
from engine.runs.record import Record
from engine.runs.simulate import simulate

THREAD_VARIABLES = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
PROFILE = "rtx6000ada-mistral-7b"
POLICIES = ("sarathi", "slai")
CURVE_RATES, CURVE_REQUESTS = "1.0:1.9:0.1", 16_384

FIRST_STEP = """
import sys, gymnasium
env = gymnasium.make("llmsched_env:LLMSched-v0")
env.reset(seed=0)
env.action_space.seed(0)
env.step(env.action_space.sample())
assert "torch" not in sys.modules
"""

Result = dict[str, Any]


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call (s)."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _serve(policy: str, requests: Requests, config: EngineConfig, horizon_s: float = float("inf")) -> Record:
    record = simulate(baselines.make(policy), requests, load_profile(PROFILE), config, horizon_s=horizon_s)
    summarize(record)
    return record


def _iteration_rate(policy: str, requests: Requests, config: EngineConfig, horizon_s: float = float("inf")) -> float:
    """Iterations per second of `simulate` and `summarize` together."""
    start = time.perf_counter()
    record = _serve(policy, requests, config, horizon_s)
    return float(record.row["iterations"][0]) / (time.perf_counter() - start)


def simulate_rate(scale: float) -> Result:
    """Whole simulations, metrics included, with 64 requests running (the cap, in overload)."""
    config = EngineConfig(max_num_seqs=64)
    requests = Workload(rate=3.0, num_requests=max(200, int(4000 * scale))).generate(0)
    for policy in POLICIES:
        _serve(policy, requests, config)
    by_policy = alternate(5, {p: partial(_iteration_rate, p, requests, config) for p in POLICIES})
    row = _serve("sarathi", requests, config).row[0]
    return {
        "simulate_iterations_per_s": min(by_policy.values()),
        "simulate_iterations_per_s_by_policy": by_policy,
        "simulate_mean_batch_requests": float(row.batch_requests / row.iterations),
    }


def simulate_peak(scale: float) -> Result:
    """Largest resident size of a process that simulates and summarises one long trace, warm cache (MiB)."""
    requests = Workload(rate=1.6, num_requests=int(CURVE_REQUESTS * scale)).generate(0)
    _serve("sarathi", requests, EngineConfig())
    return {"simulate_peak_mib": peak_mib()}


def _running(policy: str, count: int, scale: float) -> float:
    """Nanoseconds per iteration with `count` requests running, nobody waiting, decodes only."""
    iterations = max(100, int(30_000 * scale))
    requests = Workload(arrivals="burst", num_requests=count, lengths=f"fixed:16,{iterations}").generate(0)
    config = EngineConfig(max_num_seqs=count, num_blocks=1_000_000, max_model_len=65_536)
    _serve(policy, requests, config)
    return 1e9 / median(_iteration_rate(policy, requests, config) for _ in range(3))


def _saturated(count: int, scale: float) -> tuple[Requests, EngineConfig, float]:
    """64 requests running and about `count` waiting, one arrives as one leaves; the requests, a server, its horizon."""
    cap, served = 64, max(128, int(20_000 * scale))
    config = EngineConfig(max_num_seqs=cap, num_blocks=1_000_000)
    lengths = "fixed:64,200"
    saturated = _serve("sarathi", Workload(arrivals="burst", num_requests=served, lengths=lengths).generate(0), config)
    end = float(saturated.row["now"][0])
    arrival = np.concatenate([np.zeros(cap + count), np.linspace(0.0, end, served)])
    prompt = 32 + np.random.default_rng(0).integers(64, size=len(arrival))
    return Requests.create(arrival, prompt, np.full(len(arrival), 200)), config, end


def _waiting(policy: str, count: int, scale: float) -> float:
    """Nanoseconds per iteration with 64 requests running and about `count` waiting."""
    setting = _saturated(count, scale)
    return 1e9 / median(_iteration_rate(policy, *setting) for _ in range(3))


def policies(scale: float) -> Result:
    """Iterations per second of every baseline beside Sarathi's, 64 requests running and about 200 waiting.

    Policies that need predictions get each its own channel's.
    """
    requests, config, end = _saturated(200, 0.1 * scale)
    told = {name: requests for name in baselines.names()}
    for name in told:
        channel = baselines.make(name).channel
        if channel:
            told[name] = predict(requests, channel, 0)
        _serve(name, told[name], config, end)
    rates = alternate(5, {name: partial(_iteration_rate, name, told[name], config, end) for name in told})
    relative = {name: rate / rates["sarathi"] for name, rate in rates.items()}
    return {
        "slowest_policy_to_sarathi": min(relative.values()),
        "policy_iterations_per_s": rates,
        "policy_to_sarathi": relative,
    }


def growth(scale: float) -> Result:
    """How the cost of an iteration grows with running and waiting requests, and that of a step with rows."""
    running = [{"running": n, **{p: _running(p, n, scale) for p in POLICIES}} for n in (8, 16, 32, 64, 128, 256)]
    waiting = [{"waiting": n, **{p: _waiting(p, n, scale) for p in POLICIES}} for n in (0, 100, 1000, 10_000)]
    rows = [{"rows": n, "env_steps_per_s": _vector_rate(n, scale)} for n in (1, 16, 64, 256, 1024)]
    return {
        "growth": {
            "running": running,
            "waiting": waiting,
            "rows": rows,
            "unit": "ns per iteration of a whole simulation; environment steps per s",
        }
    }


def _vector_rate(rows: int, scale: float, rounds: int = 3, skip_decode_only: bool = False) -> float:
    """Steps per second of the vector environment, all rows counted, after its rows have drifted apart."""
    import llmsched_env

    envs = llmsched_env.LLMSchedVectorEnv(rows, llmsched_env.EnvConfig(skip_decode_only=skip_decode_only))
    envs.reset(seed=0)
    envs.action_space.seed(0)
    actions = [envs.action_space.sample() for _ in range(64)]

    def play(steps: int) -> None:
        for k in range(steps):
            envs.step(actions[k % 64])

    warm_up = max(20, int(1000 * scale))
    # As many steps as take about a second.
    steps = max(20, int(scale * warm_up / seconds(lambda: play(warm_up))))
    return median(rows * steps / seconds(lambda: play(steps)) for _ in range(rounds))


def vector_env(scale: float) -> Result:
    """Environment steps per second of 256 rows: actions decoded, observation, reward, statistics, resets.

    The second figure is for the setting of the training runs, in which a step runs on through iterations without any
    prompt work, about three in the mean.
    """
    return {
        "vector_env_steps_per_s": _vector_rate(256, scale, 5),
        "vector_env_skipping_steps_per_s": _vector_rate(256, scale, 5, skip_decode_only=True),
        "vector_env_rows": 256,
    }


def _scalar_rate(env: Any, steps: int) -> Callable[[], float]:
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(1024)]
    env.reset(seed=0)

    def play() -> None:
        for k in range(steps):
            _, _, terminated, truncated, _ = env.step(actions[k % 1024])
            if terminated or truncated:
                env.reset()

    return lambda: steps / seconds(play)


def scalar_env(scale: float) -> Result:
    """Steps per second through `gymnasium.make`, ours and CartPole-v1 in turn, resets included."""
    import gymnasium

    steps = max(200, int(20_000 * scale))
    ours = gymnasium.make("llmsched_env:LLMSched-v0")
    rates = {"ours": _scalar_rate(ours, steps), "cartpole": _scalar_rate(gymnasium.make("CartPole-v1"), steps)}
    alternate(1, rates)
    found = alternate(5, rates)
    return {
        "scalar_env_steps_per_s": found["ours"],
        "cartpole_steps_per_s": found["cartpole"],
        "scalar_to_cartpole": found["ours"] / found["cartpole"],
    }


def ppo(scale: float) -> Result:
    """Decisions per second of PPO, collection and update, on ours and on an environment that costs nothing."""
    from agents.bench.ppo import fps

    return fps(rounds=3, rollouts=max(1, int(4 * scale)))


def start(scale: float) -> Result:
    """Seconds from the start of a process to the first step of the environment: cold compile cache, then warm."""
    with tempfile.TemporaryDirectory() as folder:
        environment = _pinned() | {"XDG_CACHE_HOME": folder}
        environment.pop("NUMBA_CACHE_DIR", None)
        command = [sys.executable, "-c", FIRST_STEP]

        def first_step() -> None:
            subprocess.run(command, env=environment, check=True)

        cold = seconds(first_step)
        warm = median(seconds(first_step) for _ in range(max(1, int(5 * scale))))
    return {"cold_start_s": cold, "warm_start_s": warm}


def capacity_curve(scale: float) -> Result:
    """Seconds of a whole `llmsched capacity` process: ten rates, one policy, one thread, warm cache."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "agents.cli", "capacity", "--policies", "sarathi", "--rates", CURVE_RATES]
        command += ["--num-requests", str(int(CURVE_REQUESTS * scale)), "--seeds", "1", "--workers", "1"]
        command += ["--out", folder]

        def whole_process() -> None:
            subprocess.run(command, env=_pinned(), check=True, stdout=subprocess.DEVNULL)

        whole_process()
        times = [seconds(whole_process) for _ in range(3)]
    return {"capacity_curve_s": median(times), "capacity_curve_rates": 10, "capacity_curve_requests": CURVE_REQUESTS}


MEASUREMENTS: dict[str, Callable[[float], Result]] = {
    "simulate": simulate_rate,
    "capacity": capacity_curve,
    "vector": vector_env,
    "scalar": scalar_env,
    "ppo": ppo,
    "start": start,
    "peak": simulate_peak,
    "growth": growth,
    "policies": policies,
    "cluster": cluster,
    "cluster_peak": cluster_peak,
    "router": router_env,
}
"""Measurements by name: function of the scale (1 = the full size), returning JSON entries."""


def _pinned() -> dict[str, str]:
    return {**child_environment(), **dict.fromkeys(THREAD_VARIABLES, "1")}


def measure(name: str, scale: float = 1.0) -> Result:
    """Run one measurement in a fresh process with one thread.

    Raises:
        RuntimeError: the process failed; the message has its last line.
    """
    command = [sys.executable, "-m", "agents.bench.speed", name, repr(scale)]
    done = subprocess.run(command, env=_pinned(), capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"bench {name}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def machine() -> Result:
    """What the figures belong to."""
    import platform
    from importlib import metadata

    packages = ("numpy", "numba", "torch", "stable-baselines3", "gymnasium")
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def bench(names: Sequence[str], scale: float, progress: OnProgress = unseen) -> Result:
    """Run measurements one after the other and put their entries together."""
    result: Result = {"format": "llmsched-bench/1", "machine": machine(), "scale": scale, "threads": 1}
    for done, name in enumerate(names):
        progress(name, done, len(names))
        result |= measure(name, scale)
    return result


if __name__ == "__main__":
    end_with_parent()
    print(json.dumps(MEASUREMENTS[sys.argv[1]](float(sys.argv[2]))))
