"""Independent pieces of work in processes; the results do not depend on how many there are."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from engine.errors import InputError

Task = TypeVar("Task")
Result = TypeVar("Result")


def default_workers() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start_method() -> str:
    """`fork` where it is safe (it inherits compiled kernels and starts at once), else `spawn`.

    A fork copies only the calling thread: torch and numba's parallel layer would wait for threads that are gone. From
    Python 3.12 on any other thread draws a warning, and numpy's BLAS has some.
    """
    threaded = {"torch", "numba.np.ufunc.omppool", "numba.np.ufunc.tbbpool", "numba.np.ufunc.workqueue"}
    can_fork = sys.platform == "linux" and sys.version_info < (3, 12) and threaded.isdisjoint(sys.modules)
    return "fork" if can_fork else "spawn"


def _ignore_interrupt() -> None:
    """Ctrl-C reaches the whole process group; the parent alone decides what it means."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Processes started inside ignore Ctrl-C from their first instruction on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def run_tasks(function: Callable[[Task], Result], tasks: Sequence[Task], workers: int) -> Iterator[tuple[int, Result]]:
    """Yield (index of the task, result) in the order of completion; the results do not depend on `workers`.

    Args:
        function: module-level function of one task.
        tasks: what to work on; picklable if workers > 1.
        workers: processes; 1 works in this one.

    Raises:
        InputError: workers < 1, or a worker died.
    """
    if workers < 1:
        raise InputError(f"workers: expected a whole number >= 1, got {workers}")
    if min(workers, len(tasks)) <= 1:
        for index, task in enumerate(tasks):
            yield index, function(task)
        return
    context = multiprocessing.get_context(start_method())
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(min(workers, len(tasks)), context, _ignore_interrupt)
    finished = False
    try:
        with _interrupts_ignored():
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
                process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)
