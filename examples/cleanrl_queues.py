"""PPO for a loaded server in one file, after CleanRL: torch and the environment, nothing of `agents`.

    python examples/cleanrl_queues.py                        # about five minutes of one core
    python examples/cleanrl_queues.py --total-steps 500_000  # to see it run

A decode that is held back costs memory, and that costs waiting minutes later; what the arrivals do hides it. Plain PPO
(`cleanrl_ppo.py`) learns the wrong sign there. What is different here, and why:

- Rows never end: `Servers` puts a new trace behind an old one, served at first by the policy to begin with. A server
  that starts empty takes minutes to become the one that matters.
- Eight rows at a time meet the same arrivals from the same state on; the mean of the others is taken from an advantage.
- Rewards are what a decision cost less than the mean of its load, in units of the first policy's cost at that load.
- The critic sees what the simulator knows (`llmsched_env.privileged`) and is fitted to differences within a group, too.
- Noise is in the weights and stays for a whole rollout (gSDE), in half of a group with the other sign.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss

from engine import Workload, load_profile
from llmsched_env import OBSERVATION_NAMES, OBSERVATION_SIZE, EnvConfig, LLMSchedVectorEnv, Slackfit
from llmsched_env.privileged import PRIVILEGED_SIZE, describe, foresee, work_until

LOADS = (1.4, 1.6, 1.8, 1.9, 2.0)
"""Requests/s."""
SHARES = (1, 1, 1, 1, 3)
"""Groups at each load, times `groups`: what one row shows is noisiest at the highest."""
TUNED = (5, 4, 2)
"""The levels of slackfit:tuned: batch limit, decode rule, KV share from which decodes run."""
HIGHEST = torch.tensor([8.0, 4.0, 3.0])
SEEN = "kv_use kv_scarcity kv_use_slow arrivals_per_batch_slow waiting_tokens started_tokens running_share".split()
SEEN += ["oldest_wait_relaxed", "shortest_prompt"]
"""What the actor sees."""
COLUMNS = [OBSERVATION_NAMES.index(name) for name in SEEN]
BURN_IN, REQUESTS = 600, 3000
"""Requests of a trace that TUNED serves before the rows take over, and of the whole trace."""
HELD_OUT, TRAINED_ON = 1 << 20, 1 << 30
"""Seeds of traces: far apart."""


@dataclass(frozen=True)
class Settings:
    """Everything about a run."""

    total_steps: int = 6_000_000
    """Decisions of all rows together."""
    groups: int = 3
    """Groups of rows at each load (three times as many at the highest)."""
    size: int = 8
    """Rows of a group."""
    rollout: int = 128
    """Decisions of a row between two updates."""
    learning_rate: float = 0.05
    """Step size of the levels' weights at the start; it falls linearly to 0."""
    discount_s: float = 1000.0
    """Seconds after which a cost counts 1/e."""
    trace_s: float = 60.0
    """Seconds over which the trace of an advantage decays to 1/e."""
    clip: float = 0.2
    """PPO's clip of the probability ratio."""
    most_kl: float = 0.03
    """An update stops when the policy has moved this far."""
    least_std: float = 0.6
    """Deviation of a level that is left at least."""
    warm_up: int = 10
    """Rollouts in which only the critic learns."""
    test_traces: int = 10
    """Held-out traces at each load, of 4000 requests."""
    seed: int = 0
    """Seed of the networks, of exploration and of the traces."""


def make_envs(rows: int, requests: int, load: float = LOADS[0]) -> LLMSchedVectorEnv:
    """Servers whose batches are built by slackfit with the levels of an action, each held for eight of them."""
    action, workload = Slackfit(hold=8, close=0.35), Workload(rate=load, num_requests=requests)
    return LLMSchedVectorEnv(rows, EnvConfig(workload=workload, skip_decode_only=True, action=action))


class Servers:
    """Rows in groups on common arrivals, which go on for ever."""

    def __init__(self, settings: Settings) -> None:
        self.size, self.rng = settings.size, np.random.default_rng(TRAINED_ON + settings.seed)
        groups = np.repeat(np.arange(len(LOADS)), np.multiply(SHARES, settings.groups))
        self.load = np.repeat(groups, self.size)  # int64[rows], which of LOADS
        self.rows = len(self.load)
        self.envs = make_envs(self.rows, REQUESTS)
        self.fleet = self.envs.fleet
        self.arrived = self.fleet.servers.visible.row["next_arrival"][:, 0]
        self.work = np.zeros((self.rows, REQUESTS + 1))
        prices, watched = zip(*(self._watch(load) for load in LOADS), strict=True)
        self.watched = torch.as_tensor(np.concatenate(watched))
        """float32[n, OBSERVATION_SIZE], what TUNED saw, as often at each load."""
        self.prices = np.concatenate(prices)
        self.usual = self.prices["usual_cost"].copy()  # of each load, per second
        for first in range(0, self.rows, self.size):
            self._restart(first, int(self.rng.integers(BURN_IN, REQUESTS // 2)))

    def _watch(self, load: float) -> tuple[np.ndarray, np.ndarray]:
        """What tokens and TUNED cost at a load (a record of `llmsched_env.privileged.PRICES`), and what TUNED saw."""
        envs = make_envs(4, REQUESTS, load)
        envs.reset(seed=TRAINED_ON)
        arrived, cost, time, watched = envs.fleet.servers.visible.row["next_arrival"][:, 0], 0.0, 0.0, []
        while (arrived < REQUESTS).all():
            counts = arrived > BURN_IN
            seen, reward, _, _, infos = envs.step(np.tile(TUNED, (4, 1)))
            cost, time = cost - reward[counts].sum(), time + infos["elapsed_s"][counts].sum()
            watched += list(seen[counts])
        price = describe(load_profile(envs.config.profile), envs.config.workload.generate(TRAINED_ON), load)
        price["usual_cost"] = cost / time
        return price, self.rng.choice(watched, 1000)

    def _restart(self, first: int, until: int) -> None:
        """Begin another trace in a group, where TUNED has served so many arrivals."""
        load = self.load[first]
        requests = Workload(rate=LOADS[load], num_requests=REQUESTS).generate(self.rng)
        self.fleet.start(first, requests)
        while self.arrived[first] < until:
            self.fleet.advance(first, np.array(TUNED))
        rows = range(first, first + self.size)
        self.fleet.copy_row(first, rows)
        output = self.fleet.servers.hidden.output[first].astype(float)
        self.work[rows] = work_until(self.prices[load : load + 1], requests.prompt.astype(float), output)

    def new_round(self) -> Tensor:
        """Put each group into the state of one of its rows, or into that of a new trace."""
        for first in range(0, self.rows, self.size):
            rows = range(first, first + self.size)
            if self.arrived[rows].max() > REQUESTS - 600:  # a rollout takes 220 (at 2.0) to 310
                self._restart(first, BURN_IN)
            self.fleet.copy_row(int(self.rng.choice(rows)), rows)
        return self.look()

    def step(self, levels: Tensor) -> tuple[Tensor, np.ndarray, np.ndarray]:
        """Take a decision in every row; what is seen then, what it cost and how long it took."""
        _, reward, _, _, infos = self.envs.step(whole(levels))
        return self.look(), -reward, infos["elapsed_s"].copy()

    def look(self) -> Tensor:
        """float32[rows, OBSERVATION_SIZE + PRIVILEGED_SIZE]."""
        seen = np.zeros((self.rows, OBSERVATION_SIZE + PRIVILEGED_SIZE), np.float32)
        seen[:, :OBSERVATION_SIZE] = self.fleet.observed
        servers, prices = self.fleet.servers, self.prices.view(np.float64).reshape(len(LOADS), -1)
        known = (servers.visible, servers.hidden.output, self.work, prices, self.load)
        foresee(known, seen[:, OBSERVATION_SIZE:], 0, self.rows)
        return torch.as_tensor(seen)


def whole(levels: Tensor) -> np.ndarray:
    """Levels of the environment, int64[rows, heads]."""
    return levels.round().clamp(torch.zeros(3), HIGHEST).long().numpy()


class Agent(nn.Module):
    """Levels that are linear in a few observations, and a critic that sees everything."""

    def __init__(self, watched: Tensor) -> None:
        super().__init__()
        self.mean, self.std = watched.mean(0), watched.std(0).clamp(min=0.02)
        inputs = len(COLUMNS) + 1
        self.weight = nn.Parameter(torch.zeros(inputs, 3))
        self.log_std = nn.Parameter(torch.full((inputs, 3), -0.5 * float(np.log(inputs))))
        self.best = torch.zeros(inputs, 3)  # running mean of the weights
        layers = (
            nn.Linear(OBSERVATION_SIZE + PRIVILEGED_SIZE, 64),
            nn.SiLU(),
            nn.Linear(64, 64),
            nn.SiLU(),
            nn.Linear(64, 1),
        )
        self.critic = nn.Sequential(*layers)

    def scaled(self, seen: Tensor) -> Tensor:
        """What the critic sees."""
        own = (seen[..., :OBSERVATION_SIZE] - self.mean) / self.std
        return torch.cat([own.clamp(-5.0, 5.0), seen[..., OBSERVATION_SIZE:]], -1)

    def features(self, scaled: Tensor) -> Tensor:
        """A constant and what the actor sees: float32[..., features]."""
        return torch.cat([torch.ones_like(scaled[..., :1]), scaled[..., COLUMNS]], -1)

    def value(self, scaled: Tensor) -> Tensor:
        """float32[...]."""
        return torch.as_tensor(self.critic(scaled)).squeeze(-1)

    def log_prob(self, features: Tensor, levels: Tensor) -> Tensor:
        """Of levels whose noise is in the weights, float32[...]."""
        deviation = (features.square() @ self.log_std.exp().square() + 1e-6).sqrt()
        mean = torch.tensor(TUNED) + features @ self.weight
        return torch.distributions.Normal(mean, deviation).log_prob(levels).sum(-1)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def keep_exploring(self, least: float) -> None:
        """Keep the deviation of each level where features are at 1."""
        std = self.log_std.exp().square().sum(0).sqrt()
        self.log_std.add_((std.clamp(min=least) / std).log())


class Rollout(NamedTuple):
    """Decisions of every row, [steps, rows]."""

    scaled: Tensor  # float32[steps, rows, entries]
    levels: Tensor  # float32[steps, rows, heads]
    cost: np.ndarray
    elapsed: np.ndarray  # s
    last: Tensor  # float32[rows, entries], behind the last one


@torch.no_grad()
def collect(servers: Servers, agent: Agent, steps: int) -> Rollout:
    """Let every row take so many decisions, each with a noise of its own in the weights."""
    std = agent.log_std.exp()
    noise = torch.randn(servers.rows // servers.size, servers.size, *std.shape) * std
    half = servers.size // 2
    noise[:, half : 2 * half] = -noise[:, :half]
    weight, found = agent.weight + noise.flatten(0, 1), []
    now = agent.scaled(servers.new_round())
    for _ in range(steps):
        levels = torch.tensor(TUNED) + torch.einsum("rf,rfh->rh", agent.features(now), weight)
        after, cost, elapsed = servers.step(levels)
        found.append((now, levels, cost, elapsed))
        now = agent.scaled(after)
    scaled, levels, cost, elapsed = zip(*found, strict=True)
    return Rollout(torch.stack(scaled), torch.stack(levels), np.stack(cost), np.stack(elapsed), now)


@torch.no_grad()
def estimate(
    servers: Servers, agent: Agent, rollout: Rollout, mean: np.ndarray, s: Settings
) -> tuple[np.ndarray, Tensor, Tensor]:
    """Rewards against the mean cost of each load, returns, and advantages against the other rows of the group."""
    load, elapsed = servers.load, rollout.elapsed
    reward = (mean[load] * elapsed - rollout.cost) / (10.0 * servers.usual[load])
    value, following = (agent.value(seen).double().numpy() for seen in (rollout.scaled, rollout.last))
    discount, trace = np.exp(-elapsed / s.discount_s), np.exp(-elapsed / s.trace_s)
    advantage, tail = np.zeros_like(value), np.zeros(servers.rows)
    for t in reversed(range(len(value))):
        tail = reward[t] + discount[t] * following - value[t] + discount[t] * trace[t] * tail
        advantage[t], following = tail, value[t]
    paired, times = advantage.copy(), seconds(elapsed)[:-1]
    for e in range(servers.rows):
        first = e - e % s.size
        for other in range(first, first + s.size):
            if other != e:
                paired[:, e] -= np.interp(times[:, e], times[:, other], advantage[:, other]) / (s.size - 1)
    for k in range(len(LOADS)):  # loads count alike, whatever their rows
        own = load == k
        paired[:, own] = (paired[:, own] - paired[:, own].mean()) / own.sum()
    return reward, as_float(value + advantage), as_float(paired / paired.std())


def seconds(elapsed: np.ndarray) -> np.ndarray:
    """Time before each decision and at the end, float64[steps + 1, rows]."""
    return np.concatenate([np.zeros((1, elapsed.shape[1])), elapsed.cumsum(0)])


def as_float(array: np.ndarray) -> Tensor:
    """float32."""
    return torch.as_tensor(array, dtype=torch.float32)


@torch.no_grad()
def differences(agent: Agent, rollout: Rollout, reward: np.ndarray, s: Settings) -> tuple[Tensor, Tensor]:
    """What rows of a group differ by at 24 common times: what they see, and what comes until the first is through."""
    times, total, size = seconds(rollout.elapsed), seconds(reward), s.size
    steps, rows = reward.shape
    end = times[-1].reshape(-1, size).min(1).repeat(size)
    grid = np.append(np.linspace(0.05, 0.9, 24), 1.0)[:, None] * end
    place, until = np.zeros(grid.shape, int), np.zeros(grid.shape)
    for e in range(rows):
        place[:, e] = np.searchsorted(times[:-1, e], grid[:, e]).clip(0, steps - 1)
        until[:, e] = np.interp(grid[:, e], times[:, e], total[:, e])
    seen = rollout.scaled[place, np.arange(rows)]
    left = np.exp((grid[:-1] - end) / s.discount_s) * agent.value(seen[-1]).numpy()
    found = as_float(until[-1] - until[:-1] + left).reshape(24, -1, size)
    return seen[:-1].reshape(*found.shape, -1), found - found.mean(2, keepdim=True)


def fit_critic(
    agent: Agent, optimizer: torch.optim.Optimizer, rollout: Rollout, returns: Tensor, pairs: tuple[Tensor, Tensor]
) -> None:
    """Fit the critic to returns and to the differences within groups."""
    scaled, returns, (seen, target) = rollout.scaled.flatten(0, 1), returns.flatten(), pairs
    for _ in range(96):
        chosen, few = torch.randint(len(scaled), (1024,)), torch.randint(len(seen), (3,))
        loss = smooth_l1_loss(agent.value(scaled[chosen]), returns[chosen], beta=3.0)
        values = agent.value(seen[few])
        loss = loss + 4.0 * smooth_l1_loss(values - values.mean(2, keepdim=True), target[few], beta=0.3)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(agent.critic.parameters(), 5.0)
        optimizer.step()


def update_actor(
    agent: Agent, optimizer: torch.optim.Optimizer, rollout: Rollout, advantage: Tensor, s: Settings
) -> None:
    """PPO's clipped updates, four passes over the rollout in halves."""
    features, levels = agent.features(rollout.scaled).flatten(0, 1), rollout.levels.flatten(0, 1)
    advantage = advantage.flatten()
    with torch.no_grad():
        before = agent.log_prob(features, levels)
    for _ in range(4):
        for chosen in torch.randperm(len(levels)).chunk(2):
            log_ratio = agent.log_prob(features[chosen], levels[chosen]) - before[chosen]
            ratio = log_ratio.exp()
            if ((ratio - 1.0) - log_ratio).mean() > s.most_kl:
                return
            clipped = ratio.clamp(1.0 - s.clip, 1.0 + s.clip)
            loss = -torch.minimum(ratio * advantage[chosen], clipped * advantage[chosen]).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()


def train(settings: Settings) -> Agent:
    """Train an agent; prints now and then what its rollouts cost at each load, in units of TUNED's."""
    torch.manual_seed(settings.seed)
    torch.set_num_threads(1)  # small networks: threads only wait for each other
    servers = Servers(settings)
    agent, mean = Agent(servers.watched), servers.usual.copy()
    rates = ({"params": [agent.weight], "rate": 1.0}, {"params": [agent.log_std], "rate": 0.3})
    actor = torch.optim.Adam(rates, eps=1e-5)
    critic = torch.optim.Adam(agent.critic.parameters(), 1e-3, eps=1e-5)
    rollouts = max(1, settings.total_steps // (servers.rows * settings.rollout))
    for k in range(rollouts):
        rollout = collect(servers, agent, settings.rollout)
        paid = np.bincount(servers.load, rollout.cost.sum(0)) / np.bincount(servers.load, rollout.elapsed.sum(0))
        mean += 0.05 * (paid - mean)
        reward, returns, advantage = estimate(servers, agent, rollout, mean, settings)
        fit_critic(agent, critic, rollout, returns, differences(agent, rollout, reward, settings))
        if k >= settings.warm_up:
            for part in actor.param_groups:
                part["lr"] = part["rate"] * settings.learning_rate * (1.0 - k / rollouts)
            update_actor(agent, actor, rollout, advantage, settings)
            agent.keep_exploring(settings.least_std)
            agent.best = agent.weight.detach() + 0.95 * (agent.best - agent.weight.detach())
        if k % max(1, rollouts // 20) == 0:
            ratios = ", ".join(
                f"{cost:.2f} at {load:g}" for load, cost in zip(LOADS, paid / servers.usual, strict=True)
            )
            print(f"{(k + 1) * rollout.cost.size:>9} decisions: {ratios}", flush=True)
    return agent


@torch.no_grad()
def mean_ttft(agent: Agent | None, load: float, traces: int, requests: int = 4000) -> float:
    """Mean TTFT in ms on held-out traces, without noise; without an agent, of TUNED."""
    envs = make_envs(traces, requests, load)
    seen, _ = envs.reset(seed=HELD_OUT)
    levels, found = torch.tensor(TUNED, dtype=torch.float32).repeat(traces, 1), np.full(traces, np.nan)
    while np.isnan(found).any():
        if agent is not None:
            levels = torch.tensor(TUNED) + agent.features(agent.scaled(torch.as_tensor(seen))) @ agent.best
        seen, _, terminated, _, infos = envs.step(whole(levels))
        for e in np.flatnonzero(terminated & np.isnan(found)):  # the row is on another trace already
            found[e] = infos["final_info"]["report"][e]["mean_ttft_ms"]
    return float(found.mean())


def main(settings: Settings) -> dict[float, float]:
    """Train and compare.

    Returns:
        Mean TTFT of what was learned relative to that of slackfit:tuned, by load.
    """
    agent = train(settings)
    found = {}
    for load in LOADS:
        tuned, learned = (mean_ttft(one, load, settings.test_traces) for one in (None, agent))
        found[load] = learned / tuned - 1.0
        print(f"{load:g} requests/s: mean TTFT {learned:.0f} ms, slackfit:tuned {tuned:.0f} ms ({found[load]:+.1%})")
    return found


if __name__ == "__main__":
    main(tyro.cli(Settings))
