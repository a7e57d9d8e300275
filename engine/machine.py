"""What this machine can hold, for refusing what it cannot before anything is allocated."""

import os
from pathlib import Path

from engine.errors import InputError
from engine.files.reading import kind_of


def check_memory(count: int, bytes_each: int, option: str) -> None:
    """Refuse a number of things that this machine's memory cannot hold, before anything is allocated.

    Args:
        count: how many.
        bytes_each: memory that one takes at the least.
        option: name of the option or field that says how many, for the message.

    Raises:
        InputError: they need more than the machine (or the container) has.
    """
    needed = count * bytes_each
    if needed < 2**30 or needed <= (limit := memory_limit()):
        return
    raise InputError(
        f"{option}: expected at most {limit // bytes_each}, for which this machine has memory "
        f"({limit / 2**30:.0f} GiB), got {kind_of(count)}"
    )


def memory_limit() -> int:
    """Bytes of memory of this machine, or of the container that it is."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(int(Path(file).read_text(encoding="ascii")))
        except (OSError, ValueError):  # no such limit, or the word "max"
            continue
    return min(limit for limit in limits if limit > 0)
