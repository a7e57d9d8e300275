"""`QueuePPO`: SB3's PPO on `GroupedServers`, with the pieces of this folder around its rollouts and updates.

No action depends on the critic, so its fit to one rollout may go on while the next one is collected: a copy is fitted,
which takes the critic's place when the next rollout is there to be valued (or a checkpoint to be made).
"""

import copy
from concurrent.futures import Future
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.vec_env import VecEnv

from agents.learning.ppo.queues.advantages import balanced, clock, differential, less_others, timed_advantages
from agents.learning.ppo.queues.config import QueueConfig
from agents.learning.ppo.queues.critic import COMPARED, Rollout, differences, draw, fit
from agents.learning.ppo.queues.groups import GroupedServers
from agents.learning.ppo.queues.multipliers import Multipliers
from agents.learning.ppo.queues.policy import LevelPolicy
from agents.learning.ppo.rollout import TimedPPO, TimedRolloutBuffer
from agents.learning.ppo.tensorboard import writers
from agents.learning.ppo.vec_env import SB3VecEnv

FORGET = 0.05
"""Weight of the latest rollout in the running mean cost of a world."""


class _Fitting(NamedTuple):
    """A fit of the critic that may not be over yet."""

    loss: Future[float]  # the last one
    after: int  # decisions before it


class QueuePPO(TimedPPO):
    """PPO for queues; every update goes through SB3's.

    Keywords beside those of `TimedPPO`: `queue`, the settings; `usual`, float64[worlds], mean cost per second of the
    reference; `pace`, float64[worlds], real seconds for each second of `discount_s` and `trace_s`.
    """

    policy: LevelPolicy

    def __init__(self, *args: Any, queue: QueueConfig, usual: np.ndarray, pace: np.ndarray, **kwargs: Any) -> None:
        self.queue = queue
        self.usual, self.pace = usual, pace
        self.mean_cost = usual.copy()
        self.rollouts = 0
        super().__init__(
            *args, normalize_advantage=False, vf_coef=0.0, use_sde=queue.exploration == "rollout", **kwargs
        )
        self.fitted = copy.deepcopy(self.policy.critic())
        self.critic_optimizer = th.optim.Adam(self.fitted.parameters(), lr=queue.critic_rate, eps=1e-5)
        self._fitting: _Fitting | None = None
        shape, tiers = (self.n_steps, self.n_envs), self.servers.fleet.rules.tier_weight.shape[1]
        self.elapsed, self.costs, self.rewards = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        self.late, self.finished = np.zeros(tiers), np.zeros(tiers)
        self.multipliers = Multipliers(tiers, queue.late_limit, queue.multiplier_rate)

    @property
    def servers(self) -> GroupedServers:
        """The environment itself."""
        env = self.get_env()
        assert env is not None
        base = env.unwrapped
        assert isinstance(base, SB3VecEnv)
        assert isinstance(base.envs, GroupedServers)
        return base.envs

    def begin_rollout(self) -> None:
        """Put groups into common states and draw the noise that lasts."""
        self.late[:], self.finished[:] = 0.0, 0.0
        self._last_obs = self.servers.new_round(self.queue.resync)
        if self.use_sde:
            self.policy.draw_noise(self.n_envs, self.queue.group_size if self.queue.antithetic else 0)

    def note_step(self, buffer: TimedRolloutBuffer, step: int, base: VecEnv) -> None:
        """Keep the seconds and the cost of a step."""
        assert isinstance(base, SB3VecEnv)
        infos = base.step_infos
        self.elapsed[step] = infos["elapsed_s"]
        self.costs[step] = self.multipliers.cost(infos["late_gaps"]) - infos["reward"]
        self.late += infos["late_gaps"].sum(0)
        self.finished += infos["finished"].sum(0)

    def estimate(self, buffer: TimedRolloutBuffer, last_values: th.Tensor, dones: np.ndarray) -> None:
        """Write advantages and returns as `agents.learning.ppo.queues.advantages` has them."""
        queue, world = self.queue, self.servers.world_of_row
        self.servers.fleet.crew.share(len(buffer.values), lambda first, last: self._value(buffer, first, last))
        paid = np.bincount(world, self.costs.sum(0)) / np.bincount(world, self.elapsed.sum(0))
        self.mean_cost += FORGET * (paid - self.mean_cost)
        unit = self.usual if queue.relative_costs else np.full_like(self.usual, self.usual.mean())
        mean = self.mean_cost if queue.average_cost else np.zeros_like(unit)
        self.rewards = differential(self.costs, self.elapsed, mean[world], (unit * self.pace)[world])
        last = last_values.cpu().numpy()[:, 0].astype(np.float64)
        values = buffer.values.astype(np.float64)
        raw = timed_advantages(self.rewards, values, last, *self._decay())
        buffer.returns = (raw + values).astype(np.float32)
        paired = less_others(raw, clock(self.elapsed)[:-1], queue.group_size) if queue.paired else raw
        buffer.advantages = balanced(paired, world, len(self.usual), queue.equal_deviations).astype(np.float32)
        self._log_rollout(paid, raw, paired, buffer)

    def _value(self, buffer: TimedRolloutBuffer, first: int, last: int) -> None:
        """Write the values of some steps into the buffer."""
        critic = self.policy.critic()
        with th.no_grad():
            for step in range(first, last):
                seen = th.as_tensor(buffer.observations[step], device=self.device)
                buffer.values[step] = critic(seen)[:, 0].cpu().numpy()

    def _decay(self) -> tuple[np.ndarray, np.ndarray]:
        """How much of the value and of the trace is left after each decision."""
        discount = np.exp(self.paced / -self.discount_s)
        seconds = np.exp(self.paced / -self.queue.trace_s) if self.queue.trace_s > 0.0 else 1.0
        return discount, discount * self.gae_lambda * seconds

    @property
    def paced(self) -> np.ndarray:
        """Seconds of the decisions at the pace of their worlds, float64[steps, rows]."""
        return np.asarray(self.elapsed / self.pace[self.servers.world_of_row])

    def _log_rollout(self, paid: np.ndarray, raw: np.ndarray, paired: np.ndarray, buffer: TimedRolloutBuffer) -> None:
        world = self.servers.world_of_row
        for w, name in enumerate(one.name for one in self.servers.worlds):
            rows = world == w
            error, returns = (buffer.returns - buffer.values)[:, rows], buffer.returns[:, rows]
            self.logger.record(f"cost/{name}", float(paid[w] / self.usual[w]))
            self.logger.record(f"explained/{name}", float(1.0 - (error**2).mean() / (returns.var() + 1e-12)))
            self.logger.record(f"advantage/raw/{name}", float(raw[:, rows].std()))
            self.logger.record(f"advantage/paired/{name}", float(paired[:, rows].std()))
            of_row = paired[:, rows].mean(0)
            self.logger.record(f"advantage/paired_error/{name}", float(of_row.std() / np.sqrt(len(of_row))))
        for k, tier in enumerate(self.servers.worlds[0].env.workload.tiers):
            self.logger.record(f"late/{tier.name}", float(self.late[k] / max(self.finished[k], 1.0)))
            self.logger.record(f"multiplier/{tier.name}", float(self.multipliers.value[k]))
        with th.no_grad():
            stds = self.policy.level_std()
        for name, std in zip(self.servers.fleet.config.action.heads, stds.tolist(), strict=True):
            self.logger.record(f"std/{name}", std)
        self.logger.record("rollout/seconds", float(self.elapsed.sum(0).mean()))

    def train(self) -> None:
        """Begin to fit the critic, and, once it is warm, let SB3 update the actor.

        Raises:
            InputError: networks that are not finite.
        """
        self.begin_fit()
        self.rollouts += 1
        if self.queue.late_limit > 0.0:
            self.multipliers.ascend(self.late, self.finished)
        if self.rollouts > self.queue.warm_up:
            super().train()
            self.policy.clamp_std(self.queue.least_std)
            self.policy.averaged.update_parameters(self.policy.actor_parts)
            self.logger.record("train/value_loss", 0.0, exclude="tensorboard")  # SB3's, which has not seen the critic
        if self.servers.fleet.crew.is_alone:
            self.settle()

    def begin_fit(self) -> None:
        """Let a copy of the critic be fitted to the rollout in the buffer; `settle` takes it over."""
        queue, buffer = self.queue, self.rollout_buffer
        rollout = Rollout(buffer.observations, buffer.returns, self.rewards, self.paced)
        pairs = queue.differences > 0.0 and queue.group_size > 1
        drawn = draw(queue.critic_steps, queue.critic_batch, buffer.returns.size, COMPARED if pairs else 0)
        self.fitted.load_state_dict(self.policy.critic().state_dict())

        def task() -> float:
            compared = differences(self.fitted, rollout, queue.group_size, self.discount_s) if pairs else None
            return fit(self.fitted, self.critic_optimizer, rollout, compared, drawn, queue.differences)

        self._fitting = _Fitting(self.servers.fleet.crew.start(task), self.num_timesteps)

    def settle(self) -> None:
        """Wait for the fit of the critic, if there is one, and put the copy in its place.

        Raises:
            InputError: it is not finite.
        """
        if self._fitting is None:
            return
        (loss, after), self._fitting = self._fitting, None
        value_loss = loss.result()
        self.policy.critic().load_state_dict(self.fitted.state_dict())
        self.check_finite(after)
        for writer in writers(self.logger):
            writer.add_scalar("train/value_loss", value_loss, after)

    def _update_learning_rate(self, optimizers: list[th.optim.Optimizer] | th.optim.Optimizer) -> None:
        """SB3's, then each part of the actor at its own rate."""
        super()._update_learning_rate(optimizers)
        for part in self.policy.optimizer.param_groups:
            part["lr"] *= part["part"]

    def more_state(self) -> dict[str, np.ndarray]:
        """Running costs, multipliers and how many rollouts there were."""
        own = {"mean_cost": self.mean_cost, "multipliers": self.multipliers.value}
        return {name: array.copy() for name, array in own.items()} | {"rollouts": np.array([self.rollouts], np.int64)}

    def load_more_state(self, state: dict[str, np.ndarray]) -> None:
        """Go on from what `more_state` gave."""
        self.mean_cost[:], self.multipliers.value[:] = state["mean_cost"], state["multipliers"]
        self.rollouts = int(state["rollouts"][0])

    def optimizers(self) -> dict[str, th.optim.Optimizer]:
        """That of the actor and that of the critic."""
        return {**super().optimizers(), "critic_optimizer": self.critic_optimizer}
