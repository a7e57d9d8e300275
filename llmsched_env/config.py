"""`EnvConfig`: everything that makes an environment, as one frozen record that can be saved and compared."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Annotated, Any

from engine.config import EngineConfig
from engine.demand.predictions import parse_channel
from engine.demand.workload import TRACE_FIELDS, Workload
from engine.device.latency import DEFAULT_PROFILE, load_profile
from engine.device.memory import MEMORY, moved, server_of
from engine.errors import InputError
from engine.fields import checked, from_mapping
from engine.files.reading import file_digest, kind_of
from engine.ranges import Rate, Seconds, whole
from engine.scenarios.scenario import Scenario
from engine.scenarios.suite import read_scenarios
from llmsched_env.actions import Action, Allocation, Codec
from llmsched_env.actions.reading import is_setting, read_action, settings
from llmsched_env.own import OwnFunction, place_of, read_reward
from llmsched_env.reward import RewardWeights


@dataclass(frozen=True)
class EnvConfig:
    """One LLM server as an environment."""

    engine: EngineConfig = None  # type: ignore[assignment]  # made of the profile before anybody sees it
    """Limits and semantics of the server (default: with the KV memory that the profile says)."""
    profile: str = DEFAULT_PROFILE
    """Latency profile: a shipped name, perhaps with changes (h100-mistral-7b:speed=2), or a JSON file."""
    workload: Workload = field(default_factory=lambda: Workload(rate=1.6, num_requests=256))
    """Arrivals, lengths and tiers of an episode."""
    scenarios: tuple[Scenario, ...] = field(default=(), metadata={"read": read_scenarios})
    """Worlds of which each episode draws one (`engine.scenarios`): a suite's name or file, or a list of them. Profile,
    engine and workload are then those of the scenario, and the workload here only says how many requests it has."""
    rates: tuple[Rate, ...] = ()
    """Arrival rates in requests per second, one drawn for each episode (empty: the workload's own rate)."""
    backlog: Annotated[int, whole(0)] = 0
    """Up to this many requests are already present at time 0 (drawn uniformly for each episode)."""
    max_steps: Annotated[int, whole(0)] = 0
    """Truncate an episode after this many decisions (0: no limit)."""
    horizon_s: Seconds = 0.0
    """Truncate an episode at this time in seconds (0: no limit)."""
    skip_decode_only: bool = False
    """Run iterations without any prompt work (all decodes) without asking; their time and reward count. Learning is
    easier so, for there is nothing worth deciding in them: the shipped training settings turn it on."""
    action: Action = field(default_factory=Allocation)
    """What the learner chooses, with its settings (`llmsched_env.actions`): an object, or its name."""
    prediction: str = ""
    """Channel of output-length predictions for arms that need them (oracle, rank:tau=0.52, ...): one prediction per
    request, which is not refreshed."""
    reward: RewardWeights = field(default_factory=RewardWeights, metadata={"read": read_reward})
    """Weights of the reward terms, or a function of yours."""
    observation: str = field(default="", metadata={"read": place_of})
    """A function of yours that makes the observation: module:function or FILE.py:function (`llmsched_env.own`)."""
    observation_sha256: str = ""
    """Hash that its source must have ("": any); noted where an environment is saved."""

    def __new__(cls, *args: Any, **keywords: Any) -> "EnvConfig":
        """Refuse the settings of actions, which were fields of this class.

        Raises:
            InputError: there is one; says where it is now.
        """
        for name, kind in settings().items():
            if name in keywords:
                raise InputError(f"EnvConfig: {name}: expected as a setting of its action, action={kind.__name__}(...)")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        """Check the fields that are the environment's own.

        Raises:
            InputError: one of them does not fit.
        """
        if isinstance(self.horizon_s, float) and self.horizon_s == float("inf"):
            object.__setattr__(self, "horizon_s", 0.0)
        if not isinstance(self.action, Action):
            object.__setattr__(self, "action", read_action({"action": self.action}, Allocation(), "env"))
        if self.engine is None and isinstance(self.profile, str):
            object.__setattr__(self, "engine", server_of(load_profile(self.profile)))
        checked(self, "env")
        self._check_arrivals()
        if self.workload.trace and not self.workload.max_tokens:
            longest = self.engine.max_request_tokens
            object.__setattr__(self, "workload", replace(self.workload, max_tokens=longest))
        self._check_seen()

    def _check_seen(self) -> None:
        """Check what policies are shown against the action."""
        if self.observation and not isinstance(self.action, Codec):
            name = self.action.name
            raise InputError(f"env.observation: expected none with the {name} action, whose policies see the default")
        if self.prediction and parse_channel(self.prediction).refreshes:
            raise InputError(
                f"env.prediction: expected a channel with one prediction per request, got {self.prediction!r}"
            )

    @property
    def worlds(self) -> "tuple[EnvConfig, ...]":
        """What an episode may play in: for each scenario the environment of it alone; without any this one."""
        return tuple(self._of(one) for one in self.scenarios) or (self,)

    def _of(self, scenario: Scenario) -> "EnvConfig":
        workload = scenario.requests(self.workload.num_requests)
        return replace(self, scenarios=(), profile=scenario.profile, engine=scenario.engine, workload=workload)

    def on(self, profile: str) -> "EnvConfig":
        """The same on another device: what of the server's memory was the old device's own becomes the new one's.

        Raises:
            InputError: no such profile.
        """
        engine = moved(self.engine, load_profile(self.profile), load_profile(profile))
        return replace(self, profile=profile, engine=engine)

    def _check_arrivals(self) -> None:
        """Check rates and backlog against the workload."""
        if self.scenarios and self.rates:
            raise InputError(f"env.rates: expected none beside scenarios, which have their own, got {self.rates}")
        if self.workload.arrivals == "recorded" and self.rates:
            raise InputError(f"env.rates: expected none with recorded arrivals, got {self.rates}")
        if self.workload.is_closed and (self.backlog or self.rates):
            raise InputError("env.backlog, env.rates: expected none for a closed loop, whose users set the rate")
        if self.backlog > self.workload.num_requests:
            raise InputError(
                f"env.backlog: expected 0 to num_requests ({self.workload.num_requests}), got {self.backlog!r}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON.

        Raises:
            InputError: the workload holds a length model that is an object, which has no name to save, or its trace
                file is gone.
        """
        if not isinstance(self.workload.lengths, str):
            raise InputError("env.workload.lengths: expected a name to be able to save it, got an object")
        data = asdict(self) | {"action": self.action.to_dict()}
        data["scenarios"] = [one.to_dict() for one in self.scenarios]
        if not self.scenarios:
            del data["scenarios"]
        if not self.workload.trace:
            for name in TRACE_FIELDS:
                del data["workload"][name]
        elif not self.workload.trace_sha256:
            data["workload"]["trace_sha256"] = file_digest(self.workload.trace)
        for place, name in ((data["reward"], "function"), (data, "observation")):
            if place[name]:
                place[f"{name}_sha256"] = place[f"{name}_sha256"] or OwnFunction(place[name], "", f"env.{name}").sha256
            else:
                del place[name], place[f"{name}_sha256"]
        return data

    @classmethod
    def from_dict(cls, data: object, where: str = "env", action: Action | None = None) -> "EnvConfig":
        """Build a configuration from (part of) what `to_dict` gives; what is absent keeps its default.

        An engine that does not say its memory gets that of the profile.

        Args:
            data: the mapping; settings of the action may stand in it, too (`llmsched_env.actions.reading`).
            where: what it is, for messages.
            action: the action whose settings are meant where the mapping says nothing (None: the default one).

        Raises:
            InputError: an unknown key, or a value of the wrong kind.
        """
        if not isinstance(data, Mapping):
            raise InputError(f"{where}: expected a mapping, got {kind_of(data)}")
        given = {name: value for name, value in data.items() if is_setting(name)}
        rest = {name: value for name, value in data.items() if name not in given}
        if isinstance(rest.get("engine"), Mapping):
            rest["engine"] = _with_memory(rest["engine"], rest.get("profile", cls.profile))
        return from_mapping(cls, {**rest, "action": read_action(given, action or Allocation(), where)}, where)


def _with_memory(engine: Mapping[str, object], profile: object) -> dict[str, object]:
    """Limits of a server with what they do not say of its memory, as the profile has it."""
    if not isinstance(profile, str) or set(MEMORY) <= set(engine):
        return dict(engine)
    own = server_of(load_profile(profile))
    return {name: getattr(own, name) for name in MEMORY} | dict(engine)


def configure(config: EnvConfig | None, changes: dict[str, Any], further: tuple[str, ...]) -> EnvConfig:
    """The configuration that the keywords of an environment's constructor describe.

    Args:
        config: what the keywords change (None: the defaults).
        changes: fields of `EnvConfig`, and settings of its action.
        further: keywords that the constructor takes besides, for the message.

    Raises:
        InputError: no `EnvConfig`, an unknown keyword, or a value that does not fit.
    """
    if config is not None and not isinstance(config, EnvConfig):
        raise InputError(f"config: expected an EnvConfig, got {kind_of(config)}")
    config = config or EnvConfig()
    if not changes:
        return config
    _check_known(changes, further)
    if changes.get("scenarios"):
        changes = {"rates": (), **changes}  # which have their own
    if "engine" not in changes and isinstance(profile := changes.get("profile"), str):
        config = config.on(profile)
    present = {name: value for name, value in vars(config).items() if name != "action"}
    return EnvConfig.from_dict({**present, **changes}, action=config.action)


def _check_known(changes: dict[str, Any], further: tuple[str, ...]) -> None:
    known = [*(f.name for f in fields(EnvConfig)), *settings()]
    for name in changes:
        if name not in known:
            raise InputError(f"{name}: unknown keyword, known: {', '.join([*further, *known])}")
