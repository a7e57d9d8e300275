"""MC-SF, SVF and A_min by hand, with KV blocks of one token."""

import pytest

from baselines.amin import AMin
from baselines.mcsf import MCSF
from baselines.svf import SVF, volume
from engine.config import EngineConfig
from engine.demand.requests import Requests
from engine.runs.steps import StepLog
from engine.server.policy import Policy
from tests.toys import burst, steps_of, tokens_of

SMALL = EngineConfig(block_size=1, num_blocks=8, watermark=0.0, max_model_len=64)


def steps(policy: Policy, requests: Requests, num_blocks: int) -> StepLog:
    """The step log of a run that serves everybody, one second for each iteration; predictions are true."""
    told = requests.replace(prediction=requests.output.astype(float))
    return steps_of(policy, told, SMALL.replace(num_blocks=num_blocks))


def test_mcsf_takes_the_shortest_outputs_while_they_fit_at_every_end() -> None:
    """Prompts of 2, outputs of 6, 2 and 3: all three hold 9 when the first ends, the last two 6; at 2 s two hold 7."""
    requests = burst([2, 2, 2], [6, 2, 3])
    assert tokens_of(steps(MCSF(), requests, 8))[:3] == [{1: 2, 2: 2}, {1: 1, 2: 1}, {2: 1, 0: 2}]
    assert tokens_of(steps(MCSF(), requests, 9))[0] == {1: 2, 2: 2, 0: 2}


def test_mcsf_cuts_prompts_to_the_budget() -> None:
    assert tokens_of(steps(MCSF(token_budget=3), burst([4, 4], [1, 1]), 16)) == [{0: 3}, {0: 1, 1: 2}, {1: 2}]


def test_a_volume_is_the_kv_summed_over_the_iterations() -> None:
    """A prompt of 3 and outputs of 2: 4 tokens, then 5."""
    assert volume(3.0, 2.0) == 4.0 + 5.0


def test_svf_takes_the_smallest_volume_and_sets_its_peak_aside() -> None:
    """10 + 2 tokens make 23, 1 + 5 make 20, although the output is longer; peaks of 12 and 6 need 18 blocks."""
    requests = burst([10, 1], [2, 5])
    assert tokens_of(steps(SVF(), requests, 12)) == [{1: 1}, {1: 1}, {1: 1}, {1: 1}, {1: 1}, {0: 10}, {0: 1}]
    assert tokens_of(steps(SVF(), requests, 18))[0] == {1: 1, 0: 10}


def test_amin_believes_the_lower_end_and_evicts_the_least_output() -> None:
    """Outputs of 4 and 6 are believed to be 2 and 3, and hold 6 at their peak; at 3 s both need a 5th of 8 blocks."""
    log = steps(AMin(), burst([2, 2], [4, 6]), 8)
    assert log.evicted[3] == [1]
    assert tokens_of(log)[:4] == [{0: 2, 1: 2}, {0: 1, 1: 1}, {0: 1, 1: 1}, {0: 1}]
    assert tokens_of(log)[4] == {1: 5}


def test_amin_with_the_upper_end_is_careful() -> None:
    log = steps(AMin(share=1.0), burst([2, 2], [4, 6]), 8)
    assert tokens_of(log)[0] == {0: 2}
    assert not any(log.evicted)


@pytest.mark.parametrize("policy", [MCSF(), SVF(), AMin(share=1.0)])
def test_true_predictions_evict_nobody(policy: Policy) -> None:
    requests = Requests.create(
        [0.1 * k for k in range(30)], [2 + k % 5 for k in range(30)], [1 + k % 7 for k in range(30)]
    )
    assert not any(steps(policy, requests, 20).evicted)
