"""`Crew`: threads that share the rows of a fleet out among themselves, and do other work beside the caller's.

Rows know nothing of each other, so nobody can see who stepped which. What is shared out must let go of Python's lock
while it runs (`nogil` of compiled code, torch's operations), or the others only wait for it.
"""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from engine.ranges import whole

T = TypeVar("T")
THREADS = whole(1, 1024)
"""How many a crew may have."""
PARTS = 8
"""Parts of the rows for each thread: whoever is done takes the next one, so that nobody waits for long."""


def _take(left: deque[tuple[int, int]], work: Callable[[int, int], object]) -> None:
    """Do one part after the other, as long as there are any."""
    while True:
        try:
            first, last = left.popleft()
        except IndexError:
            return
        work(first, last)


class Crew:
    """The calling thread and those beside it, which begin when they are first needed; with one thread, only the former.

    A copy has threads of its own.
    """

    __slots__ = ("_beside", "threads")  # no state of an environment: snapshots look at what has a __dict__

    def __init__(self, threads: int = 1) -> None:
        """Prepare the threads, that of the caller counted."""
        self.threads = threads
        self._beside = ThreadPoolExecutor(threads - 1, "llmsched") if threads > 1 else None

    def __reduce__(self) -> tuple[Any, ...]:
        """How many there are."""
        return Crew, (self.threads,)

    @property
    def is_alone(self) -> bool:
        """Whether there is only the thread of the caller."""
        return self._beside is None

    def share(self, rows: int, work: Callable[[int, int], object]) -> None:
        """Do some work on all rows; who is busy with something else does not take part.

        Args:
            rows: how many there are.
            work: called with the first row and the one behind the last, by several threads at the same time.
        """
        if self._beside is None:
            work(0, rows)
            return
        parts = min(rows, PARTS * self.threads)
        left = deque((k * rows // parts, (k + 1) * rows // parts) for k in range(parts))
        others = [self._beside.submit(_take, left, work) for _ in range(self.threads - 1)]
        try:
            _take(left, work)
        finally:
            for other in others:
                if not other.cancel():
                    other.result()

    def start(self, task: Callable[[], T]) -> Future[T]:
        """Do something beside what the caller does next; alone, at once, and what it raises is raised here."""
        if self._beside is not None:
            return self._beside.submit(task)
        done: Future[T] = Future()
        done.set_result(task())
        return done


ALONE = Crew()
"""The thread of the caller."""
