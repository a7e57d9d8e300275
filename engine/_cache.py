"""Where compiled kernels are kept between processes.

Numba's own cache looks only at the time stamp of the file that holds a function, so a kernel that
inlined code from another file would go stale when that other file changes. The cache folder is
therefore named after the contents of all sources of the packages that hold kernels: any edit starts
a fresh folder, the newest few stay. Set ``NUMBA_CACHE_DIR`` to choose the place yourself.
"""

import hashlib
import os
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import numba
from numba.core.errors import NumbaExperimentalFeatureWarning

_PACKAGES = ("engine", "baselines", "llmsched_env", "agents")
_KEEP = 4


def _source_digest(root: Path) -> str:
    digest = hashlib.sha256(f"{sys.version}{os.name}".encode())
    for package in _PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(path.name.encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _writable_home() -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmsched"
    try:
        base.mkdir(parents=True, exist_ok=True)
        probe = base / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError:
        base = Path(tempfile.gettempdir()) / f"llmsched-{os.getuid() if hasattr(os, 'getuid') else 'cache'}"
        base.mkdir(parents=True, exist_ok=True)
    return base


def _forget_old(base: Path, current: str) -> None:
    folders = [p for p in base.iterdir() if p.is_dir() and p.name != current]
    for folder in sorted(folders, key=lambda p: p.stat().st_mtime)[: -(_KEEP - 1)]:
        shutil.rmtree(folder, ignore_errors=True)


def _use_source_keyed_cache() -> None:
    if os.environ.get("NUMBA_CACHE_DIR"):
        return
    base = _writable_home()
    name = _source_digest(Path(__file__).resolve().parent.parent)
    folder = base / name
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _forget_old(base, name)
    vars(numba.config)["CACHE_DIR"] = str(folder)


# Importing this module, first of all in `engine`, is what sets the folder: kernels are declared right after.
_use_source_keyed_cache()
# Policies reach the compiled loops as first-class functions, so that one cached loop serves all of them; numba calls
# the feature experimental each time it is compiled.
warnings.filterwarnings("ignore", "First-class function type feature", NumbaExperimentalFeatureWarning)
