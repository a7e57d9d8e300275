"""Routers: one readable file each, and one line of the registry below.

``make("jsq")`` or ``make("power_of_d:d=3,age=1")`` builds one; ``names()`` lists them. ``module:Class`` and
``path/file.py:Class`` are routers of users (`baselines.own`), with ``:parameter=value,...`` behind them too.
"""

from baselines.own import own_object, parse_settings
from engine.cluster.router import Router
from engine.errors import InputError
from engine.own_code import parse_place
from engine.spec import Spec

# The registry: one line for each router, in the order in which lists and tables have them.
# isort: off
from baselines.routers.random import Random as Random
from baselines.routers.weighted_random import WeightedRandom as WeightedRandom
from baselines.routers.round_robin import RoundRobin as RoundRobin
from baselines.routers.power_of_d import PowerOfD as PowerOfD
from baselines.routers.jsq import JSQ as JSQ
from baselines.routers.least_tokens import LeastTokens as LeastTokens
from baselines.routers.least_kv import LeastKV as LeastKV
from baselines.routers.least_finish_time import LeastFinishTime as LeastFinishTime
from baselines.routers.max_weight import MaxWeight as MaxWeight
from baselines.routers.vllm_dp import VLLMDataParallel as VLLMDataParallel
from baselines.routers.sglang import SGLang as SGLang
from baselines.routers.llm_d import LLMD as LLMD
from baselines.routers.dynamo_kv import DynamoKV as DynamoKV
from baselines.routers.lmetric import LMetric as LMetric
from baselines.routers.aibrix import AIBrix as AIBrix
from baselines.routers.llumnix import Llumnix as Llumnix
from baselines.routers.session_hash import SessionHash as SessionHash
# isort: on

ROUTERS: dict[str, type[Router]] = {
    cls.name: cls
    for cls in tuple(globals().values())
    if isinstance(cls, type) and issubclass(cls, Router) and cls is not Router
}
"""Every router by name: the classes that are imported above."""


RESERVED = ("learned", "pretrained-router")
"""Names of learned routers, which are made elsewhere."""


def names() -> list[str]:
    """Names of the routers."""
    return list(ROUTERS)


def make(spec: str) -> Router:
    """Build a router from its spec, ``name``, ``name:parameter=value,...`` or ``module:Class``.

    Raises:
        InputError: unknown name or parameter, or a value that does not fit.
    """
    parsed = Spec.parse(spec)
    if parsed.name in ROUTERS:
        cls = ROUTERS[parsed.name]
        return cls(**parse_settings(cls, parsed.rest, f"router {parsed.name!r}"))
    own = own_object(spec, (*ROUTERS, *RESERVED), Router) if parse_place(spec) else None
    if own is None:
        raise InputError(f"router: expected one of {', '.join(ROUTERS)}, module:Class or FILE.py:Class, got {spec!r}")
    return own
