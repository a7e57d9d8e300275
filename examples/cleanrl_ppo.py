"""PPO in one file on the native vector environment, after CleanRL: torch and gymnasium, nothing of `agents`.

    python examples/cleanrl_ppo.py                                   # the toy: some seconds on one core
    python examples/cleanrl_ppo.py --env-id llmsched_env:LLMSched-v0 --total-steps 1_000_000

What differs from CleanRL's `ppo.py`, because decisions of a server take different times: a reward is discounted by the
seconds that passed (`infos["elapsed_s"]`), not by the number of decisions. Rows are reset in the step in which they end
(`AutoresetMode.SAME_STEP`): the observation of the end is in `infos["final_obs"]`, and a truncated episode bootstraps
from it.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
import tyro
from torch import Tensor, nn


@dataclass(frozen=True)
class Settings:
    """Everything about a run."""

    env_id: str = "llmsched_env:LLMSchedToy-v0"
    """Registered environment whose action is MultiDiscrete."""
    total_steps: int = 50_000
    """Decisions of all rows together."""
    rows: int = 64
    """Servers side by side."""
    rollout: int = 32
    """Decisions of each row between two updates."""
    epochs: int = 4
    """Passes over a rollout."""
    minibatches: int = 4
    """Parts of a pass."""
    learning_rate: float = 2e-3
    """Step size of Adam at the start; it falls linearly to 0."""
    discount_s: float = 5.0
    """Seconds after which a reward counts 1/e of its value."""
    gae_lambda: float = 0.9
    """Lambda of generalised advantage estimation, per decision."""
    clip: float = 0.2
    """PPO's clip of the probability ratio."""
    entropy: float = 0.003
    """Weight of the entropy bonus."""
    max_episode_steps: int = 0
    """Decisions after which an episode is truncated (0: none is)."""
    seed: int = 0
    """Seed of the network, of exploration and of the traces."""


class Agent(nn.Module):
    """A value and one categorical distribution for each dimension of the action."""

    def __init__(self, observations: int, choices: list[int]) -> None:
        super().__init__()
        self.choices = choices
        self.critic = nn.Sequential(_layer(observations, 64), nn.Tanh(), _layer(64, 64), nn.Tanh(), _layer(64, 1, 1.0))
        self.actor = nn.Sequential(
            _layer(observations, 64), nn.Tanh(), _layer(64, 64), nn.Tanh(), _layer(64, sum(choices), 0.01)
        )

    def value(self, observation: Tensor) -> Tensor:
        """float32[n]."""
        return torch.as_tensor(self.critic(observation)).squeeze(-1)

    def heads(self, observation: Tensor) -> list[torch.distributions.Categorical]:
        """The distributions of the dimensions."""
        logits = torch.split(self.actor(observation), self.choices, dim=-1)
        return [torch.distributions.Categorical(logits=part) for part in logits]

    def log_prob(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability of actions int64[n, dimensions], and the entropy of the distributions; float32[n] each."""
        heads = self.heads(observation)
        logs = [head.log_prob(action[:, k]) for k, head in enumerate(heads)]  # type: ignore[no-untyped-call]
        entropies = [head.entropy() for head in heads]  # type: ignore[no-untyped-call]
        return torch.stack(logs).sum(0), torch.stack(entropies).sum(0)

    @torch.no_grad()
    def act(self, observation: Tensor, greedy: bool = False) -> Tensor:
        """Actions int64[n, dimensions]: drawn, or the most likely ones."""
        heads = self.heads(observation)
        return torch.stack([h.probs.argmax(-1) if greedy else h.sample() for h in heads], dim=-1)  # type: ignore[no-untyped-call]


def _layer(inputs: int, outputs: int, gain: float = 2.0**0.5) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class Rollout(NamedTuple):
    """Decisions of every row, with a leading axis for the step: [steps, rows]."""

    observation: Tensor  # float32[steps, rows, observations]
    action: Tensor  # int64[steps, rows, dimensions]
    log_prob: Tensor
    value: Tensor
    advantage: Tensor


def make_envs(settings: Settings) -> gymnasium.vector.VectorEnv[Any, Any, Any]:
    """The rows; iterations in which there is nothing to decide pass by themselves."""
    return gymnasium.make_vec(
        settings.env_id,
        settings.rows,
        vectorization_mode="vector_entry_point",
        skip_decode_only=True,
        max_steps=settings.max_episode_steps,
    )


@torch.no_grad()
def collect(
    envs: gymnasium.vector.VectorEnv[Any, Any, Any], agent: Agent, first: np.ndarray, settings: Settings
) -> tuple[Rollout, np.ndarray]:
    """Play `rollout` decisions in every row.

    Args:
        envs: the rows.
        agent: decides.
        first: float32[rows, observations], where the rows are.
        settings: of the run.

    Returns:
        The decisions with their advantages, and where the rows are now.
    """
    now, steps = torch.as_tensor(first), []
    for _ in range(settings.rollout):
        value, action = agent.value(now), agent.act(now)
        after, reward, terminated, truncated, infos = envs.step(action.numpy())
        following = torch.as_tensor(after)
        bootstrap = agent.value(following)
        for e in np.flatnonzero(terminated | truncated):  # the row is a new episode already
            bootstrap[e] = 0.0 if terminated[e] else agent.value(torch.as_tensor(infos["final_obs"][e]))
        discount = torch.as_tensor(np.exp(-infos["elapsed_s"] / settings.discount_s), dtype=torch.float32)
        gain = torch.as_tensor(reward, dtype=torch.float32) + discount * bootstrap
        goes_on = torch.as_tensor(~(terminated | truncated), dtype=torch.float32)
        steps.append((now, action, agent.log_prob(now, action)[0], value, gain - value, discount * goes_on))
        now = following
    observation, action, log_prob, value, error, keep = (torch.stack(part) for part in zip(*steps, strict=True))
    advantage, tail = torch.zeros_like(error), torch.zeros(settings.rows)
    for k in reversed(range(settings.rollout)):
        advantage[k] = tail = error[k] + settings.gae_lambda * keep[k] * tail
    return Rollout(observation, action, log_prob, value, advantage), now.numpy()


def update(agent: Agent, optimizer: torch.optim.Optimizer, rollout: Rollout, settings: Settings) -> None:
    """PPO's clipped updates on one rollout."""
    flat = Rollout(*(part.flatten(0, 1) for part in rollout))
    returns = flat.value + flat.advantage
    for _ in range(settings.epochs):
        for chosen in torch.randperm(len(returns)).chunk(settings.minibatches):
            log_prob, entropy = agent.log_prob(flat.observation[chosen], flat.action[chosen])
            ratio, advantage = (log_prob - flat.log_prob[chosen]).exp(), flat.advantage[chosen]
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
            clipped = ratio.clamp(1.0 - settings.clip, 1.0 + settings.clip)
            policy_loss = -torch.minimum(ratio * advantage, clipped * advantage).mean()
            value_loss = 0.5 * (agent.value(flat.observation[chosen]) - returns[chosen]).square().mean()
            optimizer.zero_grad()
            (policy_loss + 0.5 * value_loss - settings.entropy * entropy.mean()).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
            optimizer.step()


def mean_return(settings: Settings, agent: Agent | None, seed: int = 10_000) -> float:
    """Return of one episode of each row, undiscounted, mean over the rows; without an agent, of random actions."""
    envs = make_envs(settings)
    envs.action_space.seed(seed)
    observation, _ = envs.reset(seed=seed)
    total, alive = np.zeros(settings.rows), np.ones(settings.rows, bool)
    while alive.any():
        actions = agent.act(torch.as_tensor(observation), greedy=True).numpy() if agent else envs.action_space.sample()
        observation, reward, terminated, truncated, _ = envs.step(actions)
        total += reward * alive
        alive &= ~(terminated | truncated)
    return float(total.mean())


def train(settings: Settings) -> Agent:
    """Train an agent; prints what it has reached now and then."""
    torch.manual_seed(settings.seed)
    torch.set_num_threads(1)  # small networks: threads only wait for each other
    envs = make_envs(settings)
    choices = [int(n) for n in envs.single_action_space.nvec]  # type: ignore[attr-defined]
    agent = Agent(envs.single_observation_space.shape[0], choices)  # type: ignore[index]
    optimizer = torch.optim.Adam(agent.parameters(), settings.learning_rate, eps=1e-5)
    now, _ = envs.reset(seed=settings.seed)
    updates = max(1, settings.total_steps // (settings.rows * settings.rollout))
    for k in range(updates):
        optimizer.param_groups[0]["lr"] = settings.learning_rate * (1.0 - k / updates)
        rollout, now = collect(envs, agent, now, settings)
        update(agent, optimizer, rollout, settings)
        if k % max(1, updates // 10) == 0:
            print(
                f"{(k + 1) * settings.rows * settings.rollout:>9} decisions: return {mean_return(settings, agent):.3f}"
            )
    return agent


def main(settings: Settings) -> tuple[float, float]:
    """Train and compare.

    Returns:
        Mean return of an episode with random actions, and of what was learned.
    """
    random = mean_return(settings, None)
    print(f"random actions: return {random:.3f}")
    learned = mean_return(settings, train(settings))
    print(f"learned: return {learned:.3f}")
    return random, learned


if __name__ == "__main__":
    main(tyro.cli(Settings))
