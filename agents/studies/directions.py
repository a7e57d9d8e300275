"""Published comparisons of schedulers, run again in their own settings on the surrogate: is the direction the same?

Each study names what its paper says, serves the same requests with the policy and its reference, and puts the measured
figure beside the published one. What is the paper's: kind of lengths, arrivals, memory for KV, predictor, caps. What is
not: the device (the shipped profile of Mistral-7B on an RTX 6000 Ada) and therefore the rates, which are chosen where
this device is as loaded as the paper's; lengths are log-normal with the published means or medians.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

import baselines
from agents.evaluation.statistics import Interval, mean_interval
from agents.work.processes import run_in_order
from agents.work.progress import OnProgress
from engine.config import EngineConfig
from engine.demand.length_models import EmpiricalLengths
from engine.demand.workload import parse_workload
from engine.device.latency import load_profile
from engine.errors import InputError
from engine.runs.serve import Deployment, Synthetic, serve

PROFILE = "rtx6000ada-mistral-7b"

SHAREGPT = "lengths=lognormal:4.36,1.2,5.42,0.9,4096"
"""Single turns of ShareGPT: mean prompt 161, mean output 338 tokens (the vLLM paper)."""
LMSYS = "lengths=lognormal:3.04,1.43,4.75,0.85,1000"
"""LMSYS-Chat-1M below 500 + 500 tokens: prompt mean 59, median 21; output mean 147, median 116 (notes to WAIT)."""
ALPACA = "lengths=lognormal:3.2,0.5,5.2,0.8,512"
"""Alpaca prompts answered by an instruct model: tens of prompt tokens, outputs of hundreds, 512 at most."""

METRICS = {
    "mean_e2e_s": "mean latency, s",
    "mean_ttft_s": "mean TTFT, s",
    "s_per_token": "mean latency per output token, s",
    "evictions": "evictions",
    "requests_per_s": "finished requests/s",
}


@dataclass(frozen=True)
class Study:
    """One published comparison."""

    name: str
    """The policy that it is about."""
    paper: str
    """Where it was published."""
    published: str
    """What the paper reports."""
    policy: str
    """Spec of the policy."""
    reference: str
    """Spec of what it is compared with."""
    workload: str
    """Arrivals and lengths, without rate and number."""
    rates: tuple[float, ...]
    """Arrival rates in requests/s."""
    seconds: float
    """Requests arrive for this long."""
    metric: str
    """The figure that is compared, a key of METRICS; lower is better."""
    config: EngineConfig = field(default_factory=EngineConfig)
    """Limits of the server."""
    pairs: tuple[tuple[int, int], ...] = ()
    """Prompt and output tokens of equally likely requests; () takes the lengths of the workload."""
    more: tuple[str, ...] = ()
    """Further policies, for information."""
    remark: str = ""
    """What differs, or why the direction does not come out."""

    def __post_init__(self) -> None:
        """Find typing errors when the module is loaded."""
        assert self.metric in METRICS
        assert self.rates

    @property
    def policies(self) -> tuple[str, ...]:
        """All specs, the reference first."""
        return (self.reference, self.policy, *self.more)


SARATHI_2048 = "sarathi:token_budget=2048"

A100_40GB = EngineConfig(num_blocks=9500, max_num_seqs=256, max_model_len=8192, swap_bandwidth=25e9)
"""KV that an 8-billion-parameter model leaves on 40 GB, PCIe 4.0 x16, 256 seats."""

STUDIES: tuple[Study, ...] = (
    Study(
        name="ltr",
        paper="arXiv 2408.15792",
        published="mean latency up to 6.9 times lower than FCFS; 2.8 times for chat under bursts",
        policy="ltr",
        reference="sarathi:token_budget=768",
        more=("ltr:starvation_threshold=200", "srtf", "mlfq"),
        workload=f"gamma:cv=1,{SHAREGPT}",
        rates=(16.0, 32.0, 64.0),
        seconds=60.0,
        metric="s_per_token",
        config=A100_40GB,
        remark="60 s of arrivals as there, then everything is served; FCFS is chunked prefill with the same budget",
    ),
    Study(
        name="trail",
        paper="arXiv 2410.01035",
        published="mean latency 1.66-2.01 and mean TTFT 1.76-24 times lower than vLLM",
        policy="trail:c=0.8",
        reference="vllm:batch_cap=48",
        more=("trail:c=0", "srtf"),
        workload=f"poisson:{ALPACA}",
        rates=(7.0, 7.5, 8.0, 9.0, 10.0),
        seconds=300.0,
        metric="mean_e2e_s",
        config=EngineConfig(num_blocks=1500, max_num_seqs=256, max_model_len=8192),
        remark="the running cap of the released benchmark (48) for both; srtf without it",
    ),
    Study(
        name="elis",
        paper="arXiv 2505.09142",
        published="mean completion time up to 19.58 % lower than FCFS (1.24 times)",
        policy="elis",
        reference="vllm:batch_cap=32",
        more=("elis:refill_inside_window=true",),
        workload=f"gamma:cv=1.17,{LMSYS}",
        rates=(6.0, 8.0, 10.0),
        seconds=30.0,
        metric="mean_e2e_s",
        config=EngineConfig(max_model_len=8192),
        remark="200-300 prompts as there, batches of 32 for both; FCFS fills free places at once",
    ),
    Study(
        name="wait",
        paper="arXiv 2504.11320",
        published="larger stable region and lower latency near overload than vLLM and Sarathi",
        policy="wait:types=100:2;200:1;inf:1",
        reference="vllm:batch_cap=1024",
        more=("wait:types=100:2;200:1;inf:1,wait=false", "nested_wait:segments=100:6;200:3;inf:1", SARATHI_2048),
        workload="poisson",
        pairs=((20, 100),) * 3 + ((20, 200),) * 2 + ((20, 300),),
        rates=(30.0, 45.0, 60.0, 75.0),
        seconds=100.0,
        metric="mean_e2e_s",
        config=EngineConfig(num_blocks=8560, max_num_seqs=1024, max_model_len=4096),
        remark="fluid quotas for 1000 requests in service; Sarathi with room in its budget is as good as any",
    ),
    Study(
        name="alise",
        paper="arXiv 2410.23537",
        published="throughput up to 1.8 (Alpaca) and 2.1 times (ShareGPT) that of vLLM at equal latency",
        policy="alise",
        reference="vllm",
        workload=f"poisson:{SHAREGPT}",
        rates=(6.0, 7.0, 8.0, 9.0, 10.0),
        seconds=200.0,
        metric="s_per_token",
        config=EngineConfig(num_blocks=3000, max_num_seqs=256, max_model_len=8192, swap_bandwidth=25e9),
        remark="little memory, as with the OPT models there; read across: rates with equal latency",
    ),
    Study(
        name="past_future",
        paper="doi 10.1145/3676641.3716011",
        published="almost no evictions where vLLM's admission evicts often",
        policy="past_future",
        reference="vllm",
        more=("lightllm",),
        workload=f"poisson:{SHAREGPT}",
        rates=(6.0, 8.0, 10.0),
        seconds=200.0,
        metric="evictions",
        config=EngineConfig(num_blocks=3000, max_num_seqs=256, max_model_len=8192),
    ),
)


@dataclass(frozen=True)
class Task:
    """One run."""

    study: Study
    policy: str
    rate: float
    seed: int


@dataclass(frozen=True)
class Run:
    """What came of one run: the metrics of METRICS."""

    policy: str
    rate: float
    seed: int
    arrival_rate: float
    mean_e2e_s: float
    mean_ttft_s: float
    s_per_token: float
    evictions: int
    requests_per_s: float


@dataclass(frozen=True)
class Row:
    """A policy at one rate: means over the seeds."""

    policy: str
    rate: float
    mean_e2e_s: Interval
    mean_ttft_s: Interval
    s_per_token: Interval
    evictions: Interval
    requests_per_s: Interval
    arrival_rate: Interval
    times_lower: Interval | None
    """Of the study's metric, the mean ratio reference / policy; None where the policy's is 0."""

    def metric(self, name: str) -> Interval:
        """The mean of one of METRICS."""
        found: Interval = getattr(self, name)
        return found


@dataclass(frozen=True)
class Outcome:
    """What came of a study; the fields are the keys of its JSON form."""

    study: Study
    profile: str
    seeds: int
    rows: tuple[Row, ...]
    """By rate and policy."""
    holds: bool
    """Whether the study's metric is better than the reference's at the highest rate in the mean over the seeds."""


def run_task(task: Task) -> Run:
    """Serve one rate and seed with one policy."""
    study, policy = task.study, baselines.make(task.policy)
    workload = replace(parse_workload(study.workload), num_requests=max(1, round(task.rate * study.seconds)))
    if study.pairs:
        workload = replace(workload, lengths=EmpiricalLengths(*np.transpose(study.pairs)))
    deployment = Deployment(executor=load_profile(PROFILE), config=study.config)
    report = serve(policy, Synthetic(workload), task.rate, task.seed, deployment).report
    return Run(
        policy=task.policy,
        rate=task.rate,
        seed=task.seed,
        arrival_rate=report.arrival_rate,
        mean_e2e_s=report.e2el.mean,
        mean_ttft_s=report.ttft.mean,
        s_per_token=report.normalized_latency.mean,
        evictions=report.evictions,
        requests_per_s=report.request_throughput,
    )


def chosen(names: str | None) -> tuple[Study, ...]:
    """The studies of a comma-separated list, all of them for None.

    Raises:
        InputError: an unknown name.
    """
    known = {study.name: study for study in STUDIES}
    wanted = [*known] if names is None else [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in known:
            raise InputError(f"only: expected studies among {', '.join(known)}, got {name!r}")
    return tuple(known[name] for name in wanted)


def measure(study: Study, seeds: int, workers: int, progress: OnProgress) -> Outcome:
    """Run one study.

    Args:
        study: what to run.
        seeds: seeds 0 ... seeds - 1.
        workers: processes.
        progress: called after each run.
    """
    tasks = [Task(study, p, rate, s) for rate in study.rates for p in study.policies for s in range(seeds)]
    runs = run_in_order(run_task, tasks, workers, partial(progress, study.name))
    rows = tuple(_row(study, runs, policy, rate) for rate in study.rates for policy in study.policies)
    last = {row.policy: row.metric(study.metric).mean for row in rows if row.rate == study.rates[-1]}
    return Outcome(study, PROFILE, seeds, rows, holds=bool(last[study.policy] < last[study.reference]))


def _ratio(values: np.ndarray) -> Interval:
    """Mean of ratios of positive numbers; the interval is cut at 0."""
    found = mean_interval(values)
    return replace(found, low=max(found.low, 0.0))


def _values(runs: Sequence[Run], policy: str, rate: float, name: str) -> np.ndarray:
    return np.array([getattr(run, name) for run in runs if (run.policy, run.rate) == (policy, rate)], np.float64)


def _row(study: Study, runs: Sequence[Run], policy: str, rate: float) -> Row:
    means = {name: mean_interval(_values(runs, policy, rate, name)) for name in (*METRICS, "arrival_rate")}
    ours, theirs = (_values(runs, spec, rate, study.metric) for spec in (policy, study.reference))
    return Row(policy, rate, **means, times_lower=_ratio(theirs / ours) if (ours > 0.0).all() else None)
