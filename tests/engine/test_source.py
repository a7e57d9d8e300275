"""Functions that only compiled code calls: never machine code by themselves, the same from the cache."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from engine.compiled.jit import hot, hot_inlined, inner

MODULE = """
import numpy as np
from engine.compiled.jit import hot, inner

@inner
def add(a, k, n):
    a[k] += n

@inner
def add_twice(a, k):
    add(a, k, 1)
    add(a, k, 2)

@hot
def first(a):
    add_twice(a, 0)

@hot
def second(a):
    add_twice(a, 1)
"""
USE = """
import sys
import numpy as np
import kernels
a = np.zeros(2)
getattr(kernels, sys.argv[1])(a)
compiled = kernels.add_twice._dispatcher.stats
print(a.tolist(), sum(compiled.cache_hits.values()), sum(compiled.cache_misses.values()))
"""


@inner
def _difference(a: int, b: int) -> int:
    return a - b


@inner
def _checked(a: int) -> int:
    if a < 0:
        raise ValueError("expected a number >= 0")
    return _difference(a, 1)


@hot
def _outer(a: int) -> int:
    return int(_checked(a) + _difference(a, 2))


@hot_inlined
def _both(a: np.ndarray) -> None:
    a[0] += 1.0


@hot
def _calls_both(a: np.ndarray) -> None:
    _both(a)
    _both(a)


def test_a_function_called_by_compiled_code_has_no_machine_code_and_one_form_for_all_constants() -> None:
    assert _outer(7) == 11
    (compiled,) = _difference._dispatcher.overloads.values()
    assert compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name) == 0


def test_what_it_raises_reaches_python() -> None:
    with pytest.raises(ValueError, match="expected a number >= 0"):
        _outer(-1)


def test_one_function_for_python_and_for_compiled_code() -> None:
    a = np.zeros(1)
    _both(a)
    _calls_both(a)
    assert a[0] == 3.0


def test_the_next_process_takes_it_from_the_cache_for_another_caller(tmp_path: Path) -> None:
    (tmp_path / "kernels.py").write_text(MODULE)

    def run(name: str) -> str:
        environment = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(tmp_path), "PATH": ""}
        command = [sys.executable, "-c", USE, name]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()

    assert run("first") == "[3.0, 0.0] 0 1"
    assert run("second") == "[0.0, 3.0] 1 0"
    # The caller itself is in the cache: what it calls is not even looked for.
    assert run("first") == "[3.0, 0.0] 0 0"
