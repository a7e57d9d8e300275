"""KV that an evicted request finds again: the blocks at its beginning that nobody has taken since."""

import numpy as np
import pytest

from engine.config import EngineConfig
from engine.errors import InputError
from engine.server.core import arrive, begin, finish
from engine.server.integrity import check_server
from engine.server.kv import found_again
from engine.server.state import EVICT, ROW, WAITING, Server, load, new_server, set_limits
from tests.toys import burst

CACHED = EngineConfig(block_size=4, num_blocks=10, watermark=0.0, max_model_len=40, prefix_cache="own")


def serve(config: EngineConfig, prompts: list[int], outputs: list[int]) -> Server:
    """A server in front of requests that are all there."""
    server = new_server(len(prompts), 2)
    load(server, config, burst(prompts, outputs))
    arrive(server)
    return server


def step(server: Server, *entries: tuple[int, int]) -> list[int]:
    """An iteration of a second; returns the tokens of each entry as they were taken."""
    server.plan.size[0] = len(entries)
    for k, (i, tokens) in enumerate(entries):
        server.plan.entry[k] = (i, tokens, 0)
    assert begin(server, True) == 0
    finish(server, 1.0)
    return [int(entry.tokens) for entry in server.plan.entry[: len(entries)]]


def found(server: Server, i: int) -> int:
    """Blocks that a waiting request would find again now."""
    row = server.visible.row[0]
    return int(found_again(row, server.visible.request[i], row.free_blocks, row.returned))


def test_a_request_goes_on_behind_its_full_blocks_and_gets_no_more_than_it_lacks() -> None:
    server = serve(CACHED, [9, 4], [4, 9])
    step(server, (0, 9))
    step(server, (0, EVICT), (1, 4))
    assert found(server, 0) == 2
    server.plan.size[0] = 1
    server.plan.entry[0] = (0, 10, 0)
    assert begin(server, True) == 0
    assert server.plan.entry[0].tokens == 2
    assert (server.features[0].tokens, server.features[0].prefill_pairs) == (2, 2 * (8 + 1.5))
    finish(server, 1.0)
    r, row = server.visible.request[0], server.visible.row[0]
    assert (r.prefilled, r.prompt, r.generated, r.blocks) == (10, 10, 2, 3)
    assert (row.recomputed_tokens, row.reused_tokens, row.prefill_tokens) == (1, 8, 9 + 4 + 2)


def test_without_a_cache_nothing_is_found() -> None:
    server = serve(CACHED.replace(prefix_cache="none"), [9], [4])
    step(server, (0, 9))
    assert step(server, (0, EVICT), (0, 10)) == [EVICT, 10]
    assert server.visible.row[0].reused_tokens == 0


def test_blocks_are_taken_from_the_end_of_a_sequence_once_those_freed_earlier_are_used_up() -> None:
    """7 blocks are free before the 3 of request 0; request 1 takes 8, and gives them back behind."""
    server = serve(CACHED, [12, 32], [4, 1])
    step(server, (0, 12))
    step(server, (0, EVICT), (1, 32))
    assert server.visible.row[0].free_blocks == 10
    assert found(server, 0) == 2
    assert step(server, (0, 13)) == [5]


def test_who_comes_back_first_takes_its_own_blocks_out_of_the_middle() -> None:
    """The queue of free blocks is 6 others, 2 of request 0, 2 of request 1; request 2 takes the others."""
    server = serve(CACHED, [8, 8, 24], [4, 4, 4])
    step(server, (0, 8), (1, 8))
    step(server, (0, EVICT), (1, EVICT), (2, 24))
    assert (found(server, 0), found(server, 1)) == (2, 2)
    assert step(server, (0, 9)) == [1], "and its third block is the last one of request 1"
    assert found(server, 1) == 1


@pytest.mark.parametrize(("emits", "blocks"), [(True, 2), (False, 1)])
def test_the_last_token_is_always_computed_anew(emits: bool, blocks: int) -> None:
    """Of 8 known tokens the KV of 7 is of use, of 9 that of 8."""
    server = serve(CACHED.replace(prompt_emits=emits), [8, 4], [4, 9])
    step(server, (0, 8))
    step(server, (0, EVICT), (1, 4))
    assert found(server, 0) == blocks


@pytest.mark.parametrize(("field", "value"), [("kept", 3), ("kept", -1), ("returned", 4), ("returned", -1)])
def test_a_stored_state_that_promises_too_much_is_refused(field: str, value: int) -> None:
    server = serve(CACHED, [9, 4], [4, 9])
    step(server, (0, 9))
    step(server, (0, EVICT), (1, 4))
    limits = np.zeros(1, ROW).view(np.recarray)
    set_limits(limits, CACHED)
    assert server.visible.request[0].status == WAITING
    check_server(server, limits, "state")
    server.visible.request[0][field] = value
    with pytest.raises(InputError, match="state: expected the arrays of a server that fit together, got KV blocks"):
        check_server(server, limits, "state")


def test_a_state_of_a_server_with_a_cache_is_none_of_one_without() -> None:
    server = serve(CACHED, [9], [4])
    limits = np.zeros(1, ROW).view(np.recarray)
    set_limits(limits, CACHED.replace(prefix_cache="none"))
    with pytest.raises(InputError, match="limits of another configuration"):
        check_server(server, limits, "state")
