"""The flags `--env.*` of `llmsched train`: the fields of `EnvConfig`, and beside them the settings of every action.

``--env.action slackfit --env.hold 8`` is the action `Slackfit(hold=8)`. What is not given stays as the hyperparameters
have it.
"""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import fields
from itertools import pairwise
from typing import Any, Literal, get_origin, get_type_hints

from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from engine.scenarios.suite import suite_names
from llmsched_env.actions import ACTIONS
from llmsched_env.actions.reading import settings
from llmsched_env.config import EnvConfig, configure


def field_docs(kind: type) -> dict[str, str]:
    """The text under each field of a dataclass and of its bases, as its source has it."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        body = node.body if isinstance(node, ast.ClassDef) else []
        for field, text in pairwise(body):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(doc))):
                    found[name] = inspect.cleandoc(doc)
    return found


def _own_flags(env: EnvConfig) -> Iterator[StructFieldSpec]:
    hints, docs = get_type_hints(EnvConfig, include_extras=True), field_docs(EnvConfig)
    for name in (f.name for f in fields(EnvConfig)):
        if name == "action":
            yield StructFieldSpec(name, str, env.action.name, f"What the learner chooses: {', '.join(ACTIONS)}.")
        elif name == "scenarios":
            yield StructFieldSpec(
                name,
                str,
                "",
                f"Worlds of which each episode draws one: {', '.join(suite_names())}, "
                "or a .yml file (`engine.scenarios.suite`); none: those of the hyperparameters.",
            )
        else:
            yield StructFieldSpec(name, hints[name], getattr(env, name), docs[name])


def _action_flags(env: EnvConfig) -> Iterator[StructFieldSpec]:
    """Those that the present action does not have show the value that they have elsewhere."""
    for name, kind in settings().items():
        default = getattr(env.action, name, getattr(kind(), name))
        hint, owners = get_type_hints(kind)[name], [k.name for k in ACTIONS.values() if hasattr(k, name)]
        # `--env.budget slackfit` is how the action slackfit was called.
        hint = str if get_origin(hint) is Literal else hint
        yield StructFieldSpec(name, hint, default, f"{field_docs(kind)[name]} (--env.action {' or '.join(owners)})")


def registry() -> ConstructorRegistry:
    """How the command line reads an `EnvConfig`."""

    def flags(info: StructTypeInfo) -> StructConstructorSpec | None:
        if info.type is not EnvConfig:
            return None
        env = info.default if isinstance(info.default, EnvConfig) else EnvConfig()
        known = (*_own_flags(env), *_action_flags(env))
        shown = {flag.name: flag.default for flag in known}

        def build(**given: Any) -> EnvConfig:
            return configure(env, {name: value for name, value in given.items() if value != shown[name]}, ())

        return StructConstructorSpec(build, known)

    found = ConstructorRegistry()
    found.struct_rule(flags)
    return found
