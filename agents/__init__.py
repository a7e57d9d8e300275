"""Learned policies, evaluation, reports, studies and the `llmsched` command.

The names in `__all__` are loaded when they are first used, so that importing this package stays light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agents.evaluation.capacity import Search, search_capacity
    from agents.evaluation.evaluate import Evaluation, evaluate
    from agents.learning.learned.bundle import Bundle
    from agents.learning.learned.load import load_policy
    from agents.learning.learned.policy import LearnedPolicy, RandomLegal
    from agents.learning.learned.router import LearnedRouter, load_router
    from agents.learning.learned.router_bundle import RouterBundle
    from agents.learning.ppo.train import train
    from agents.learning.ppo.train_config import TrainConfig
    from agents.learning.ppo.vec_env import SB3VecEnv
    from agents.reporting.report import load_result, write_report
    from agents.routers import resolve_router
    from agents.source import Source

__all__ = [
    "Bundle",
    "Evaluation",
    "LearnedPolicy",
    "LearnedRouter",
    "RandomLegal",
    "RouterBundle",
    "SB3VecEnv",
    "Search",
    "Source",
    "TrainConfig",
    "evaluate",
    "load_policy",
    "load_result",
    "load_router",
    "resolve_router",
    "search_capacity",
    "train",
    "write_report",
]

_MODULES = {
    "Bundle": "learning.learned.bundle",
    "Evaluation": "evaluation.evaluate",
    "LearnedPolicy": "learning.learned.policy",
    "LearnedRouter": "learning.learned.router",
    "RandomLegal": "learning.learned.policy",
    "RouterBundle": "learning.learned.router_bundle",
    "SB3VecEnv": "learning.ppo.vec_env",
    "Search": "evaluation.capacity",
    "Source": "source",
    "TrainConfig": "learning.ppo.train_config",
    "evaluate": "evaluation.evaluate",
    "load_policy": "learning.learned.load",
    "load_result": "reporting.report",
    "load_router": "learning.learned.router",
    "resolve_router": "routers",
    "search_capacity": "evaluation.capacity",
    "train": "learning.ppo.train",
    "write_report": "reporting.report",
}


_TRAINED = ("SB3VecEnv", "train")
"""Those that need the extra of that name."""


def __getattr__(name: str) -> Any:
    """A public name, from the module that has it.

    Raises:
        AttributeError: there is no such name.
        InputError: it needs an extra that is not installed.
    """
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _TRAINED:
        from engine.extras import need

        need("train", f"agents.{name}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
