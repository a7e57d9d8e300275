"""How people and files say which action: an object, a name, a mapping with a name, or settings beside those of others.

A setting of an action may stand wherever fields of `EnvConfig` do (keywords of `gymnasium.make`, `env_kwargs` of a
YAML file): ``action="slackfit", hold=8`` means `Slackfit(hold=8)`. What earlier versions wrote is read, too: slackfit's
action was ``action="allocation", budget="slackfit"``, and files had the settings of all actions side by side.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_type_hints

from engine.errors import InputError
from engine.fields import convert
from engine.files.reading import kind_of
from llmsched_env.actions import ACTIONS, Action, Allocation, Slackfit

_OLD = {
    "allocation": ("action", "budget", "hold", "ageing", "close"),
    "mixture": ("action", "arms"),
}
"""What counted for each action in the files of earlier versions, which had all of these."""


def settings_of(kind: type[Action]) -> list[str]:
    """Names of an action's settings."""
    return [f.name for f in fields(kind)]


def settings() -> dict[str, type[Action]]:
    """The settings of all actions, each with an action that has it (the first)."""
    return {name: kind for kind in reversed(ACTIONS.values()) for name in settings_of(kind)}


def is_setting(name: object) -> bool:
    """Whether a keyword says something about the action: which one, or a setting of one."""
    return name == "action" or name in settings()


def read_action(given: Mapping[str, Any], present: Action, where: str) -> Action:
    """The action that keywords describe.

    Args:
        given: `action` (an object, a name, or a mapping with name and settings) and settings by their names.
        present: what is meant where nothing is said; another action takes the settings from it that both have.
        where: what the keywords are of, for messages ("env").

    Raises:
        InputError: no such action, a setting that it does not have, or a value that does not fit.
    """
    given = _from_old(given, present)
    chosen = given.pop("action", present)
    if isinstance(chosen, Mapping):
        given = {**chosen, **given}
        chosen = given.pop("name", present)
    if isinstance(chosen, str):
        if chosen not in ACTIONS:
            raise InputError(f"{where}.action: expected {_names()}, got {kind_of(chosen)}")
        kind = ACTIONS[chosen]
    elif isinstance(chosen, Action):
        kind, present = type(chosen), chosen
    else:
        raise InputError(f"{where}.action: expected {_names()}, got {kind_of(chosen)}")
    kept = {name: getattr(present, name) for name in settings_of(type(present)) if name in settings_of(kind)}
    return kind(**{**kept, **_checked(kind, given, where)})


def _names() -> str:
    return f"{', '.join(list(ACTIONS)[:-1])} or {list(ACTIONS)[-1]}"


def _checked(kind: type[Action], given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Settings of an action as their types."""
    hints = get_type_hints(kind)
    for name in given:
        if name not in settings_of(kind):
            owner, known = settings().get(name), ", ".join(settings_of(kind))
            more = f"; {name} belongs to action={owner.name!r}" if owner else ""
            raise InputError(f"{where}.{name}: unknown setting of action={kind.name!r}, known: {known}{more}")
    return {name: convert(value, hints[name], f"{where}.{name}") for name, value in given.items()}


def _from_old(given: Mapping[str, Any], present: Action) -> dict[str, Any]:
    """What earlier versions wrote, as it is written now."""
    found, name = dict(given), given.get("action", present.name)
    if isinstance(name, str) and name in _OLD and _has_all_settings(given):
        found = {key: given[key] for key in _OLD[name]}
        if found.get("budget", Slackfit.name) != Slackfit.name and not (found["ageing"] or found["close"]):
            del found["ageing"], found["close"]
    if found.get("budget") == Slackfit.name and name in (Allocation.name, Slackfit.name):
        del found["budget"]
        found["action"] = Slackfit.name
    return found


def _has_all_settings(given: Mapping[str, Any]) -> bool:
    """Whether this is from a file that had the settings of all actions side by side."""
    return all(key in given for keys in _OLD.values() for key in keys)
