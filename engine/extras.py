"""What an installation without extras lacks: a command that needs more says so in one line, before it begins.

`pip install .` brings what simulations, evaluations and the environment need. The rest is in the extras of
pyproject.toml, whose packages are imported inside the functions that use them, after `need`.
"""

from importlib.util import find_spec

from engine.errors import InputError

EXTRAS = {
    "train": ("torch", "stable_baselines3", "tensorboard", "cma", "matplotlib"),
    "report": ("matplotlib", "jinja2"),
    "real": ("torch", "transformers", "tokenizers"),
    "vllm": ("aiohttp",),
    "aiconfigurator": ("aiconfigurator_core",),
    "ray": ("ray",),
    "pettingzoo": ("pettingzoo",),
}
"""Packages of each extra by the names under which they are imported."""


def missing(extra: str) -> str | None:
    """A package of an extra that is not installed; None if all are."""
    return next((name for name in EXTRAS[extra] if not _is_installed(name)), None)


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def need(extra: str, what: str) -> None:
    """Make sure that the packages of an extra are there.

    Args:
        extra: its name.
        what: what needs it; begins the line.

    Raises:
        InputError: one is missing; says which, and how to install it.
    """
    if (name := missing(extra)) is not None:
        raise InputError(f"{what}: expected the packages of llmsched[{extra}], found no {name}: {command(extra)}")


def command(extra: str) -> str:
    """How to install an extra."""
    return f"pip install 'llmsched[{extra}]'"
