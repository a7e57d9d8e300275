"""Published schedulers as policies: one readable file each.

``make("slai")`` or ``make("slai:token_budget=1024,offset=3")`` builds one; ``names()`` lists them.
"""

from dataclasses import fields
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
from baselines.slackfit import Slackfit
from baselines.slai import SLAI
from baselines.srtf import SRTF
from baselines.trail import TRAIL
from baselines.vllm import VLLM
from baselines.vllm_v1 import VLLMV1
from baselines.wait import WAIT
from engine.errors import InputError
from engine.policy import Policy

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
)
POLICIES: dict[str, type[Policy]] = {cls.name: cls for cls in _CLASSES}
"""Every baseline by name."""


def names() -> list[str]:
    """Names of the baselines."""
    return list(POLICIES)


def _parse(kind: type, text: str, where: str) -> Any:
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        return kind(text)
    except (ValueError, KeyError):
        raise InputError(f"{where}: expected {kind.__name__}, got {text!r}") from None


def make(spec: str) -> Policy:
    """Build a baseline from its spec, ``name`` or ``name:parameter=value,...``.

    Raises:
        InputError: unknown name or parameter, or a value that does not fit.
    """
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
        values[key] = _parse(kinds[key], text, f"policy {name!r}: {key}")
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
    "FasterTransformer",
    "LightLLM",
    "NestedWAIT",
    "Orca",
    "PastFuture",
    "Sarathi",
    "Slackfit",
    "make",
    "names",
]
