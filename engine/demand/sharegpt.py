"""Chats as requests (ShareGPT and its like): needs a tokenizer, since the files hold text."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.demand.raw_trace import RawTrace, Start, TraceFile
from engine.demand.trace_options import Tokenizer
from engine.errors import InputError
from engine.extras import need
from engine.files.lines import read_jsonl
from engine.files.reading import LARGE, MIB, kind_of, read_bytes, read_json

MAX_TOTAL_TOKENS = 8192
"""Largest prompt + output of a turn (tokens), as in the data of the Sarathi-Serve evaluation."""
WORDS, MISTRAL = "words", "mistral"
"""Names of tokenizers: words between white space, about 0.75 of a token each in English; Mistral's, if it is there."""
KEYS = ("conversations", "messages", "items")
"""Keys under which a conversation may have its turns."""

_ASSISTANT = frozenset({"gpt", "assistant", "chatgpt", "bing", "bard", "model"})
_OTHERS = frozenset({"human", "user", "system", "tool", "function", "developer", "observation"})
_MISTRAL_FOLDERS = "models--mistralai--Mistral-7B*/snapshots/*/tokenizer.json"


def count_words(text: str) -> int:
    """Words between white space."""
    return len(text.split())


def load_tokenizer(tokenizer: Tokenizer | str | Path | None) -> Tokenizer:
    """Return a function from text to number of tokens.

    Args:
        tokenizer: such a function; ``words``; ``mistral``, whose files must be in the cache of Hugging Face, for
            nothing is downloaded; or a folder with a `tokenizer.json` (Hugging Face), as model downloads have it.

    Raises:
        InputError: no tokenizer, or no readable `tokenizer.json` in the folder.
    """
    if tokenizer is None:
        raise InputError(
            "tokenizer: expected words, mistral or a tokenizer folder (--tokenizer), in Python also a function, "
            "for conversations, which are text; got none"
        )
    if not isinstance(tokenizer, str | Path):
        return tokenizer
    if tokenizer == WORDS:
        return count_words
    file = _mistral() if tokenizer == MISTRAL else Path(tokenizer) / "tokenizer.json"
    data = read_bytes(file, "a tokenizer", 64 * MIB)
    need("real", "tokenizer")
    from tokenizers import Tokenizer as HuggingFaceTokenizer

    try:
        loaded = HuggingFaceTokenizer.from_buffer(data)
    except Exception:  # tokenizers raises bare Exception for a file that is not a tokenizer
        raise InputError(f"{file}: expected a Hugging Face tokenizer, got something else") from None
    return lambda text: len(loaded.encode(text, add_special_tokens=False).ids)


def _mistral() -> Path:
    """The tokenizer of Mistral-7B in the cache of Hugging Face."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    found = sorted((home / "hub").glob(_MISTRAL_FOLDERS))
    if not found:
        raise InputError(
            f"tokenizer: expected a tokenizer.json of mistralai/Mistral-7B in {home / 'hub'} (HF_HOME), found none: "
            "pass the folder of a download, or words"
        )
    return found[-1]


@dataclass(frozen=True)
class Conversations:
    """Conversations: each assistant turn is a request, its prompt is everything said before.

    Known shapes: a list of objects (or one object per line) with `conversations` (or `messages`, `items`), a list of
    turns with `from` and `value` (or `role` and `content`). A content may be text, nothing (a call of a tool), or a
    list of parts, of which those with text count. Turns are counted one by one, without a chat template.
    Left out and counted: turns with an empty prompt or output, and turns above 8192 tokens in total.
    """

    name: str = "ShareGPT json"
    """Name of the format."""
    about: str = "conversations, a list of them or one a line; --tokenizer counts their tokens, arrivals are drawn"
    """What is in such a file."""
    is_text: bool = True
    """Tokens are to be counted."""

    def recognises(self, start: Start) -> bool:
        """A list, or lines of JSON with turns."""
        return start.first == "[" or (start.first == "{" and any(f'"{key}"' in start.line for key in KEYS))

    def read(self, file: TraceFile) -> RawTrace:
        """Read the conversations; a tokenizer is asked for once there is one.

        Raises:
            InputError: not such a file (names the conversation), or no tokenizer.
        """
        lines = file.start.first != "["
        raw = RawTrace(file.path, self.name, ("", "prompt", "output"), "conversation")
        count: Tokenizer | None = None
        seen: Counter[str] = Counter()
        for index, conversation in _conversations(file.path, lines):
            where = f"{file.path}, {'line' if lines else 'conversation'} {index}"
            try:
                turns = _turns(where, conversation, seen)
            except InputError:
                if file.options.unservable == "refuse":
                    raise
                raw.left_out["conversations of another shape"] += 1
                continue
            count = count or load_tokenizer(file.options.tokenizer)
            _add_turns(raw, index, turns, count)
        raw.notes += ["tokens are words between white space"] if count is count_words else []
        if seen["parts"]:
            raw.notes.append(f"{seen['parts']} parts that are not text count nothing")
        return raw


def _conversations(path: Path, lines: bool) -> Iterable[tuple[int, Any]]:
    if lines:
        return read_jsonl(path, "conversations", LARGE)
    found = read_json(path, "conversations", LARGE)
    if not isinstance(found, list):
        raise InputError(f"{path}: expected a JSON list of conversations, got {kind_of(found)}")
    return enumerate(found)


def _add_turns(raw: RawTrace, index: int, turns: list[tuple[bool, str]], count: Tokenizer) -> None:
    history = 0
    for assistant, text in turns:
        tokens = count(text)
        if assistant and history and tokens and history + tokens <= MAX_TOTAL_TOKENS:
            raw.add(index, None, history, tokens)
        elif assistant:
            raw.left_out["empty or longer turns"] += 1
        history += tokens


def _turns(where: str, conversation: object, seen: Counter[str]) -> list[tuple[bool, str]]:
    given = conversation if isinstance(conversation, dict) else {}
    found = next((given[key] for key in KEYS if key in given), None)
    if not isinstance(found, list):
        raise InputError(f"{where}: expected an object with a list of turns under {', '.join(KEYS)}")
    return [_turn(f"{where}, turn {number}", turn, seen) for number, turn in enumerate(found)]


def _turn(where: str, turn: object, seen: Counter[str]) -> tuple[bool, str]:
    """Whether the assistant speaks, and what is said."""
    fields = turn if isinstance(turn, dict) else {}
    said = [fields[key] for key in ("value", "content") if key in fields]
    text = _text(next((content for content in said if content is not None), None), seen) if said else None
    speaker = _speaker(where, fields)
    if text is None:
        got = kind_of(said[0]) if said else "neither"
        raise InputError(f"{where}: expected a text under value or content, got {got}")
    return speaker in _ASSISTANT, text


def _speaker(where: str, fields: dict[str, Any]) -> str:
    speaker = fields.get("from", fields.get("role"))
    if not isinstance(speaker, str) or speaker not in _ASSISTANT | _OTHERS:
        raise InputError(
            f"{where}: expected a text and a speaker among {', '.join(sorted(_ASSISTANT | _OTHERS))}; "
            f"got speaker {kind_of(speaker)}"
        )
    return speaker


def _text(content: object, seen: Counter[str]) -> str | None:
    """The text of a turn: itself, nothing, or its parts with text; None if it is something else."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        return None
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) else part
        if isinstance(text, str):
            texts.append(text)
        elif isinstance(part, dict):
            seen["parts"] += 1
        else:
            return None
    return "\n".join(texts)
