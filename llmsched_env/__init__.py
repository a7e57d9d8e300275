"""LLM servers as Gymnasium environments; importing registers ``LLMSched-v0``, its presets and fleets.

``gymnasium.make("llmsched_env:LLMSched-v0")`` and ``gymnasium.make_vec("llmsched_env:LLMSched-v0", num_envs=256)``.
"""

from gymnasium.envs.registration import register, registry

from llmsched_env.actions import ACTIONS, Action, Allocation, Codec, Mixture, Slackfit
from llmsched_env.config import EnvConfig
from llmsched_env.env import LLMSchedEnv
from llmsched_env.observation import OBSERVATION_NAMES, OBSERVATION_SIZE
from llmsched_env.presets import PRESETS
from llmsched_env.reward import REWARD_TERMS, RewardWeights
from llmsched_env.routing.clusters import observation_names, split
from llmsched_env.routing.config import Drain, RouterConfig
from llmsched_env.routing.env import LLMSchedRouterEnv
from llmsched_env.routing.joint import FleetConfig, LLMSchedFleetEnv
from llmsched_env.routing.vector import LLMSchedRouterVectorEnv
from llmsched_env.state import EnvState
from llmsched_env.vector import LLMSchedVectorEnv

ROUTER, FLEET = "LLMSchedRouter-v0", "LLMSchedFleet-v0"


def register_envs() -> None:
    """Register the environments with Gymnasium (importing this package has done it)."""
    for name in PRESETS:
        if name not in registry:
            register(
                id=name,
                entry_point="llmsched_env.env:LLMSchedEnv",
                vector_entry_point="llmsched_env.vector:LLMSchedVectorEnv",
                kwargs={"config": name},
            )
    if ROUTER not in registry:
        register(
            id=ROUTER,
            entry_point="llmsched_env.routing.env:LLMSchedRouterEnv",
            vector_entry_point="llmsched_env.routing.vector:LLMSchedRouterVectorEnv",
        )
    if FLEET not in registry:
        register(id=FLEET, entry_point="llmsched_env.routing.joint:LLMSchedFleetEnv")


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
    "Drain",
    "EnvConfig",
    "EnvState",
    "FleetConfig",
    "LLMSchedEnv",
    "LLMSchedFleetEnv",
    "LLMSchedRouterEnv",
    "LLMSchedRouterVectorEnv",
    "LLMSchedVectorEnv",
    "Mixture",
    "RewardWeights",
    "RouterConfig",
    "Slackfit",
    "observation_names",
    "register_envs",
    "split",
]
