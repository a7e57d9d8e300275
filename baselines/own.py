"""Policies of users: from ``module:Class`` or ``path/file.py:Class`` with parameters to the policy, checked.

A class is a subclass of `engine.Policy` with a `plan` or a `kernel`; the fields of the (frozen) dataclass are its
parameters. A file with one public policy needs no class name. `space`, if the class has it, is what `llmsched tune`
tries: parameter -> values.
"""

import inspect
import re
from dataclasses import FrozenInstanceError
from typing import Any, get_type_hints

from engine.demand.predictions import parse_channel
from engine.errors import InputError
from engine.own_code import Place, blame, load_module, load_object, own_objects, parse_place
from engine.server.policy import Kernel, Policy
from engine.spec import parse_value, read_settings

RESERVED = ("random", "pretrained", "learned")
"""Names of policies that are no baselines."""


def parse_settings(cls: type[Policy], text: str, where: str) -> dict[str, Any]:
    """The parameters in ``k=3,order=spf``, typed as the class's fields.

    Raises:
        InputError: an unknown parameter, one twice, or a value that does not fit.
    """
    known = _parameters(cls)
    some = ", ".join(known) or "no parameter: those of a class are the fields of a @dataclass(frozen=True)"
    for name, now in getattr(cls, "FORMER", {}).items():
        if re.search(rf"(^|,)\s*{name}\s*=", text):
            raise InputError(f"{where}: {name} is no parameter any more: {now}")
    given = read_settings(text, where, known, f"one of {some} as name=value")
    return {k: parse_value(value, _type_of(cls, known[k], where), f"{where}: {k}") for k, value in given.items()}


def _parameters(cls: type[Policy]) -> dict[str, inspect.Parameter]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: p for name, p in inspect.signature(cls).parameters.items() if p.kind in kinds}


def _type_of(cls: type[Policy], parameter: inspect.Parameter, where: str) -> Any:
    """The type of a constructor's parameter; without an annotation that of its default."""
    try:
        hints = get_type_hints(cls.__init__)
    except Exception as error:
        raise InputError(f"{where}: cannot read the types of its parameters: {blame(error)}") from error
    if parameter.name in hints:
        return hints[parameter.name]
    return str if parameter.default in (parameter.empty, None) else type(parameter.default)


def own_class(place: Place, taken: tuple[str, ...]) -> type[Policy]:
    """The policy class of a user at this place.

    Args:
        place: where it is.
        taken: names that a policy of a user must not have.

    Raises:
        InputError: no such class, none or several in a file without a name, or one that is no policy.
    """
    found = load_object(place) if place.name else _only_one(place)
    where = f"policy {place.text}"
    if not isinstance(found, type):
        raise InputError(f"{where}: expected a class, got {type(found).__name__}")
    if not issubclass(found, Policy):
        raise InputError(f"{where}: expected a subclass of engine.Policy, got {found.__name__}")
    check_class(found, where, taken)
    return found


def _only_one(place: Place) -> Any:
    module = load_module(place.place)
    found = [v for v in own_objects(module).values() if isinstance(v, type) and issubclass(v, Policy)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise InputError(f"policy {place.place}: expected a subclass of engine.Policy in the file, found none")
    names = ", ".join(f"{place.place}:{cls.__name__}" for cls in found)
    raise InputError(f"policy {place.place}: expected the name of one of several classes: {names}")


def check_class(cls: type[Policy], where: str, taken: tuple[str, ...]) -> None:
    """Find what is wrong with a policy class before it runs.

    Raises:
        InputError: no plan, one with another signature, or attributes of the wrong kind.
    """
    if not isinstance(cls.name, str) or not cls.name or set(cls.name) & set(":,= \n"):
        raise InputError(f"{where}: name: expected a word without spaces, colons, commas and =, got {cls.name!r}")
    if cls.name in taken:
        raise InputError(f"{where}: name: expected a name of its own, got that of the policy {cls.name!r} that ships")
    if cls.kernel is not None and not isinstance(cls.kernel, Kernel):
        kind = type(cls.kernel).__name__
        raise InputError(f"{where}: kernel: expected @Kernel or @HotKernel around a function, got {kind}")
    _check_memory(cls, where)
    _check_prediction(cls.prediction, where)
    _check_plan(cls, where)


def _check_memory(cls: type[Policy], where: str) -> None:
    for name in ("request_memory", "row_memory"):
        cells = getattr(cls, name)
        if isinstance(cells, bool) or not isinstance(cells, int) or not 0 <= cells <= 1 << 20:
            raise InputError(f"{where}: {name}: expected a whole number of cells from 0 to 2**20, got {cells!r}")


def _check_prediction(spec: object, where: str) -> None:
    if not isinstance(spec, str):
        raise InputError(f"{where}: prediction: expected the spec of a channel, got {spec!r}")
    if spec:
        try:
            parse_channel(spec)
        except InputError as error:
            raise InputError(f"{where}: prediction: {error}") from None


def _check_plan(cls: type[Policy], where: str) -> None:
    if cls.kernel is not None:
        _check_arguments(cls.kernel.function, where, "kernel", 0)
    if cls.plan is not Policy.plan:
        _check_arguments(cls.plan, where, "plan", 0 if isinstance(vars(cls).get("plan"), staticmethod) else 1)
    elif cls.kernel is None:
        raise InputError(f"{where}: expected a plan method or a kernel, found neither")


def _check_arguments(function: Any, where: str, name: str, before: int) -> None:
    try:
        inspect.signature(function).bind(*range(before + 3))
    except (TypeError, ValueError):
        given = "self, " * before
        raise InputError(f"{where}: {name}: expected {name}({given}view, memory, plan) to be callable") from None


def build(cls: type[Policy], settings: str, where: str) -> Policy:
    """A policy of a user with these parameters.

    Raises:
        InputError: they do not fit, or the class does not take them (names file and line).
    """
    values = parse_settings(cls, settings, where)
    lacking = [n for n, p in _parameters(cls).items() if n not in values and p.default is p.empty]
    if lacking:
        raise InputError(f"{where}: expected {', '.join(f'{name}=...' for name in lacking)}, which has no default")
    try:
        return cls(**values)
    except InputError:
        raise
    except FrozenInstanceError as error:
        hint = "parameters are the fields of a class with @dataclass(frozen=True)"
        raise InputError(f"{where}: {blame(error)}; {hint}") from error
    except Exception as error:
        raise InputError(f"{where}: {blame(error)}") from error


def own_policy(spec: str, taken: tuple[str, ...]) -> Policy | None:
    """The policy of a user that a spec names; None if it names none.

    Raises:
        InputError: it names one that cannot be used.
    """
    place = parse_place(spec)
    if place is None:
        return None
    return build(own_class(place, taken), place.settings, f"policy {place.text}")
