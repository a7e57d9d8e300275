"""One LLM server as arrays: requests, limits, physics, metrics."""

from engine.compiled.jit import inner
from engine.config import EngineConfig
from engine.demand.requests import DEFAULT_TIERS, Requests, Tier
from engine.demand.tiers import parse_tiers
from engine.demand.traces import read_trace, write_mooncake
from engine.demand.workload import Workload, parse_workload
from engine.device.latency import Executor, LatencyModel, load_profile, profile_names
from engine.errors import CacheWarning, InputError
from engine.runs.metrics import summarize
from engine.runs.simulate import PolicyError, PolicyFault, Record, simulate
from engine.server.policy import HotKernel, Kernel, Policy, drop, evict, remaining, schedule, swap
from engine.server.state import Memory, Plan, View

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
