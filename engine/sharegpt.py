"""ShareGPT conversations as requests: needs a tokenizer, since the files hold text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from engine.errors import InputError
from engine.trace_formats import TraceColumns

Tokenizer = Callable[[str], int]
"""Returns the number of tokens of a text."""

MAX_TOTAL_TOKENS = 8192
"""Largest prompt + output of a turn (tokens), as in the data of the Sarathi-Serve evaluation."""

_ASSISTANT = frozenset({"gpt", "assistant", "chatgpt", "bing", "bard"})
_OTHERS = frozenset({"human", "user", "system"})


def load_tokenizer(tokenizer: Tokenizer | str | Path | None) -> Tokenizer:
    """Return a function from text to number of tokens.

    Args:
        tokenizer: such a function, or a folder with a `tokenizer.json` (Hugging Face), as model downloads
            have it.

    Raises:
        InputError: no tokenizer, or no readable `tokenizer.json` in the folder.
    """
    if tokenizer is None:
        raise InputError("tokenizer: expected a tokenizer folder or function for ShareGPT conversations, got none")
    if not isinstance(tokenizer, str | Path):
        return tokenizer
    from tokenizers import Tokenizer as HuggingFaceTokenizer

    file = Path(tokenizer) / "tokenizer.json"
    try:
        loaded = HuggingFaceTokenizer.from_buffer(file.read_bytes())
    except OSError as error:
        raise InputError(f"{file}: cannot read the tokenizer ({error.strerror})") from None
    except Exception:  # tokenizers raises bare Exception for a file that is not a tokenizer
        raise InputError(f"{file}: expected a Hugging Face tokenizer, got something else") from None
    return lambda text: len(loaded.encode(text, add_special_tokens=False).ids)


def read_sharegpt(path: Path, file: TextIO, count: Tokenizer) -> TraceColumns:
    """Read ShareGPT conversations: each assistant turn is a request, its prompt is everything said before.

    Known shapes: a list of objects with `conversations` (or `messages`, `items`), a list of turns with
    `from` and `value` (or `role` and `content`). Turns are counted one by one, without a chat template.
    Left out and counted: turns with an empty prompt or output, and turns above 8192 tokens in total.

    Args:
        path: name of the file, for messages.
        file: the open file, at its beginning.
        count: number of tokens of a text.

    Raises:
        InputError: not such a list (names the conversation), or no usable turn.
    """
    try:
        conversations = json.load(file)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected a JSON list of conversations, got something else ({error})") from None
    prompts: list[int] = []
    outputs: list[int] = []
    left_out = 0
    for index, conversation in enumerate(conversations):
        history = 0
        for assistant, text in _turns(f"{path}, conversation {index}", conversation):
            tokens = count(text)
            if assistant and history and tokens and history + tokens <= MAX_TOTAL_TOKENS:
                prompts.append(history)
                outputs.append(tokens)
            else:
                left_out += assistant
            history += tokens
    if not prompts:
        raise InputError(f"{path}: expected at least one assistant turn of 1..{MAX_TOTAL_TOKENS} tokens, got none")
    note = f"ShareGPT json, {left_out} empty or longer turns left out" if left_out else "ShareGPT json"
    return TraceColumns(None, np.array(prompts, dtype=np.int64), np.array(outputs, dtype=np.int64), note)


def _turns(where: str, conversation: Any) -> list[tuple[bool, str]]:
    keys = ("conversations", "messages", "items")
    found = (
        next((conversation[key] for key in keys if key in conversation), None)
        if isinstance(conversation, dict)
        else None
    )
    if not isinstance(found, list):
        raise InputError(f"{where}: expected an object with a list of turns under {', '.join(keys)}")
    turns = []
    for number, turn in enumerate(found):
        fields = turn if isinstance(turn, dict) else {}
        speaker = fields.get("from", fields.get("role"))
        text = fields.get("value", fields.get("content"))
        if speaker not in _ASSISTANT | _OTHERS or not isinstance(text, str):
            raise InputError(
                f"{where}, turn {number}: expected a text and a speaker among "
                f"{', '.join(sorted(_ASSISTANT | _OTHERS))}; got speaker {speaker!r}"
            )
        turns.append((speaker in _ASSISTANT, text))
    return turns
