"""The registered environments by id, each made when somebody first asks for it: suites are files to read."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

from engine.demand.workload import Workload
from engine.errors import InputError
from engine.scenarios.suite import read_scenarios
from llmsched_env.actions import Mixture
from llmsched_env.config import EnvConfig
from llmsched_env.inputs import show


class Presets(Mapping[str, EnvConfig]):
    """Configurations by name."""

    def __init__(self, makers: Mapping[str, Callable[[], EnvConfig]]) -> None:
        self._makers = dict(makers)
        self._made: dict[str, EnvConfig] = {}

    def __getitem__(self, name: str) -> EnvConfig:
        """The configuration of this name."""
        if name not in self._made:
            self._made[name] = self._makers[name]()
        return self._made[name]

    def __contains__(self, name: object) -> bool:
        """Whether there is one of this name."""
        return name in self._makers

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self._makers)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._makers)


PRESETS: Mapping[str, EnvConfig] = Presets(
    {
        "LLMSched-v0": EnvConfig,
        "LLMSched-Devices-v0": lambda: EnvConfig(scenarios=read_scenarios("devices")),
        "LLMSched-Overload-v0": lambda: EnvConfig(scenarios=read_scenarios("overload")),
        "LLMSchedMixture-v0": partial(EnvConfig, action=Mixture()),
        "LLMSchedAzureConv-v0": partial(
            EnvConfig, workload=Workload(rate=3.0, num_requests=256, lengths="azure2023_conv")
        ),
        "LLMSchedToy-v0": partial(
            EnvConfig, workload=Workload(arrivals="toy", rate=0.5, num_requests=8, lengths="fixed:512,8")
        ),
    }
)
"""Every registered environment id and its configuration."""


def named(config: EnvConfig | str | None) -> EnvConfig | None:
    """A configuration, or that of a registered id.

    Raises:
        InputError: text that is no such id.
    """
    if not isinstance(config, str):
        return config
    if config not in PRESETS:
        raise InputError(f"config: expected an EnvConfig or one of {', '.join(PRESETS)}, got {show(config)}")
    return PRESETS[config]
