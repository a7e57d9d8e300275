"""Policies and routers of users: from ``module:Class`` or ``path/file.py:Class`` with parameters to an object, checked.

A class is a subclass of `engine.Policy` with a `plan` or a `kernel`, or one of `engine.Router` with a `route` or a
`kernel`; the fields of the (frozen) dataclass are its parameters. A file with one public class of the kind needs no
class name. `space`, if a policy has it, is what `llmsched tune` tries: parameter -> values.
"""

import inspect
import re
from dataclasses import FrozenInstanceError
from typing import Any, TypeVar, get_type_hints

from engine.cluster.router import Router, RouterKernel
from engine.demand.predictions import parse_channel
from engine.errors import InputError
from engine.own_code import Place, blame, load_module, load_object, own_objects, parse_place
from engine.server.parametric import Parametric
from engine.server.policy import Kernel, Policy
from engine.spec import parse_value, read_settings

RESERVED = ("random", "pretrained", "pretrained-ppo", "learned")
"""Names of policies that are no baselines."""


Kind = TypeVar("Kind", bound=Parametric)
"""`Policy` or `Router`."""


def parse_settings(cls: type[Parametric], text: str, where: str) -> dict[str, Any]:
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


def _parameters(cls: type[Parametric]) -> dict[str, inspect.Parameter]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: p for name, p in inspect.signature(cls).parameters.items() if p.kind in kinds}


def _type_of(cls: type[Parametric], parameter: inspect.Parameter, where: str) -> Any:
    """The type of a constructor's parameter; without an annotation that of its default."""
    try:
        hints = get_type_hints(cls.__init__)
    except Exception as error:
        raise InputError(f"{where}: cannot read the types of its parameters: {blame(error)}") from error
    if parameter.name in hints:
        return hints[parameter.name]
    return str if parameter.default in (parameter.empty, None) else type(parameter.default)


def own_class(place: Place, taken: tuple[str, ...], kind: type[Kind]) -> type[Kind]:
    """The class of a user at this place.

    Args:
        place: where it is.
        taken: names that a class of a user must not have.
        kind: `Policy` or `Router`.

    Raises:
        InputError: no such class, none or several in a file without a name, or one of another kind.
    """
    found = load_object(place) if place.name else _only_one(place, kind)
    where = f"{kind.noun} {place.text}"
    if not isinstance(found, type):
        raise InputError(f"{where}: expected a class, got {type(found).__name__}")
    if not issubclass(found, kind):
        raise InputError(f"{where}: expected a subclass of engine.{kind.__name__}, got {found.__name__}")
    check_class(found, where, taken)
    return found


def _only_one(place: Place, kind: type[Parametric]) -> Any:
    module, where = load_module(place.place), f"{kind.noun} {place.place}"
    found = [v for v in own_objects(module).values() if isinstance(v, type) and issubclass(v, kind)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise InputError(f"{where}: expected a subclass of engine.{kind.__name__} in the file, found none")
    names = ", ".join(f"{place.place}:{cls.__name__}" for cls in found)
    raise InputError(f"{where}: expected the name of one of several classes: {names}")


def check_class(cls: type[Parametric], where: str, taken: tuple[str, ...]) -> None:
    """Find what is wrong with the class of a policy or a router before it runs.

    Raises:
        InputError: no plan or route, one with another signature, or attributes of the wrong kind.
    """
    if not isinstance(cls.name, str) or not cls.name or set(cls.name) & set(":,= \n"):
        raise InputError(f"{where}: name: expected a word without spaces, colons, commas and =, got {cls.name!r}")
    if cls.name in taken:
        raise InputError(
            f"{where}: name: expected a name of its own, got that of the {cls.noun} {cls.name!r} that ships"
        )
    if issubclass(cls, Router):
        _check_kernel(cls, where, RouterKernel, "@RouterKernel")
        _check_memory(cls, where, ("replica_memory", "row_memory"))
        _check_method(cls, where, "route", Router.route, ("view", "memory"))
    elif issubclass(cls, Policy):
        _check_kernel(cls, where, Kernel, "@Kernel or @HotKernel")
        _check_memory(cls, where, ("request_memory", "row_memory"))
        _check_prediction(cls.prediction, where)
        _check_method(cls, where, "plan", Policy.plan, ("view", "memory", "plan"))


def _check_kernel(cls: type[Parametric], where: str, kind: type[Kernel], expected: str) -> None:
    if cls.kernel is not None and not isinstance(cls.kernel, kind):
        found = type(cls.kernel).__name__
        raise InputError(f"{where}: kernel: expected {expected} around a function, got {found}")


def _check_memory(cls: type[Parametric], where: str, names: tuple[str, ...]) -> None:
    for name in names:
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


def _check_method(cls: type[Parametric], where: str, name: str, inherited: object, arguments: tuple[str, ...]) -> None:
    """Whether the kernel and the method of this name can be called as they will be, and one of them is there."""
    if cls.kernel is not None:
        _check_arguments(cls.kernel.function, where, "kernel", arguments)
    if (method := getattr(cls, name)) is not inherited:
        is_static = isinstance(vars(cls).get(name), staticmethod)
        _check_arguments(method, where, name, arguments if is_static else ("self", *arguments))
    elif cls.kernel is None:
        raise InputError(f"{where}: expected a {name} method or a kernel, found neither")


def _check_arguments(function: Any, where: str, name: str, arguments: tuple[str, ...]) -> None:
    try:
        inspect.signature(function).bind(*arguments)
    except (TypeError, ValueError):
        raise InputError(f"{where}: {name}: expected {name}({', '.join(arguments)}) to be callable") from None


def build(cls: type[Kind], settings: str, where: str) -> Kind:
    """An object of a user's class with these parameters.

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


def own_object(spec: str, taken: tuple[str, ...], kind: type[Kind]) -> Kind | None:
    """The policy or router of a user that a spec names; None if it names none.

    Raises:
        InputError: it names one that cannot be used.
    """
    place = parse_place(spec)
    if place is None:
        return None
    return build(own_class(place, taken, kind), place.settings, f"{kind.noun} {place.text}")
