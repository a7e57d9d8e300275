"""Whatever goes wrong in a command, its user sees one line and an exit code."""

import pytest

from agents.cli import main
from agents.commands.policies import Command

ERRORS = (TypeError("a\nb"), KeyError("k"), MemoryError(), RecursionError("deep"), ZeroDivisionError("x"), Exception())


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_unexpected_error_is_one_line_with_code_70(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(self: Command) -> None:
        raise error

    monkeypatch.setattr(Command, "run", run)
    assert main(["policies"]) == 70
    message = capsys.readouterr().err
    assert message.startswith(f"llmsched: internal error: {type(error).__name__}")
    assert "(at tests/agents/test_last_resort.py:" in message
    assert message.count("\n") == 1
    for place in (["--debug", "policies"], ["policies", "--debug"]):
        assert main(place) == 70
        message = capsys.readouterr().err
        assert message.startswith("Traceback")
        assert message.splitlines()[-1].startswith("llmsched: internal error")


def test_what_a_terminal_would_obey_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--policy", "sla\x1b[31mi\ta\nb"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "\x1b" not in message


def test_bad_input_shows_its_traceback_only_with_debug(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--policy", "nosuch"]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert main(["simulate", "--policy", "nosuch", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err
