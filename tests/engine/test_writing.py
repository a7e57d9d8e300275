import errno
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from engine.device.latency import load_profile
from engine.errors import InputError
from engine.files.writing import check_writable, is_stdout, text_to_stderr, write_atomically

ROOT = Path(__file__).resolve().parents[2]
needs_devices = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.name.startswith(".llmsched")]


def test_a_link_stays_a_link_and_its_target_is_replaced(tmp_path: Path) -> None:
    target, link, second = tmp_path / "a" / "target", tmp_path / "link", tmp_path / "second"
    target.parent.mkdir()
    target.write_text("old")
    link.symlink_to("a/target")
    second.symlink_to(link)
    write_atomically(second, "new")
    assert (second.is_symlink(), link.is_symlink(), target.read_text()) == (True, True, "new")


def test_a_dangling_link_gets_its_target_and_a_circle_is_one_line(tmp_path: Path) -> None:
    link, circle = tmp_path / "link", tmp_path / "circle"
    link.symlink_to("not/yet")
    check_writable(link)
    write_atomically(link, "new")
    assert (tmp_path / "not" / "yet").read_text() == "new"
    assert link.is_symlink()
    circle.symlink_to("circle")
    for refused in (check_writable, lambda path: write_atomically(path, "x")):
        with pytest.raises(InputError, match=r"circle: cannot write .Too many levels"):
            refused(circle)
    assert circle.is_symlink()


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o755])
def test_mode_is_kept_and_that_of_a_new_file_follows_the_umask(tmp_path: Path, mode: int) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("old")
    old.chmod(mode)
    before = os.umask(0o027)
    try:
        write_atomically(old, "x")
        write_atomically(new, "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE(old.stat().st_mode) == mode
    assert stat.S_IMODE(new.stat().st_mode) == 0o640


def test_what_is_no_regular_file_is_written_through(tmp_path: Path) -> None:
    fifo, found = tmp_path / "fifo", []
    os.mkfifo(fifo)
    reader = threading.Thread(target=lambda: found.append(fifo.read_text()))
    reader.start()
    check_writable(fifo)
    write_atomically(fifo, "through")
    reader.join(10)
    assert found == ["through"]
    assert stat.S_ISFIFO(fifo.stat().st_mode)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can make a device")
def test_a_device_stays_a_device(tmp_path: Path) -> None:
    device, link = tmp_path / "null", tmp_path / "link"
    try:
        os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        device.write_text("")
    except OSError:
        pytest.skip("devices cannot be made or used here")
    link.symlink_to(device)
    check_writable(device, link)
    write_atomically(device, "gone")
    write_atomically(link, "gone")
    assert stat.S_ISCHR(device.stat().st_mode)


@needs_devices
def test_a_full_disk_is_one_line() -> None:
    with pytest.raises(InputError, match=r"^/dev/full: cannot write .No space left on device.$"):
        write_atomically(Path("/dev/full"), "x")


def test_a_disk_that_fills_up_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a profile, too: half a profile is none."""
    path = tmp_path / "profile.json"
    profile = load_profile("rtx6000ada-mistral-7b")
    profile.save(path)
    before, write = path.read_bytes(), os.write

    def full(descriptor: int, data: bytes) -> int:
        if len(data) > 100:
            return write(descriptor, data[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("engine.files.writing.os.write", full)
    with pytest.raises(InputError, match=r"profile.json: cannot write \(No space left on device\)"):
        profile.save(path)
    assert path.read_bytes() == before
    assert leftovers(tmp_path) == []


def test_what_cannot_be_replaced_is_written_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is a mount point, as containers have them, and one in a folder that may not be changed."""
    path = tmp_path / "mounted"
    path.write_text("a longer text than the new one")
    inode = path.stat().st_ino

    def busy(*_: object) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    monkeypatch.setattr("engine.files.writing.os.replace", busy)
    write_atomically(path, "new")
    assert (path.read_text(), path.stat().st_ino) == ("new", inode)
    assert leftovers(tmp_path) == []


def test_a_place_that_cannot_be_written_is_found_before(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(InputError, match="expected a file to write, got a folder"):
        check_writable(tmp_path)
    with pytest.raises(InputError, match=r"cannot write \(Not a directory\)"):
        check_writable(file / "below")
    with pytest.raises(InputError, match=r"cannot write \(File name too long\)"):
        check_writable(tmp_path / ("n" * 256))
    check_writable(None, tmp_path / "new" / "folder" / "file", tmp_path / ("n" * 255))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]
    write_atomically(tmp_path / ("n" * 255), "x")


def as_user(code: str, folder: Path) -> str:
    """Output of Python code run by a user who is not root, in a folder."""
    if os.geteuid() == 0:
        command = ["setpriv", "--reuid", "2000", "--regid", "2000", "--clear-groups", sys.executable, "-c", code]
    else:
        command = [sys.executable, "-c", code]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(folder)}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, check=False)
    if "setpriv" in done.stderr or "Permission denied: '/" in done.stderr:
        pytest.skip(f"no other user here: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_protected_files_and_folders_are_refused(tmp_path: Path) -> None:
    """Root may write anything, so another user tries."""
    if os.geteuid() == 0 and not Path("/usr/bin/setpriv").exists():
        pytest.skip("no setpriv here")
    code = """
import os, pathlib
from engine.errors import InputError
from engine.files.writing import check_writable, write_atomically
here = pathlib.Path("here"); here.mkdir(); (here / "kept").write_text("old"); (here / "kept").chmod(0o444)
(here / "open").write_text("an older text"); here.chmod(0o555)
for name in ("kept", "new", "below/new", "open"):
    try:
        check_writable(here / name); write_atomically(here / name, "new"); print(name, "written")
    except InputError as error:
        print(error)
print((here / "kept").read_text(), (here / "open").read_text()); here.chmod(0o755)
"""
    folder = tmp_path
    for parent in (folder, *folder.parents):
        if parent.name.startswith(("test_", "popen-", "pytest-")):  # what pytest and xdist keep for root
            parent.chmod(0o777)
    lines = as_user(code, folder).splitlines()
    assert lines == [
        "here/kept: cannot write (Permission denied)",
        "here/new: cannot write (Permission denied)",
        "here/below/new: cannot write (Permission denied)",
        "open written",
        "old new",
    ]


def test_a_minus_is_standard_output_and_text_goes_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    with text_to_stderr():
        print("for people")
        write_atomically(Path("-"), '{"for": "programs"}\n')
        print("more")
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ('{"for": "programs"}\n', "for people\nmore\n")
    assert [is_stdout(name) for name in ("-", "/dev/stdout", "/dev/fd/1", "x")] == [True, True, True, False]


def test_the_name_of_a_descriptor_is_written_through(tmp_path: Path) -> None:
    """Not replaced: the file behind it is open, and what is printed later follows what was written."""
    code = "from engine.files.writing import write_atomically as w; print('a'); w('/dev/stdout', 'b\\n'); print('c')"
    with (tmp_path / "out").open("wb") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, cwd=ROOT, check=True)
    assert (tmp_path / "out").read_text() == "a\nb\nc\n"
    code = "from engine.files.writing import check_writable as c; c('/dev/fd/77')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert "/dev/fd/77: cannot write (Bad file descriptor)" in done.stderr


def test_names_that_are_no_text_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9 x\n")
    write_atomically(path, f"name: {path.name}")
    assert path.read_text() == "name: caf\\udce9 x\n"
