"""Advice on settings: the search against the whole grid, what a policy carries, regimes, GPUs over a day, bad input."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import baselines
from agents.cli import main
from agents.evaluation.points import Point
from agents.source import Source
from agents.studies.advice.judge import choose, judge
from agents.studies.advice.replicas import replicas
from agents.studies.advice.search import Found, Question, search, survivors
from agents.studies.advice.settings import Setting, grid
from agents.studies.advice.trials import Pieces, Trial, pieces_of
from engine.config import EngineConfig
from engine.demand.rate_profile import Stretch, read_rate_profile
from engine.demand.tiers import parse_slo
from engine.device.latency import LatencyModel
from engine.errors import InputError
from tests.engine.trace_files import written

SMALL = EngineConfig(max_num_seqs=32, max_batched_tokens=512, async_scheduling=True, prefix_cache="own")
"""A server for which there are three budgets, four watermarks and the defaults of vLLM."""
DEVICE = LatencyModel(overhead=0.005, floor=0.0, per_token=1e-4, per_pair=0.0, per_context=0.0, name="plain")
"""Batches of 256 tokens take 31 ms, of 512 tokens 56 ms."""


def question(tbt: float = 0.05, rate: float | None = None, others: tuple[str, ...] = ()) -> Question:
    """Short requests on the device, all with the same SLO."""
    return Question(
        source=Source(
            workload="poisson:lengths=lognormal:6,0.6,3.5,0.6,1500", tiers=parse_slo(("ttft:1", f"tbt:{tbt}"))
        ),
        profile=DEVICE,
        config=SMALL,
        rate=rate,
        gpu="standard",
        others=others,
        seeds=3,
        num_requests=400,
    )


def point(rate: float, goodput: float, sound: bool = True) -> Point:
    """A load that was served."""
    return Point(rate, rate, sound, sound, (), "", None, None, None, {}, None, goodput, None, int(1000 * goodput))


def trial(policy: str, goodputs: Sequence[float], met: int, seed: int = 0) -> Trial:
    """A policy with these goodputs at 1, 2, ... requests/s, of which so many are met."""
    return Trial(0, policy, seed, tuple(point(k + 1.0, value, k < met) for k, value in enumerate(goodputs)))


def test_every_setting_starts_and_differs_and_plain_ones_come_first() -> None:
    found = grid(EngineConfig(max_num_seqs=1024))
    assert len({one.spec for one in found}) == len(found)
    assert all(one.max_num_seqs <= one.max_num_batched_tokens > one.long_prefill_token_threshold for one in found)
    counts = [len(one.further) for one in found]
    assert counts == sorted(counts)
    assert {(one.max_num_batched_tokens, one.max_num_seqs) for one in grid(SMALL)} == {(256, 32), (384, 32), (512, 32)}
    made = baselines.make(Setting(2048, 128, 0.02, 512).spec)
    assert vars(made) == vars(
        baselines.make(
            "vllm_v1:max_num_batched_tokens=2048,max_num_seqs=128,watermark=0.02,long_prefill_token_threshold=512"
        )
    )


def test_the_command_line_has_the_flags_of_vllm() -> None:
    plain, full = Setting(512, 64), Setting(8192, 256, 0.05, 2048)
    assert plain.command == "vllm serve MODEL --max-num-batched-tokens 512 --max-num-seqs 64"
    flags = "--max-num-batched-tokens 8192 --max-num-seqs 256 --watermark 0.05 --long-prefill-token-threshold 2048"
    assert full.command == f"vllm serve MODEL {flags}"


def test_a_policy_carries_its_largest_goodput_before_the_first_load_that_is_not_met() -> None:
    assert trial("a", (1.0, 1.9, 1.5, 2.5), met=3).goodput == 1.9
    assert trial("a", (1.0, 1.9, 1.5, 2.5), met=3).load == 2.0
    assert trial("a", (1.0, 1.9), met=0).carried is None
    assert trial("a", (0.0, 0.0), met=2).carried is None
    gap = Trial(0, "a", 0, (point(1.0, 1.0), point(2.0, 1.5, sound=False), point(3.0, 2.0)))
    assert gap.goodput == 1.0


def test_those_go_on_that_carry_most_or_are_best_at_a_load() -> None:
    trials = {
        "carries": [trial("carries", (1.0, 1.8, 0.2), met=2)],
        "same": [trial("same", (1.0, 1.8, 0.2), met=2)],
        "middling": [trial("middling", (1.0, 1.7, 0.3), met=2)],
        "overload": [trial("overload", (0.9, 1.0, 2.0), met=1)],
    }
    assert survivors(trials, (1.0, 2.0, 3.0), 2) == ["carries", "overload"]
    assert survivors(trials, (1.0, 2.0, 3.0), 9) == ["carries", "middling", "overload"]


def test_the_search_is_as_good_as_the_whole_grid() -> None:
    asked = question()
    found = search(asked, whole_grid=True)
    advice = judge(asked, found)
    assert advice.grid is not None
    assert advice.grid.settings == len(found.grid) == 13
    assert advice.grid.share >= -0.02
    carried = [np.mean([one.goodput for one in trials]) for trials in found.grid.values()]
    assert min(carried) < 0.8 * max(carried), "the settings do not differ: nothing was found"
    assert advice.row.policy == advice.advised
    assert advice.row.goodput.mean == pytest.approx(advice.grid.advised_goodput)
    assert advice.row.goodput.mean < advice.row.carries.mean <= asked.bound


def test_workers_and_resuming_change_nothing(tmp_path: Path) -> None:
    asked, cells = question(rate=2.0, others=("sarathi",)), tmp_path / "cells.jsonl"
    first = judge(asked, search(asked, cells_path=cells))
    lines = cells.read_text().splitlines(keepends=True)
    cells.write_text("".join(lines[: len(lines) // 2]))
    done: list[tuple[str, int, int]] = []
    again = search(asked, workers=2, cells_path=cells, resume=True, progress=lambda *step: done.append(step))
    assert judge(asked, again) == first
    assert len(done) == len(lines) - len(lines) // 2
    assert first.rate in first.rates
    assert first.row.at_rate is not None
    assert first.rows[-1].policy == "sarathi"


def found_of(**goodputs: tuple[float, ...]) -> Found:
    """Two seeds of settings with these goodputs at 1, 2 and 3 requests/s, of which the first two are met."""
    trials = {
        Setting(512, seqs).spec: [trial(Setting(512, seqs).spec, values, met=2, seed=seed) for seed in range(2)]
        for seqs, values in zip((256, 128, 64), goodputs.values(), strict=False)
    }
    return Found((1.0, 2.0, 3.0), trials, len(trials), {})


def test_the_best_at_the_load_is_advised_and_of_equals_the_plainest() -> None:
    asked = replace(question(), config=SMALL.replace(max_num_seqs=256))
    found = found_of(plain=(1.0, 1.8, 0.5), same=(1.0, 1.805, 0.5), busy=(0.8, 1.5, 2.0))
    plain, _, busy = found.trials
    assert choose(asked, found) == plain
    assert choose(replace(asked, rate=3.0), found) == busy
    assert choose(replace(asked, rate=1.0), found) == plain


def test_regimes_name_who_is_better_from_which_load_on() -> None:
    asked = replace(question(), config=SMALL.replace(max_num_seqs=256))
    found = found_of(plain=(1.0, 1.8, 0.5), same=(1.0, 1.7, 0.6), busy=(0.8, 1.5, 2.0))
    plain, _, busy = found.trials
    low, high = judge(asked, found).regimes
    assert (low.low, low.high, low.setting) == (1.0, 2.0, plain)
    assert (high.low, high.high, high.setting) == (3.0, 3.0, busy)
    assert high.setting_gain.mean == pytest.approx(1.5)


def test_who_carries_more_than_anybody_sustains_was_served_for_too_short_a_time() -> None:
    asked = replace(question(), config=SMALL.replace(max_num_seqs=256))
    fast = replace(asked, profile=replace(DEVICE, per_token=1e-2))
    found = found_of(plain=(1.0, 1.8, 0.5))
    assert fast.bound < 2.0 < asked.bound
    assert not [note for note in judge(asked, found).notes if "bound" in note]
    (note,) = (note for note in judge(fast, found).notes if "bound" in note)
    assert note.startswith(f"2 requests/s is more than the bound of {fast.bound:.3g}: with 400 requests")


def test_gpus_are_counted_by_the_hour() -> None:
    day = (Stretch(0.0, 6.0, 0.0), Stretch(6.0, 12.0, 4.0), Stretch(18.0, 6.0, 4.1))
    found = replicas(day, 2.0, 2.5)
    assert [one.gpus for one in found.stretches] == [0, 2, 3]
    assert (found.peak, found.gpu_hours, found.mean) == (3, 42.0, 1.75)
    assert (found.cost, found.peak_cost) == (105.0, 180.0)
    assert replicas(day, 2.0, None).cost is None
    with pytest.raises(InputError, match="carries 0 on some"):
        replicas(day, 0.0, None)


def test_a_profile_of_rates_is_a_day(tmp_path: Path) -> None:
    path = written(tmp_path, "note,rate,hour\na,1.5,0\nb,3,7.5\n", "day.csv")
    assert read_rate_profile(path) == (Stretch(0.0, 7.5, 1.5), Stretch(7.5, 16.5, 3.0))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected the columns hour, rate; missing hour, rate; came: an empty file"),
        ("hour,load\n0,1\n", "missing rate; came: hour, load"),
        ("hour,rate\n", "expected at least one row of data, got none"),
        ("hour,rate\n1,1\n", "line 2: expected a day that begins at hour 0, got 1"),
        ("hour,rate\n0,1\n5,1\n5,1\n", "line 4: expected hours that rise, got 5 after 5"),
        ("hour,rate\n0,1\n24,1\n", "line 3: hour: expected hours >= 0 and < 24, got"),
        ("hour,rate\n0\n", "line 2: expected 2 columns, got 1"),
        ("hour,rate\n0,x\n", "line 2: rate: expected requests/s >= 0, got 'x'"),
    ],
)
def test_what_is_no_day_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError) as refusal:
        read_rate_profile(written(tmp_path, text, "day.csv"))
    assert words in str(refusal.value)


ROWS = "arrived_at,num_prefill_tokens,num_decode_tokens\n" + "".join(f"{k * k},{100 + k},5\n" for k in range(10))


def test_seeds_of_a_recorded_trace_are_its_pieces(tmp_path: Path) -> None:
    path = written(tmp_path, ROWS, "trace.csv")
    source = pieces_of(Source(trace=str(path), synthetic_arrivals=False), 4)
    assert isinstance(source, Pieces)
    assert source.number == 2
    assert source.requests(None, 1).prompt.tolist() == [104, 105, 106, 107]
    assert source.requests(None, 1).arrival.tolist() == [0.0, 9.0, 20.0, 33.0]
    assert source.requests(3.0, 1).arrival[-1] == pytest.approx(1.0)
    assert pieces_of(Source(), 4) == Source(num_requests=4)


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        (("ttft:2",), "slo: expected tbt:SECONDS, got ttft:2"),
        (("tbt:0.1", "tbt:0.2"), "each once, got 'tbt:0.2'"),
        (("tpot:0.1",), "got 'tpot:0.1'"),
        (("tbt:x",), "slo: tbt: expected a finite number, got 'x'"),
        (("tbt:0",), "tbt_s: expected seconds > 0, got 0"),
    ],
)
def test_what_is_no_slo_is_refused(pairs: tuple[str, ...], words: str) -> None:
    with pytest.raises(InputError) as refusal:
        parse_slo(pairs)
    assert words in str(refusal.value)


SHORT = ("--engine.max-num-seqs", "32", "--engine.max-batched-tokens", "512", "--seeds", "2", "--workers", "1")
SMALL_RUN = (*SHORT, "--num-requests", "200", "--policies", "sarathi", "--rate", "1")


def test_the_command_advises_and_counts_gpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    day, out = written(tmp_path, "hour,rate\n0,2\n12,7\n", "day.csv"), tmp_path / "result.json"
    lengths = "num_prefill_tokens,num_decode_tokens\n" + "".join(f"{200 + k},{20 + k}\n" for k in range(50))
    traffic = written(tmp_path, lengths, "lengths.csv")
    options = ["--replicas", "--rate-profile", str(day), "--price", "2", "--json", str(out)]
    assert main(["advise", str(traffic), *SMALL_RUN, "--out", str(tmp_path / "out"), *options]) == 0
    printed, data = capsys.readouterr().out, json.loads(out.read_text())
    assert data["command"] in printed
    assert data["command"].startswith("vllm serve MODEL --max-num-batched-tokens ")
    assert data["rate"] == 1.0
    assert data["config"]["source"]["trace"] == "lengths.csv"
    assert data["rows"][0]["policy"] == data["advised"]
    assert data["replicas"]["peak"] == max(one["gpus"] for one in data["replicas"]["stretches"])
    assert f"GPUs: {data['replicas']['peak']} at the peak" in printed
    assert "sarathi" in printed


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--slo", "tbt:0.001"], "slo: no setting meets it (ttft 2 s, tbt 0.001 s) on rtx6000ada-mistral-7b, not even"),
        (["--slo", "ttft:0.001", "tbt:0.5"], "nearest: vllm_v1:"),
        (["--slo", "ttft:2"], "slo: expected tbt:SECONDS, got ttft:2"),
        (["--slo", "tbt:1", "--tier", "name=a,tbt=1"], "slo, tier: expected one of them, got both"),
        (["--profile", "h1000"], "profile"),
        (["--replicas"], "replicas, rate_profile: expected both or none"),
        (["--price", "3"], "price: expected --replicas beside it"),
        (["--semantics", "reference"], "semantics: expected default"),
        (["closed:concurrency=3"], "advise: expected an open loop"),
        (["nothing.csv"], "nothing.csv: cannot read a trace"),
        (["poisson", "--workload", "gamma"], "workload: expected a trace file beside it, got 'poisson'"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    assert main(["advise", *options, *SHORT, "--num-requests", "100", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.strip()
    assert words in said
    assert "\n" not in said


def test_a_file_without_what_is_needed_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = written(tmp_path, '{"input_toks": 3, "arrival_time": 1.0}\n', "run-requests.jsonl")
    metrics = written(tmp_path, "# HELP python_info x\n# TYPE python_info gauge\npython_info 1.0\n", "metrics.txt")
    for path, words in ((log, "missing output_toks"), (metrics, "expected vLLM's histograms")):
        assert main(["advise", str(path), *SHORT, "--out", str(tmp_path / "out")]) == 2
        said = capsys.readouterr().err.strip()
        assert words in said
        assert "\n" not in said
