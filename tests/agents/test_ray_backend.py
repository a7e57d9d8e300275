"""The back end on Ray, without Ray: a stand-in for the few functions that it uses (the real one: test_ray_cluster)."""

import itertools
import os
import pickle
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from agents import cli
from agents.options import WorkerOptions
from agents.source import Source
from agents.work import ray_backend
from agents.work.carried import with_files
from agents.work.processes import done_by, run_in_order, run_tasks, workers_for
from agents.work.ray_backend import PENDING, Ray
from engine.errors import InputError


class RayError(Exception):
    """Stands for `ray.exceptions.RayError`."""


class RayTaskError(RayError):
    """Stands for `ray.exceptions.RayTaskError`."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(f"ray::task\n{cause!r}")
        self.cause = cause


class Cluster:
    """Does each task when it is waited for, the newest first; some workers are lost."""

    def __init__(self) -> None:
        self.lost: dict[int, RayError] = {}
        self.packed: dict[int, bytes] = {}
        self.most, self.cancelled, self.joined, self.options = 0, 0, False, dict[str, Any]()
        self._numbers = itertools.count()
        self._pending: dict[int, Callable[[], Any]] = {}
        self._done: dict[int, Callable[[], Any]] = {}

    def put(self, value: object) -> int:
        number = next(self._numbers)
        self.packed[number] = pickle.dumps(value)
        return number

    def get(self, number: int) -> Any:
        if number in self.packed:
            return pickle.loads(self.packed[number])
        task = self._done.pop(number)
        if number in self.lost:
            raise self.lost[number]
        try:
            return task()
        except Exception as error:
            raise RayTaskError(error) from None

    def remote(self, **options: Any) -> Callable[[Callable[..., Any]], Any]:
        self.options |= options
        cluster = self

        class Remote:
            def __init__(self, function: Callable[..., Any]) -> None:
                self.function = function

            def remote(self, *arguments: Any) -> int:
                number = next(cluster._numbers)
                cluster._pending[number] = lambda: self.function(*arguments)
                cluster.most = max(cluster.most, len(cluster._pending))
                return number

        return Remote

    def wait(self, tasks: list[int]) -> tuple[list[int], list[int]]:
        self._done[tasks[-1]] = self._pending.pop(tasks[-1])
        return [tasks[-1]], tasks[:-1]

    def cancel(self, number: int, force: bool) -> None:
        assert force
        del self._pending[number]
        self.cancelled += 1

    def init(self, **options: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.options |= options
        self.joined = True

    def shutdown(self) -> None:
        self.joined = False

    def is_initialized(self) -> bool:
        return self.joined


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    found, module = Cluster(), ModuleType("ray")
    for name in ("put", "get", "remote", "wait", "cancel", "init", "shutdown", "is_initialized"):
        setattr(module, name, getattr(found, name))
    exceptions = ModuleType("ray.exceptions")
    exceptions.__dict__.update(RayError=RayError, RayTaskError=RayTaskError)
    module.__dict__.update(exceptions=exceptions, cloudpickle=pickle)
    for name, part in {"ray": module, "ray.exceptions": exceptions, "ray.cloudpickle": pickle}.items():
        monkeypatch.setitem(sys.modules, name, part)
    monkeypatch.setattr(ray_backend, "need", lambda extra, what: None)
    settings = ray_backend._SETTINGS | ray_backend._JOINING
    for name in (*settings, "RAY_TMPDIR", "RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    yield found
    ray_backend._opened.cache_clear()
    assert not found.joined
    for name in settings:
        os.environ.pop(name, None)


def double(task: int) -> int:
    if task < 0:
        raise InputError(f"expected a number >= 0, got {task}")
    return 2 * task


def test_results_come_with_the_index_of_their_task(cluster: Cluster) -> None:
    with done_by(Ray()):
        assert dict(run_tasks(double, range(20), 3)) == {k: 2 * k for k in range(20)}
        assert run_in_order(double, [4, 5], 1, lambda done, total: None) == (8, 10)
        assert list(run_tasks(double, [], 3)) == []
        assert cluster.joined
    assert cluster.most == 3
    assert len(cluster.packed) == 2, "one parcel for all tasks of a call"
    assert cluster.options["max_retries"] == 3
    assert list(run_tasks(double, [1], 1)) == [(0, 2)], "outside, processes of this machine do it"


def test_who_does_not_say_how_many_gets_as_many_as_the_cluster_has_room_for(cluster: Cluster) -> None:
    with done_by(Ray()):
        assert workers_for(None) == PENDING
        assert workers_for(2) == 2
        with pytest.raises(InputError, match="workers: expected a whole number >= 1, got 0"):
            list(run_tasks(double, [1], 0))


def test_the_error_of_a_task_is_raised_as_it_is_and_ends_the_others(cluster: Cluster) -> None:
    with done_by(Ray()), pytest.raises(InputError, match=r"^expected a number >= 0, got -1$"):
        list(run_tasks(double, [1, 2, -1], 3))
    assert cluster.cancelled == 2


def test_a_cluster_that_gives_up_a_task_is_one_line(cluster: Cluster) -> None:
    cluster.lost[2] = RayError("The worker died.\nLong story")
    with done_by(Ray()), pytest.raises(InputError) as told:
        list(run_tasks(double, [1, 2], 2))
    assert str(told.value) == ("the Ray cluster gave up a task (3 retries where its worker is lost): The worker died.")


def test_who_looks_no_further_cancels_what_is_under_way(cluster: Cluster) -> None:
    with done_by(Ray()):
        results = run_tasks(double, range(10), 4)
        next(results)
        results.close()  # type: ignore[attr-defined]
        assert cluster.cancelled == 4


def test_a_machine_with_another_llmsched_is_refused(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = ray_backend._packed

    def older(function: Callable[[Any], Any], tasks: Any) -> Any:
        return packed(function, tasks)._replace(sources="0123456789abcdef")

    monkeypatch.setattr(ray_backend, "_packed", older)
    with done_by(Ray()), pytest.raises(InputError, match=r"expected the llmsched of the command, .*0123456789abcdef"):
        list(run_tasks(double, [1], 1))


def test_signals_stay_ours_and_nothing_is_reported_to_others(cluster: Cluster) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with done_by(Ray("local")):
        list(run_tasks(double, [1], 1))
        assert signal.getsignal(signal.SIGTERM) == before
        assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
        folder = Path(os.environ["RAY_TMPDIR"])
        assert folder.is_dir()
    assert not folder.exists()
    assert not {"RAY_TMPDIR", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"} & set(os.environ)
    assert cluster.options["include_dashboard"] is False


def test_a_cluster_that_this_process_has_joined_stays_joined(cluster: Cluster) -> None:
    cluster.joined = True
    with done_by(Ray("nowhere")):
        assert list(run_tasks(double, [1], 1)) == [(0, 2)]
    assert cluster.joined
    cluster.joined = False


@pytest.mark.parametrize("address", ["auto", "127.0.0.1:{port}"])
def test_an_address_at_which_nobody_listens_is_refused(
    cluster: Cluster, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    with done_by(Ray(address.format(port=port))), pytest.raises(InputError) as told:
        list(run_tasks(double, [1], 1))
    assert str(told.value).startswith(f"address: expected a Ray cluster at 127.0.0.1:{port}, found none (")


@pytest.mark.parametrize("address", ["somewhere", "host:port", "1.2.3.4", ""])
def test_what_is_no_address_is_refused(cluster: Cluster, address: str) -> None:
    with done_by(Ray(address)), pytest.raises(InputError, match="address: expected auto, local or HOST:PORT"):
        list(run_tasks(double, [1], 1))


def test_a_cluster_that_does_not_fit_is_one_line(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**options: Any) -> None:
        raise RuntimeError("Version mismatch:\n  this is Ray 1")

    monkeypatch.setattr(sys.modules["ray"], "init", init)
    with done_by(Ray()), pytest.raises(InputError) as told:
        list(run_tasks(double, [1], 1))
    assert str(told.value) == "address: expected a Ray cluster at 'auto', got: Version mismatch: this is Ray 1"


def test_an_address_needs_the_back_end() -> None:
    with pytest.raises(InputError, match="address: expected --backend ray beside it, got none"):
        WorkerOptions(address="auto").place_of_work()
    assert WorkerOptions().place_of_work() is None


def test_a_command_does_its_runs_there(cluster: Cluster, tmp_path: Path) -> None:
    line = "evaluate --policies sarathi,slai --num-requests 20 --seeds 2 --no-plots --workers 1"
    places = {"processes": tmp_path / "a", "ray": tmp_path / "b"}
    for backend, out in places.items():
        assert cli.main([*line.split(), "--backend", backend, "--out", str(out)]) == 0
    one, other = ((out / "cells.jsonl").read_text().splitlines() for out in places.values())
    assert sorted(one) == sorted(other)
    assert len(one) == 5
    assert cluster.packed


def test_a_trace_goes_along_to_a_machine_that_does_not_have_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trace = Path("trace.csv")
    trace.write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,10,2\n0.5,20,3\n")
    source = Source(trace="trace.csv", synthetic_arrivals=False)
    requests = source.requests(None, 0)
    there = source.to_dict()
    with with_files():
        sent = pickle.dumps(source)
    assert pickle.loads(sent) == source, "the same file is here"
    assert len(pickle.dumps(source)) < len(sent)
    trace.write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,11,2\n0.5,20,3\n")
    for _ in range(2):
        arrived = pickle.loads(sent)
        assert arrived.requests(None, 0).digest() == requests.digest()
        assert arrived.requests(None, 0).source == requests.source
        assert arrived.to_dict() | {"trace": ""} == there | {"trace": ""}
        trace.unlink(missing_ok=True)
