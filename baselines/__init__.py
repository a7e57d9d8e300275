"""Published schedulers as policies: one readable file each, and one line of the registry below.

``make("slai")`` or ``make("slai:token_budget=1024,offset=3")`` builds one; ``names()`` lists them. ``slai:tuned`` is
its best setting on the default workload, ``slai:tuned=WORKLOAD`` on another one (`llmsched tune`, data/tuned.json), and
``slai:tuned=FILE`` what `llmsched tune --save FILE` found; ``rad:paper`` is a setting that its class names.
``module:Class`` and ``path/file.py:Class`` are policies of users (`baselines.own`), with ``:parameter=value,...`` and
``:tuned=FILE`` behind them too.
"""

from functools import cache
from importlib import resources
from pathlib import Path

from baselines.own import RESERVED, own_object, parse_settings
from engine.errors import InputError
from engine.fields import convert
from engine.files.reading import is_there, parse_json, read_mapping
from engine.own_code import parse_place
from engine.server.policy import Policy
from engine.spec import Spec

# The registry: one line for each baseline, in the order in which lists and tables have them.
# isort: off
from baselines.fastertransformer import FasterTransformer as FasterTransformer
from baselines.orca import Orca as Orca
from baselines.vllm import VLLM as VLLM
from baselines.vllm_v1 import VLLMV1 as VLLMV1
from baselines.sglang import SGLang as SGLang
from baselines.uniboost import UniBoost as UniBoost
from baselines.trtllm import TensorRTLLM as TensorRTLLM
from baselines.ppas import PPAS as PPAS
from baselines.lightllm import LightLLM as LightLLM
from baselines.past_future import PastFuture as PastFuture
from baselines.sarathi import Sarathi as Sarathi
from baselines.slai import SLAI as SLAI
from baselines.fairbatching import FairBatching as FairBatching
from baselines.eb import EB as EB
from baselines.preflow import PREFLOW as PREFLOW
from baselines.rad import RAD as RAD
from baselines.mlfq import MLFQ as MLFQ
from baselines.alise import ALISE as ALISE
from baselines.ltr import LTR as LTR
from baselines.trail import TRAIL as TRAIL
from baselines.elis import ELIS as ELIS
from baselines.wait import WAIT as WAIT
from baselines.nested_wait import NestedWAIT as NestedWAIT
from baselines.svf import SVF as SVF
from baselines.mcsf import MCSF as MCSF
from baselines.amin import AMin as AMin
from baselines.srtf import SRTF as SRTF
from baselines.slackfit import Slackfit as Slackfit
from baselines.slackfit import Clairvoyant as Clairvoyant
# isort: on

POLICIES: dict[str, type[Policy]] = {
    cls.name: cls
    for cls in tuple(globals().values())
    if isinstance(cls, type) and issubclass(cls, Policy) and cls is not Policy
}
"""Every baseline by name: the classes that are imported above."""
TUNED = "tuned"
"""What stands for the best known setting in a spec."""
DEFAULT_WORKLOAD = "poisson"
"""Whose tuned settings ``name:tuned`` means: Poisson arrivals, openchat_sharegpt4 lengths."""


_RENAMED = {"vllm_v1": {"token_budget": "max_num_batched_tokens", "batch_cap": "max_num_seqs"}}
"""Names that parameters had before; specs may still have them."""


def names() -> list[str]:
    """Names of the baselines."""
    return list(POLICIES)


@cache
def tuned_settings() -> dict[str, dict[str, str]]:
    """The settings that ship: workload -> policy -> spec."""
    text = (resources.files("baselines") / "data" / "tuned.json").read_text(encoding="utf-8")
    return convert(parse_json(text, "tuned.json"), dict[str, dict[str, str]], "tuned.json")


def base_of(spec: str) -> tuple[str, str]:
    """A spec as what names the policy (a baseline, a place in a user's code) and the parameters behind it."""
    place = None if Spec.parse(spec).name in POLICIES else parse_place(spec)
    if place is not None:
        return place.text, place.settings
    parsed = Spec.parse(spec)
    return parsed.name, parsed.rest


def _with_present_names(spec: str, name: str) -> str:
    """A spec of this policy with the names that its parameters have now."""
    return str(Spec.parse(spec).renamed(_RENAMED[name])) if name in _RENAMED else spec


def expand(spec: str) -> str:
    """``name:tuned``, ``name:tuned=WORKLOAD`` and ``name:tuned=FILE`` as the setting meant; other specs as they are.

    A file is what `llmsched tune --save` wrote; with the settings of several workloads in it, ``tuned=FILE:WORKLOAD``
    says which. A setting that the class names (``rad:paper``) may have others behind it, which win.

    Raises:
        InputError: there is no such setting of this policy.
    """
    name, settings = base_of(spec)
    setting = Spec.parse(settings, "=")
    if setting.name != TUNED:
        return _spelled_out(_with_present_names(spec, name), name)
    which = setting.rest
    place = Spec.parse(which)
    if place.name and is_there(place.name):
        return _from_file(Path(place.name), name, place.rest, spec)
    row = tuned_settings().get(which or DEFAULT_WORKLOAD, {})
    if name in row:
        return row[name]
    known = "".join(f"{name}:tuned={workload}, " for workload, row in tuned_settings().items() if name in row)
    files = f" (there is no file {which})" if "/" in which or "." in which else ""
    raise InputError(f"policy: expected one of the tuned settings {known}{name}:tuned=FILE, got {spec!r}{files}")


def _spelled_out(spec: str, name: str) -> str:
    """A spec of this policy with what a setting means whose name it begins with."""
    first, *own = Spec.parse(spec).words or ("",)
    named = POLICIES[name].named if name in POLICIES else {}
    if first not in named:
        return spec
    meant = Spec(name, named[first])
    for key, _, value in (part.partition("=") for part in own):
        meant = meant.with_setting(key.strip(), value.strip())
    return str(meant)


def read_tuned(path: Path) -> dict[str, dict[str, str]]:
    """The settings in a file of `llmsched tune --save`: workload -> policy -> spec.

    Raises:
        InputError: another kind of file.
    """
    table = read_mapping(path, "a table of tuned settings")
    if not all(isinstance(row, dict) and all(isinstance(s, str) for s in row.values()) for row in table.values()):
        raise InputError(f"{path}: expected a table of tuned settings, workload -> policy -> setting")
    return {workload: dict(row) for workload, row in table.items()}


def _from_file(path: Path, name: str, workload: str, spec: str) -> str:
    found = {where: row[name] for where, row in read_tuned(path).items() if name in row and workload in ("", where)}
    if not found:
        asked = f"{name} for {workload}" if workload else name
        raise InputError(f"policy {spec!r}: expected a setting of {asked} in {path}, found none")
    if len(found) > 1:
        raise InputError(f"policy {spec!r}: expected :WORKLOAD behind the file, one of {', '.join(found)}")
    (setting,) = found.values()
    place, settings = base_of(setting)
    if place != name or Spec.parse(settings, "=").name == TUNED:
        raise InputError(f"{path}: expected a setting of {name}, got {setting!r}")
    return setting


def make(spec: str) -> Policy:
    """Build a policy from its spec, ``name``, ``name:parameter=value,...``, ``name:tuned`` or ``module:Class``.

    Raises:
        InputError: unknown name or parameter, or a value that does not fit.
    """
    spec = expand(spec)
    name, settings = base_of(spec)
    if name in POLICIES:
        cls = POLICIES[name]
        return cls(**parse_settings(cls, settings, f"policy {name!r}"))
    own = own_object(spec, (*POLICIES, *RESERVED), Policy)
    if own is None:
        raise InputError(f"policy: expected one of {', '.join(POLICIES)}, module:Class or FILE.py:Class, got {name!r}")
    return own
