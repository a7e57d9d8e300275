"""Published schedulers as policies: one readable file each.

``make("slai")`` or ``make("slai:token_budget=1024,offset=3")`` builds one; ``names()`` lists them. ``slai:tuned`` is
its best setting on the default workload, ``slai:tuned=WORKLOAD`` on another one (`llmsched tune`, data/tuned.json).
"""

from dataclasses import fields
from functools import cache
from importlib import resources
from typing import Any

from baselines.alise import ALISE
from baselines.elis import ELIS
from baselines.fastertransformer import FasterTransformer
from baselines.lightllm import LightLLM
from baselines.ltr import LTR
from baselines.mlfq import MLFQ
from baselines.nested_wait import NestedWAIT
from baselines.orca import Orca
from baselines.past_future import PastFuture
from baselines.rad import RAD
from baselines.sarathi import Sarathi
from baselines.slackfit import Clairvoyant, Slackfit
from baselines.slai import SLAI
from baselines.srtf import SRTF
from baselines.trail import TRAIL
from baselines.vllm import VLLM
from baselines.vllm_v1 import VLLMV1
from baselines.wait import WAIT
from engine.errors import InputError
from engine.fields import convert, parse_value
from engine.policy import Policy
from engine.reading import parse_json

_CLASSES: tuple[type[Policy], ...] = (
    FasterTransformer,
    Orca,
    VLLM,
    VLLMV1,
    LightLLM,
    PastFuture,
    Sarathi,
    SLAI,
    RAD,
    MLFQ,
    ALISE,
    LTR,
    TRAIL,
    ELIS,
    WAIT,
    NestedWAIT,
    SRTF,
    Slackfit,
    Clairvoyant,
)
POLICIES: dict[str, type[Policy]] = {cls.name: cls for cls in _CLASSES}
"""Every baseline by name."""
DEFAULT_WORKLOAD = "poisson"
"""Whose tuned settings ``name:tuned`` means: Poisson arrivals, openchat_sharegpt4 lengths."""


def names() -> list[str]:
    """Names of the baselines."""
    return list(POLICIES)


@cache
def tuned_settings() -> dict[str, dict[str, str]]:
    """The settings that ship: workload -> policy -> spec."""
    text = (resources.files("baselines") / "data" / "tuned.json").read_text(encoding="utf-8")
    return convert(parse_json(text, "tuned.json"), dict[str, dict[str, str]], "tuned.json")


def expand(spec: str) -> str:
    """``name:tuned`` and ``name:tuned=WORKLOAD`` as the setting that they stand for; other specs as they are.

    Raises:
        InputError: no setting of this policy for this workload ships.
    """
    name, _, settings = spec.partition(":")
    word, _, workload = settings.partition("=")
    if word != "tuned":
        return spec
    row = tuned_settings().get(workload or DEFAULT_WORKLOAD, {})
    if name not in row:
        known = ", ".join(f"{n}:tuned={w}" for w, r in tuned_settings().items() for n in r) or "none"
        raise InputError(f"policy: expected one of the tuned settings {known}, got {spec!r}")
    return row[name]


def make(spec: str) -> Policy:
    """Build a baseline from its spec, ``name``, ``name:parameter=value,...`` or ``name:tuned``.

    Raises:
        InputError: unknown name or parameter, or a value that does not fit.
    """
    spec = expand(spec)
    name, _, settings = spec.partition(":")
    if name not in POLICIES:
        raise InputError(f"policy: expected one of {', '.join(POLICIES)}, got {name!r}")
    cls = POLICIES[name]
    kinds: dict[str, type] = {f.name: f.type for f in fields(cls) if isinstance(f.type, type)}
    values: dict[str, Any] = {}
    for setting in filter(None, settings.split(",")):
        key, equals, text = setting.partition("=")
        if not equals or key not in kinds:
            raise InputError(f"policy {name!r}: expected one of {', '.join(kinds)} as name=value, got {setting!r}")
        if key in values:
            raise InputError(f"policy {name!r}: expected each parameter once, got {key!r} twice")
        values[key] = parse_value(text, kinds[key], f"policy {name!r}: {key}")
    return cls(**values)


__all__ = [
    "ALISE",
    "ELIS",
    "LTR",
    "MLFQ",
    "POLICIES",
    "RAD",
    "SLAI",
    "SRTF",
    "TRAIL",
    "VLLM",
    "VLLMV1",
    "WAIT",
    "Clairvoyant",
    "FasterTransformer",
    "LightLLM",
    "NestedWAIT",
    "Orca",
    "PastFuture",
    "Sarathi",
    "Slackfit",
    "expand",
    "make",
    "names",
]
