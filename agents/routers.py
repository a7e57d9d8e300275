"""From what a person writes to a router: specs of those that ship, folders with a learned one, classes of users."""

import hashlib
from pathlib import Path

from agents.policies import pretrained_folder
from baselines import routers
from engine.cluster.router import Age, Router
from engine.errors import InputError
from engine.files.reading import is_there
from engine.own_code import parse_place, source_digest
from engine.spec import Spec

PRETRAINED_ROUTER = "pretrained-router"
"""Name of the learned router that ships with the package."""


def _split(spec: str) -> tuple[Path, Spec]:
    """The folder of a learned router, and its spec taken apart."""
    parsed = Spec(spec) if is_there(spec) else Spec.parse(spec)
    is_shipped = parsed.name == PRETRAINED_ROUTER
    return pretrained_folder(PRETRAINED_ROUTER) if is_shipped else Path(parsed.name), parsed


def is_router_folder(spec: str) -> bool:
    """Whether a spec names a learned router that is there."""
    return is_there(_split(spec)[0])


def resolve_router(spec: str) -> Router:
    """The router that a spec names: one of `baselines.routers`, one that was learned, a user's class.

    ``pretrained-router`` is the one that ships; a folder is that of a training run or of a bundle. A learned router
    takes the age of the reports: ``pretrained-router:age=1``.

    Raises:
        InputError: an unknown name or parameter, or a folder without a usable bundle.
    """
    folder, parsed = _split(spec)
    if parsed.name in routers.ROUTERS or (parse_place(spec) and not folder.is_dir()):
        return routers.make(spec)
    if parsed.name and is_there(folder):
        from agents.learning.learned.router import LearnedRouter, load_router

        values = parsed.values(f"router {spec!r}", {"age": Age})
        return LearnedRouter(parsed.name, load_router(folder).bundle, **values)
    known = ", ".join([*routers.ROUTERS, PRETRAINED_ROUTER])
    raise InputError(
        f"router: expected one of {known}, the folder of a trained router, module:Class or FILE.py:Class, got {spec!r}"
    )


def router_fingerprint(spec: str) -> str:
    """What makes results of a router comparable: its spec, with the digest of a bundle or of a user's file."""
    made, (folder, _) = resolve_router(spec), _split(spec)
    if type(made) in routers.ROUTERS.values():
        return made.spec
    if parse_place(spec) and not folder.is_dir():
        return f"{spec}@{source_digest(type(made))}"
    digest = hashlib.sha256(made.memory(1).params.tobytes())
    return f"{made.spec}@{digest.hexdigest()[:16]}"
