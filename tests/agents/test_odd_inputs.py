"""Files and options as people write them by accident: one line that says what is wrong, or the right meaning."""

import json
from pathlib import Path

import pytest

from agents.cli import _one_line, main
from agents.policies import resolve, split_policies
from engine.demand.trace_files import read_columns
from engine.demand.trace_options import TraceOptions
from engine.demand.traces import read_trace
from engine.errors import InputError

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,374,44\n"
TIMED = "arrived_at,num_prefill_tokens,num_decode_tokens\n0,3,4\n"
RESULT = {
    "total_input_tokens": 30,
    "input_lens": [10, 20],
    "output_lens": [3, 4],
    "start_times": [1.0, 2.0],
    "errors": ["", ""],
}
CHAT = [{"conversations": [{"from": "human", "value": "a b"}, {"from": "gpt", "value": "c"}]}]


def _write(folder: Path, name: str, content: object) -> str:
    data = content if isinstance(content, str | bytes) else json.dumps(content)
    (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return str(folder / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (AZURE + "2023-11-16 18:15:47,\u0663,4\n", "line 3: expected a number for ContextTokens, got '\u0663'"),
        (AZURE + ",,\n2023-11-16 18:15:48,3,4\n", "1 of 3 rows cannot be served (1 without prompt tokens)"),
        (TIMED.encode() + b"1,5,6\n2,\xe9,6\n", "line 4: expected UTF-8 text, got byte 0xe9"),
        (RESULT | {"output_lens": None}, "output_lens: expected 2 values as in input_lens, got 0"),
        (RESULT | {"errors": ""}, "errors: expected a list, got ''"),
        ([RESULT], "conversation 0: expected an object with a list of turns"),
        ([{"timestamp": 0, "input_length": 3, "output_length": 4}], "expected an object with a list of turns"),
        ("[" * 100 + "]" * 100, "expected at most 64 brackets inside each other"),
        ([{"conversations": [{"from": "human", "value": 5}]}], "turn 0: expected a text under value or content, got 5"),
        ([{"conversations": [{"from": "human"}]}], "turn 0: expected a text under value or content, got neither"),
        (CHAT, "tokenizer: expected words, mistral or a tokenizer folder"),
    ],
)
def test_what_a_file_lacks_is_said_where_it_lacks(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_columns(_write(tmp_path, "trace", content))
    assert message in str(caught.value)


def test_a_row_of_nothing_but_commas_is_counted_when_it_is_left_out(tmp_path: Path) -> None:
    path = _write(tmp_path, "azure.csv", AZURE + ",,\n\n2023-11-16 18:15:48,3,4\n")
    requests = read_trace(path, TraceOptions(unservable="skip"))
    assert len(requests) == 2
    assert "1 without prompt tokens left out" in requests.source


def test_a_turn_has_its_text_under_whichever_key_holds_one(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": None, "content": "a b c"}, {"from": "gpt", "value": "d"}]
    columns = read_columns(_write(tmp_path, "chat.json", [{"conversations": turns}]), TraceOptions(tokenizer="words"))
    assert columns.prompt.tolist() == [3]
    assert columns.output.tolist() == [1]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (CHAT, "--tokenizer words --time-unit s", "time_unit: expected a trace with arrival times, got none"),
        ("num_prefill_tokens,num_decode_tokens\n3,4\n", "--time-unit ms", "time_unit: expected a trace with arrival"),
        (TIMED, "--tokenizer words", "tokenizer: expected conversations beside it, which are text"),
        (RESULT, "--tokenizer words", "tokenizer: expected conversations beside it, which are text"),
    ],
)
def test_an_option_that_a_file_has_no_use_for_is_refused(
    tmp_path: Path, content: object, options: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _write(tmp_path, "trace", content)
    assert main(["simulate", "--trace", path, "--rate", "1", *options.split()]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rate", "\u0663"], "rate: expected digits 0 to 9"),
        (["--num-requests=\u0663"], "num_requests: expected digits 0 to 9"),
        (["--engine.block-size", "\u0663"], "engine.block_size: expected digits 0 to 9"),
        (["--tier", "name=a,tbt=\u0663"], "tier: tbt: expected a finite number"),
        (["--tier", "name=a,tbt=1e300"], "tier: tbt: expected a finite number"),
        (["--goodput", "ttft:\u0663"], "goodput: expected ttft:MS"),
        (["--goodput", "ttft:1e300"], "goodput: expected ttft:MS"),
        (["--policy", ""], "policy: expected one of"),
    ],
)
def test_numbers_are_written_in_ascii_and_mean_something(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", "--num-requests", "5", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]


@pytest.mark.parametrize(
    "command", [["fluid", "--rate", "1", "--bounds", "\u0666,9"], ["starvation", "--ageing", "\u0663"]]
)
def test_lists_of_numbers_are_ascii_too(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_list_of_policies_may_name_a_file_with_commas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a,b,c.py").touch()
    assert split_policies("sarathi,a,b,c.py:Mine:k=3,j=4,slai") == ("sarathi", "a,b,c.py:Mine:k=3,j=4", "slai")


def test_the_option_that_is_wrong_is_the_one_that_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "--executor", "transformers:tiny", "--shares", "0"]) == 2
    assert capsys.readouterr().err.startswith("llmsched: shares: expected numbers > 0")


def test_an_empty_name_is_no_folder() -> None:
    with pytest.raises(InputError, match="policy: expected one of"):
        resolve("")


def test_errors_of_the_command_line_have_no_box_where_the_encoding_has_no_lines() -> None:
    rows = ("- Parsing error ----------", " invalid choice 'x'       ", " ------------------------ ", " For full help")
    first, *others = (row.ljust(26) for row in rows)
    boxed = "\n".join([f"+{first}+", *(f"|{row}|" for row in others), "+--------------------------+"])
    assert _one_line(boxed) == "invalid choice 'x'"


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that opens and cannot be read")
def test_a_file_that_cannot_be_read_is_named() -> None:
    with pytest.raises(InputError, match="/proc/self/mem: cannot read a trace"):
        read_columns("/proc/self/mem")
