"""From a folder, or a bundle, to the policy that the engine runs: of the kind that its environment asks for."""

from pathlib import Path

from agents.learning.learned.bundle import Bundle
from agents.learning.learned.mixture import LearnedMixture
from agents.learning.learned.observer import LearnedObserver
from agents.learning.learned.policy import LearnedPolicy
from agents.learning.learned.stored_policy import POLICY_FILE
from engine.errors import InputError
from llmsched_env.actions import Codec


def policy_of(bundle: Bundle, path: str) -> LearnedPolicy:
    """The policy of a bundle.

    Args:
        bundle: what was trained; its environment decides of which kind the policy is.
        path: what the policy is called: the folder as it was given.

    Raises:
        InputError: the user's observation function is not there, or was edited since the training.
    """
    if bundle.env.observation:
        return LearnedObserver(path, bundle)
    return (LearnedPolicy if isinstance(bundle.env.action, Codec) else LearnedMixture)(path, bundle)


def load_policy(folder: str | Path) -> LearnedPolicy:
    """The policy of a bundle folder, or of a training run: its best bundle, or its last.

    Raises:
        InputError: neither, or a damaged or foreign bundle.
    """
    path = Path(folder)
    for place in (path, path / "best", path / "final"):
        if (place / POLICY_FILE).is_file():
            return policy_of(Bundle.load(place), str(folder))
    raise InputError(f"{folder}: expected a policy bundle ({POLICY_FILE}) or a training run with one")
