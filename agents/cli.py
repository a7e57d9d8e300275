"""The `llmsched` command: finds the module of the command that is called, imports only that, and runs it."""

import ast
import contextlib
import io
import re
import shutil
import sys
import textwrap
import traceback
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from agents.help import ALL, print_help

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Command = TypeVar("Command", bound="DataclassInstance")

INPUT_ERROR, INTERNAL_ERROR, INTERRUPTED = 2, 70, 130
"""Exit codes: bad input, a fault of ours, Ctrl-C."""
DEBUG = "--debug"
"""Flag that every command takes, anywhere: errors show their traceback."""

_FOLDER = Path(__file__).parent / "commands"
_RULES = str.maketrans("", "", "\u2500\u2502\u256d\u256e\u256f\u2570")  # the box that tyro draws around errors
_PLAIN_BOX = re.compile(r"^[+|] ?|[ -]*[+|]$|-{4,}")  # the same where the terminal's encoding has no such characters
_REFUSALS = {
    r"Error parsing \S+: (?=\S.*\bexpected .*\bgot )": "",  # a line of ours
    r"Error parsing (\S+): invalid literal for int\(\) with base 10: (.+)": r"\1: expected a whole number, got \2",
    r"Error parsing (\S+): could not convert string to float: (.+)": r"\1: expected a number, got \2",
    r"Error parsing (\S+): no type matching .*\bINT could .* from \[(.*)\]\.": r"\1: expected a whole number, got \2",
    r"Error parsing (\S+): no type matching .*\bFLOAT could .* from \[(.*)\]\.": r"\1: expected a number, got \2",
    r"Error parsing (\S+): Could not find valid parse for arguments: \[(.*)\]": r"\1: expected other values, got \2",
}
"""What the parser says of values (where it begins), and what a user reads instead."""


def commands() -> list[str]:
    """Names of the commands: one module each in agents/commands."""
    return sorted(file.stem for file in _FOLDER.glob("*.py") if not file.stem.startswith("_"))


def _summary(name: str) -> str:
    """First line of the docstring of a command's class, read without importing it."""
    tree = ast.parse((_FOLDER / f"{name}.py").read_text(encoding="utf-8"))
    classes = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Command")
    return next(((ast.get_docstring(node) or "").partition("\n")[0] for node in classes), "")


def _overview() -> str:
    width = max(40, shutil.get_terminal_size().columns)
    lines = [textwrap.fill(f"  {name:<13}{_summary(name)}", width, subsequent_indent=" " * 15) for name in commands()]
    return "\n".join(
        [
            "usage: llmsched COMMAND [OPTIONS]",
            "",
            *lines,
            "",
            textwrap.fill(
                f"llmsched COMMAND --help lists the options of one ({ALL} those of every group); "
                f"{DEBUG} shows the traceback of an error.",
                width,
            ),
        ]
    )


def _one_line(message: str) -> str:
    """A boxed message in one line, without the hint for help that its last part gives."""
    lines: list[str] = []
    for line in message.splitlines()[1:]:
        text = _PLAIN_BOX.sub("", line.translate(_RULES).strip()).strip()
        if not text and lines:
            break
        lines += [text] if text else []
    said = " ".join(lines) or " ".join(message.split())
    for refusal, plain in _REFUSALS.items():
        said = re.sub(f"^{refusal}", plain, said)
    return said


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _check_digits(arguments: Sequence[str]) -> None:
    """Refuse numbers in digits of other scripts, which Python's int and float take for numbers.

    Raises:
        InputError: there is one.
    """
    from engine.errors import InputError

    option = ""
    for argument in arguments:
        name, equals, value = argument.partition("=") if argument.startswith("--") else (option, "=", argument)
        option = name
        if equals and not value.isascii() and _is_number(value):
            raise InputError(f"{name.lstrip('-').replace('-', '_')}: expected digits 0 to 9, got {value!r}")


def _parse(name: str, arguments: Sequence[str]) -> Any:
    """The command as its flags describe it; leaves with code 2 and one line if they cannot be read.

    Some flags choose the defaults of others. They are read first: alone where they are a class `Choosing` of their own,
    as the others may not fit the usual defaults, or with all others.
    """
    import tyro

    module, prog = import_module(f"agents.commands.{name}"), f"llmsched {name}"
    registry, choosing = getattr(module, "registry", None), getattr(module, "Choosing", None)
    asked = {"-h", "--help", ALL} & set(arguments)
    given = [a for a in arguments if a not in asked]

    def parse(default: Any, flags: Sequence[str] = given) -> Any:
        options = {} if default is None else {"default": default}
        if registry:
            options["registry"] = registry()
        return tyro.cli(module.Command, prog=prog, args=list(flags), **options)

    _check_digits(given)
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            default = None
            if choosing:
                default = tyro.cli(choosing, prog=prog, args=given, return_unknown_args=True)[0].preset()
            if asked:
                print_help(name, lambda: parse(default, [*given, "--help"]), ALL in asked)
                raise SystemExit(0)
            command = parse(default)
            preset = getattr(command, "preset", None)
            default = preset() if preset else None
            return command if default is None else parse(_without_repeated(default))
    except SystemExit as leaving:
        if leaving.code:
            print(f"llmsched {name}: {_one_line(errors.getvalue())}", file=sys.stderr)
        raise


def _without_repeated(command: Command) -> Command:
    """A command as the defaults of a second reading, to which flags that may be repeated would add once more."""
    import tyro

    hints = get_type_hints(type(command), include_extras=True)
    repeated = tyro.conf.UseAppendAction
    given = {f.name: f.default for f in fields(command) if repeated in getattr(hints[f.name], "__metadata__", ())}
    return replace(command, **given)


def _say(text: str) -> None:
    """Print one line to stderr; what a terminal would obey is shown instead."""
    line = " ".join(text.split())
    print("llmsched: " + "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line), file=sys.stderr)


def _last_resort(error: Exception) -> int:
    """One line about an error that nothing expected, with our line nearest to it."""
    frames, folder = traceback.extract_tb(error.__traceback__), _FOLDER.parents[1]
    frame = ([f for f in frames if Path(f.filename).is_relative_to(folder)] or frames)[-1]
    place = Path(frame.filename)
    where = place.relative_to(folder) if place.is_relative_to(folder) else place
    text = f": {str(error)[:300]}" if str(error) else ""
    _say(f"internal error: {type(error).__name__}{text} (at {where}:{frame.lineno}); {DEBUG} shows the traceback")
    return INTERNAL_ERROR


def _explain(error: Exception) -> int:
    """Print the line about an error; its exit code."""
    from engine.errors import InputError
    from engine.runs.driving import PolicyError

    if isinstance(error, InputError | PolicyError):
        _say(str(error))
    elif isinstance(error, OSError):
        _say((f"{error.filename}: " if error.filename else "") + (error.strerror or str(error)))
    else:
        return _last_resort(error)
    return INPUT_ERROR


def _run(name: str, arguments: Sequence[str], debug: bool) -> int:
    try:
        command = _parse(name, arguments)
        with _output(command), _done_by(command):
            import_module("agents.options").check_options(command)
            command.run()
    except BrokenPipeError:
        raise
    except Exception as error:  # whatever else happens, a user sees one line
        if debug:
            traceback.print_exc()
        return _explain(error)
    return 0


def _output(command: object) -> AbstractContextManager[None]:
    """What is printed goes to standard error if a result goes to standard output."""
    from agents.work.files import check_apart, is_stdout, text_to_stderr

    given = vars(command)
    check_apart(given)
    results = [value for value in given.values() if isinstance(value, Path) and is_stdout(value)]
    return text_to_stderr() if results else contextlib.nullcontext()


def _done_by(command: object) -> AbstractContextManager[None]:
    """What does the runs of a command that can be done elsewhere (`agents.options.WorkerOptions`)."""
    from agents.work.processes import done_by

    place = getattr(command, "place_of_work", None)
    return done_by(place() if place else None)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: as after `llmsched`; None takes those of the process.

    Returns:
        Exit code: 0, 2 for bad input and 70 for an error of ours (one line on stderr), 130 for Ctrl-C, 143 for SIGTERM.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = _answer(given)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader (head, less) has seen enough.
        sys.stdout = io.TextIOWrapper(io.BytesIO())
        return 0
    except KeyboardInterrupt:
        print("llmsched: interrupted", file=sys.stderr)
        return INTERRUPTED


def _answer(given: list[str]) -> int:
    """Run what the arguments ask for; returns the exit code."""
    name, *rest = _asked([argument for argument in given if argument != DEBUG])
    if name in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if name in ("--version", "-V"):
        from importlib import metadata

        print(f"llmsched {metadata.version('llmsched')}")
        return 0
    if name not in commands():
        print(f"llmsched: expected a command ({', '.join(commands())}), got {name!r}", file=sys.stderr)
        return INPUT_ERROR
    return _run_to_the_end(name, rest, DEBUG in given)


def _asked(arguments: list[str]) -> list[str]:
    """The command with its arguments; `help COMMAND` is its --help, and nothing at all asks for help."""
    if arguments[:1] == ["help"] and len(arguments) > 1:
        return [arguments[1], "--help"]
    return arguments or ["help"]


def _run_to_the_end(name: str, arguments: list[str], debug: bool) -> int:
    """Run a command; signals end it in one line. Returns the exit code."""
    from agents.work.processes import Terminated, end_with_parent, termination_as_interrupt

    end_with_parent()
    try:
        with termination_as_interrupt():
            return _run(name, arguments, debug)
    except Terminated as signal:
        print(f"llmsched: terminated ({signal})", file=sys.stderr)
        return signal.exit_code
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 0


if __name__ == "__main__":
    sys.exit(main())
