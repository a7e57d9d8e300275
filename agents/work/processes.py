"""Independent pieces of work in processes, or where a `Backend` does them; the results do not depend on how many.

Only the parent decides what signals mean: workers ignore them, are killed when the parent gives up, and end by
themselves when it is gone, however it went.
"""

import _thread
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from contextvars import ContextVar
from multiprocessing.connection import wait
from types import FrameType
from typing import Protocol, TypeVar

from engine.errors import InputError

Task = TypeVar("Task")
Result = TypeVar("Result")

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_PARENT = "LLMSCHED_PARENT"
"""Environment variable of a command that another one starts: the process with which it ends."""
_PR_SET_PDEATHSIG = 1
_said: set[int] = set()


class Interrupted(KeyboardInterrupt):
    """SIGINT, SIGTERM or SIGHUP: what Ctrl-C raises, with an exit code."""

    def __init__(self, number: int, forgotten: Callable[[int], None]) -> None:
        """Name the signal.

        Args:
            number: the signal's.
            forgotten: called with it when the last reference to this exception is gone.
        """
        super().__init__(signal.Signals(number).name)
        self.number, self.exit_code, self._forgotten = number, 128 + number, forgotten

    def __del__(self) -> None:
        self._forgotten(self.number)


class Terminated(Interrupted):
    """SIGTERM or SIGHUP: everything that Ctrl-C does, with another exit code."""


class _Listener:
    """Hears signals until the work ends.

    An exception that a handler raises is lost if it comes in a finaliser or a callback of C code (numba's compiler has
    some): it is dropped there, and the work would go on to its end. Then the signal is sent once more, a little later.
    """

    def __init__(self) -> None:
        self._ended = False
        self._heard: weakref.ref[Interrupted] | None = None
        self._last = 0
        self._hook = sys.unraisablehook

    def hear(self, number: int, frame: FrameType | None) -> None:
        """Raise what stands for a signal; but what is under way after SIGTERM is the cleaning up."""
        under_way = self._heard() if self._heard else None
        if isinstance(under_way, Terminated) and number != signal.SIGINT:
            return
        error = (Interrupted if number == signal.SIGINT else Terminated)(number, self._again)
        self._heard, self._last = weakref.ref(error), number
        try:
            raise error
        finally:
            # This frame is part of the traceback: a circle would keep the exception alive.
            del error

    def _again(self, number: int) -> None:
        if self._ended:
            return
        timer = threading.Timer(0.05, self._send, (number,))
        timer.daemon = True
        with contextlib.suppress(RuntimeError):
            # At the very end there are no more threads.
            timer.start()

    def _send(self, number: int) -> None:
        if self._ended:
            return
        if hasattr(signal, "pthread_kill"):
            signal.pthread_kill(threading.main_thread().ident or 0, number)
        else:
            _thread.interrupt_main(signal.Signals(number))

    def dropped(self, unraisable: "sys.UnraisableHookArgs") -> None:
        """Stands in for `sys.unraisablehook`: says nothing about what comes again."""
        if not isinstance(unraisable.exc_value, Interrupted):
            self._hook(unraisable)

    def end(self) -> None:
        """The work has ended, however."""
        self._ended = True

    def missed(self) -> Interrupted | None:
        """A signal that was heard and lost before the work came to its end."""
        kind = Interrupted if self._last == signal.SIGINT else Terminated
        return kind(self._last, lambda _: None) if self._last else None


@contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """Inside, SIGINT raises `Interrupted`, SIGTERM and SIGHUP `Terminated`; those that are ignored (nohup) stay so.

    Raises:
        Interrupted: one came; sooner or later even if what the handler raised was lost.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    mine = [number for number in _SIGNALS if before[number] != signal.SIG_IGN]
    listener, hook = _Listener(), sys.unraisablehook
    for number in mine:
        signal.signal(number, listener.hear)
    sys.unraisablehook = listener.dropped
    try:
        yield
        if missed := listener.missed():
            raise missed
    finally:
        listener.end()
        sys.unraisablehook = hook
        for number in mine:
            signal.signal(number, before[number] or signal.SIG_DFL)


class Backend(Protocol):
    """What does pieces of work in the place of processes of this machine."""

    most: int
    """Pieces of work at once where nobody says how many."""

    def run(
        self, function: Callable[[Task], Result], tasks: Sequence[Task], workers: int
    ) -> Iterator[tuple[int, Result]]:
        """As `run_tasks`, for at least one task."""

    def close(self) -> None:
        """Leave nothing behind."""


_backend: ContextVar[Backend | None] = ContextVar("backend", default=None)


@contextmanager
def done_by(backend: Backend | None) -> Iterator[None]:
    """Inside, this does the tasks of `run_tasks`; None: processes of this machine."""
    token = _backend.set(backend)
    try:
        yield
    finally:
        _backend.reset(token)
        if backend:
            backend.close()


def default_workers() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def workers_for(asked: int | None) -> int:
    """As many workers as somebody asked for; who does not say gets one for each core, or as the backend has it."""
    backend = _backend.get()
    most = backend.most if backend else default_workers()
    return most if asked is None else asked


def start_method() -> str:
    """`fork` where it is safe (it inherits compiled kernels and starts at once), else `spawn`.

    A fork copies only the calling thread: torch and numba's parallel layer would wait for threads that are gone. From
    Python 3.12 on any other thread draws a warning, and numpy's BLAS has some.
    """
    threaded = {"torch", "numba.np.ufunc.omppool", "numba.np.ufunc.tbbpool", "numba.np.ufunc.workqueue"}
    can_fork = sys.platform == "linux" and sys.version_info < (3, 12) and threaded.isdisjoint(sys.modules)
    return "fork" if can_fork else "spawn"


def _follow_the_parent(by_kernel: bool) -> None:
    """First thing in a worker: leave signals to the parent, and end when it ends.

    Args:
        by_kernel: the thread that starts workers lives as long as its process, so the kernel may watch it.
    """
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    parent = multiprocessing.parent_process()
    assert parent is not None
    if by_kernel:
        _die_with(parent.pid)
    # Where the kernel does not say so, the pipe between the two does.
    threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()


def _die_with(parent: int | None) -> None:
    """Let Linux kill this process when its parent ends."""
    if sys.platform != "linux":
        return
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        # It ended before the kernel was told.
        os._exit(1)


def child_environment() -> dict[str, str]:
    """The environment for a command of ours that this process starts and that ends with it."""
    return os.environ | {_PARENT: str(os.getpid())}


def end_with_parent() -> None:
    """Called by a command: if another one started it (`child_environment`), end when that ends."""
    if (parent := os.environ.pop(_PARENT, "")).isdecimal():
        _die_with(int(parent))


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Processes started inside have signals blocked from their first instruction on; here they wait until the end."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _number_of_processes(workers: int, tasks: int) -> int:
    """Not more than there are tasks, and not more than twice the cores; says so once."""
    most = 2 * default_workers()
    if min(workers, tasks) > most and workers not in _said:
        _said.add(workers)
        print(f"llmsched: workers: {workers} asked for, {most} used (two for each core)", file=sys.stderr)
    return min(workers, tasks, most)


def run_tasks(function: Callable[[Task], Result], tasks: Sequence[Task], workers: int) -> Iterator[tuple[int, Result]]:
    """Yield (index of the task, result) in the order of completion; the results do not depend on `workers`.

    Args:
        function: module-level function of one task.
        tasks: what to work on; picklable if workers > 1.
        workers: processes, at most two for each core; 1 works in this one. What a backend does at once (`done_by`).

    Raises:
        InputError: workers < 1, or a worker died.
    """
    if workers < 1:
        raise InputError(f"workers: expected a whole number >= 1, got {workers}")
    if (backend := _backend.get()) and tasks:
        yield from backend.run(function, tasks, workers)
    elif (number := _number_of_processes(workers, len(tasks))) > 1:
        yield from _in_processes(function, tasks, number)
    else:
        for index, task in enumerate(tasks):
            yield index, function(task)


def _in_processes(
    function: Callable[[Task], Result], tasks: Sequence[Task], number: int
) -> Iterator[tuple[int, Result]]:
    context = multiprocessing.get_context(start_method())
    before = set(multiprocessing.active_children())
    by_kernel = threading.current_thread() is threading.main_thread()
    pool = ProcessPoolExecutor(number, context, _follow_the_parent, (by_kernel,))
    finished = False
    try:
        with _signals_wait():
            futures: dict[Future[Result], int] = {pool.submit(function, t): k for k, t in enumerate(tasks)}
        for future in as_completed(futures):
            yield futures[future], future.result()
        finished = True
    except BrokenProcessPool:
        raise InputError("a worker process died (out of memory?); try fewer --workers") from None
    finally:
        if not finished:
            # Interrupted, failed or abandoned: nobody waits for the cells under way.
            for process in set(multiprocessing.active_children()) - before:
                process.kill()
        pool.shutdown(wait=True, cancel_futures=True)


def run_in_order(
    function: Callable[[Task], Result], tasks: Sequence[Task], workers: int, on_done: Callable[[int, int], object]
) -> tuple[Result, ...]:
    """The results of all tasks in their order.

    Args:
        function: module-level function of one task.
        tasks: what to work on.
        workers: as in `run_tasks`.
        on_done: called at the start and after each task with (tasks done, all tasks).

    Raises:
        InputError: as `run_tasks`.
    """
    found: dict[int, Result] = {}
    on_done(0, len(tasks))
    for index, result in run_tasks(function, tasks, workers):
        found[index] = result
        on_done(len(found), len(tasks))
    return tuple(found[index] for index in range(len(tasks)))
