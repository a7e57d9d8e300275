"""`LLMSchedEnv`: one LLM server as a `gymnasium.Env`."""

from typing import Any

import gymnasium
import numpy as np

from engine.device.latency import Executor
from engine.errors import InputError
from llmsched_env.config import EnvConfig, configure
from llmsched_env.fleet import Fleet
from llmsched_env.inputs import check_options, check_requests, check_scenario, check_seed, needs_reset, show, step_limit
from llmsched_env.live import Live, find_executor
from llmsched_env.presets import named
from llmsched_env.render import Timeline
from llmsched_env.reward import REWARD_TERMS
from llmsched_env.state import EnvState

KEYWORDS = ("config", "render_mode", "executor", "max_episode_steps")
"""What the constructor takes besides the fields of `EnvConfig`."""


class LLMSchedEnv(gymnasium.Env[np.ndarray, Any]):
    """One LLM server: which batch should run next?

    ## Description
    Requests arrive over time; each needs its prompt processed (in chunks, if wanted) and then one token at a time. An
    iteration takes as long as the latency profile says. The agent composes each iteration. With
    `skip_decode_only`, those in which every running request decodes and no prompt waits pass by themselves.

    ## Action
    `allocation`: MultiDiscrete([9, 5, 4]): token budget of the iteration, slack below which a decode must run, order of
    the prompts. `slackfit`: MultiDiscrete([9, 5, 4]): settings of that baseline, namely seconds of the iteration, slack
    below which a decode must run, share of the KV. `mixture`: Discrete: which baseline builds the batch
    (`llmsched_env.actions`).

    ## Observation
    Box float32[OBSERVATION_SIZE]: waiting requests by prompt length and tier, decodes by slack and tier, KV use, waits,
    recent batch time and arrival rate; names in `OBSERVATION_NAMES`.

    ## Rewards
    Weighted sum of named terms (`llmsched_env.reward`): by default minus request-seconds without a first token, minus
    the lateness of gaps between tokens. ``info["reward_terms"]`` has each term, ``info["elapsed_s"]`` the seconds.

    ## Starting state
    Time of the first arrival, with up to `backlog` requests present. With `scenarios` the episode's is drawn first, and
    ``info["scenario"]`` names it. The seed determines scenario and trace.

    ## Episode end
    Terminated when every request is served; truncated at `horizon_s` or after `max_steps` decisions. The last
    ``info["report"]`` holds TTFT, gaps and goodput of the episode.

    ## Arguments
    `config`: an `EnvConfig`, or the id of a registered one; other keywords replace its fields (``max_steps=100``).
    `max_episode_steps` truncates as `gymnasium.wrappers.TimeLimit` does. `gymnasium.make` adds that wrapper itself; its
    truncations have no ``info["report"]``, which ``env.unwrapped.report()`` gives.
    ``reset(options={"requests": requests})`` plays a given trace. `executor` runs the batches instead of the profile:
    an `engine.Executor` or the spec of one ("transformers", "transformers:tiny"). With a real one time is real:
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
        config: EnvConfig | str | None = None,
        render_mode: str | None = None,
        executor: Executor | str | None = None,
        max_episode_steps: int | None = None,
        **changes: Any,
    ) -> None:
        """Build the server.

        Raises:
            InputError: an unknown keyword or render mode, or a configuration or an executor that cannot be run.
        """
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise InputError(f"render_mode: expected ansi or rgb_array, got {show(render_mode)}")
        self.config = configure(named(config), changes, KEYWORDS)
        self.render_mode = render_mode
        self.action_space = self.config.action.space()
        if executor is not None and self.config.scenarios:
            raise InputError("executor: expected none beside scenarios, whose devices are profiles; got one")
        self.live = Live(find_executor(executor, self.config.engine), self.config) if executor is not None else None
        limit = step_limit(max_episode_steps)
        self.fleet = Fleet(1, self.config, live=self.live, batched=False, max_episode_steps=limit)
        self.observation_space = self.fleet.observation_space
        self._timeline = Timeline() if render_mode else None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode; ``options["requests"]`` may give the trace, ``options["scenario"]`` which one it plays in.

        Raises:
            InputError: a seed that is no whole number >= 0, an unknown option or scenario, or a trace that does not
                fit.
        """
        seed, known = check_seed(seed), check_options(options, ("requests", "scenario"))
        given, fleet = known.get("requests"), self.fleet
        world = check_scenario(known.get("scenario"), fleet.scenarios, given is not None, "options['scenario']")
        if given is not None:
            given = check_requests(given, "options['requests']")
            fleet.check_trace(given, world)
        super().reset(seed=seed)
        fleet.begin(0, self.np_random, given, world)
        if self._timeline:
            self._timeline.clear()
        return fleet.observed[0].copy(), {"scenario": self.scenario} if self.config.scenarios else {}

    def step(self, action: object) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take one decision.

        Raises:
            ResetNeeded: there is no episode.
            InputError: an action that is not in the space; nothing has happened then.
        """
        fleet, outcome = self.fleet, self.fleet.outcome
        fleet.step(action)
        terminated, truncated = bool(outcome.terminated[0]), bool(outcome.truncated[0])
        info: dict[str, Any] = {
            "elapsed_s": float(outcome.elapsed_s[0]),
            "reward_terms": dict(zip(REWARD_TERMS, outcome.terms[0].tolist(), strict=True)),
        }
        if self.config.scenarios:
            info["scenario"] = self.scenario
        if self.live is not None:
            info["fallbacks"] = self.live.fallbacks
        if terminated or truncated:
            info["report"] = fleet.report(0)
        if self._timeline:
            self._timeline.add(fleet.servers)
        return fleet.observed[0].copy(), float(outcome.reward[0]), terminated, truncated, info

    @property
    def scenario(self) -> str:
        """Name of the scenario of this episode; empty where the configuration has none."""
        return self.fleet.scenarios[int(self.fleet.world[0])]

    def save_state(self) -> EnvState:
        """The server, its trace and the generator of the next ones, to go on from here any number of times.

        Raises:
            ResetNeeded: there is no episode.
            InputError: an executor runs the batches.
        """
        return self.fleet.save_state(0, self.np_random)

    def load_state(self, state: EnvState) -> np.ndarray:
        """Go on from a state of this configuration, saved by this environment, another one, or a row of a vector.

        Returns:
            The observation, float32[OBSERVATION_SIZE].

        Raises:
            InputError: a state of another configuration, or a damaged one; nothing has happened then.
        """
        generator = self.fleet.load_state(0, state, self.np_random)
        if generator is not self.np_random:
            self.np_random = generator
        if self._timeline:
            self._timeline.clear(self.fleet.servers)
        return self.fleet.observed[0].copy()

    def report(self) -> dict[str, float]:
        """The numbers of the episode so far, as ``info["report"]`` has them at its end.

        Raises:
            ResetNeeded: there is no episode.
        """
        if not self.fleet.started:
            raise needs_reset("env.report()")
        return self.fleet.report(0)

    def render(self) -> Any:
        """The latest state as one line of text (`ansi`), or the timeline so far as uint8[height, width, 3].

        Raises:
            ResetNeeded: there is no episode.
        """
        if not self.fleet.started:
            raise needs_reset("env.render()")
        if self._timeline is None:
            return None
        if self.render_mode == "ansi":
            return self._timeline.line(self.fleet.servers)
        return self._timeline.image()
