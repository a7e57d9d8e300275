"""Histograms of a vLLM server and logs of its requests as traces."""

import json
from pathlib import Path

import numpy as np
import pytest

from engine.demand.prometheus import OUTPUTS, PROMPTS, ROWS
from engine.demand.trace_files import has_times, read_columns
from engine.demand.trace_options import TraceOptions
from engine.demand.traces import read_trace
from tests.engine.trace_files import refused, written

ENDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
"""Buckets of a model with 16384 tokens."""
HEAD = '# HELP python_info Python platform information\n# TYPE python_info gauge\npython_info{major="3"} 1.0\n'


def histogram(name: str, lengths: np.ndarray, engine: int = 0, model: str = "m") -> str:
    """What the client of Prometheus writes of these lengths."""
    labels = f'engine="{engine}",model_name="{model}"'
    lines = [f"# HELP {name} Number of tokens.", f"# TYPE {name} histogram"]
    for end in (*ENDS, np.inf):
        text = "+Inf" if end == np.inf else f"{end:.1f}"
        lines.append(f'{name}_bucket{{{labels},le="{text}"}} {np.count_nonzero(lengths <= end):.1f}')
    return "\n".join(
        [*lines, f"{name}_count{{{labels}}} {len(lengths)}", f"{name}_sum{{{labels}}} {lengths.sum()}", ""]
    )


def lengths(mu: float, sigma: float, n: int = 20_000) -> np.ndarray:
    """Lengths with a long tail."""
    drawn = np.exp(np.random.default_rng(3).normal(mu, sigma, n))
    return np.clip(np.rint(drawn), 1, 16_000)


def test_lengths_come_back_with_their_buckets_and_their_mean(tmp_path: Path) -> None:
    prompts, outputs = lengths(6.5, 1.0), lengths(5.0, 0.8)
    path = written(tmp_path, HEAD + histogram(PROMPTS, prompts) + histogram(OUTPUTS, outputs), "metrics.txt")
    columns = read_columns(path)
    assert columns.arrival is None
    assert not has_times(path)
    for found, true in ((columns.prompt, prompts), (columns.output, outputs)):
        assert len(found) == ROWS
        assert found.mean() == pytest.approx(true.mean(), rel=0.01)
        for end in ENDS:
            assert np.mean(found <= end) == pytest.approx(np.mean(true <= end), abs=2.0 / ROWS)
        assert found.std() == pytest.approx(true.std(), rel=0.15)
    assert abs(np.corrcoef(columns.prompt, columns.output)[0, 1]) < 0.05
    requests = read_trace(path, rate=2.0, num_requests=100, seed=1)
    assert "20000 requests" in requests.source
    assert "no duration" in requests.source


def test_engines_are_added_up_and_models_are_not(tmp_path: Path) -> None:
    few, many = np.full(10, 4.0), np.full(30, 150.0)
    two = "".join(histogram(name, part, k) for name in (PROMPTS, OUTPUTS) for k, part in enumerate((few, many)))
    columns = read_columns(written(tmp_path, two, "two.txt"))
    assert np.mean(columns.prompt <= 5) == 0.25
    models = "".join(histogram(name, few, 0, model) for name in (PROMPTS, OUTPUTS) for model in ("a", "b"))
    assert "expected the metrics of one model, got those of a, b" in refused(written(tmp_path, models, "models.txt"))


def test_all_requests_of_one_length_in_the_last_bucket(tmp_path: Path) -> None:
    text = histogram(PROMPTS, np.full(7, 12_000.0)) + histogram(OUTPUTS, np.full(7, 1.0))
    columns = read_columns(written(tmp_path, text, "long.txt"))
    assert columns.prompt.min() > 10_000
    assert columns.prompt.mean() == pytest.approx(12_000, rel=0.01)
    assert set(columns.output.tolist()) == {1}


PROMPTS_ONLY = HEAD + histogram(PROMPTS, np.full(3, 4.0))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (HEAD, f"expected vLLM's histograms {PROMPTS} and {OUTPUTS}; missing {PROMPTS}, {OUTPUTS}"),
        (PROMPTS_ONLY, f"missing {OUTPUTS}"),
        (PROMPTS_ONLY + histogram(OUTPUTS, np.zeros(0)), "expected at least one finished request, got none"),
        (PROMPTS_ONLY + "so much for that\n", "expected a sample (name{labels} number), got 'so much for that'"),
        (PROMPTS_ONLY + f'{OUTPUTS}_bucket{{le="x"}} 3\n', "line 22: expected a bucket with le="),
        (PROMPTS_ONLY + f'{OUTPUTS}_bucket{{le="5.0"}} 3\n{OUTPUTS}_sum 9\n', "expected counts that rise up to le="),
        (PROMPTS_ONLY + f'{OUTPUTS}_bucket{{le="+Inf"}} 3\n', "expected a number of tokens > 0, got 0"),
        (PROMPTS_ONLY + f'{OUTPUTS}_bucket{{le="+Inf"}} NaN\n', "got none"),
    ],
)
def test_what_is_no_pair_of_histograms_is_refused(tmp_path: Path, text: str, words: str) -> None:
    assert words in refused(written(tmp_path, text, "metrics.txt"))


def test_a_log_of_requests_is_a_trace_in_any_order(tmp_path: Path) -> None:
    rows = [(30, 5, 1787267982.5), (20, 4, 1787267980.0), (10, 3, 1787267981.25)]
    lines = [
        {"input_toks": p, "output_toks": o, "arrival_time": t, "first_token_ts": 1.0, "last_token_ts": 2.0, "id": "x"}
        for p, o, t in rows
    ]
    path = written(tmp_path, "".join(json.dumps(line) + "\n" for line in lines), "run-requests.jsonl")
    requests = read_trace(path)
    assert requests.arrival.tolist() == [0.0, 1.25, 2.5]
    assert requests.prompt.tolist() == [20, 10, 30]
    assert read_trace(path, num_requests=2).prompt.tolist() == [20, 10]
    assert "vLLM request log" in requests.source


def test_a_request_that_did_not_finish_is_left_out_and_a_missing_key_is_named(tmp_path: Path) -> None:
    row = {"input_toks": 3, "output_toks": 0, "arrival_time": 1.0}
    path = written(tmp_path, json.dumps(row | {"output_toks": 2}) + "\n" + json.dumps(row) + "\n", "log.jsonl")
    assert len(read_trace(path, TraceOptions(unservable="skip"))) == 1
    without = written(tmp_path, json.dumps({"input_toks": 3, "arrival_time": 1.0}) + "\n", "without.jsonl")
    assert "expected keys arrival_time, input_toks, output_toks; missing output_toks" in refused(without)
