"""One LLM server as arrays: requests, limits, physics, metrics."""

from engine import _cache as _cache  # first: it decides where compiled kernels are kept
from engine._jit import inner
from engine.config import EngineConfig
from engine.errors import CacheWarning, InputError
from engine.latency import Executor, LatencyModel, load_profile, profile_names
from engine.metrics import summarize
from engine.policy import HotKernel, Kernel, Policy, drop, evict, remaining, schedule, swap
from engine.requests import DEFAULT_TIERS, Requests, Tier
from engine.simulate import PolicyError, PolicyFault, Record, simulate
from engine.state import Memory, Plan, View
from engine.tiers import parse_tiers
from engine.traces import read_trace, write_mooncake
from engine.workload import Workload, parse_workload

__all__ = [
    "DEFAULT_TIERS",
    "CacheWarning",
    "EngineConfig",
    "Executor",
    "HotKernel",
    "InputError",
    "Kernel",
    "LatencyModel",
    "Memory",
    "Plan",
    "Policy",
    "PolicyError",
    "PolicyFault",
    "Record",
    "Requests",
    "Tier",
    "View",
    "Workload",
    "drop",
    "evict",
    "inner",
    "load_profile",
    "parse_tiers",
    "parse_workload",
    "profile_names",
    "read_trace",
    "remaining",
    "schedule",
    "simulate",
    "summarize",
    "swap",
    "write_mooncake",
]
