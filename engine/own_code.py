"""Code of users: from ``module:Name`` or ``path/file.py:Name`` to the object; what is wrong with it in one line.

Modules are found as Python finds them, then in the current folder. A file is read as it is now, whatever was loaded
from it before, so that an edited one counts at once; modules next to it can be imported from it by their names.
"""

import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
import sysconfig
import traceback
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

from engine.errors import InputError
from engine.files.reading import read_bytes

_FILE = re.compile(r"(?P<place>.+?\.py)(?::(?P<name>[A-Za-z_]\w*)(?![\w=]))?(?::(?P<settings>.*))?", re.DOTALL)
_MODULE = re.compile(
    r"(?P<place>[A-Za-z_]\w*(?:\.\w+)*):(?P<name>[A-Za-z_]\w*)(?![\w=])(?::(?P<settings>.*))?", re.DOTALL
)
_PREFIX = "llmsched_own_"
_ROOT = Path(__file__).resolve().parent.parent
_OURS = [str(_ROOT / name) + os.sep for name in ("engine", "baselines", "llmsched_env", "agents")]
_INSTALLED = [os.path.realpath(sysconfig.get_path(name)) + os.sep for name in ("stdlib", "platstdlib")]
_PACKAGES = re.compile(r"[/\\](site|dist)-packages[/\\]")
_LONGEST = 300
"""Characters of somebody else's message that are shown."""


class Place(NamedTuple):
    """Where an object of a user is, and the parameters behind it."""

    place: str
    """A module's name or the path of a .py file."""
    name: str
    """The object's name in it, "" if there is only one."""
    settings: str
    """What follows, such as ``k=3``."""

    @property
    def text(self) -> str:
        """The place as it was written, without the settings."""
        return f"{self.place}:{self.name}" if self.name else self.place


def parse_place(spec: str) -> Place | None:
    """The parts of ``module:Name``, ``file.py``, ``file.py:Name``, each perhaps with ``:settings``; None for others."""
    found = _FILE.fullmatch(spec) or _MODULE.fullmatch(spec)
    return Place(found["place"], found["name"] or "", found["settings"] or "") if found else None


def load_module(place: str) -> ModuleType:
    """The module of a place, imported if need be.

    Raises:
        InputError: there is none, or it cannot be imported (names file and line of the fault).
    """
    return _from_file(place) if place.endswith(".py") else _by_name(place)


def _by_name(name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        # Last, so that a file here cannot take the place of an installed package.
        sys.path.append(here)
        importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise InputError(
                f"{name}: expected a module in the current folder or among the installed packages, found none"
            ) from None
        raise InputError(f"{name}: cannot import the module: {blame(error)}") from error
    except (Exception, SystemExit) as error:
        raise InputError(f"{name}: cannot import the module: {blame(error)}") from error


def _from_file(place: str) -> ModuleType:
    path = Path(place).expanduser().resolve()
    text = read_bytes(path, "a file with Python code")
    name = f"{_PREFIX}{path.stem}_{hashlib.sha256(os.fsencode(path) + b'|' + text).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        # Not through the loader: its byte code is keyed by whole seconds, too coarse for a file that is being edited.
        exec(compile(text, str(path), "exec"), vars(module))
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise InputError(f"{place}: cannot import the file: {blame(error)}") from error
    return module


def file_place(owner: type | FunctionType) -> str:
    """``path/file.py:Name`` of a class or function that came from a file by `load_module`; "" for others."""
    module = sys.modules.get(owner.__module__)
    return f"{module.__file__}:{owner.__name__}" if module and module.__name__.startswith(_PREFIX) else ""


def load_object(place: Place) -> Any:
    """The object of a place that names one.

    Raises:
        InputError: no such module or object.
    """
    module = load_module(place.place)
    if not hasattr(module, place.name):
        known = [name for name, value in vars(module).items() if _is_own(value, module)]
        raise InputError(
            f"{place.text}: expected a name that {place.place} defines ({', '.join(known[:12]) or 'none'}), "
            f"got {place.name!r}"
        )
    return getattr(module, place.name)


def _is_own(value: object, module: ModuleType) -> bool:
    """Whether a class or function is defined in this module, not imported into it."""
    return callable(value) and getattr(value, "__module__", None) == module.__name__


def own_objects(module: ModuleType) -> dict[str, Any]:
    """Public classes and functions that a module itself defines, by name."""
    return {n: v for n, v in vars(module).items() if _is_own(v, module) and not n.startswith("_")}


def _is_installed(file: str) -> bool:
    return bool(_PACKAGES.search(file)) or any(os.path.realpath(file).startswith(folder) for folder in _INSTALLED)


def is_ours(file: str) -> bool:
    """Whether a source file belongs to this product."""
    return any(file.startswith(folder) for folder in _OURS)


def blame(error: BaseException, place: str = "") -> str:
    """An exception of somebody else's code in one line: kind, message, file and line of that code.

    Args:
        error: what was raised.
        place: where it comes from, if its traceback does not say.
    """
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split())
    where = _where(error, text) or place
    text = re.sub(r"Failed in nopython mode pipeline \(step: [^)]*\) |\(array\(.*", "", text)
    told = f"{type(error).__name__}: {text}" if text else type(error).__name__
    told = told if len(told) <= _LONGEST else f"{told[:_LONGEST]}..."
    return f"{told} ({where})" if where else told


def _where(error: BaseException, text: str) -> str:
    """Where an exception comes from: the innermost line that is neither ours nor in an installed package."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    frames = [(f.filename, f.lineno) for f in traceback.extract_tb(error.__traceback__)]
    own = [(file, line) for file, line in frames if not _is_passed_over(file)]
    # The compiler of kernels writes the place into the message.
    compiled = [(file, int(line)) for file, line in re.findall(r'File "([^"]+)", line (\d+)', text)]
    found = own or compiled
    return f"{found[-1][0]}, line {found[-1][1]}" if found else ""


def _is_passed_over(file: str) -> bool:
    return is_ours(file) or _is_installed(file) or file.startswith("<frozen")


_loaded: dict[str, tuple[Any, bytes]] = {}
"""Name of a module -> (its import spec, digest of its source when it was first looked at)."""


def _content(module: ModuleType) -> bytes:
    """Digest of the source that a module was loaded from, not of what was made of the file since."""
    known = _loaded.get(module.__name__)
    if known is not None and known[0] is module.__spec__:
        return known[1]
    try:
        data = Path(str(module.__file__)).read_bytes()
    except OSError:
        data = b""
    _loaded[module.__name__] = module.__spec__, hashlib.sha256(data).digest()
    return _loaded[module.__name__][1]


def modules_behind(module: ModuleType) -> list[ModuleType]:
    """A user's module and those of the user's that it takes names from, directly or through others."""
    top, found, todo = module.__name__.partition(".")[0], {}, [module]
    while todo:
        one = todo.pop()
        if one.__name__ not in found and (one is module or _is_users(one, top)):
            found[one.__name__] = one
            todo += _owners(one)
    return list(found.values())


def _is_users(module: ModuleType, top: str) -> bool:
    """Whether a module is a user's: a file that is neither ours nor installed, unless in the user's package `top`."""
    file = getattr(module, "__file__", None)
    if file is None or is_ours(file):
        return False
    return module.__name__.partition(".")[0] == top or not _is_installed(file)


def _owners(module: ModuleType) -> list[ModuleType]:
    """The modules that a module has among its names, and those that its names come from."""
    values = list(vars(module).values())
    owners = [v if isinstance(v, ModuleType) else sys.modules.get(_module_of(v)) for v in values]
    return [owner for owner in owners if owner is not None]


def _module_of(value: object) -> str:
    """Where a class or function was defined; of a compiled one, the function that it was made of."""
    try:
        name = getattr(value, "py_func", getattr(value, "function", value)).__module__
    except Exception:
        return ""
    return name if isinstance(name, str) else ""


def source_digest(owner: type | FunctionType | ModuleType) -> str:
    """16 hexadecimal digits of the SHA-256 of the sources behind a class, a function or a module of a user.

    The whole file counts, and every file of the user's that it imports; what was typed into a shell or a notebook
    counts by itself.
    """
    module = owner if isinstance(owner, ModuleType) else sys.modules.get(owner.__module__)
    digest = hashlib.sha256()
    if module is not None and Path(str(getattr(module, "__file__", None) or "")).is_file():
        for content in sorted(_content(one) for one in modules_behind(module)):
            digest.update(content)
    else:
        digest.update(_typed_source(owner).encode())
    return digest.hexdigest()[:16]


def _typed_source(owner: type | FunctionType | ModuleType) -> str:
    try:
        return inspect.getsource(owner)
    except (OSError, TypeError):
        members = sorted((n, v) for n, v in vars(owner).items() if hasattr(v, "__code__"))
        return repr([owner.__qualname__, *((n, v.__code__.co_code, repr(v.__code__.co_consts)) for n, v in members)])
