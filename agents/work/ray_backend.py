"""Independent pieces of work on a Ray cluster: `agents.work.processes.run_tasks` on several machines.

What the tasks hold in common (setups, devices, policies, traces) goes through Ray's object store, once for all of them
and once to each worker process; a task itself is a number. Ray runs a task again elsewhere when its machine or process
is lost; what a task raises is raised here and is not tried again.
"""

import contextlib
import itertools
import logging
import os
import pickle
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

from agents.work.carried import with_files
from agents.work.processes import default_workers
from agents.work.provenance import source_hash, versions
from engine.errors import InputError
from engine.extras import need

Task = TypeVar("Task")
Result = TypeVar("Result")

RETRIES = 3
"""Times that a task is run again whose worker was lost."""
PENDING = 1000
"""Most tasks that Ray has at once: enough for a cluster that grows with its queue, few enough to look through."""
STORE_BYTES = 200_000_000
"""Object store of a cluster that begins and ends with the command."""
_KNOCK_S = 5.0
"""Seconds in which an address must answer: Ray itself would try for good."""
_SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
"""Nothing is sent to Ray's makers, and it leaves GPUs as they are."""
_JOINING = {"RAY_NUM_REDIS_GET_RETRIES": "1"}
"""Who listens at the address but is no Ray is asked for about a minute, not twenty times that."""
_PASSED_ON = ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "PYTHONPATH")
"""Environment variables that workers have as this process has them, if it does."""
_OWN = ("RAY_TMPDIR", "RAY_AUTH_TOKEN", "RAY_AUTH_MODE")
"""Those that belong to a cluster of the command; Ray sets the last."""
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM") if hasattr(signal, name)]


class Parcel(NamedTuple):
    """What goes to every worker process once."""

    sources: str
    """Digest of our sources, and ..."""
    versions: dict[str, str]
    """... versions of what else numbers depend on, where the command runs."""
    folder: str
    """Its current folder, from which relative paths count."""
    arguments: list[str]
    """Its command line, which results may state."""
    content: bytes
    """The function and its tasks."""


class Ray:
    """A cluster as the `agents.work.processes.Backend`; joined when the first task comes."""

    most = PENDING

    def __init__(self, address: str = "auto") -> None:
        """Name the cluster.

        Args:
            address: HOST:PORT of its head, auto (that of RAY_ADDRESS, else the one that runs on this machine), or local
                (one that begins here and ends with the command).

        Raises:
            InputError: Ray is not installed.
        """
        need("ray", "backend")
        self.address = address
        self._joined = False
        self._folder: str | None = None
        self._environment: dict[str, str | None] = {}

    def run(
        self, function: Callable[[Task], Result], tasks: Sequence[Task], workers: int
    ) -> Iterator[tuple[int, Result]]:
        """Yield (index of the task, result) in the order of completion.

        Args:
            function: module-level function of one task.
            tasks: what to work on; picklable.
            workers: tasks that Ray has at once, at most.

        Raises:
            InputError: no such cluster, or workers that are lost again and again.
        """
        ray = self._ray()
        remote = ray.remote(num_cpus=1, max_retries=RETRIES)(_run_one)
        # In a list Ray does not unpack it for each task.
        parcels, waiting = [ray.put(_packed(function, tasks))], iter(range(len(tasks)))
        running: dict[object, int] = {}

        def start(count: int) -> None:
            running.update({remote.remote(parcels, index): index for index in itertools.islice(waiting, count)})

        try:
            start(min(workers, PENDING))
            while running:
                (task,), _ = ray.wait(list(running))
                index = running.pop(task)
                start(1)
                yield index, _result(ray, task)
        finally:
            # Interrupted, failed or abandoned: nobody waits for what is under way.
            with contextlib.suppress(Exception):
                for task in running:
                    ray.cancel(task, force=True)

    def close(self) -> None:
        """Leave the cluster; one that began here ends."""
        if self._joined:
            import_module("ray").shutdown()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
        for name, value in self._environment.items():
            os.environ.pop(name, None)
            os.environ.update({name: value} if value is not None else {})
        self._joined, self._folder, self._environment = False, None, {}

    def _ray(self) -> ModuleType:
        """The package, joined to the cluster; one that this process has joined already is left as it is.

        Raises:
            InputError: there is no such cluster, or another version of Ray or Python runs it.
        """
        settings = _SETTINGS if self.address == "local" else _SETTINGS | _JOINING
        os.environ.update({name: value for name, value in settings.items() if name not in os.environ})
        ray = import_module("ray")
        if ray.is_initialized():
            return ray
        _knock(self.address)
        options = self._own_cluster() if self.address == "local" else {}
        passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        self._joined = True
        try:
            with _signals_as_they_are():
                ray.init(
                    address=self.address,
                    runtime_env={"env_vars": passed_on},
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    **options,
                )
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            text = " ".join(str(error).split())
            raise InputError(f"address: expected a Ray cluster at {self.address!r}, got: {text}") from None
        return ray

    def _own_cluster(self) -> dict[str, Any]:
        """How a cluster begins here: small, seen by nobody else, with files that go when it ends."""
        # A socket's path has at most 107 characters, most of which are Ray's own.
        short = "/tmp" if os.path.isdir("/tmp") else None
        self._folder = tempfile.mkdtemp(prefix="llmsched-ray-", dir=short)
        self._environment = {name: os.environ.get(name) for name in _OWN}
        # Other users of this machine lack the token; without one here Ray would leave one in this user's home.
        os.environ.update({"RAY_TMPDIR": self._folder, "RAY_AUTH_TOKEN": secrets.token_hex(32)})
        return {
            "num_cpus": default_workers(),
            "include_dashboard": False,
            "object_store_memory": STORE_BYTES,
            "_node_ip_address": "127.0.0.1",
        }


@contextlib.contextmanager
def _signals_as_they_are() -> Iterator[None]:
    """Ray takes SIGTERM for itself."""
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)


def _knock(address: str) -> None:
    """Find out whether somebody listens at HOST:PORT; other addresses are Ray's to judge.

    Raises:
        InputError: nobody does.
    """
    place = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    host, _, port = place.rpartition(":")
    if not (host and port.isdecimal() and "/" not in host):
        if address in ("auto", "local") or "://" in address:
            return
        raise InputError(f"address: expected auto, local or HOST:PORT of a Ray cluster, got {address!r}")
    try:
        socket.create_connection((host, int(port)), _KNOCK_S).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"address: expected a Ray cluster at {place}, found none ({error})") from None


def _packed(function: Callable[[Task], Result], tasks: Sequence[Task]) -> Parcel:
    pickler = import_module("ray.cloudpickle")
    with with_files():
        content = pickler.dumps((function, list(tasks)))
    return Parcel(source_hash(), versions(), os.getcwd(), sys.argv, content)


def _result(ray: ModuleType, task: object) -> Any:
    """What a task gave.

    Raises:
        InputError: Ray could not do it; its workers were lost, say, the last one, too.
        Exception: what it raised.
    """
    try:
        return ray.get(task)
    except ray.exceptions.RayTaskError as failure:
        if isinstance(failure.cause, Exception):
            raise failure.cause from failure
        raise
    except ray.exceptions.RayError as failure:
        (text, *_) = str(failure).strip().splitlines() or [type(failure).__name__]
        raise InputError(
            f"the Ray cluster gave up a task ({RETRIES} retries where its worker is lost): {text}"
        ) from None


def _run_one(parcels: list[object], index: int) -> Any:
    """One task, in a worker process."""
    function, tasks = _opened(parcels[0])
    return function(tasks[index])


@lru_cache(maxsize=1)
def _opened(parcel: object) -> tuple[Callable[[Any], Any], list[Any]]:
    """The function and all tasks, unpacked once in each worker process.

    Raises:
        InputError: this machine would not give the same numbers.
    """
    sent = import_module("ray").get(parcel)
    if (sent.sources, sent.versions) != (source_hash(), versions()):
        ours, theirs = (
            f"{v} with sources {s}" for v, s in ((versions(), source_hash()), (sent.versions, sent.sources))
        )
        raise InputError(f"{socket.gethostname()}: expected the llmsched of the command, {theirs}, found {ours}")
    with contextlib.suppress(OSError):  # another machine need not have it
        os.chdir(sent.folder)
    sys.argv = sent.arguments
    opened: tuple[Callable[[Any], Any], list[Any]] = pickle.loads(sent.content)
    return opened
