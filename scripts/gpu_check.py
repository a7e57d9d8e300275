"""`agents.device.check` without an installation: everything that needs a GPU, in one run of under 8 minutes.

python3 scripts/gpu_check.py --out out/gpu
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from agents.device.check import run

if __name__ == "__main__":
    sys.exit(run())
