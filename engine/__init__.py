"""One LLM server as arrays: requests, limits, physics, metrics."""

from engine.cluster.record import ClusterRecord, summarize_cluster
from engine.cluster.router import Router, RouterKernel, drawn, drawn_for, is_better, router_kernel_of
from engine.cluster.simulate import RouterError, simulate_cluster
from engine.cluster.state import RouterMemory, RouterView
from engine.compiled.jit import inner
from engine.compiled.records import cells_of, params_of, record, records, series
from engine.config import EngineConfig
from engine.demand.requests import DEFAULT_TIERS, Requests, Tier
from engine.demand.tiers import parse_tiers
from engine.demand.trace_options import TraceOptions
from engine.demand.traces import read_trace, write_mooncake
from engine.demand.workload import Workload, parse_workload
from engine.device.latency import Executor, LatencyModel, load_profile, profile_names
from engine.errors import CacheWarning, InputError
from engine.runs.driving import PolicyError, PolicyFault
from engine.runs.metrics import summarize
from engine.runs.record import Record
from engine.runs.simulate import simulate
from engine.scenarios.scenario import Scenario, read_scenario
from engine.scenarios.suite import Suite, load_suite
from engine.server.moves import (
    admit,
    admit_chunks,
    chunk,
    continue_prefills,
    decode,
    decode_oldest_first,
    enter,
    fits,
    fits_decode,
    give,
    is_decode,
    remaining,
    swap_out,
    take_kv,
)
from engine.server.plan import drop, evict, is_named, schedule, swap
from engine.server.policy import HotKernel, Kernel, Policy, kernel_of
from engine.server.queue import FCFS, QUEUE, QUEUED, SPF, STRICT_SPF, WEIGHED, Queue, first_waiting, next_waiting
from engine.server.sorting import HEAP, SORTED, insert_sorted
from engine.server.state import Memory, Plan, View

__all__ = [
    "DEFAULT_TIERS",
    "FCFS",
    "HEAP",
    "QUEUE",
    "QUEUED",
    "SORTED",
    "SPF",
    "STRICT_SPF",
    "WEIGHED",
    "CacheWarning",
    "ClusterRecord",
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
    "Queue",
    "Record",
    "Requests",
    "Router",
    "RouterError",
    "RouterKernel",
    "RouterMemory",
    "RouterView",
    "Scenario",
    "Suite",
    "Tier",
    "TraceOptions",
    "View",
    "Workload",
    "admit",
    "admit_chunks",
    "cells_of",
    "chunk",
    "continue_prefills",
    "decode",
    "decode_oldest_first",
    "drawn",
    "drawn_for",
    "drop",
    "enter",
    "evict",
    "first_waiting",
    "fits",
    "fits_decode",
    "give",
    "inner",
    "insert_sorted",
    "is_better",
    "is_decode",
    "is_named",
    "kernel_of",
    "load_profile",
    "load_suite",
    "next_waiting",
    "params_of",
    "parse_tiers",
    "parse_workload",
    "profile_names",
    "read_scenario",
    "read_trace",
    "record",
    "records",
    "remaining",
    "router_kernel_of",
    "schedule",
    "series",
    "simulate",
    "simulate_cluster",
    "summarize",
    "summarize_cluster",
    "swap",
    "swap_out",
    "take_kv",
    "write_mooncake",
]
