"""The sensitivity study: one reference for all, channels told apart, and what pays."""

import json
import math
from pathlib import Path

import pytest

from agents.cli import main
from agents.evaluation.setup import Setup
from agents.source import Source
from agents.studies.sensitivity import sensitivity
from engine.config import EngineConfig
from engine.device.latency import LatencyModel
from engine.errors import InputError

SLOW = LatencyModel(overhead=0.02, floor=0.0, per_token=1e-5, per_pair=0.0, per_context=0.0, name="slow")
"""Iterations of 20 ms whatever is in them: seats are what is short, so output lengths are what counts."""
CHANNELS = ("oracle", "rank:tau=0.6", "rank:tau=-1")


def setup(policies: tuple[str, ...] = ("vllm:batch_cap=4", "srtf:batch_cap=4"), seeds: int = 3) -> Setup:
    """A server with four seats and short requests."""
    return Setup(
        policies=policies,
        source=Source(workload="poisson:lengths=lognormal:3,0.5,4,1,1024", num_requests=300),
        seeds=seeds,
        reference=policies[0],
        profile=SLOW,
        config=EngineConfig(max_num_seqs=4),
    )


def test_good_predictions_pay_and_reversed_ones_cost() -> None:
    result = sensitivity(setup(seeds=8), (1.9,), CHANNELS)
    relative = {row.channel: row.mean_e2e_s.relative or 0.0 for row in result.rows}
    assert relative["oracle"] < relative["rank:tau=0.6"] < relative["rank:tau=-1"]
    assert relative["oracle"] < -0.1
    assert relative["rank:tau=-1"] > 0.0
    (pays,) = result.pays
    assert "oracle" in pays.channels
    assert "rank:tau=-1" not in pays.channels


def test_differences_are_to_the_reference_on_the_same_requests_and_errors_are_measured() -> None:
    result = sensitivity(setup(seeds=2), (1.0, 1.9), CHANNELS[:2])
    cells = {(run.policy, run.channel, run.load, run.seed): run for run in result.cells}
    assert len(cells) == len(result.cells) == 2 * 2 + 2 * 2 * 2
    row = next(row for row in result.rows if (row.channel, row.load) == ("rank:tau=0.6", 1.9))
    pairs = [
        (cells["srtf:batch_cap=4", "rank:tau=0.6", 1.9, s], cells["vllm:batch_cap=4", None, 1.9, s]) for s in range(2)
    ]
    ours, theirs = (sum(pair[k].mean_ttft_s or math.nan for pair in pairs) for k in (0, 1))
    assert row.mean_ttft_s.difference.mean == pytest.approx((ours - theirs) / 2)
    assert row.mean_ttft_s.relative == pytest.approx(ours / theirs - 1.0)
    oracle, rank = result.channels
    assert (oracle.mae, oracle.tau) == (0.0, 1.0)
    assert rank.tau == pytest.approx(0.6, abs=0.05)
    assert math.isfinite(rank.mae or math.nan)


def test_the_number_of_workers_changes_nothing() -> None:
    one, two = (sensitivity(setup(seeds=1), (1.9,), CHANNELS[:1], workers=k) for k in (1, 2))
    assert one == two


@pytest.mark.parametrize(
    ("policies", "channels", "words"),
    [
        (("srtf", "ltr"), ("oracle",), "reference: expected a policy that needs no predictions, got 'srtf'"),
        (("vllm", "slai"), ("oracle",), "policies: expected policies that need predictions, got 'slai'"),
        (("vllm", "ltr"), (), "channels: expected at least one"),
        (("vllm", "ltr"), ("rank", "rank:tau=0.52"), "each once"),
    ],
)
def test_what_does_not_fit_is_refused(policies: tuple[str, ...], channels: tuple[str, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        sensitivity(setup(policies), (1.0,), channels)


def test_the_command_prints_writes_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, plot = tmp_path / "s.json", tmp_path / "s.png"
    line = "--policies ltr --channels oracle;rank --rates 1,2 --num-requests 30 --seeds 2 --workers 1"
    assert main(["sensitivity", *line.split(), "--json", str(out), "--plot", str(plot)]) == 0
    text = capsys.readouterr().out
    assert "Mean latency relative to sarathi" in text
    assert len(json.loads(out.read_text())["rows"]) == 4
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert main(["sensitivity", "--channels", "nosuch"]) == 2
    assert "channel: expected one of oracle" in capsys.readouterr().err
