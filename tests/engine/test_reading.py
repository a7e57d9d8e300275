"""The hardened readers: what is read, and what is refused in one line without waiting."""

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest

from engine.errors import InputError
from engine.fields import checked, from_mapping
from engine.files.lines import csv_rows, open_text, read_csv, read_jsonl
from engine.files.reading import MIB, parse_json, read_json, read_text
from engine.files.yaml_text import parse_yaml, read_yaml
from engine.ranges import Bounds, number, parse_number, whole


def refusal(call: Callable[[], Any]) -> str:
    """The one line with which a call refuses."""
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_only_regular_files_are_opened_and_nothing_waits(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    server = socket.socket(socket.AF_UNIX)
    place = os.getcwd()
    os.chdir(tmp_path)  # the names of sockets are short
    try:
        server.bind("socket")
    finally:
        os.chdir(place)
        server.close()
    for name, got in {
        "pipe": "named pipe",
        "socket": "socket",
        ".": "folder",
        "loop": "symbolic links",
        "absent": "No such",
    }.items():
        assert got in refusal(partial(read_text, tmp_path / name, "a profile"))
    for device in ("/dev/zero", "/dev/full", "/dev/null", "/dev/random"):
        assert "a device" in refusal(partial(read_text, device, "a profile"))
    assert "not the name of a file" in refusal(lambda: read_text("a\0b", "a profile"))


def test_size_limit_is_named(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(40 * MIB)
    message = refusal(lambda: read_text(tmp_path / "sparse", "a profile"))
    assert "at most 16 MiB, got 40.0 MiB" in message


@pytest.mark.parametrize(
    ("data", "got"),
    [
        ("{}".encode("utf-16"), "UTF-16"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"{}\n\xff\n", "line 2: expected UTF-8 text, got byte 0xff"),
        (b"{\n\0}", "line 2.*NUL"),
    ],
)
def test_other_encodings_and_binary_files_are_named(tmp_path: Path, data: bytes, got: str) -> None:
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(InputError, match=got):
        read_json(tmp_path / "file", "a profile")


def test_byte_order_mark_is_taken_off(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b'\xef\xbb\xbf{"a": 1}\n')
    assert read_json(tmp_path / "file", "a profile") == {"a": 1}
    assert read_yaml(tmp_path / "file", "settings") == {"a": 1}
    assert list(read_jsonl(tmp_path / "file", "a log")) == [(1, {"a": 1})]
    assert read_csv(tmp_path / "file", "a table") == [(1, ['{"a": 1}'])]


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("", "got nothing"),
        ('{"a": 1,}', "line 1"),
        ("[" * 100_000, "at most 64 brackets"),
        ("[" * 65 + "]" * 65, "at most 64 brackets"),
        ("[" + "9" * 5000 + "]", "of 5000"),
        ("[1e999]", "finite"),
        ("[-1e400]", "finite"),
        ("[NaN]", "finite"),
        ("[-Infinity]", "finite"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "'c' twice"),
        ('["\\ud800"]', "surrogate"),
    ],
)
def test_json_is_strict(text: str, got: str) -> None:
    assert got in refusal(lambda: parse_json(text, "file"))


def test_json_is_read_right() -> None:
    assert parse_json('{"a": [1, 2.5, -0.0, 1e100, "x", null, true, "\\ud83d\\ude00"]}', "file") == {
        "a": [1, 2.5, 0.0, 1e100, "x", None, True, "😀"]
    }
    deep = "[" * 64 + "]" * 64
    assert parse_json(deep, "file") is not None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1e6", 1e6),
        ("-2.5E+3", -2500.0),
        (".5", 0.5),
        ("!!float 1e6", 1e6),
        ("1_000", 1000),
        ("0x10", 16),
        ("010", "010"),
        ("1:30", "1:30"),
        ("2024-05-12", "2024-05-12"),
        ("yes", True),
        ("~", None),
        ("lin_1e-3", "lin_1e-3"),
        ("", None),
    ],
)
def test_yaml_numbers_are_what_people_mean(text: str, value: object) -> None:
    found = parse_yaml(text, "file")
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("a: [1, 2", "line 1"),
        ("a: .nan", "finite"),
        ("a: 1e999", "finite"),
        ("a: !!float " + "9" * 400, "digits"),
        ("a: 1\nb: 2\na: 3", "line 3: expected each key once, got 'a' twice"),
        ("1: 2", "name as key, got '1'"),
        ("[a]: 2", "name as key, got a sequence"),
        ("a: &x [*x]", "alias of itself"),
        ("[" * 5000, "levels"),
        ("a: !!python/object/apply:os.system [ls]", "constructor"),
        ("a: !!timestamp 2024-99-99", "constructor"),
        ("a: !!bool 7", "tag"),
        ("a: 1\n--- \nb: 2", "another document"),
        ("a: \x07", "YAML"),
        (
            "a: &l [x,x,x,x,x,x,x,x,x,x]\n"
            + "".join(
                f"{n}: &{n}{n} [{','.join([p] * 10)}]\n"
                for n, p in [("b", "*l"), ("c", "*bb"), ("d", "*cc"), ("e", "*dd"), ("f", "*ee")]
            ),
            "at most 50000 entries",
        ),
    ],
)
def test_yaml_is_strict(text: str, got: str) -> None:
    assert got in refusal(lambda: parse_yaml(text, "file"))


def test_yaml_merges_and_aliases_are_read() -> None:
    assert parse_yaml("base: &b {x: 1, y: 2}\nmine: {<<: *b, y: 3}\n", "file")["mine"] == {"x": 1, "y": 3}


def test_csv_and_lines_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text('a,b\n1,"' + "x" * 200_000)
    assert "field larger" in refusal(lambda: read_csv(path, "a table"))
    path.write_text('a,b\n1,"2" x\n')
    assert "line 2: expected csv" in refusal(lambda: read_csv(path, "a table"))
    path.write_text("x" * (5 * MIB))
    assert "characters in a line" in refusal(lambda: list(read_jsonl(path, "a log")))
    path.write_text('{"a": 1}\n\n{"a": \n')
    assert "line 3: expected JSON" in refusal(lambda: list(read_jsonl(path, "a log")))
    path.write_text("a\r\n\r\n1\r\n")
    with open_text(path, "a table") as file:
        assert list(csv_rows(file, path, "a table")) == [(1, ["a"]), (3, ["1"])]


@dataclass(frozen=True)
class Inner:
    share: Annotated[float, number(0.0, 1.0)] = 0.5

    def __post_init__(self) -> None:
        checked(self, "inner.")


@dataclass(frozen=True)
class Record:
    name: str
    count: Annotated[int, whole(1, 10)] = 1
    on: bool = False
    order: Literal["a", "b"] = "a"
    sizes: tuple[Annotated[int, whole(1, 9)], ...] = ()
    pair: tuple[str, float] = ("x", 1.0)
    limit: float | None = None
    inner: Inner = field(default_factory=Inner)
    about: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checked(self, "record.")


def test_mapping_becomes_a_record() -> None:
    data = {"name": "n", "count": 3.0, "sizes": [1, 2], "pair": ["y", 2], "inner": {"share": 1}, "about": {"k": [1]}}
    record = from_mapping(Record, data, "file")
    assert record == Record("n", 3, False, "a", (1, 2), ("y", 2.0), None, Inner(1), {"k": [1]})
    assert type(record.count) is int
    assert Record("n", np.int64(3), limit=np.float64(2.0)) == Record("n", 3, limit=2.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "got"),
    [
        ({"other": 1}, "file: unknown key 'other', known: name, count"),
        ({"name": 5}, "file.name: expected text, got 5"),
        ({"name": "a\x1b[31m"}, "control characters"),
        ({"count": True}, "file.count: expected a whole number, got True"),
        ({"count": "3"}, "got '3'"),
        ({"count": 2.5}, "got 2.5"),
        ({"count": 0}, "count: expected a whole number >= 1, got 0"),
        ({"count": 11}, "count: expected a whole number >= 1 and <= 10, got 11"),
        ({"count": 10**400}, "more than 30 digits"),
        ({"on": 1}, "expected true or false, got 1"),
        ({"order": "c"}, "expected a or b, got 'c'"),
        ({"sizes": 5}, "expected a list, got 5"),
        ({"sizes": [1, "2"]}, r"sizes[1]: expected a whole number"),
        ({"sizes": [1, 10]}, r"sizes[1]: expected a whole number >= 1 and <= 9, got 10"),
        ({"pair": [1]}, "a list of 2, got one of 1"),
        ({"limit": float("nan")}, "limit: expected a number"),
        ({"limit": "x"}, "limit: expected a number"),
        ({"inner": 3}, "file.inner: expected a mapping, got 3"),
        ({"inner": {"share": 2}}, "share: expected a number >= 0 and <= 1, got 2"),
        ({"about": []}, "file.about: expected a mapping, got a list"),
    ],
)
def test_mapping_that_does_not_fit_is_refused_with_its_place(changes: dict[str, Any], got: str) -> None:
    message = refusal(lambda: from_mapping(Record, {"name": "n"} | changes, "file"))
    assert message.startswith("file")
    assert got in message


def test_missing_key_is_named() -> None:
    assert refusal(lambda: from_mapping(Record, {}, "file")) == "file: missing key 'name'"
    assert "got a list" in refusal(lambda: from_mapping(Record, [], "file"))


def test_numbers_in_specs_are_read_or_refused() -> None:
    assert whole(0).parse("1_000", "x") == 1000
    assert number().parse("2e-4", "x") == 2e-4
    assert str(number(0.0).parse("-0.0", "x")) == "0.0"
    assert parse_number("9" * 20) == int("9" * 20)
    for text in ("nan", "inf", "-inf", "", "x", "٣", "1e400", "0x10", "9" * 5000, "1 2"):
        assert "expected a number" in refusal(partial(number().parse, text, "x"))
    assert "got 1.5" in refusal(lambda: whole().parse("1.5", "x"))
    assert refusal(lambda: Bounds(0.0, 1.0, above=True, noun="a share").parse("0", "x")) == (
        "x: expected a share > 0, got 0"
    )
