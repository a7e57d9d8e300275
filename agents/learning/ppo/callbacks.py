"""What happens beside learning: numbers for TensorBoard, evaluation on held-out traces, checkpoints, progress bar.

All of it happens between updates and draws no random numbers, so a run learns the same with or without it.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Figure, HParam

import baselines
from agents.learning.heldout import HeldOut, Score
from agents.learning.learned.policy import LearnedPolicy
from agents.learning.ppo.checkpoint import Checkpoint, capture
from agents.learning.ppo.rollout import TimedPPO
from agents.learning.ppo.tensorboard import SLO_METRICS, scalar_layout, writers
from agents.learning.ppo.timeline import timeline
from agents.learning.ppo.train_config import TrainConfig
from agents.learning.ppo.vec_env import SB3VecEnv
from agents.learning.selection import relative, relative_cost
from engine.errors import InputError
from engine.runs.report import TierReport
from engine.runs.simulate import simulate
from llmsched_env.actions import Action
from llmsched_env.reward import REWARD_TERMS

NOT_HYPERPARAMETERS = ("eval_", "checkpoint_", "keep_", "device", "threads", "row_threads", "env_id")
"""How the names of fields begin that say how to run, not what is learned."""
TIMELINE_REQUESTS = 40
COPY_EVERY, COPY_FREE_S = 100.0, 0.005
"""Copies of the state in memory are so many times their own cost apart (1 % of the time), unless they cost nothing."""
EPISODE_METRICS = ("median_ttft_ms", "p99_ttft_ms", "slo_goodput", "evictions")


class TrainingLog(BaseCallback):
    """Reward terms, episode numbers and action histograms of each rollout.

    ``reward/<term>`` is the mean over the steps of the rollout, unweighted; ``episode/<metric>`` the mean over the
    episodes that ended in it; ``action/<head>`` the histogram of what was chosen.
    """

    def __init__(self, action: Action) -> None:
        super().__init__()
        self.heads = action.heads
        self._terms = np.zeros(len(REWARD_TERMS))
        self._steps = 0
        self._elapsed = 0.0
        self._episodes: list[dict[str, float]] = []

    def _on_step(self) -> bool:
        base = self.training_env.unwrapped
        assert isinstance(base, SB3VecEnv)
        infos = base.step_infos
        if "reward_terms" in infos:
            self._terms += np.add.reduce(infos["reward_terms"], axis=0)
        if base.elapsed_s is not None:
            self._elapsed += float(np.add.reduce(base.elapsed_s))
        self._steps += base.num_envs
        if "final_info" in infos:
            rows = np.flatnonzero(self.locals["dones"])
            self._episodes += [self.locals["infos"][row]["episode"] for row in rows]
        return True

    def _on_rollout_end(self) -> None:
        for name, total in zip(REWARD_TERMS, self._terms, strict=True):
            self.logger.record(f"reward/{name}", float(total) / self._steps)
        self.logger.record("rollout/seconds_per_decision", self._elapsed / self._steps)
        for name in EPISODE_METRICS:
            found = [episode.get(name, math.nan) for episode in self._episodes]
            values = [value for value in found if math.isfinite(value)]  # nan: there was no such number
            if values:
                self.logger.record(f"episode/{name}", float(np.mean(values)))
        actions = self.locals["rollout_buffer"].actions
        for k, (head, choices) in enumerate(self.heads.items()):
            for writer in writers(self.logger):
                bins = (np.arange(choices + 1) - 0.5).tolist()
                writer.add_histogram(f"action/{head}", actions[..., k].ravel(), self.num_timesteps, bins=bins)
        self._terms[:] = 0.0
        self._steps, self._elapsed = 0, 0.0
        self._episodes.clear()


class Evaluation(BaseCallback):
    """Every `eval_every` decisions: the policy on held-out traces, its margins, a timeline, the best so far.

    ``eval/<number>``, ``slo/<tier>/<metric>`` (means over traces), ``margin/<baseline>/ttft`` (share by which the mean
    TTFT is shorter) and ``margin/<baseline>/return`` (return for each request, difference), ``timeline``.
    """

    def __init__(self, config: TrainConfig, learned: Callable[[], LearnedPolicy], best: Path) -> None:
        """Prepare the traces.

        Args:
            config: of the run.
            learned: gives the present policy.
            best: folder of the best one.
        """
        super().__init__()
        self.config = config
        self.learned = learned
        self.best_folder = best
        self.usual: Score | None = None
        self.best_value = -np.inf
        self.held_out = HeldOut(config.env, config.eval_traces, config.eval_requests)
        self.rivals: dict[str, Score] = {}
        self.last: dict[str, float] = {}
        self._next = 0
        self._latest = -1
        self._resumed = False

    def _on_training_start(self) -> None:
        self.rivals = {s: self.held_out.score(baselines.make(s)) for s in self.config.eval_baselines}
        if self.config.queue.is_on:
            self.usual = self.held_out.score(baselines.make(self.config.queue.judge))
        if self._next == 0:
            self._next = self.config.eval_every
        if not self._resumed:
            self._describe()

    def _describe(self) -> None:
        """Hyperparameters and the layout of the custom page, once for a run."""
        numbers = {
            k: v
            for k, v in self.config.to_dict().items()
            if isinstance(v, bool | str | int | float) and not k.startswith(NOT_HYPERPARAMETERS)
        }
        metrics = {"eval/return": 0.0, "eval/mean_ttft_s": 0.0}
        self.logger.record("hparams", HParam(numbers, metrics), exclude=("stdout", "log", "json", "csv"))
        env = self.config.env
        terms = [name for name in REWARD_TERMS if getattr(env.reward, name) > 0.0]
        layout = scalar_layout([t.name for t in env.workload.tiers], terms, self.config.eval_baselines)
        for writer in writers(self.logger):
            writer.add_custom_scalars(layout)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.num_timesteps >= self._next:
            if self.num_timesteps > self._latest:
                self.evaluate()
            self._next = self.num_timesteps + self.config.eval_every

    def _on_training_end(self) -> None:
        self.evaluate()

    def evaluate(self) -> None:
        """Score the present policy, log everything, keep it if it is the best so far."""
        self._latest = self.num_timesteps
        policy = self.learned()
        score = self.held_out.score(policy)
        self.last = {"eval/return": score.mean_return, "eval/mean_ttft_s": score.mean_ttft_s}
        self.last["eval/goodput"] = float(np.mean([report.goodput for report in score.reports]))
        self.last |= self._service_levels(score)
        for name, rival in self.rivals.items():
            self.last[f"margin/{name}/ttft"] = 1.0 - score.mean_ttft_s / rival.mean_ttft_s
            self.last[f"margin/{name}/return"] = score.mean_return - rival.mean_return
        for tag, value in self.last.items():
            if np.isfinite(value):
                self.logger.record(tag, value)
        _, _, server, requests = self.held_out.cases[-1]
        requests = requests.head(min(TIMELINE_REQUESTS, self.config.eval_requests))
        record = simulate(policy, requests, server.executor, server.config, log_steps=True)
        figure = timeline(record, f"{self.num_timesteps:,} decisions")
        self.logger.record("timeline", Figure(figure, close=False), exclude=("stdout", "log", "json", "csv"))
        value = self._value(score)
        if value > self.best_value:
            self.best_value = value
            policy.bundle.save(self.best_folder)

    def _value(self, score: Score) -> float:
        """What the best policy has most of: return, or, where there is a reference, minus the cost relative to it."""
        if self.usual is None:
            return score.mean_return
        for world, by_metric in relative(score, self.usual).items():
            for metric, value in by_metric.items():
                self.logger.record(f"relative/{metric}/{world}", value)
        cost = relative_cost(score, self.usual)
        self.logger.record("relative/cost", cost)
        return -cost

    def _service_levels(self, score: Score) -> dict[str, float]:
        found: dict[str, float] = {}
        by_tier: dict[str, list[TierReport]] = {}
        for tier in (tier for report in score.reports for tier in report.tiers):
            by_tier.setdefault(tier.name, []).append(tier)
        for tier_name, tiers in by_tier.items():
            rows = [(t.ttft.p50, t.ttft.p99, t.itl.p99, t.slo_attainment) for t in tiers]
            for name, values in zip(SLO_METRICS, np.transpose(rows), strict=True):
                known = values[np.isfinite(values)]
                found[f"slo/{tier_name}/{name}"] = float(known.mean()) if known.size else float("nan")
        return found

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep."""
        best = None if self.best_value == -np.inf else self.best_value
        return {"best_return": best, "next": self._next, "latest": self._latest}

    def load_state(self, state: Any) -> None:
        """Continue from what `state` gave.

        Raises:
            InputError: something else.
        """
        expected = isinstance(state, dict) and set(state) == {"best_return", "next", "latest"}
        if not expected or not all(type(state[key]) is int for key in ("next", "latest")):
            raise InputError("evaluation: expected best_return, next and latest")
        best = state["best_return"]
        if best is not None and type(best) not in (int, float):
            raise InputError("evaluation: best_return: expected a number")
        self.best_value = -np.inf if best is None else float(best)
        self._next, self._latest = state["next"], state["latest"]
        self._resumed = True


class Checkpoints(BaseCallback):
    """A checkpoint every `checkpoint_every` decisions and one at the end, always between two updates.

    The state at one of the latest of these places is kept in memory, so that an interruption loses seconds at most
    (`save`). It must be the last callback: what all others logged is on the disk before a checkpoint is.
    """

    model: TimedPPO

    def __init__(self, config: TrainConfig, folder: Path, run: Callable[[], dict[str, Any]]) -> None:
        super().__init__()
        self.config, self.folder, self.run = config, folder, run
        self.latest: Checkpoint | None = None
        self._saved = -1
        self._copied, self._cost = 0.0, 0.0

    def _on_training_start(self) -> None:
        self._saved = self.num_timesteps if self.num_timesteps else -1

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        # What the update logged is written at its own step, or a run that goes on from here would not have it.
        self.logger.dump(self.num_timesteps)
        due = self.num_timesteps - max(self._saved, 0) >= self.config.checkpoint_every
        if due or time.perf_counter() - self._copied >= COPY_EVERY * max(0.0, self._cost - COPY_FREE_S):
            self._copy()
        if due:
            self.save()

    def _on_training_end(self) -> None:
        self.logger.dump(self.num_timesteps)
        self._copy()
        self.save()

    def _copy(self) -> None:
        start = time.perf_counter()
        self.latest = capture(self.model, self.run())
        self._copied = time.perf_counter()
        self._cost = self._copied - start

    def save(self) -> Path | None:
        """Write the latest state, if it is not written yet; None if there is none."""
        if self.latest is None or self.latest.num_timesteps == self._saved:
            return None
        path = self.latest.save(self.folder, self.config.digest, self.config.keep_checkpoints)
        self._saved = self.latest.num_timesteps
        return path


class ProgressBar(BaseCallback):
    """A bar on stderr's terminal with decisions, speed, latest return of an episode and time left."""

    def __init__(self, total: int) -> None:
        super().__init__()
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._columns = (
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TextColumn("{task.fields[result]}"),
            TimeRemainingColumn(),
        )
        console = Console(stderr=True)
        self._bar = Progress(*self._columns, console=console, disable=not console.is_terminal, redirect_stdout=False)
        self._task = self._bar.add_task("", total=total, speed="", result="")

    def _on_training_start(self) -> None:
        self._bar.start()
        self._update()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self._update()

    def _update(self) -> None:
        task = self._bar.tasks[0]
        episodes = self.model.ep_info_buffer
        result = f"return {np.mean([e['r'] for e in episodes]):.1f}" if episodes else ""
        speed = f"{task.speed:,.0f}/s" if task.speed else ""
        self._bar.update(
            self._task, completed=min(self.num_timesteps, int(task.total or 0)), speed=speed, result=result
        )

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._bar.stop()
