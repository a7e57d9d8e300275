"""What the guide makes of the code (docs/generated.py) is complete; `make docs` builds the pages themselves."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

import baselines
import llmsched_env

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def generated() -> ModuleType:
    """The hook of mkdocs."""
    spec = importlib.util.spec_from_file_location("docs.generated", ROOT / "docs/generated.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "docs"))  # as mkdocs does for a hook
        spec.loader.exec_module(module)
    return module


def headings(text: str) -> list[str]:
    """The headings of a piece."""
    return re.findall(r"^#+ (.+)$", text, re.MULTILINE)


def test_every_piece_stands_on_one_page(generated: ModuleType) -> None:
    pages = [file.read_text(encoding="utf-8") for file in (ROOT / "docs").rglob("*.md")]
    assert sorted(name for page in pages for name in generated.MARK.findall(page)) == sorted(generated.PIECES)


def test_every_policy_has_its_section(generated: ModuleType) -> None:
    assert headings(generated.policies()) == [*baselines.POLICIES, "random"]


def test_every_entry_of_the_observation_is_told(generated: ModuleType) -> None:
    lines = generated.observation().splitlines()[2:]
    numbers = [[int(n) for n in re.findall(r"\d+", line.split("|")[1])] for line in lines]
    assert [first for first, *_ in numbers] == [0, *(last + 1 for *_, last in numbers[:-1])]
    assert numbers[-1][-1] == llmsched_env.OBSERVATION_SIZE - 1
    assert [re.findall(r"`(\w+)`", line)[0] for line in lines] == [*(llmsched_env.observation.OBSERVATION.names or ())]
    assert all(line.split("|")[3].strip() for line in lines)


def test_every_action_is_told(generated: ModuleType) -> None:
    assert re.findall(r"^\| `(\w+)`", generated.actions(), re.MULTILINE) == list(llmsched_env.ACTIONS)


def test_every_room_is_on_the_map_and_a_page_of_the_api(generated: ModuleType) -> None:
    rooms = [
        file.parent.relative_to(ROOT).as_posix()
        for package in generated.PACKAGES
        for file in (ROOT / package).rglob("__init__.py")
    ]
    assert sorted(headings(generated.room_map())) == sorted(rooms)
    assert sorted(path for path, _ in generated.api_pages()) == sorted(
        f"api/{room.replace('/', '.')}.md" for room in rooms
    )


def test_public_names_of_a_package_are_found_where_they_are_defined(generated: ModuleType) -> None:
    found = generated.exports(Path("engine"))
    assert found["simulate"] == "engine.runs.simulate.simulate"
    assert generated.exports(Path("agents"))["evaluate"] == "agents.evaluation.evaluate.evaluate"


def test_tables_do_not_break_a_figure(generated: ModuleType) -> None:
    row = "| `a 1 [2` | 1 373 000 its/s | -0.0 % [-0.1, +0.2] and more | .330 / .434 | 1, 2, 4 |"
    whole = "| `a 1 [2` | 1_373_000 its/s | -0.0_%_[-0.1,_+0.2] and more | .330_/_.434 | 1, 2, 4 |"
    assert generated.unbroken(row).replace("\N{NO-BREAK SPACE}", "_") == whole
    assert generated.unbroken("5 % [1, 2]") == "5 % [1, 2]"


def test_fields_are_told_by_the_comments_behind_them(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text(
        'ROW = np.dtype([("now", "f8"), ("x", "i4", 3)])  # two\n'
        "SEEN = np.dtype(\n    [\n"
        '        ("row", ROW),  # of a server\n'
        '        ("cells", "f8", (2, N)),  # float64[e][:n], a | b\n'
        "    ]\n)\nOTHER = np.dtype(ROW)\n"
    )
    spec = importlib.util.spec_from_file_location("field_comments", ROOT / "docs/field_comments.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.assigned(file, "SEEN")
    assert [(field.name, field.kind) for field in found] == [("row", "ROW"), ("cells", "f8 (2, N)")]
    assert [field.about for field in found] == ["of a server", "float64\\[e]\\[:n], a &#124; b"]
    assert module.assigned(file, "OTHER") == module.assigned(file, "NOSUCH") == []


def test_nothing_hides_the_warnings_of_the_strict_build() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (command,) = re.findall(r"mkdocs build.*", makefile)
    assert "quiet" not in command
    assert "strict: true" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


def test_names_that_a_package_defines_itself_are_told_on_its_page(generated: ModuleType) -> None:
    assert "members: ['ACTIONS']" in generated.api_page(Path("llmsched_env/actions"))
    assert "members: false" in generated.api_page(Path("engine"))
