"""The cache of compiled code: nobody else's code is run, no damaged file is believed, no run ends for want of it."""

import errno
import hashlib
import importlib.util
import os
import pickle
import re
import stat
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.compiled import cache, kept
from engine.errors import CacheWarning

ROOT = Path(__file__).resolve().parents[2]
SOURCE = "from engine.compiled.kept import kept\n\n@kept\ndef double(x):\n    return 2 * x\n"
root_only = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0 or not Path("/usr/bin/setpriv").exists(),
    reason="only root can act as another user",
)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a process that has not looked for its cache yet."""
    monkeypatch.setattr(cache, "_warned", [])
    monkeypatch.setattr(kept.Kept, "full", False)
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    cache.place.cache_clear()
    yield
    monkeypatch.undo()
    cache.place.cache_clear()


@pytest.fixture
def double(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Gives the compiled function as a new process would have it; its cache is in the test's folder."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    source = tmp_path / "source.py"
    source.write_text(SOURCE)

    def imported() -> Any:
        spec = importlib.util.spec_from_file_location("source", source)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "source", module)
        spec.loader.exec_module(module)
        return module.double

    return imported


def came_from_the_cache(function: Any) -> bool:
    assert function(21) == 42
    return bool(sum(function.stats.cache_hits.values()))


def only(folder: Path, pattern: str) -> Path:
    (path,) = folder.rglob(pattern)
    return path


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link(path: Path) -> None:
    path.symlink_to(path.rename(path.with_suffix(".moved")))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut off": lambda path: os.truncate(path, 20),
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(b"\x80\x05garbage" * 9),
    "one bit": flip,
    "gone": Path.unlink,
    "unreadable": lambda path: path.chmod(0),
    "open to others": lambda path: path.chmod(0o666),
    "a pipe": pipe,
    "a link": link,
}


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("pattern", ["*.nbi", "*.nbc"])
def test_a_damaged_file_counts_as_nothing_and_is_replaced(
    double: Callable[[], Any], tmp_path: Path, pattern: str, how: str
) -> None:
    assert not came_from_the_cache(double())
    assert came_from_the_cache(double())
    DAMAGE[how](only(tmp_path, pattern))
    # Root reads what is unreadable.
    assert came_from_the_cache(double()) == (how == "unreadable" and os.geteuid() == 0)
    assert came_from_the_cache(double())


def test_the_code_of_another_signature_is_not_believed(double: Callable[[], Any], tmp_path: Path) -> None:
    """As when two processes wrote the same file: what an entry belongs to is written in it."""
    function = double()
    function(1)
    first = only(tmp_path, "*.nbc")
    function(1.5)
    (second,) = set(tmp_path.rglob("*.nbc")) - {first}
    second.write_bytes(first.read_bytes())
    again = double()
    assert again(1.5) == 3.0
    assert sum(again.stats.cache_hits.values()) == 0


class _Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


@root_only
@pytest.mark.parametrize("pattern", ["*.nbi", "*.nbc"])
def test_a_file_of_another_user_is_not_even_read(double: Callable[[], Any], tmp_path: Path, pattern: str) -> None:
    double()(1)
    path, proof = only(tmp_path, pattern), tmp_path / "executed"
    body = pickle.dumps(_Evil(f"touch {proof}"))
    path.write_bytes(body + hashlib.sha256(body).digest())
    os.chown(path, 2000, 2000)
    assert not came_from_the_cache(double())
    assert not proof.exists()


@root_only
def test_a_folder_of_another_user_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign, link = tmp_path / "a" / "llmsched", tmp_path / "b" / "llmsched"
    foreign.mkdir(parents=True)
    os.chown(foreign, 2000, 2000)
    link.parent.mkdir()
    link.symlink_to(tmp_path)
    os.chown(link, 2000, 2000, follow_symlinks=False)
    for folder in (foreign, link):
        monkeypatch.setattr(cache, "_warned", [])
        cache.place.cache_clear()
        monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder.parent))
        with pytest.warns(CacheWarning, match=rf"{folder}: .*it belongs to another user.*NUMBA_CACHE_DIR or XDG"):
            private = cache.place()
        assert private is not None
        assert not private.is_relative_to(tmp_path / "a")
        assert stat.S_IMODE(private.parent.stat().st_mode) == 0o700
        private.parent.rmdir()


def test_the_folder_is_closed_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one of an older version, and whatever the umask is."""
    (tmp_path / "old" / "llmsched").mkdir(parents=True, mode=0o777)
    for name, umask in (("old", 0o002), ("new", 0o000), ("none", 0o777)):
        cache.place.cache_clear()
        (tmp_path / name).mkdir(exist_ok=True)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        before = os.umask(umask)
        try:
            place = cache.place()
        finally:
            os.umask(before)
        assert place is not None
        assert place.parent == tmp_path / name / "llmsched"
        assert [stat.S_IMODE(path.stat().st_mode) for path in (place, place.parent)] == [0o700, 0o700]


SHOW = "from engine.compiled import cache; print(cache.place())"


def run(code: str, *before: str, **environment: str | None) -> "subprocess.CompletedProcess[str]":
    given = {key: value for key, value in (os.environ | environment).items() if value is not None}
    command = [*before, sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, check=False)


@root_only
def test_without_a_home_the_place_is_private_and_removed_at_exit() -> None:
    user = ("setpriv", "--reuid", "2000", "--regid", "0", "--clear-groups")
    done = run(SHOW, *user, HOME=None, XDG_CACHE_HOME=None, NUMBA_CACHE_DIR=None, TMPDIR="/tmp")
    if done.returncode and "ModuleNotFoundError" in done.stderr:
        pytest.skip("another user cannot read this checkout")
    assert done.returncode == 0, done.stderr
    place = Path(done.stdout.strip())
    assert re.fullmatch(r"/tmp/llmsched-\w+/llmsched", str(place))
    assert not place.parent.exists()
    assert "there is no home folder" in done.stderr
    assert done.stderr.count("\n") == 1


def test_without_any_place_it_goes_on_with_one_warning(
    double: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere(**_: object) -> str:
        raise FileNotFoundError(errno.ENOENT, "no temporary folder")

    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file"))
    monkeypatch.setattr("engine.compiled.cache.tempfile.mkdtemp", nowhere)
    with pytest.warns(CacheWarning) as told:
        assert [came_from_the_cache(double()) for _ in range(2)] == [False, False]
    assert len(told) == 1
    assert "file/llmsched: compiled code cannot be kept there (Not a directory)" in str(told[0].message)
    assert cache.place() is None


def test_a_full_disk_is_one_warning_with_the_folder(
    double: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(kept, "_write", full)
    with pytest.warns(CacheWarning, match=rf"{tmp_path}/cache/llmsched: .*No space left on device") as told:
        assert [came_from_the_cache(double()) for _ in range(2)] == [False, False]
    assert len(told) == 1


def test_a_warning_is_never_an_error(
    double: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert double()(21) == 42
    assert capsys.readouterr().err.startswith(f"llmsched: {tmp_path}/file/llmsched: compiled code cannot be kept")


def test_many_processes_may_write_at_once(double: Callable[[], Any], tmp_path: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from source import double; print(double(1), double(.5))"
    cache = str(tmp_path / "cache")
    command = [sys.executable, "-c", code]
    environment = os.environ | {"NUMBA_CACHE_DIR": cache, "PYTHONDONTWRITEBYTECODE": "1"}
    crowd = [
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    assert [process.communicate(timeout=120) for process in crowd] == [("2 1.0\n", "")] * 4
    assert not list(Path(cache).rglob("*.tmp.*"))
    assert came_from_the_cache(double())


def test_old_folders_are_forgotten_but_not_one_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two checkouts of different age, each running."""
    base = tmp_path / "llmsched"
    for k in range(6):
        (base / f"old{k}").mkdir(parents=True)
        os.utime(base / f"old{k}", (k, k))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    descriptor = cache._lock(base / "old0", exclusive=False)
    os.utime(base / "old0", (0, 0))
    place = cache.place()
    assert place is not None
    assert sorted(path.name for path in base.iterdir()) == sorted([place.name, "old0", "old3", "old4", "old5"])
    os.close(descriptor)


def test_a_function_without_a_file_is_compiled_all_the_same() -> None:
    space: dict[str, Any] = {}
    exec(SOURCE, space)
    assert space["double"](21) == 42


def test_all_compiled_functions_are_kept_this_way() -> None:
    packages = ("engine", "baselines", "llmsched_env", "agents")
    texts = {path: path.read_text(encoding="utf-8") for name in packages for path in (ROOT / name).rglob("*.py")}
    assert [str(path) for path, text in texts.items() if re.search(r"cache ?= ?True", text)] == []


def test_the_warning_is_one_line_wherever_the_command_lies(tmp_path: Path) -> None:
    (tmp_path / "llmsched").write_text("a line of the script\n")
    begin = f"import sys; sys.path.insert(0, {str(tmp_path)!r})"
    program = f"{begin}; from engine.compiled import cache; cache.warn('here', OSError())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, env=os.environ)
    assert "compiled code cannot be kept there" in done.stderr
    assert done.stderr.count("\n") == 1
