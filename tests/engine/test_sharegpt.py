"""ShareGPT conversations: history as prompt, tokenizers, located errors."""

import json
from pathlib import Path

import pytest

from engine.demand.trace_options import TraceOptions
from engine.demand.traces import read_trace, trace_lengths
from engine.errors import InputError
from tests.engine.trace_files import refused, written

SHAREGPT = [
    {
        "id": "a",
        "conversations": [
            {"from": "human", "value": "one two three"},
            {"from": "gpt", "value": "four five"},
            {"from": "human", "value": "six"},
            {"from": "gpt", "value": "seven eight nine ten"},
        ],
    },
    {"items": [{"role": "user", "content": "x " * 8000}, {"role": "assistant", "content": "y " * 300}]},
    {"messages": [{"role": "assistant", "content": "hello"}, {"role": "user", "content": "hi"}]},
]


def words(text: str) -> int:
    return len(text.split())


def conversations(folder: Path, text: str = json.dumps(SHAREGPT)) -> Path:
    return written(folder, text, "sharegpt.json")


def test_sharegpt_turns_carry_their_history(tmp_path: Path) -> None:
    path = conversations(tmp_path)
    requests = read_trace(path, TraceOptions(tokenizer=words), rate=1.0)
    assert sorted(zip(requests.prompt.tolist(), requests.output.tolist(), strict=True)) == [(3, 2), (6, 4)]
    assert "2 empty or longer turns left out" in requests.source


def test_sharegpt_accepts_a_tokenizer_folder(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.models.WordLevel({"[UNK]": 0}, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    (tmp_path / "model").mkdir()
    tokenizer.save(str(tmp_path / "model" / "tokenizer.json"))
    path = conversations(tmp_path)
    by_folder = read_trace(path, TraceOptions(tokenizer=tmp_path / "model"), rate=1.0)
    assert by_folder.digest() == read_trace(path, TraceOptions(tokenizer=words), rate=1.0).digest()


def test_sharegpt_without_a_usable_tokenizer_is_refused(tmp_path: Path) -> None:
    path = conversations(tmp_path)
    assert "expected words, mistral or a tokenizer folder" in refused(path, rate=1.0)
    assert "cannot read a tokenizer" in refused(path, TraceOptions(tokenizer=tmp_path), rate=1.0)
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    assert "expected a Hugging Face tokenizer" in refused(path, TraceOptions(tokenizer=str(tmp_path)), rate=1.0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{]", "expected JSON, got something else"),
        ("[" * 100_000, "at most 64 brackets inside each other"),
        ("[]", "at least one row of data"),
        ('[{"text": "a"}]', "conversation 0: expected an object with a list of turns"),
        ("[1]", "conversation 0: expected an object"),
        ('[{"items": [{"from": "robot", "value": "a"}]}]', "conversation 0, turn 0: .*got speaker 'robot'"),
        ('[{"items": [{"from": "human", "value": 3}]}]', "conversation 0, turn 0: expected a text"),
    ],
)
def test_bad_conversations_are_located(tmp_path: Path, content: str, message: str) -> None:
    path = conversations(tmp_path, content)
    with pytest.raises(InputError, match=message):
        read_trace(path, TraceOptions(tokenizer=words), rate=1.0)


def test_trace_lengths_read_conversations(tmp_path: Path) -> None:
    assert len(trace_lengths(conversations(tmp_path), TraceOptions(tokenizer=words))) == 2
