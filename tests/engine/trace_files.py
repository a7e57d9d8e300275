"""Trace files that tests write, and how bad ones are refused."""

from pathlib import Path
from typing import Any

import pytest

from engine.demand.trace_options import AS_IT_IS, TraceOptions
from engine.demand.traces import read_trace
from engine.errors import InputError


def written(folder: Path, text: str, name: str = "trace.csv") -> Path:
    """A new file with this text."""
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def refused(path: Path, options: TraceOptions = AS_IT_IS, **arguments: Any) -> str:
    """The one line with which `read_trace` refuses a file or its arguments."""
    with pytest.raises(InputError) as caught:
        read_trace(path, options, **arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message
