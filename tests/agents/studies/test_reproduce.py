import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from agents.cli import main
from agents.commands.reproduce import Command
from agents.studies import reproduce
from engine.demand.length_models import EmpiricalLengths
from engine.errors import InputError


def rows_of_lengths(n: int = 400) -> EmpiricalLengths:
    rng = np.random.default_rng(0)
    return EmpiricalLengths(rng.integers(1, 4000, n), rng.integers(1, 400, n), "made up")


@pytest.fixture
def length_file(tmp_path: Path) -> Path:
    lengths = rows_of_lengths()
    frame = pd.DataFrame({"num_prefill_tokens": lengths.prompt, "num_decode_tokens": lengths.output})
    frame.to_csv(tmp_path / "lengths.csv", index=False)
    return tmp_path / "lengths.csv"


def test_requests_take_the_rows_that_the_public_code_takes() -> None:
    lengths = rows_of_lengths()
    requests = reproduce.public_requests(lengths, 1.6, 42, 300)
    frame = pd.DataFrame({"prompt": lengths.prompt, "output": lengths.output})
    shuffled = frame.sample(frac=1, random_state=42)[:300]
    np.testing.assert_array_equal(requests.prompt, shuffled["prompt"])
    np.testing.assert_array_equal(requests.output, shuffled["output"])
    pays = np.array([requests.tiers[k].strict for k in requests.tier])
    np.testing.assert_array_equal(pays, np.random.default_rng(42).random(300) < 0.05)


def test_gaps_are_cut_and_stretch_with_the_rate() -> None:
    slow, fast = (reproduce.public_requests(rows_of_lengths(), rate, 42, 400) for rate in (0.5, 2.0))
    np.testing.assert_allclose(slow.arrival, 4.0 * fast.arrival)
    gaps = np.diff(fast.arrival, prepend=0.0)
    assert gaps.max() == pytest.approx(1.5)
    assert fast.arrival[-1] == pytest.approx(400 / 2.0 / 1.052, rel=0.15)


def test_slai_answers_sooner_than_sarathi_under_load_in_both_semantics() -> None:
    study = reproduce.Study(num_requests=1500)
    for semantics in reproduce.SEMANTICS:
        sarathi, slai = (study.report(semantics, policy, 1.6, 42) for policy in reproduce.POLICIES)
        assert slai.ttft.p50 < 0.75 * sarathi.ttft.p50
        assert all(tier.keeps_tbt for tier in slai.tiers)


def test_capacity_lies_between_a_load_that_passes_and_one_that_fails() -> None:
    study = reproduce.Study(num_requests=400)
    found = reproduce.capacity(study, "default", "sarathi", 42, "paper")
    assert study.report("default", "sarathi", found - reproduce.CAPACITY_TOLERANCE, 42).paper
    assert not study.report("default", "sarathi", found + reproduce.CAPACITY_TOLERANCE, 42).paper


def test_every_cell_and_gain_is_in_the_result() -> None:
    result = reproduce.reproduce(reproduce.Study(num_requests=150), rates=(1.0, 1.6), seeds=(42, 43))
    keys = {(cell.semantics, cell.policy, cell.seed, cell.rate) for cell in result.cells}
    assert len(result.cells) == len(keys) == 2 * 2 * 2 * 2
    assert len(result.capacities) == 2 * 2 * 2
    assert {(gain.semantics, gain.criterion) for gain in result.gains} == {
        (semantics, criterion) for semantics in reproduce.SEMANTICS for criterion in ("paper", "sound")
    }
    base, other = (
        next(found.paper for found in result.capacities if found.policy == policy) for policy in reproduce.POLICIES
    )
    assert result.gains[0].per_seed[0] == pytest.approx(other / base - 1.0)
    # Table draws cannot be compared with single medians of the public code.
    assert result.targets["medians_within_5_percent"] is None


def test_command_writes_cells_of_a_real_length_file(
    length_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Command(lengths=length_file, rates="1.0,1.4", seeds=1, num_requests=100, json=tmp_path / "r.json").run()
    assert "Against the public code" in capsys.readouterr().out
    written = json.loads((tmp_path / "r.json").read_text())
    assert written["setting"]["real_lengths"] is True
    assert len(written["cells"]) == 2 * 2 * 2
    assert {row["rate"] for row in written["deviations"]} == {1.0, 1.4}


def test_too_few_rows_are_reported(length_file: Path) -> None:
    with pytest.raises(InputError, match=r"num_requests: expected at most 400 \(the rows of lengths.csv"):
        Command(lengths=length_file, num_requests=401).run()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--seeds 0", "seeds: expected a whole number >= 1, got 0"),
        ("--num-requests 0", "num_requests: expected a whole number >= 1, got 0"),
        ("--lengths nowhere.csv", "nowhere.csv: cannot read a trace"),
        ("--rates fast --num-requests 10", "rates: expected numbers > 0"),
    ],
)
def test_bad_options_are_one_line(options: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", *options.split()]) == 2
    assert message in capsys.readouterr().err
