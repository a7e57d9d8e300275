"""A plan keeps its own books: what it says of tokens, KV, seats and who is in it is true once it is done."""

from collections.abc import Iterator

import numpy as np
import pytest

import baselines
from engine.config import EngineConfig
from engine.demand.predictions import predict
from engine.demand.requests import Requests
from engine.demand.workload import Workload
from engine.server.core import arrive, begin, empty, finish, is_over, pause
from engine.server.plan import is_named
from engine.server.policy import Policy
from engine.server.state import DROP, EVICT, SWAP, SWAP_COMPRESSED, Server, load, new_server

BUSY = Workload(rate=12.0, num_requests=90, lengths="lognormal:4.5,0.7,4.2,0.7,512").generate(5)
SCARCE = EngineConfig(num_blocks=120, max_num_seqs=12, max_model_len=600)
SWAPS = SCARCE.replace(swap_bandwidth=25e9, swap_space_gib=0.5)
AWAY = (EVICT, SWAP, SWAP_COMPRESSED)
CAREFUL = ("orca", "fastertransformer", "lightllm", "past_future", "rad", "sglang", "trtllm", "uniboost", "svf", "mcsf")
"""Who reserves enough here to take KV from nobody."""


def plans(policy: Policy, requests: Requests, config: EngineConfig) -> Iterator[Server]:
    """The server after each plan of a run, before that is done."""
    requests = predict(requests, policy.channel, 0) if policy.channel else requests
    server = new_server(len(requests), len(requests.tiers), len(requests.forecast.total))
    load(server, config, requests)
    arrive(server)
    memory = policy.memory(config, len(requests))
    while not is_over(server):
        empty(server)
        policy.plan(server.visible, memory, server.plan)
        yield server
        if not _go_on(server):
            break


def _go_on(server: Server) -> bool:
    """After `begin`: let the batch take its time, or wait."""
    if (server.plan.entry["tokens"][: server.plan.size[0]] > 0).any():
        finish(server, 0.03)
        return True
    return bool(pause(server))


@pytest.mark.parametrize("config", [SCARCE, SWAPS], ids=["recomputes", "swaps"])
@pytest.mark.parametrize("name", baselines.names())
def test_the_books_are_right_once_the_plan_is_done(name: str, config: EngineConfig) -> None:
    done, victims = 0, 0
    for server in plans(baselines.make(name), BUSY, config):
        plan, row = server.plan, server.visible.row[0]
        entries = plan.entry[: plan.size[0]]
        draft = plan.draft[0].copy()
        served = entries["request"][(entries["tokens"] > 0) | (entries["tokens"] == DROP)].tolist()
        lost = entries["request"][np.isin(entries["tokens"], AWAY)].tolist()
        assert all(is_named(plan, i) for i in served)
        assert plan.victim[: draft.victims].tolist() == lost
        assert begin(server, True) == 0
        tokens = int(entries["tokens"][entries["tokens"] > 0].sum())
        assert (draft.tokens, draft.free, draft.seats) == (tokens, row.free_blocks, row.num_running)
        done, victims = done + 1, victims + int(draft.victims)
    assert server.visible.row[0].finished == len(BUSY)
    assert done > 100
    assert (victims > 0) == (name not in CAREFUL)
