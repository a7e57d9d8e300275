import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import agents.cli
from agents.work.files import (
    LOCK,
    MARK,
    check_apart,
    claimed,
    empty_folder,
    is_ours,
    locked,
    new_folder,
    replace_folder,
)
from agents.work.locks import lock
from agents.work.provenance import config_hash
from engine.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys, time, pathlib
from agents.work.files import claimed
with claimed(pathlib.Path(sys.argv[1]), "evaluate"):
    pathlib.Path(sys.argv[1], "result").write_text("x")
    print("held", flush=True)
    time.sleep(600)
"""


def hold(folder: Path) -> "subprocess.Popen[str]":
    """Another process that has a folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_folder_belongs_to_one_run_at_a_time_and_the_message_names_it(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    process = hold(folder)
    try:
        with pytest.raises(InputError, match=rf"out: in use by process {process.pid} on .* since 20.*; wait"):
            claimed(folder, "evaluate").__enter__()
        assert is_ours(folder, "evaluate")
    finally:
        process.kill()
        process.communicate()
    # The lock ends with its process, however that ends.
    with claimed(folder, "evaluate"):
        assert (folder / "result").read_text() == "x"
    assert sorted(path.name for path in folder.iterdir()) == [MARK, "result"]


def test_a_stopped_run_keeps_its_folder(tmp_path: Path) -> None:
    process = hold(tmp_path / "out")
    try:
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(InputError, match="in use by"):
            claimed(tmp_path / "out", "evaluate").__enter__()
    finally:
        process.kill()
        process.communicate()


def test_a_thread_may_claim_twice_and_another_may_not(tmp_path: Path) -> None:
    folder, refused = tmp_path / "out", []

    def other() -> None:
        try:
            with claimed(folder, "train"):
                pass
        except InputError as error:
            refused.append(str(error))

    with claimed(folder, "train"), claimed(folder, "train"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert [f"process {os.getpid()}" in text for text in refused] == [True]
    with claimed(folder, "train"):
        pass


def test_a_lock_does_not_live_on_in_a_forked_worker(tmp_path: Path) -> None:
    with lock(tmp_path / LOCK, "here"):
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
    try:
        with lock(tmp_path / LOCK, "here"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_lock_may_be_waited_for(tmp_path: Path) -> None:
    process = hold(tmp_path)
    threading.Timer(0.3, process.kill).start()
    with lock(tmp_path / LOCK, "here", wait_s=30.0):
        pass
    process.communicate()


def test_a_file_system_without_locks_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import errno
    import fcntl

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with claimed(tmp_path / "out", "evaluate"):
        pass
    assert "this file system has no locks" in capsys.readouterr().err


def test_a_lock_file_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / LOCK).symlink_to(tmp_path / "victim")
    with pytest.raises(InputError, match="out: cannot write"):
        claimed(tmp_path / "out", "evaluate").__enter__()
    assert (tmp_path / "victim").read_text() == "mine"


def test_only_an_empty_folder_or_one_of_ours_is_written_into(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("mine")
    with pytest.raises(InputError, match=r"expected a new or empty folder .* got one that holds 'config.json'"):
        claimed(tmp_path, "train").__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    with claimed(tmp_path / "a", "train"):
        (tmp_path / "a" / "x").write_text("")
    with pytest.raises(InputError, match="expected a new folder or one of `llmsched evaluate`, got one of 'train'"):
        claimed(tmp_path / "a", "evaluate").__enter__()
    with pytest.raises(InputError, match="expected a folder, got a file"):
        claimed(tmp_path / "config.json", "train").__enter__()
    with pytest.raises(InputError, match="expected a folder, got standard output"):
        claimed(Path("-"), "train").__enter__()


def test_what_stands_in_the_place_of_a_mark_is_no_mark(tmp_path: Path) -> None:
    bad = [b"[]", b"", b"\xff\xfe", b"[" * 100_000, b'{"format": "llmsched-folder/1", "kind": ["train"]}', b"1" * 5000]
    for k, content in enumerate(bad):
        (tmp_path / str(k)).mkdir()
        (tmp_path / str(k) / MARK).write_bytes(content)
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / MARK)
    (tmp_path / "endless").mkdir()
    (tmp_path / "endless" / MARK).symlink_to("/dev/zero")
    for folder in sorted(tmp_path.iterdir()):
        with pytest.raises(InputError, match=r"expected a new or empty folder .* holds '\.llmsched'"):
            claimed(folder, "train").__enter__()


def test_a_folder_into_which_nothing_was_written_is_taken_away(tmp_path: Path) -> None:
    with pytest.raises(KeyError), claimed(tmp_path / "new", "train"):
        raise KeyError
    (tmp_path / "there").mkdir()
    with claimed(tmp_path / "there", "train"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_what_a_killed_run_left_half_written_is_deleted(tmp_path: Path) -> None:
    with claimed(tmp_path / "a", "train") as folder:
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / ".llmsched-1-1.tmp").write_text("half")
        (new_folder(folder / "best") / "x").write_text("half")
        (folder / "x").write_text("whole")
    with claimed(tmp_path / "a", "train") as folder:
        assert sorted(path.name for path in folder.rglob("*")) == [MARK, LOCK, "checkpoints", "x"]


def test_only_a_folder_of_ours_is_emptied(tmp_path: Path) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    outside.mkdir()
    (outside / "x").write_text("mine")
    empty_folder(run, "train")
    run.mkdir()
    (run / "config.json").write_text("mine")
    with pytest.raises(InputError, match=r"holds 'config.json'"):
        empty_folder(run, "train")
    (run / "config.json").unlink()
    with claimed(run, "train"):
        (run / "best").mkdir()
        (run / "best" / "x").write_text("")
        (run / "link").symlink_to(outside)
    empty_folder(run, "train")
    assert [path.name for path in run.iterdir()] == [MARK]
    assert (outside / "x").read_text() == "mine"


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_is_replaced_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool) -> None:
    if not exchanges:
        monkeypatch.setattr("agents.work.files._exchange", lambda one, other: False)
    folder = tmp_path / "a" / "best"
    for text in ("first", "second"):
        new = new_folder(folder)
        (new / text).write_text(text)
        replace_folder(new, folder)
        assert [path.name for path in folder.iterdir()] == [text]
        assert [path.name for path in folder.parent.iterdir()] == ["best"]


def test_a_file_is_locked_by_one_beside_it(tmp_path: Path) -> None:
    for name in ("table.json", "n" * 255):
        with locked(tmp_path / name):
            (path,) = tmp_path.iterdir()
            assert json.loads(path.read_text())["pid"] == os.getpid()
        assert list(tmp_path.iterdir()) == []


def test_one_file_for_two_purposes_is_refused(tmp_path: Path) -> None:
    file, link = tmp_path / "a.csv", tmp_path / "link"
    file.write_text("x")
    link.symlink_to(file)
    with pytest.raises(InputError, match=r"trace, json: expected two files, got .* for both"):
        check_apart({"trace": str(file), "json": link})
    with pytest.raises(InputError, match="json, plot: expected two files"):
        check_apart({"json": tmp_path / "new", "plot": tmp_path / "new"})
    with pytest.raises(InputError, match="json, plot: expected two files"):
        check_apart({"json": Path("-"), "plot": Path("/dev/stdout")})
    check_apart({"trace": str(file), "json": tmp_path / "b", "policy": "slai", "out": tmp_path, "result": tmp_path})
    check_apart({"json": Path("/dev/null"), "plot": Path("/dev/null")})


def test_the_hash_of_a_configuration_does_not_depend_on_the_order_of_its_keys() -> None:
    assert config_hash({"a": 1, "b": 2}) == config_hash({"b": 2, "a": 1}) != config_hash({"a": 1, "b": 3})


def test_the_result_alone_is_on_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert agents.cli.main(["simulate", "--workload", "toy", "--policy", "sarathi", "--json", "-"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["completed"] == 8
    assert "8 of 8 requests finished" in captured.err
