"""What the guide makes of the code when it is built: policies, commands, the map of the rooms, the API of every room.

A hook of mkdocs (see mkdocs.yml). In a page, `<!-- generated: NAME -->` stands where a piece goes and
`<!-- file: PATH -->` where a source file does; the pages of the API are whole ones. Docstrings are read from the
sources (griffe), so that nothing heavy is imported for them.
"""

import ast
import contextlib
import inspect
import io
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path

import numpy as np
from field_comments import assigned
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import agents
import baselines
import llmsched_env
import llmsched_env.observation
from agents.cli import commands, main
from agents.commands.policies import COLUMNS, cells
from agents.commands.routers import COLUMNS as ROUTER_COLUMNS
from agents.commands.routers import cells as router_cells
from agents.policies import RANDOM, resolve
from agents.reporting.report import definitions
from baselines.routers import ROUTERS
from engine.demand.predictions import channel_descriptions
from engine.demand.trace_formats import FORMATS
from engine.demand.workload import length_descriptions, workload_descriptions

LOG = logging.getLogger("mkdocs.hooks")
"""What is said here at the level of a warning ends a strict build."""
ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("engine", "baselines", "llmsched_env", "agents")
"""In the order of the imports between them."""
HELP_COLUMNS = 84
"""Width of the help texts; as wide as a page of the site."""
UNRESOLVED = re.compile(r"(?:<code>[^<]*</code>|[\w.]+)\]\[[\w.]*\]")
"""A cross-reference that nothing answers: mkdocs-autorefs leaves it as it stands."""
MARK = re.compile(r"<!-- generated: (\w+) -->")
FILE = re.compile(r"<!-- file: ([\w./]+\.py) -->")
FIGURE = re.compile(r"`[^`]*`|(?<=[\d%*]) (?=[\d%/[])|(?<=/) (?=[-+.\d])|(?<=,) (?=[-+.\d]+\])")
"""A piece of code, or a space inside a figure with its unit and interval."""


def rooms() -> list[Path]:
    """The folders with code of every package, from the root."""
    found = [folder for package in PACKAGES for folder in (ROOT / package, *sorted((ROOT / package).rglob("*")))]
    return [folder.relative_to(ROOT) for folder in found if (folder / "__init__.py").is_file()]


def modules(room: Path) -> list[str]:
    """The public modules of a room."""
    return sorted(file.stem for file in (ROOT / room).glob("*.py") if not file.stem.startswith("_"))


def tree_of(file: Path) -> ast.Module:
    """A source file, parsed; its path is from the root."""
    return ast.parse((ROOT / file).read_text(encoding="utf-8"))


def first_line(file: Path) -> str:
    """The first line of a module's docstring, fit for a cell of a table."""
    return cell((ast.get_docstring(tree_of(file)) or "").partition("\n")[0])


def cell(text: str) -> str:
    """A text in one line of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def table(*heads: str) -> list[str]:
    """The first lines of a table."""
    return [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]


def policies() -> str:
    """A section for each policy that `llmsched policies` knows."""
    lines = []
    for kind in (*baselines.POLICIES.values(), type(resolve(RANDOM))):
        values = dict(zip(COLUMNS, cells(kind), strict=True))
        summary = (kind.__doc__ or "").partition("\n\n")[0]
        lines += [f"## {values.pop('policy')}", "", " ".join(summary.split()), "", *table("", "")]
        lines += [f"| {title} | {cell(text)} |" for title, text in values.items()]
        lines.append("")
    return "\n".join(lines)


def routers() -> str:
    """A section for each router that `llmsched routers` knows."""
    lines = []
    for kind in ROUTERS.values():
        values = dict(zip(ROUTER_COLUMNS, router_cells(kind), strict=True))
        about = inspect.getdoc(kind) or ""
        lines += [f"## {values.pop('router')}", "", about, "", *table("", "")]
        lines += [f"| {title} | {cell(text)} |" for title, text in values.items()]
        lines.append("")
    return "\n".join(lines)


def help_texts() -> str:
    """The help of every command, a section each."""
    return "\n".join(f"## llmsched {name}\n\n```text\n{_help(name)}\n```\n" for name in commands())


def _help(name: str) -> str:
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(HELP_COLUMNS)
    try:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            if main([name, "--help"]) != 0:
                LOG.warning("llmsched %s --help failed", name)
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before
    return out.getvalue().strip()


def room_map() -> str:
    """Every room with its files, each with the first line of its docstring."""
    lines = []
    for room in rooms():
        dotted = ".".join(room.parts)
        heading = "##" if room.parent == Path() else "###"
        about = f"[{dotted}](api/{dotted}.md): {first_line(room / '__init__.py')}"
        files = [f"| `{module}.py` | {first_line(room / f'{module}.py')} |" for module in modules(room)]
        lines += [f"{heading} {room.as_posix()}", "", about, "", *(table("file", "") + files if files else []), ""]
    return "\n".join(lines)


def observation() -> str:
    """The entries of the observation, with what the source says of each."""
    notes = {field.name: field.about for field in assigned(Path(llmsched_env.observation.__file__), "OBSERVATION")}
    lines, at = table("entry", "name", ""), 0
    for name, (kind, *_) in (llmsched_env.observation.OBSERVATION.fields or {}).items():
        last = at + int(np.prod(kind.shape)) - 1
        lines.append(f"| {at if last == at else f'{at} to {last}'} | `{name}` | {cell(notes[name])} |")
        at = last + 1
    return "\n".join(lines)


def actions() -> str:
    """What a learner can choose: the actions by name, with their dimensions and settings."""
    lines = table("action", "", "dimensions", "settings")
    for name, kind in llmsched_env.ACTIONS.items():
        about = cell((kind.__doc__ or "").partition("\n")[0])
        heads = ", ".join(f"{head.replace('_', ' ')} {size}" for head, size in kind().heads.items())
        settings = ", ".join(f"`{field.name}`" for field in fields(kind))
        lines.append(f"| `{name}` | {about} | {heads} | {settings} |")
    return "\n".join(lines)


def metrics() -> str:
    """Every number of a report, as the reports themselves define it."""
    return "\n".join([*table("number", "meaning"), *(f"| {term} | {cell(text)} |" for term, text in definitions())])


def described(lines: Mapping[str, str]) -> str:
    """Names with what they mean, as `llmsched workloads` prints them."""
    return "\n".join([*table("name", "what it is"), *(f"| `{name}` | {cell(text)} |" for name, text in lines.items())])


PIECES: dict[str, Callable[[], str]] = {
    "policies": policies,
    "routers": routers,
    "commands": help_texts,
    "rooms": room_map,
    "observation": observation,
    "actions": actions,
    "definitions": metrics,
    "arrivals": lambda: described(workload_descriptions()),
    "lengths": lambda: described(length_descriptions()),
    "channels": lambda: described(channel_descriptions()),
    "traces": lambda: described({form.name: form.about for form in FORMATS}),
}
"""What a page can ask for."""


def api_page(room: Path) -> str:
    """The names that a package itself exports, and its modules."""
    dotted = ".".join(room.parts)
    lines = ["---", f"title: {dotted}", "---", "", *_directive(dotted, 1, f"members: {[*own_names(room)] or 'false'}")]
    if public := exports(room):
        names = sorted(public, key=str.lower)
        links = [f"[`{name}`][{public[name]}]" for name in names]
        lines += ["", "## Public names", "", ",\n".join(links)]
    for module in modules(room):
        lines += ["", *_directive(f"{dotted}.{module}", 2)]
    return "\n".join(lines) + "\n"


def _directive(name: str, level: int, *options: str) -> list[str]:
    options = (f"heading_level: {level}", "show_root_full_path: true", "show_symbol_type_heading: false", *options)
    return [f"::: {name}", "    options:", *(f"      {option}" for option in options)]


def exports(room: Path) -> dict[str, str]:
    """Where the names that a package takes from its rooms are defined."""
    if room == Path("agents"):
        return {name: f"agents.{module}.{name}" for name, module in agents._MODULES.items()}
    tree = tree_of(room / "__init__.py")
    found: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            found |= {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return {name: found[name] for name in _listed(tree) if name in found}


def own_names(room: Path) -> list[str]:
    """The public names that a package defines itself."""
    found = [node for node in tree_of(room / "__init__.py").body if isinstance(node, ast.Assign | ast.AnnAssign)]
    names = [ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target) for node in found]
    return [name for name in names if not name.startswith("_")]


def _listed(tree: ast.Module) -> list[str]:
    """The names in `__all__`."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return []


def api_pages() -> Iterator[tuple[str, str]]:
    """Path below docs/ and text of every page of the API."""
    for room in rooms():
        yield f"api/{'.'.join(room.parts)}.md", api_page(room)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the API into the navigation."""
    config.nav = [*(config.nav or []), {"API": [path for path, _ in api_pages()]}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the API."""
    for path, text in api_pages():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Fill the generated pieces of a page in, and the files that it shows; keep figures whole."""
    filled = MARK.sub(lambda found: PIECES[found[1]](), unbroken(markdown))
    return FILE.sub(lambda found: f"```python\n{(ROOT / found[1]).read_text(encoding='utf-8')}```", filled)


def unbroken(markdown: str) -> str:
    """A page whose tables do not break a figure."""
    lines = [FIGURE.sub(_space, line) if line.startswith("|") else line for line in markdown.splitlines()]
    return "\n".join(lines)


def _space(found: re.Match[str]) -> str:
    return "\N{NO-BREAK SPACE}" if found[0] == " " else found[0]


def on_post_page(output: str, page: Page, **_: object) -> None:
    """Warn of cross-references that lead nowhere, which ends a strict build."""
    prose = re.sub(r"<pre.*?</pre>", "", output, flags=re.DOTALL)
    for found in UNRESOLVED.findall(prose):
        LOG.warning("%s: nothing has the name in %s", page.file.src_path, found)
