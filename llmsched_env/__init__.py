"""One LLM server as a Gymnasium environment; importing registers ``LLMSched-v0`` and its presets.

``gymnasium.make("llmsched_env:LLMSched-v0")`` and ``gymnasium.make_vec("llmsched_env:LLMSched-v0", num_envs=256)``.
"""

from gymnasium.envs.registration import register, registry

from engine.demand.workload import Workload
from llmsched_env.actions import ACTIONS, Action, Allocation, Codec, Mixture, Slackfit
from llmsched_env.config import EnvConfig
from llmsched_env.env import LLMSchedEnv
from llmsched_env.observation import OBSERVATION_NAMES, OBSERVATION_SIZE
from llmsched_env.reward import REWARD_TERMS, RewardWeights
from llmsched_env.state import EnvState
from llmsched_env.vector import LLMSchedVectorEnv

PRESETS: dict[str, EnvConfig] = {
    "LLMSched-v0": EnvConfig(),
    "LLMSchedMixture-v0": EnvConfig(action=Mixture()),
    "LLMSchedAzureConv-v0": EnvConfig(workload=Workload(rate=3.0, num_requests=256, lengths="azure2023_conv")),
    "LLMSchedToy-v0": EnvConfig(workload=Workload(arrivals="toy", rate=0.5, num_requests=8, lengths="fixed:512,8")),
}
"""Every registered environment id and its configuration."""


def register_envs() -> None:
    """Register the presets with Gymnasium (importing this package has done it)."""
    for name, config in PRESETS.items():
        if name not in registry:
            register(
                id=name,
                entry_point="llmsched_env.env:LLMSchedEnv",
                vector_entry_point="llmsched_env.vector:LLMSchedVectorEnv",
                kwargs={"config": config},
            )


register_envs()

__all__ = [
    "ACTIONS",
    "OBSERVATION_NAMES",
    "OBSERVATION_SIZE",
    "PRESETS",
    "REWARD_TERMS",
    "Action",
    "Allocation",
    "Codec",
    "EnvConfig",
    "EnvState",
    "LLMSchedEnv",
    "LLMSchedVectorEnv",
    "Mixture",
    "RewardWeights",
    "Slackfit",
    "register_envs",
]
