"""From ``watermark=0,0.02`` to the variants that are compared: a policy and a server for each setting.

An option is a parameter of the policy or, where it has none of this name, a setting of the server (`EngineConfig`).
Several options make a grid, the last one running through its values first: their effects need not add up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product

from agents.policies import resolve, with_setting
from engine.config import EngineConfig
from engine.errors import InputError
from engine.scenarios.scenario import Scenario, changed_server
from engine.spec import Spec, read_settings, split_list, write_settings

ENGINES = {
    "vllm": "vllm_v1",
    "sglang": "sglang",
    "trtllm": "trtllm",
    "lightllm": "lightllm",
}
"""Engines by the names that people call them, and the policy that decides as each does."""
DEFAULT_ENGINE = "vllm"
SERVER = tuple(field.name for field in fields(EngineConfig))


@dataclass(frozen=True)
class Variant:
    """One of the settings that are compared."""

    name: str
    """The setting, as the options say it: ``watermark=0.02``."""
    policy: str
    """Spec of the policy."""
    server: str
    """What differs from the server of a scenario, settings of `EngineConfig`."""

    def scenario(self, plain: Scenario) -> Scenario:
        """A scenario with the server of this variant; its name and its rate are those of the plain one."""
        server = Spec("", plain.server)
        for key, value in read_settings(self.server, self.name, SERVER).items():
            server = server.with_setting(key, value)
        return replace(plain, server=server.rest)


def parse_options(texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The values of each option, ``NAME=VALUE,VALUE``.

    Raises:
        InputError: no option, no values, or a name or a value twice.
    """
    found: dict[str, tuple[str, ...]] = {}
    for name, values in map(_parse_option, texts):
        if name in found:
            raise InputError(f"option: expected each name once, got {name!r} twice")
        found[name] = values
    if not found:
        raise InputError("option: expected at least one, such as --option watermark=0,0.02; got none")
    return found


def _parse_option(text: str) -> tuple[str, tuple[str, ...]]:
    name, _, given = text.partition("=")
    values = split_list(given)
    if not name.strip() or not values:
        raise InputError(f"option: expected NAME=VALUE,VALUE, got {text!r}")
    if twice := [value for value in values if values.count(value) > 1]:
        raise InputError(f"option: {name.strip()}: expected each value once, got {twice[0]!r} twice")
    return name.strip(), values


def variants_of(policy: str, options: Mapping[str, Sequence[str]]) -> tuple[Variant, ...]:
    """A variant for every combination of the options' values.

    Args:
        policy: spec of the policy, which may have other settings.
        options: values by name.

    Raises:
        InputError: an unknown policy or option, or a value that does not fit.
    """
    own = {field.name for field in fields(resolve(policy))}
    combinations = (dict(zip(options, values, strict=True)) for values in product(*options.values()))
    return tuple(_variant(policy, own, settings) for settings in combinations)


def _variant(policy: str, own: set[str], settings: Mapping[str, str]) -> Variant:
    server = {name: value for name, value in settings.items() if name not in own and name in SERVER}
    for name, value in settings.items():
        if name not in server:
            policy = with_setting(policy, name, value)
    resolve(policy)
    changed_server(EngineConfig(), write_settings(server))
    return Variant(write_settings(settings), policy, write_settings(server))


def baseline_of(variants: Sequence[Variant], options: Mapping[str, Sequence[str]], text: str | None) -> str:
    """The name of the variant that the others are compared with.

    Args:
        variants: of these options.
        options: values by name.
        text: settings, ``watermark=0.02``; an option that it does not name has its first value.

    Raises:
        InputError: an option or a value that is not compared.
    """
    if text is None:
        return variants[0].name
    settings = {name: values[0] for name, values in options.items()}
    for name, value in read_settings(text, "baseline", options).items():
        if value not in options[name]:
            raise InputError(f"baseline: {name}: expected one of {', '.join(options[name])}, got {value!r}")
        settings[name] = value
    return write_settings(settings)
