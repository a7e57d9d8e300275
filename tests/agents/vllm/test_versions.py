"""Other versions of vLLM than those that were tried are refused in one line."""

import subprocess
import sys

import pytest

from agents.vllm.versions import ANY_VERSION, TESTED, check_version
from engine.errors import InputError


@pytest.mark.parametrize("version", [*TESTED, "0.32.0+cpu"])
def test_tested_versions_pass(version: str) -> None:
    check_version("scheduler", version, {})


@pytest.mark.parametrize("version", ["0.24.1", "0.33.0", "0.32.0.dev1", "1.0"])
def test_other_versions_are_refused_unless_it_is_asked_for(version: str) -> None:
    with pytest.raises(InputError, match=f"^scheduler: expected vLLM 0.24.0 or 0.32.0, got {version} ") as refused:
        check_version("scheduler", version, {})
    assert "\n" not in str(refused.value)
    check_version("scheduler", version, {ANY_VERSION: "1"})


@pytest.mark.parametrize("arguments", [[], ["no-such"], ["replay"], ["replay", "none.json", "out"]])
def test_command_says_in_one_line_what_it_expects(arguments: list[str]) -> None:
    run = subprocess.run([sys.executable, "-m", "agents.vllm", *arguments], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr.count("\n")) == (2, "", 1)
    assert run.stderr.startswith("llmsched: ")
