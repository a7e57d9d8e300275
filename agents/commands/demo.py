"""`llmsched demo`: train a scheduler, then compare it with baselines and the shipped policy on unseen traces."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from agents.evaluation.evaluate import Evaluation, evaluate
from agents.evaluation.result import Comparison
from agents.evaluation.statistics import Interval, paired_interval
from agents.learning.ppo.train_config import TrainConfig, queue_recipe
from agents.options import ProgressOptions, TableOptions, TierTexts, UpToMillion, WorkerOptions
from agents.reporting.report import write_report
from agents.source import Source
from agents.work.files import claimed, empty_folder, write_json
from agents.work.processes import workers_for
from agents.work.progress import OnProgress, bars, unseen
from engine.demand.tiers import parse_tiers
from engine.device.latency import load_profile
from engine.extras import need
from engine.ranges import Count, Rate, Seed, whole

RIVALS = ("random", "sarathi", "slai", "rad", "vllm", "slackfit:tuned", "pretrained")
MUST_BEAT = ("random", "sarathi", "slai")
"""A learner that is not above these has failed, and the demo says so."""
LOOKS = 5
"""Evaluations on held-out traces during the training."""


@dataclass(frozen=True, kw_only=True)
class Command(TableOptions, ProgressOptions, WorkerOptions):
    """Train a PPO scheduler, compare it with others on unseen traces, write a report (2 to 3 minutes).

    The training is a short run of the recipe for queues (agents/learning/hyperparams/queue.yml): it begins with the
    levels of slackfit:tuned. Ends with code 1 if the trained policy is not above random-legal, Sarathi-Serve and SLAI
    on the default reward: if the 95 % interval of the paired difference is not above zero.
    """

    total_timesteps: Annotated[int, whole(1, 10**12)] = 2_000_000
    """Decisions to train on."""
    rate: Rate = 1.6
    """Load of the comparison, requests/s."""
    num_requests: Count = 2000
    """Requests in each trace of the comparison."""
    seeds: UpToMillion = 5
    """Traces of the comparison."""
    seed: Seed = 0
    """Seed of the training."""
    out: Path = Path("out/demo")
    """Folder of the results; a demo that is there already is replaced."""
    tier: TierTexts = ()
    """A service tier of training and comparison, once for each: name=paid,share=0.05,tbt=0.1,ttft=2 (seconds; default:
    those of the hyperparameters)."""

    def run(self) -> None:
        """Train, compare, write, print.

        Raises:
            InputError: options that do not fit, or a folder that cannot be written.
            SystemExit: code 1, the trained policy is not good enough.
        """
        need("train", "demo")
        need("report", "demo")
        with claimed(self.out, "demo"):
            self._run()

    def _run(self) -> None:
        from agents.learning.ppo.train import train

        start = time.perf_counter()
        config = self._training()
        empty_folder(config.run_dir, "train")
        print(f"training PPO for {config.total_timesteps:,} decisions into {config.run_dir}")
        learned = str(train(config))
        trained = time.perf_counter()
        evaluation = self._comparison(learned, config)
        print(
            f"comparing {len(evaluation.policies)} policies on {self.seeds} unseen traces at {self.rate:g} requests/s"
        )
        workers = workers_for(self.workers)
        with bars(self.progress) as progress:
            progress("getting ready", 0, 0)
            result = evaluate(evaluation, workers=workers, progress=progress)
            margins = reward_margins(evaluation, config, learned, progress)
            written = write_report(result, self.out, progress=progress)
        write_json(self.out / "reward.json", margins)
        _print(result, margins, self.wide)
        times = f"training {trained - start:.0f} s, comparison {time.perf_counter() - trained:.0f} s"
        print(f"report: {written[-1]}; TensorBoard: tensorboard --logdir {learned} ({times})")
        behind = [name for name in MUST_BEAT if not is_above(margins[name])]
        if behind:
            print(f"the trained policy is not above {' and '.join(behind)}: train longer (--total-timesteps)")
            raise SystemExit(1)

    def _training(self) -> TrainConfig:
        config = TrainConfig.from_yaml(queue_recipe())
        if self.tier:
            workload = replace(config.env.workload, tiers=parse_tiers(self.tier, "tier"))
            config = replace(config, env=replace(config.env, workload=workload))
        return replace(
            config,
            total_timesteps=self.total_timesteps,
            eval_every=max(self.total_timesteps // LOOKS, 1),
            seed=self.seed,
            run_dir=self.out / "run",
            progress=self.progress,
        )

    def _comparison(self, learned: str, config: TrainConfig) -> Evaluation:
        return Evaluation(
            policies=(learned, *RIVALS),
            source=Source(num_requests=self.num_requests, tiers=config.env.workload.tiers),
            loads=(self.rate,),
            seeds=self.seeds,
            reference="sarathi",
            profile=load_profile(config.env.profile),
            config=config.env.engine,
        )


def reward_margins(
    evaluation: Evaluation, config: TrainConfig, learned: str, progress: OnProgress = unseen
) -> dict[str, Interval]:
    """How much more default reward for each request the learned policy collects than each other one, by paired traces.

    Args:
        evaluation: which policies and traces.
        config: holds the reward weights.
        learned: the policy of the margins.
        progress: called before the runs of each seed.
    """
    from agents.learning.heldout import record_return

    returns: dict[str, list[float]] = {spec: [] for spec in evaluation.policies}
    for seed in range(evaluation.seeds):
        progress("rewards", seed, evaluation.seeds)
        for spec, values in returns.items():
            record = evaluation.serve(spec, evaluation.loads[0], seed).record
            values.append(record_return(record, config.env.reward) / len(record.requests))
    return {s: paired_interval(returns[learned], values) for s, values in returns.items() if s != learned}


def is_above(margin: Interval) -> bool:
    """Whether the whole interval of a margin is above zero; of a single trace, which has none, the margin itself."""
    return (margin.low if margin.n > 1 else margin.mean) > 0.0


def _margin_text(margin: Interval) -> str:
    return f"[{margin.low:+.3f}, {margin.high:+.3f}]" if margin.n > 1 else "- (one trace)"


def _print(result: Comparison, margins: dict[str, Interval], wide: bool) -> None:
    from agents.reporting.grid import Grid, Head, Part, show, terminal_console
    from agents.reporting.tables import print_tables

    console = terminal_console()
    print_tables(result, console, wide)
    rows = [(name, f"{m.mean:+.3f}", _margin_text(m)) for name, m in margins.items()]
    title = "Default reward for each request: learned minus other, 95 % paired interval"
    heads = (Head("other", "name"), Head("difference"), Head("interval"))
    show(Grid(heads, [Part(rows, title)]), console, wide)
