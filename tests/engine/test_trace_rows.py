"""Traces as they come: units that are never guessed, rows that cannot be served, windows, chats, benchmark results."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.cli import main
from engine.demand.trace_options import TraceOptions, parse_window
from engine.demand.traces import read_trace
from engine.errors import InputError
from tests.engine.trace_files import refused, written

MOONCAKE = (
    '{"timestamp":0,"input_length":6758,"output_length":500,"hash_ids":[0,1]}\n'
    '{"timestamp":3000,"input_length":87169,"output_length":402,"hash_ids":[0]}\n'
)
AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-12 00:00:00+00:00,10,3\n"
    "2024-05-12 00:00:01+00:00,20,0\n2024-05-12 00:00:02+00:00,30,3\n"
)
CHAT = {
    "messages": [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "what is this"}, {"type": "image_url", "image_url": {}}]},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "tool", "content": "a cat"},
        {"role": "assistant", "content": "it is a cat"},
    ]
}


def line(**fields: Any) -> str:
    return json.dumps({"timestamp": 0, "input_length": 1, "output_length": 1} | fields) + "\n"


def refused_options(**options: Any) -> str:
    with pytest.raises(InputError) as caught:
        TraceOptions(**options)
    return str(caught.value)


def test_options_out_of_range_are_refused() -> None:
    assert refused_options(time_unit="h") == "time_unit: expected s, ms, us or ns, got 'h'"
    assert refused_options(unservable="drop") == "unservable: expected refuse or skip, got 'drop'"
    assert refused_options(rate_scale=-1.0) == "rate_scale: expected a number > 0, got -1.0"
    assert refused_options(max_tokens=1.5) == "max_tokens: expected a whole number >= 0, got 1.5"


def test_unit_of_a_foreign_jsonl_is_not_guessed(tmp_path: Path) -> None:
    path = written(tmp_path, line(session=1) + line(timestamp=3, session=1))
    message = refused(path)
    assert "expected the unit of timestamp (s, ms, us, ns: time_unit, --time-unit)" in message
    assert "session" in message
    for unit, end in {"s": 3.0, "ms": 3e-3, "us": 3e-6, "ns": 3e-9}.items():
        requests = read_trace(path, TraceOptions(time_unit=unit))  # type: ignore[arg-type]
        assert requests.arrival.tolist() == [0.0, end]
        assert f"timestamp in {unit}" in requests.source


def test_source_line_says_what_was_assumed_and_ignored(tmp_path: Path) -> None:
    source = read_trace(written(tmp_path, MOONCAKE)).source
    assert "timestamp in ms as the format has it" in source
    assert "prefix hashes (hash_ids) ignored" in source


def test_times_since_1970_lose_no_digits(tmp_path: Path) -> None:
    first = 1_715_472_000_123
    text = "".join(line(timestamp=first + k) for k in (0, 1, 3))
    assert read_trace(written(tmp_path, text)).arrival.tolist() == [0.0, 0.001, 0.003]
    text = "".join(f'{{"timestamp": 1715472000123456.{k}, "input_length": 1, "output_length": 1}}\n' for k in (25, 5))
    assert read_trace(written(tmp_path, text), TraceOptions(time_unit="us")).arrival.tolist() == [0.0, 0.25e-6]
    text = "arrived_at,num_prefill_tokens,num_decode_tokens\n1715472000.123456789,1,1\n1715472000.123456790,1,1\n"
    assert read_trace(written(tmp_path, text)).arrival.tolist() == [0.0, 1e-9]
    text = AZURE[:40] + "2024-05-12 00:00:00.000000001,1,1\n2024-05-12 00:00:00.000000003Z,1,1\n"
    assert read_trace(written(tmp_path, text)).arrival.tolist() == [0.0, 2e-9]


def test_unit_that_makes_no_sense_is_named(tmp_path: Path) -> None:
    text = "arrived_at,num_prefill_tokens,num_decode_tokens\n0,1,1\n1e13,1,1\n"
    assert "is it another unit: time_unit, --time-unit?" in refused(written(tmp_path, text))
    assert read_trace(written(tmp_path, text), TraceOptions(time_unit="us")).arrival.tolist() == [0.0, 1e7]
    assert "expected none" in refused(written(tmp_path, AZURE.replace(",0\n", ",1\n")), TraceOptions(time_unit="ms"))


def test_rows_that_cannot_be_served_are_counted_or_skipped(tmp_path: Path) -> None:
    text = (
        "arrived_at,num_prefill_tokens,num_decode_tokens\n0,10,1\n5,0,1\n4,10,1\n6,10,\n7,90,20\n8,10\n,10,1\n9,1,1\n"
    )
    path = written(tmp_path, text)
    assert "(truncated row?): unservable='skip'" in refused(path, TraceOptions(max_tokens=100))
    path = written(tmp_path, text.replace("8,10\n", ""))
    message = refused(path, TraceOptions(max_tokens=100))
    assert "line 3: expected a whole number of tokens >= 1 for num_prefill_tokens, got 0" in message
    assert (
        "5 of 7 rows cannot be served (1 without prompt tokens, 1 without output tokens, 1 longer than 100 tokens, "
        "1 without a time, 1 out of order): unservable='skip' (--unservable skip)"
    ) in message
    requests = read_trace(written(tmp_path, text), TraceOptions(max_tokens=100, unservable="skip"))
    assert requests.arrival.tolist() == [0.0, 4.0, 9.0]
    for words in ("1 with another number of columns", "1 longer than 100 tokens", "1 without a time"):
        assert words in requests.source


def test_rows_out_of_order_are_put_in_order_and_counted(tmp_path: Path) -> None:
    text = "arrived_at,num_prefill_tokens,num_decode_tokens\n3,30,1\n1,10,1\n2,20,1\n"
    path = written(tmp_path, text)
    assert "2 out of order" in refused(path)
    requests = read_trace(path, TraceOptions(unservable="skip"))
    assert requests.arrival.tolist() == [0.0, 1.0, 2.0]
    assert requests.prompt.tolist() == [10, 20, 30]
    assert "2 out of order put in order" in requests.source
    assert read_trace(path, TraceOptions(unservable="skip"), num_requests=1).prompt.tolist() == [10]


def test_window_takes_a_part_of_the_times(tmp_path: Path) -> None:
    text = "arrived_at,num_prefill_tokens,num_decode_tokens\n" + "".join(f"{100 + k},{k + 1},1\n" for k in range(10))
    path = written(tmp_path, text)
    assert read_trace(path, TraceOptions(window=(2, 5))).prompt.tolist() == [3, 4, 5]
    assert read_trace(path, TraceOptions(window=(2, 5))).arrival.tolist() == [0.0, 1.0, 2.0]
    assert read_trace(path, TraceOptions(window=(7, None))).prompt.tolist() == [8, 9, 10]
    assert read_trace(path, TraceOptions(window=(0, 2))).prompt.tolist() == [1, 2]
    assert read_trace(path, TraceOptions(window=(2, None)), num_requests=2).prompt.tolist() == [3, 4]
    assert "3 of 10 requests from 2 s to 5 s" in read_trace(path, TraceOptions(window=(2, 5))).source
    assert "window: expected requests" in refused(path, TraceOptions(window=(100, None)))
    assert "window: expected a start before the end, got 5 s and 2 s" in refused_options(window=(5, 2))
    assert "window[0]: expected seconds >= 0, got -1" in refused_options(window=(-1, None))
    assert [parse_window(text) for text in ("2:5", "7:", ":2", ":")] == [(2, 5), (7, None), (0, 2), (0, None)]
    for bad in ("", "5", "5:2", "-1:2", "a:b", "nan:", "1:inf", "1:2:3", "1e300:"):
        with pytest.raises(InputError, match="window: expected START:END"):
            parse_window(bad)
    lengths = written(tmp_path, "num_prefill_tokens,num_decode_tokens\n1,1\n")
    assert "window: expected a trace with arrival times" in refused(lengths, TraceOptions(window=(0, 5)), rate=1.0)


def test_chats_with_tools_parts_and_nothing_are_read(tmp_path: Path) -> None:
    for name, text in (("chat.json", json.dumps([CHAT])), ("chat.jsonl", json.dumps(CHAT) + "\n")):
        requests = read_trace(written(tmp_path, text, name), TraceOptions(tokenizer="words"), rate=1.0)
        assert (requests.prompt.tolist(), requests.output.tolist()) == ([7], [4])
        assert "1 empty or longer turns left out" in requests.source
        assert "tokens are words between white space" in requests.source
        assert "1 parts that are not text count nothing" in requests.source
    odd = [CHAT, {"text": "no turns"}, {"messages": [{"role": "robot", "content": "x"}]}]
    path = written(tmp_path, json.dumps(odd), "chat.json")
    assert "conversation 1" in refused(path, TraceOptions(tokenizer="words"), rate=1.0)
    source = read_trace(path, TraceOptions(tokenizer="words", unservable="skip"), rate=1.0).source
    assert "2 conversations of another shape" in source


def test_mistral_needs_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    path = written(tmp_path, json.dumps([CHAT]), "chat.json")
    assert "pass the folder of a download, or words" in refused(path, TraceOptions(tokenizer="mistral"), rate=1.0)


RESULT = {
    "date": "20260101-000000",
    "total_input_tokens": 60,
    "input_lens": [10, 20, 30],
    "output_lens": [1, 0, 3],
    "ttfts": [0.1, 0.0, 0.1],
    "itls": [[], [], [0.1, 0.1]],
    "errors": ["", "broken", ""],
}


def test_results_of_vllm_bench_serve_are_a_trace(tmp_path: Path) -> None:
    times = RESULT | {"start_times": [1000.5, 1000.25, 1000.25]}
    requests = read_trace(written(tmp_path, json.dumps(times), "result.json"))
    assert requests.arrival.tolist() == [0.0, 0.25]
    assert (requests.prompt.tolist(), requests.output.tolist()) == ([30, 10], [3, 1])
    assert "vllm bench serve" in requests.source
    assert "1 failed requests left out" in requests.source
    path = written(tmp_path, json.dumps(RESULT), "result.json")
    assert "gives no arrival times" in refused(path)
    assert sorted(read_trace(path, rate=1.0).prompt.tolist()) == [10, 30]
    short = {key: value for key, value in RESULT.items() if key != "input_lens"}
    assert "--save-detailed" in refused(written(tmp_path, json.dumps(short), "result.json"))
    odd = RESULT | {"output_lens": [1]}
    assert "output_lens: expected 3 values" in refused(written(tmp_path, json.dumps(odd), "result.json"))


def test_header_is_read_as_it_is_meant_or_refused(tmp_path: Path) -> None:
    header = "arrived_at,num_prefill_tokens,num_decode_tokens"
    assert read_trace(written(tmp_path, f"\ufeff\ufeff{header}\n0,5,1\n2,5,1\n")).arrival.tolist() == [0.0, 2.0]
    assert "got arrived_at twice" in refused(written(tmp_path, f"arrived_at,{header}\n0,1,5,1\n"))
    source = read_trace(written(tmp_path, header.replace("arr", "Arr") + "\n0,5,1\n"), rate=1.0).source
    assert "without Arrived_at" in source


def test_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    path = written(tmp_path, line() + line(timestamp=1))
    assert len(read_trace(path)) == 2
    written(tmp_path, line() + line(timestamp=1) + line(timestamp=2))
    assert len(read_trace(path)) == 3


def simulated(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str, str]:
    code = main(["simulate", "--policy", "sarathi", *options])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_commands_refuse_with_the_count_or_skip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = str(written(tmp_path, MOONCAKE, "mc.jsonl")), tmp_path / "out.json"
    code, _, error = simulated(capsys, "--trace", path)
    assert code == 2
    assert "line 2: expected prompt < 16384 tokens (max_model_len), got 87169 + 402" in error
    assert "1 of 2 rows cannot be served (1 longer than 16384 tokens)" in error
    code, text, _ = simulated(capsys, "--trace", path, "--unservable", "skip", "--json", str(out))
    assert code == 0
    assert "1 longer than 16384 tokens left out" in text
    assert json.loads(out.read_text())["left_out"] == {"longer than 16384 tokens": 1}
    path = str(written(tmp_path, AZURE, "az_zero.csv"))
    assert "1 of 3 rows cannot be served (1 without output tokens)" in simulated(capsys, "--trace", path)[2]
    assert simulated(capsys, "--trace", path, "--unservable", "skip", "--window", "1:")[0] == 0


def test_commands_read_chats_with_a_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turns = [{"from": "human", "value": "a b"}, {"from": "gpt", "value": "c"}]
    path = str(written(tmp_path, json.dumps([{"conversations": turns}]), "sg.json"))
    code, _, error = simulated(capsys, "--trace", path, "--rate", "1")
    assert code == 2
    assert "--tokenizer" in error
    assert simulated(capsys, "--trace", path, "--rate", "1", "--tokenizer", "words", "--num-requests", "3")[0] == 0
    assert "expected a trace beside it" in simulated(capsys, "--window", "1:2")[2]


def test_many_rows_are_read_quickly_enough_to_be_exact(tmp_path: Path) -> None:
    times = np.cumsum(np.full(5000, 0.001))
    rows = "".join(f"{t:.3f},5,1\n" for t in times)
    requests = read_trace(written(tmp_path, "arrived_at,num_prefill_tokens,num_decode_tokens\n" + rows))
    assert requests.arrival[-1] == pytest.approx(4.999)
