"""Two learners that `agents.studies.ablations` leaves out, with the settings of its `ppo-warm-hold`, in such a table.

    python3 -m agents.studies.learner_variants                  # both, two seeds each: about 15 minutes on 2 cores
    python3 -m agents.studies.learner_variants --only kl --beta 0.03 --out out/kl-0.03

`attention`: the policy sees, beside the aggregates, the requests that are present, through attention. `kl`: straying
from slackfit:tuned, as imitation left it, costs reward. Trains into OUT/VARIANT-SEED what is not there yet, then prints
the difference to slackfit:tuned on held-out traces, mean over training seeds [lowest, highest]. Writes
OUT/learner_variants.json.
"""

import argparse
import copy
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecEnv

from agents.evaluation.evaluate import Evaluation, evaluate
from agents.evaluation.result import Comparison
from agents.learning.ppo.imitation import imitate
from agents.learning.ppo.normalize import TimedNormalize
from agents.learning.ppo.rollout import TimedPPO
from agents.learning.ppo.train import build_model, learned_policy, torch_settings
from agents.learning.ppo.train_config import TrainConfig
from agents.learning.ppo.vec_env import SB3VecEnv
from agents.learning.teachers import teacher
from agents.studies.ablations import BASE, METRICS, RATES, VARIANTS, Relatives, against_base, figures, relatives, table
from agents.work.files import write_json
from engine.compiled.kept import kept
from engine.demand.requests import Requests
from engine.server.state import View
from llmsched_env.actions import Slackfit
from llmsched_env.observation import OBSERVATION_SIZE
from llmsched_env.vector import LLMSchedVectorEnv

LABELS = {
    "attention": "PPO from slackfit:tuned, held for 8 batches, with attention over the requests present",
    "kl": "PPO from slackfit:tuned, held for 8 batches, with {beta:g} x KL to it taken from the reward",
}
PROMPTS, DECODES = 16, 48
"""Requests that `attention` sees at most: prompts with the least left, decodes with the least slack."""
FEATURES, LIMIT = 10, 10.0
"""Numbers for each of them, and what slack and wait are cut to."""


@kept
def _describe(view: View, out: np.ndarray) -> None:
    """Write float32[rows, PROMPTS + DECODES, FEATURES]: the requests of each server that come first, then zeros."""
    out[:] = 0.0
    for e in range(out.shape[0]):
        row = view.row[e, 0]
        waiting, running = row.num_waiting, row.num_running
        who = np.concatenate((view.queue[e, :waiting], view.running[e, :running]))
        left, slack = np.full(len(who), np.inf), np.full(len(who), np.inf)
        for k, i in enumerate(who):
            r = view.request[e, i]
            if k < waiting or r.prefilled < r.prompt:
                left[k] = r.prompt - r.prefilled
            else:
                slack[k] = (r.last_token + r.tbt - row.now) / r.tbt
        decodes = running - row.num_prefilling
        prompts = min(PROMPTS, len(who) - decodes)
        first = np.concatenate((np.argsort(left)[:prompts], np.argsort(slack)[: min(DECODES, decodes)]))
        for place, k in enumerate(first):
            r, cell = view.request[e, who[k]], out[e, place]
            cell[0], cell[1] = r.prompt / 2048.0, (r.prompt - r.prefilled) / 2048.0
            cell[2], cell[3] = (r.prefilled + r.length - r.prompt) / 4096.0, r.generated / 512.0
            if place >= prompts or r.has_token:
                cell[4] = max((r.last_token + r.tbt - row.now) / r.tbt, -LIMIT)
            else:
                cell[5] = min((row.now - r.arrival) / r.ttft, LIMIT)
            cell[6] = r.strict
            cell[7 if k < waiting else 8 if place < prompts else 9] = 1.0


class RequestRows(TimedNormalize):
    """Normalised aggregates, then the requests as they are: float32[rows, OBSERVATION_SIZE + requests x FEATURES].

    A request is prompt, what is left of it, context, tokens generated, slack in TBT deadlines, wait for the first token
    in TTFT deadlines, tier, and 1 in one of three places (waiting, prefilling, decoding); where there is none, all are
    0. An episode ends when all is served, so there is none in a last observation.
    """

    def __init__(self, venv: VecEnv, discount_s: float) -> None:
        super().__init__(venv, discount_s)
        self.fleet = venv.get_attr("fleet", 0)[0]
        self.requests = np.zeros((venv.num_envs, PROMPTS + DECODES, FEATURES), np.float32)
        size = OBSERVATION_SIZE + self.requests[0].size
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float32)

    def _with_requests(self, aggregates: Any) -> np.ndarray:
        _describe(self.fleet.servers.visible, self.requests)
        return np.concatenate([aggregates, self.requests.reshape(len(aggregates), -1)], axis=1, dtype=np.float32)

    def reset(self) -> np.ndarray:
        """Start an episode in every row."""
        return self._with_requests(super().reset())

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Step every row and look at its requests."""
        aggregates, rewards, dones, infos = super().step_wait()
        for row in np.flatnonzero(dones):
            last = infos[row]["terminal_observation"]
            infos[row]["terminal_observation"] = np.pad(last, (0, self.requests[0].size))
        return self._with_requests(aggregates), rewards, dones, infos

    def get_original_obs(self) -> np.ndarray:
        """The latest observations before normalisation."""
        return self._with_requests(super().get_original_obs())

    def normalize_obs(self, obs: np.ndarray) -> np.ndarray:  # type: ignore[override]
        """Normalise the aggregates; what follows them stays."""
        return np.concatenate([super().normalize_obs(obs[..., :OBSERVATION_SIZE]), obs[..., OBSERVATION_SIZE:]], -1)


class RequestAttention(BaseFeaturesExtractor):
    """The aggregates, and what queries made of them find in the requests, whatever the order of those.

    Multi-head attention as of Vaswani et al. (2017) with one query. The key projection is part of the query's, the
    value projection is left to the layer above, so that no request is projected twice.
    """

    def __init__(self, observation_space: spaces.Box, width: int = 32, heads: int = 4) -> None:
        super().__init__(observation_space, OBSERVATION_SIZE + heads * width)
        self.embed = th.nn.Sequential(th.nn.Linear(FEATURES, width), th.nn.ReLU())
        self.query = th.nn.Linear(OBSERVATION_SIZE, heads * width)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """Features float32[n, OBSERVATION_SIZE + heads x width]."""
        aggregates, rest = observations[:, :OBSERVATION_SIZE], observations[:, OBSERVATION_SIZE:]
        requests = rest.reshape(len(rest), -1, FEATURES)
        absent = requests[:, None, :, -3:].sum(3) == 0.0
        embedded = self.embed(requests)
        width = embedded.shape[2]
        query = self.query(aggregates).reshape(len(rest), -1, width)
        scores = (query @ embedded.transpose(1, 2) / width**0.5).masked_fill(absent, -1e9)
        return th.cat([aggregates, (scores.softmax(2) @ embedded).flatten(1)], 1)


class AnchoredPPO(TimedPPO):
    """PPO whose (normalised) rewards are r - beta (log pi(a|s) - log pi_0(a|s)) once `anchor` has set pi_0."""

    beta = 0.0
    origin: Any = None

    def anchor(self, beta: float) -> None:
        """Stay near the present policy."""
        self.beta, self.origin = beta, copy.deepcopy(self.policy)

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """As `TimedPPO`, then with the penalty in rewards, advantages and returns."""
        goes_on = super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        if goes_on and self.origin is not None:
            observations, actions = (
                th.as_tensor(array.reshape(-1, array.shape[-1]), device=self.device)
                for array in (rollout_buffer.observations, rollout_buffer.actions)
            )
            with th.no_grad():
                _, likelihood, _ = self.origin.evaluate_actions(observations, actions)
                values = self.policy.predict_values(th.as_tensor(self._last_obs, device=self.device))
            ratio = rollout_buffer.log_probs - likelihood.cpu().numpy().reshape(rollout_buffer.log_probs.shape)
            rollout_buffer.rewards -= self.beta * ratio
            dones: Any = self._last_episode_starts
            rollout_buffer.compute_returns_and_advantage(values, dones)
        return goes_on


def settings(seed: int, short: bool) -> TrainConfig:
    """Those of the variant ppo-warm-hold."""
    config = TrainConfig.from_yaml()
    env = replace(config.env, action=Slackfit(close=1.0, hold=8))
    config = replace(config, env=env, teacher=BASE, seed=seed)
    return replace(config, total_timesteps=8192, imitation_steps=512) if short else config


def build(variant: str, config: TrainConfig) -> TimedPPO:
    """The learner of a variant, not trained yet."""
    if variant == "kl":
        return build_model(config, AnchoredPPO)
    network: dict[str, Any] = {"features_extractor_class": RequestAttention, "share_features_extractor": False}
    return build_model(config, normalizer=RequestRows, **network)


def train(variant: str, config: TrainConfig, beta: float, folder: Path) -> TimedPPO:
    """The trained learner of a variant, from its folder if it is there."""
    model, path = build(variant, config), folder / "policy.pt"
    normalizer: Any = model.get_vec_normalize_env()
    if path.exists():
        saved = th.load(path, weights_only=True)
        model.policy.load_state_dict(saved["policy"])
        normalizer.load_state({name: value.numpy() for name, value in saved["normalization"].items()})
        return model
    start = time.perf_counter()
    imitate(model, teacher(config.teacher, config.env), config.imitation_steps)
    if isinstance(model, AnchoredPPO):
        model.anchor(beta)
    model.learn(config.total_timesteps)
    folder.mkdir(parents=True, exist_ok=True)
    if variant == "kl":
        learned_policy(model, config).bundle.save(folder / "final")
    state = {name: th.from_numpy(value) for name, value in normalizer.state().items()}
    th.save({"policy": model.policy.state_dict(), "normalization": state}, path)
    print(f"trained: {folder}, {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return model


def play(env: VecEnv, choose: Callable[[Any], Any], traces: Sequence[Requests]) -> list[dict[str, Any]]:
    """Serve each trace in a row of its own; returns the episode reports."""
    env.set_options({"requests": list(traces)})
    observations = env.reset()
    reports: dict[int, dict[str, Any]] = {}
    while len(reports) < len(traces):
        observations, _, dones, infos = env.step(choose(observations))
        for row in np.flatnonzero(dones).tolist():
            reports.setdefault(row, infos[row]["report"])
    return [reports[row] for row in range(len(traces))]


def compare_played(
    model: TimedPPO, config: TrainConfig, policy: str, evaluation: Evaluation, result: Comparison
) -> Relatives:
    """Play the traces of an evaluation: the differences to its reference, relative to that."""
    trained: Any = model.get_vec_normalize_env()
    found: Relatives = {}
    for rate in RATES:
        traces = [evaluation.requests_for(BASE, rate, seed) for seed in range(evaluation.seeds)]
        workload = replace(config.env.workload, num_requests=len(traces[0]))
        env = RequestRows(SB3VecEnv(LLMSchedVectorEnv(len(traces), replace(config.env, workload=workload))), 1.0)
        env.obs_rms, env.training = trained.obs_rms, False
        reports = play(env, lambda seen: model.policy.predict(seen, deterministic=True)[0], traces)
        base = [cell.report for cell in result.cells if (cell.policy, cell.load) == (BASE, rate)]
        for metric in METRICS:
            ours, theirs = (sum(report[metric] for report in of) for of in (reports, base))
            found[policy, rate, metric] = ours / theirs - 1.0
    return found


def train_and_compare(
    options: argparse.Namespace, runs: dict[str, list[str]], finals: dict[str, list[str]]
) -> Relatives:
    """Train every variant with every seed; the differences of what came out to the reference."""
    configs = [settings(seed, options.short) for seed in range(options.seeds)]
    models = {
        name: [train(name, c, options.beta, Path(f)) for c, f in zip(configs, folders, strict=True)]
        for name, folders in runs.items()
    }
    evaluation = against_base(finals.get("kl", []), options.traces, options.requests)
    result = evaluate(evaluation, with_windows=False)
    found = relatives(result)
    played = models.get("attention", [])
    for model, config, policy in zip(played, configs, finals.get("attention", []), strict=False):
        found |= compare_played(model, config, policy, evaluation, result)
    return found


def main() -> None:
    """Train, compare, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("out/variants"))
    parser.add_argument("--only", nargs="+", choices=list(LABELS), default=list(LABELS))
    parser.add_argument("--beta", type=float, default=0.01, help="cost of a nat; returns have a deviation of about 1")
    parser.add_argument("--seeds", type=int, default=2, help="training seeds")
    parser.add_argument("--traces", type=int, default=10, help="held-out traces at each load")
    parser.add_argument("--requests", type=int, default=4000, help="requests in each of them")
    parser.add_argument("--short", action="store_true", help="train next to nothing: to try the script")
    options = parser.parse_args()
    runs = {name: [str(options.out / f"{name}-{seed}") for seed in range(options.seeds)] for name in options.only}
    finals = {name: [f"{f}/final" for f in folders] for name, folders in runs.items()}
    with torch_settings(1):
        found = train_and_compare(options, runs, finals)
    VARIANTS.update({name: (LABELS[name].format(beta=options.beta), [], {}) for name in runs})
    write_json(options.out / "learner_variants.json", figures(found, finals))
    print(table(found, finals))


if __name__ == "__main__":
    main()
