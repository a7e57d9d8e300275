"""`LLMSchedEnv`: one LLM server as a `gymnasium.Env`."""

from typing import Any

import gymnasium
import numpy as np

from engine.errors import InputError
from engine.latency import Executor
from engine.requests import Requests
from llmsched_env.config import EnvConfig
from llmsched_env.live import Live, find_executor
from llmsched_env.render import Timeline
from llmsched_env.reward import REWARD_TERMS
from llmsched_env.vector import Fleet, action_space, observation_space


class LLMSchedEnv(gymnasium.Env[np.ndarray, Any]):
    """One LLM server: which batch should run next?

    ## Description
    Requests arrive over time; each needs its prompt processed (in chunks, if wanted) and then one token at a time. An
    iteration takes as long as the latency profile says. The agent composes each iteration. With
    `skip_decode_only`, those in which every running request decodes and no prompt waits pass by themselves.

    ## Action
    `allocation`: MultiDiscrete([9, 5, 4]): token budget of the iteration, slack below which a decode must run, order of
    the prompts (see `llmsched_env.action`). `mixture`: Discrete: which baseline builds the batch.

    ## Observation
    Box float32[OBSERVATION_SIZE]: waiting requests by prompt length and tier, decodes by slack and tier, KV use, waits,
    recent batch time and arrival rate; names in `OBSERVATION_NAMES`.

    ## Rewards
    Weighted sum of named terms (`llmsched_env.reward`): by default minus request-seconds without a first token, minus
    the lateness of gaps between tokens. ``info["reward_terms"]`` has each term, ``info["elapsed_s"]`` the seconds.

    ## Starting state
    Time of the first arrival, with up to `backlog` requests present. The seed determines the whole trace.

    ## Episode end
    Terminated when every request is served; truncated at `horizon_s` or after `max_steps` decisions. The last
    ``info["report"]`` holds TTFT, gaps and goodput of the episode.

    ## Arguments
    `config`: an `EnvConfig`; other keywords replace its fields (``gymnasium.make("LLMSched-v0", max_steps=100)``).
    ``reset(options={"requests": requests})`` plays a given trace. `executor` runs the batches instead of the profile:
    an `engine.latency.Executor` or the spec of one ("transformers", "transformers:tiny"). With a real one time is real:
    the seconds from one batch to the next, in which the agent decides, are charged. An action outside the space is then
    replaced by a batch of Sarathi-Serve; ``info["fallbacks"]`` counts them.

        import gymnasium
        env = gymnasium.make("llmsched_env:LLMSched-v0")
        observation, info = env.reset(seed=0)
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi", "rgb_array"], "render_fps": 4}  # noqa: RUF012 - as Gymnasium declares it

    def __init__(
        self,
        config: EnvConfig | None = None,
        render_mode: str | None = None,
        executor: Executor | str | None = None,
        **changes: Any,
    ) -> None:
        """Build the server.

        Raises:
            InputError: an unknown field or render mode, or a configuration or an executor that cannot be run.
        """
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise InputError(f"render_mode: expected ansi or rgb_array, got {render_mode!r}")
        config = config or EnvConfig()
        self.config = EnvConfig.from_dict({**vars(config), **changes}) if changes else config
        self.render_mode = render_mode
        self.observation_space = observation_space()
        self.action_space = action_space(self.config)
        self.live = Live(find_executor(executor, self.config.engine), self.config) if executor is not None else None
        self.fleet = Fleet(1, self.config, live=self.live)
        self._action = np.zeros((1, 1 if self.config.action == "mixture" else 3), np.int64)
        self._timeline = Timeline() if render_mode else None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode; ``options["requests"]`` may give the trace.

        Raises:
            InputError: a given trace that does not fit the configuration.
        """
        super().reset(seed=seed)
        given: Requests | None = (options or {}).get("requests")
        self.fleet.start(0, given if given is not None else self.fleet.draw(self.np_random))
        if self._timeline:
            self._timeline.clear()
        return self.fleet.outcome.observation[0].copy(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take one decision."""
        fleet, outcome = self.fleet, self.fleet.outcome
        if self.live is None:
            self._action[0] = action
            action = self._action
        fleet.step(action)
        terminated, truncated = bool(outcome.terminated[0]), bool(outcome.truncated[0])
        info: dict[str, Any] = {
            "elapsed_s": float(outcome.elapsed_s[0]),
            "reward_terms": dict(zip(REWARD_TERMS, outcome.terms[0].tolist(), strict=True)),
        }
        if self.live is not None:
            info["fallbacks"] = self.live.fallbacks
        if terminated or truncated:
            info["report"] = fleet.report(0)
        if self._timeline:
            self._timeline.add(fleet.servers)
        return outcome.observation[0].copy(), float(outcome.reward[0]), terminated, truncated, info

    def render(self) -> Any:
        """The latest state as one line of text (`ansi`), or the timeline so far as uint8[height, width, 3]."""
        if self._timeline is None:
            return None
        if self.render_mode == "ansi":
            return self._timeline.line(self.fleet.servers)
        return self._timeline.image()
