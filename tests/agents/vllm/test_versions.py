"""Other versions of vLLM than those that were tried are refused in one line."""

import subprocess
import sys

import pytest

from agents.vllm import smoke
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


SMOKE_ARGUMENTS = [
    (["--requests", "0"], "--requests: expected a whole number >= 1"),
    (["--runs", "many"], "--runs: expected a whole number >= 1"),
    (["--scale", "0"], "--scale: expected a number > 0"),
    (["--scale", "2"], "--scale: expected a number > 0 and <= 1"),
    (["--blocks", "1"], "--blocks: expected a whole number >= 2"),
    (["--policies", "no-such"], "no-such"),
    (["--policies", "slai,slai"], "'slai' twice"),
    (["--json", "/dev/null/out.json"], "/dev/null"),
]


@pytest.mark.parametrize(("arguments", "expected"), SMOKE_ARGUMENTS)
def test_smoke_says_in_one_line_what_it_expects(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert smoke.main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("llmsched: ")
    assert said.count("\n") == 1
    assert expected in said


def test_smoke_without_vllm_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.vllm.versions.installed", lambda: None)
    assert smoke.main([]) == 2
    said = capsys.readouterr().err
    assert "expected an environment with vLLM" in said
    assert said.count("\n") == 1
