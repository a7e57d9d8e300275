"""Trace files: every format, explicit rate changes, one line for bad files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.demand.requests import Requests, Tier, draw_tiers
from engine.demand.trace_options import TraceOptions
from engine.demand.traces import read_trace, trace_lengths, write_mooncake
from engine.errors import InputError
from tests.engine.trace_files import refused, written

TIMED = "arrived_at,num_prefill_tokens,num_decode_tokens\n5.0,100,10\n6.0,200,20\n9.0,300,30\n"
LENGTHS = "num_prefill_tokens,num_decode_tokens\n" + "".join(f"{n},{n + 1000}\n" for n in range(1, 51))
AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2023-11-16 18:15:46.6805900,374,44\n"
    "2023-11-16 18:15:46.6805901,396,109\n"
    "2023-11-16 18:15:50.9951690,879,55\n"
)
BURSTGPT = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,472,18,490,Conversation log\n"
    "45,ChatGPT,1087,0,1087,Conversation log\n"
    "118,GPT-4,417,276,693,API log\n"
)
MOONCAKE = (
    '{"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47]}\n'
    '{"timestamp": 30535, "input_length": 6472, "output_length": 26, "hash_ids": [46]}\n'
)


def test_recorded_times_are_replayed_from_the_first_request(tmp_path: Path) -> None:
    requests = read_trace(written(tmp_path, TIMED))
    assert requests.arrival.tolist() == [0.0, 1.0, 4.0]
    assert requests.prompt.tolist() == [100, 200, 300]
    assert requests.output.tolist() == [10, 20, 30]
    assert "trace.csv" in requests.source
    assert str(tmp_path) not in requests.source


def test_columns_may_come_in_any_order_with_others_between(tmp_path: Path) -> None:
    text = "\ufeffid, num_decode_tokens ,arrived_at,num_prefill_tokens\nx,10,0,100\n\ny,20,1.5,200\n"
    requests = read_trace(written(tmp_path, text))
    assert requests.arrival.tolist() == [0.0, 1.5]
    assert requests.prompt.tolist() == [100, 200]


def test_azure_times_keep_seven_digits(tmp_path: Path) -> None:
    requests = read_trace(written(tmp_path, AZURE))
    assert requests.arrival.tolist() == [0.0, 1e-7, 4.314579]
    assert requests.prompt.tolist() == [374, 396, 879]
    assert requests.output.tolist() == [44, 109, 55]


def test_azure_times_may_say_that_they_are_utc(tmp_path: Path) -> None:
    rows = "2024-05-10 00:00:00.009930+00:00,1,2\n2024-05-10T00:00:01Z,3,4\n"
    text = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows
    assert read_trace(written(tmp_path, text)).arrival.tolist() == [0.0, 0.99007]


def test_burstgpt_failures_are_left_out_and_counted(tmp_path: Path) -> None:
    requests = read_trace(written(tmp_path, BURSTGPT))
    assert requests.arrival.tolist() == [0.0, 113.0]
    assert requests.output.tolist() == [18, 276]
    assert "1 failed requests left out" in requests.source


def test_burstgpt_limit_counts_served_requests(tmp_path: Path) -> None:
    assert len(read_trace(written(tmp_path, BURSTGPT), num_requests=2)) == 2


def test_mooncake_times_are_milliseconds(tmp_path: Path) -> None:
    requests = read_trace(written(tmp_path, MOONCAKE, "trace.jsonl"))
    assert requests.arrival.tolist() == [0.0, pytest.approx(3.053)]
    assert requests.prompt.tolist() == [6955, 6472]
    assert requests.output.tolist() == [52, 26]


def test_rate_scale_multiplies_the_recorded_rate(tmp_path: Path) -> None:
    requests = read_trace(written(tmp_path, TIMED), TraceOptions(rate_scale=0.5))
    assert requests.arrival.tolist() == [0.0, 2.0, 8.0]
    assert "rate times 0.5" in requests.source


def test_rate_stretches_recorded_times_to_the_mean_rate(tmp_path: Path) -> None:
    path = written(tmp_path, TIMED)
    assert read_trace(path, rate=2.0).rate == pytest.approx(2.0)
    assert read_trace(path, rate=2.0, num_requests=2).rate == pytest.approx(2.0)


def test_num_requests_takes_the_first_recorded_ones(tmp_path: Path) -> None:
    path = written(tmp_path, TIMED)
    assert read_trace(path, num_requests=2).prompt.tolist() == [100, 200]
    assert "expected 1..3" in refused(path, num_requests=4)


def test_rows_after_the_limit_are_not_read(tmp_path: Path) -> None:
    path = written(tmp_path, TIMED + "broken\n")
    assert len(read_trace(path, num_requests=3)) == 3
    assert "line 5" in refused(path)


def test_lengths_are_shuffled_by_seed_with_poisson_arrivals(tmp_path: Path) -> None:
    path = written(tmp_path, LENGTHS)
    first, again, other = (read_trace(path, rate=2.0, seed=seed) for seed in (0, 0, 1))
    assert first.digest() == again.digest() != other.digest()
    assert sorted(first.prompt.tolist()) == sorted(other.prompt.tolist()) == list(range(1, 51))
    assert first.prompt.tolist() != other.prompt.tolist()
    assert np.array_equal(first.output, first.prompt + 1000)
    assert np.all(np.diff(first.arrival) > 0.0)


def test_more_requests_than_lengths_are_drawn_with_replacement(tmp_path: Path) -> None:
    requests = read_trace(written(tmp_path, LENGTHS), rate=2.0, num_requests=5000)
    assert len(requests) == 5000
    assert set(requests.prompt.tolist()) == set(range(1, 51))
    assert requests.rate == pytest.approx(2.0, rel=0.05)


def test_synthetic_arrivals_can_be_chosen_for_any_trace(tmp_path: Path) -> None:
    lengths = written(tmp_path, LENGTHS, "lengths.csv")
    capped = read_trace(lengths, rate=2.0, num_requests=2000, arrivals="poisson:gap_cap=3")
    assert np.diff(capped.arrival).max() == pytest.approx(1.5)
    timed = read_trace(written(tmp_path, TIMED), rate=2.0, arrivals="gamma:cv=2")
    assert sorted(timed.prompt.tolist()) == [100, 200, 300]
    assert timed.arrival.tolist() != [0.0, 1.0, 4.0]
    assert set(read_trace(lengths, arrivals="burst").arrival.tolist()) == {0.0}


def test_tiers_are_drawn_by_share_and_seed(tmp_path: Path) -> None:
    rows = "".join(f"{n},1,1\n" for n in range(400))
    path = written(tmp_path, "arrived_at,num_prefill_tokens,num_decode_tokens\n" + rows)
    tiers = (Tier("a", 0.2, 0.1), Tier("b", 0.3, 0.2), Tier("c", 0.5, 0.3))
    requests = read_trace(path, seed=7, tiers=tiers)
    assert requests.tiers == tiers
    assert np.array_equal(requests.tier, draw_tiers(np.random.default_rng(7), 400, tiers))
    assert not np.array_equal(requests.tier, read_trace(path, seed=8, tiers=tiers).tier)
    assert np.bincount(requests.tier) / 400 == pytest.approx([0.2, 0.3, 0.5], abs=0.07)


def test_trace_lengths_read_every_format_with_lengths(tmp_path: Path) -> None:
    for text, rows in ((TIMED, 3), (LENGTHS, 50), (AZURE, 3), (BURSTGPT, 2), (MOONCAKE, 2)):
        assert len(trace_lengths(written(tmp_path, text))) == rows


def test_equal_arrival_times_keep_file_order(tmp_path: Path) -> None:
    text = "arrived_at,num_prefill_tokens,num_decode_tokens\n1,3,1\n1,1,1\n1,2,1\n"
    path = written(tmp_path, text)
    assert read_trace(path).prompt.tolist() == [3, 1, 2]
    assert "times that differ" in refused(path, rate=2.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "expected a rate in requests/s, since .* gives no arrival times"),
        ({"rate": 0.0}, "rate: expected a number > 0, got 0.0"),
        ({"rate": float("nan")}, "rate: expected a number > 0, got nan"),
        ({"rate": 1.0, "options": TraceOptions(rate_scale=2.0)}, "expected one of them"),
        ({"options": TraceOptions(rate_scale=2.0)}, "expected recorded arrival times to scale"),
        ({"rate": 1.0, "num_requests": 0}, "num_requests: expected a whole number >= 1"),
        ({"rate": 1.0, "num_requests": 1.5}, "num_requests: expected a whole number >= 1"),
        ({"rate": 1.0, "seed": -1}, "seed: expected a whole number >= 0"),
        ({"rate": 1.0, "arrivals": "weibull"}, "expected one of poisson"),
        ({"rate": 1.0, "arrivals": "poisson:rate=2"}, "without rate, number and lengths"),
        ({"rate": 1.0, "arrivals": "toy"}, "without rate, number and lengths"),
        ({"rate": 1.0, "tiers": (Tier("a", 0.5, 0.1),)}, "sum to 1"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_trace(written(tmp_path, LENGTHS), **arguments)


HEADER = "arrived_at,num_prefill_tokens,num_decode_tokens\n0,1,1\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: expected a header with columns .*; came: an empty file"),
        ("a,b\n1,2\n", "expected a header with columns .*; came: a, b"),
        ("num_decode_tokens\n0\n", "missing column num_prefill_tokens of the lengths csv format"),
        (
            "arrived_at,num_prefill_tokens\n0,1\n",
            "missing column num_decode_tokens .*; came: arrived_at, num_pre",
        ),
        ("TIMESTAMP,ContextTokens\n", "missing column GeneratedTokens of the Azure csv format"),
        ("arrived_at,num_prefill_tokens,num_decode_tokens\n", "at least one row of data, got none"),
        (HEADER + "1,5\n", r"line 3: expected 3 columns, got 2 \(truncated row\?\)"),
        (HEADER + "1,5,\n", "line 3: expected a whole number of tokens >= 1 for num_decode_tokens, got nothing"),
        (HEADER + "1,five,5\n", "line 3: expected a number for num_prefill_tokens, got 'five'"),
        (HEADER + "1,0,5\n", "line 3: expected a whole number of tokens >= 1 for num_prefill_tokens, got 0"),
        (HEADER + "1,-4,5\n", "line 3: .* got -4"),
        (HEADER + "1,4.5,5\n", "line 3: .* got 4.5"),
        (HEADER + "1,nan,5\n", "line 3: .* got nan"),
        (HEADER + "1,3000000000,5\n", "line 3: .* got 3e"),
        (HEADER + "nan,5,5\n", "line 3: expected a finite time >= 0 for arrived_at, got nan"),
        (HEADER + "inf,5,5\n", "line 3: expected a finite time"),
        (
            HEADER + "2,5,5\n\n1,5,5\n",
            r"line 5: expected times in order .at least 2 s after the first. for arrived_at, got 1 s",
        ),
        ("arrived_at,num_prefill_tokens,num_decode_tokens\n-1,5,5\n", "line 2: expected a finite time >= 0"),
        (HEADER + '"' + "x" * 200_000 + '"\n', "expected csv, got something else"),
        ("Timestamp,Request tokens,Response tokens\n1,5,0\n", "got none besides 1 failed requests"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nnow,5,5\n", "line 2: expected an ISO 8601 .* got 'now'"),
        (AZURE + "2023-11-16 17:15:46.0,1,1\n", "line 5: expected times in order"),
        (AZURE + "2023-11-16 18:15:59+02:00,1,1\n", "line 5: expected an ISO 8601 date and time in UTC"),
        (AZURE + "2023-13-45 18:15:59,1,1\n", "line 5: expected an ISO 8601 date and time in UTC"),
        (MOONCAKE + '{"timestamp": 3', "line 3: expected JSON, got something else"),
        (MOONCAKE + "[1]\n", "line 3: expected a JSON object"),
        (MOONCAKE + '{"timestamp": 1, "input_length": 2}\n', "line 3: .*; missing output_length"),
        (
            MOONCAKE + '{"timestamp": "a", "input_length": 2, "output_length": 2}\n',
            "line 3: .* timestamp, got 'a'",
        ),
        (MOONCAKE + '{"timestamp": NaN, "input_length": 2, "output_length": 2}\n', "line 3: .* numbers, got NaN"),
        (
            MOONCAKE + '{"timestamp": 1, "input_length": 2, "output_length": 2}\n',
            "line 3: expected times in order",
        ),
        (
            MOONCAKE + '{"timestamp": 40000, "input_length": 0, "output_length": 2}\n',
            "line 3: .*input_length, got 0",
        ),
        (
            MOONCAKE + '{"timestamp": 1%s, "input_length": 1, "output_length": 2}\n' % ("0" * 400),
            "line 3: expected numbers of at most 300 digits",
        ),
    ],
)
def test_bad_files_are_refused_with_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(InputError, match=message) as caught:
        read_trace(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    assert "cannot read a trace" in refused(tmp_path / "missing.csv")
    assert "got a folder" in refused(tmp_path)
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    assert "expected UTF-8 text, got byte 0x80" in refused(tmp_path / "binary")


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.integers(0, 10**9), st.integers(1, 2**31 - 1), st.integers(1, 2**31 - 1)),
        min_size=1,
        max_size=30,
    ),
    st.integers(0, 1000),
)
def test_mooncake_round_trip(tmp_path: Path, rows: list[tuple[int, int, int]], seed: int) -> None:
    stamps, prompt, output = (np.array(column) for column in zip(*sorted(rows), strict=True))
    requests = Requests.create(stamps / 1000.0, prompt, output)
    path = tmp_path / "written.jsonl"
    write_mooncake(requests, path)
    back = read_trace(path, seed=seed)
    assert back.arrival == pytest.approx(requests.arrival - requests.arrival[0], abs=1e-6)
    assert np.array_equal(back.prompt, requests.prompt)
    assert np.array_equal(back.output, requests.output)
    assert [entry.name for entry in tmp_path.iterdir()] == ["written.jsonl"]


def test_a_failed_write_leaves_the_old_file_and_no_scraps(tmp_path: Path) -> None:
    requests = read_trace(written(tmp_path, TIMED))
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="expected a file to write, got a folder"):
        write_mooncake(requests, tmp_path / "folder")
    with pytest.raises(InputError, match=r"trace.csv/out.jsonl: cannot write \(Not a directory\)"):
        write_mooncake(requests, tmp_path / "trace.csv" / "out.jsonl")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder", "trace.csv"]
