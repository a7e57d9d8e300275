"""The actions of the environment; a new one is a file here and a line in ACTIONS."""

from llmsched_env.actions.action import Action, Codec
from llmsched_env.actions.allocation import Allocation
from llmsched_env.actions.mixture import Mixture
from llmsched_env.actions.slackfit import Slackfit

ACTIONS: dict[str, type[Action]] = {kind.name: kind for kind in (Allocation, Slackfit, Mixture)}
"""Every action by the name that configurations and options give it."""

__all__ = ["ACTIONS", "Action", "Allocation", "Codec", "Mixture", "Slackfit"]
