"""The registry of trace formats: one place for a new one, and what recognises what."""

from pathlib import Path

import pytest

from agents.cli import main
from engine.demand import trace_formats
from engine.demand.raw_trace import Start
from engine.demand.trace_files import has_times
from engine.demand.trace_formats import FORMATS, CsvFormat, JsonlFormat, format_of
from engine.demand.trace_options import TraceOptions
from engine.demand.traces import read_trace
from tests.engine.trace_files import refused, written

MINE = JsonlFormat(
    "Mine jsonl", "t (us), in, out", arrival="t", prompt="in", output="out", time_unit="us", closed=False
)
ROWS = '{"t": 5000000, "in": 7, "out": 3, "user": "a"}\n{"t": 6500000, "in": 8, "out": 4}\n'


def test_a_second_format_of_json_lines_is_one_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, ROWS, "mine.jsonl")
    assert "expected keys timestamp, input_length, output_length; missing" in refused(path)
    monkeypatch.setattr(trace_formats, "FORMATS", (*FORMATS, MINE))
    requests = read_trace(path)
    assert requests.arrival.tolist() == [0.0, 1.5]
    assert requests.prompt.tolist() == [7, 8]
    assert requests.output.tolist() == [3, 4]
    assert "Mine jsonl, t in us as the format has it" in requests.source
    assert has_times(path)
    broken = written(tmp_path, ROWS + '{"t": 7000000, "in": 8}\n', "broken.jsonl")
    assert "line 3: expected keys t, in, out; missing out" in refused(broken)
    monkeypatch.setattr("agents.commands.workloads.FORMATS", trace_formats.FORMATS)
    assert main(["workloads"]) == 0
    assert "Mine jsonl" in capsys.readouterr().out


@pytest.mark.parametrize(
    "form", [form for form in FORMATS if isinstance(form, CsvFormat | JsonlFormat)], ids=lambda form: form.name
)
def test_a_table_is_recognised_by_its_columns_alone(form: CsvFormat | JsonlFormat) -> None:
    row = ", ".join(f'"{column}": 1' for column in form.columns)
    text = f"{{{row}}}\n" if isinstance(form, JsonlFormat) else ",".join(form.columns) + "\n"
    assert format_of(Start(text)) is form
    assert format_of(Start(f"\n  {text}")) is form


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("[", "ShareGPT json"),
        ('{"messages": []}', "ShareGPT json"),
        ('{"date": "x", "total_input_tokens": 3, "messages": 1}', "vllm bench serve"),
        ('{"timestamp": 3, "input_length": 1, "output_length": 1}\n{"messages": []}', "Mooncake jsonl"),
        ("{", "Mooncake jsonl"),
        ("arrived_at,num_decode_tokens", "timed lengths csv"),
        ("num_decode_tokens", "lengths csv"),
        ("", "lengths csv"),
    ],
)
def test_what_no_format_recognises_goes_to_the_nearest(text: str, name: str) -> None:
    assert format_of(Start(text)).name == name


def test_keys_beyond_a_closed_format_count_as_far_as_rows_are_read(tmp_path: Path) -> None:
    plain = '{"timestamp": 1000, "input_length": 7, "output_length": 3}\n'
    further = '{"timestamp": 3000, "input_length": 8, "output_length": 4, "user": "a"}\n'
    path = written(tmp_path, plain + further, "trace.jsonl")
    assert "keys beyond Mooncake's: user" in refused(path)
    assert "Mooncake jsonl" in read_trace(path, num_requests=1).source
    assert read_trace(path, TraceOptions(time_unit="ms")).arrival.tolist() == [0.0, 2.0]
