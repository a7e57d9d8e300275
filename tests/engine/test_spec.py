"""The one language of specs: taken apart, put together, listed, refused."""

from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import InputError
from engine.spec import Spec, parse_value, read_settings, short, split_list, split_specs, write_spec

WORDS = st.text("abc_019.", min_size=1, max_size=6)
SETTINGS = st.dictionaries(WORDS, WORDS, max_size=4)


def nothing_there(text: str) -> bool:
    return False


@given(WORDS, SETTINGS)
def test_what_is_written_is_read_again(name: str, settings: dict[str, str]) -> None:
    parsed = Spec.parse(write_spec(name, settings))
    assert parsed.name == name
    assert parsed.settings("x", list(settings)) == settings
    assert parsed.given == set(settings)
    assert str(parsed) == write_spec(name, settings)


@given(st.lists(st.tuples(WORDS, SETTINGS), min_size=1, max_size=4))
def test_a_list_of_specs_is_taken_apart_at_its_specs(specs: list[tuple[str, dict[str, str]]]) -> None:
    written = [write_spec(name, settings) for name, settings in specs]
    assert split_specs(",".join(written), nothing_there) == tuple(written)
    assert split_specs(" , ".join(written) + ",", nothing_there) == tuple(written)


def test_a_place_that_is_there_is_one_spec_whatever_it_looks_like() -> None:
    there = {"runs/a,b", "k=3"}.__contains__
    assert split_specs("slai:offset=3,k=3,runs/a,b,order=spf", there) == ("slai:offset=3", "k=3", "runs/a,b,order=spf")
    assert split_specs("slai:offset=3,k=3,runs/a,b", nothing_there) == ("slai:offset=3,k=3", "runs/a", "b")


def test_a_name_ends_at_the_first_colon_and_a_place_where_a_setting_begins() -> None:
    assert Spec.parse("gamma:cv=2:3") == Spec("gamma", "cv=2:3")
    assert Spec.parse("a:b,c=1", ",") == Spec("a:b", "c=1")
    assert Spec.of_place("c:/a:b.json:speed=2", ("speed",)) == Spec("c:/a:b.json", "speed=2")
    assert Spec.of_place("c:/a:b.json:sped=2", ("speed",)) == Spec("c:/a:b.json:sped=2")
    assert Spec.parse("fixed: 512 ,8").words == ("512", "8")


def test_values_may_hold_commas_where_that_is_said() -> None:
    text = "lengths=fixed:512, 8 ,cv = 2"
    assert read_settings(text, "x", ("lengths", "cv"), commas=True) == {"lengths": "fixed:512,8", "cv": "2"}
    with pytest.raises(InputError, match=r"^x: expected key=value with a key among lengths, cv; got '8'$"):
        read_settings(text, "x", ("lengths", "cv"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a", "x: expected key=value with a key among a, b; got 'a'"),
        ("c=1", "x: expected key=value with a key among a, b; got 'c=1'"),
        ("a=1,a=2", "x: expected each key once, got 'a' twice"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_settings(text, "x", ("a", "b"))
    assert str(caught.value) == message


def test_another_value_of_a_setting_stands_last() -> None:
    assert str(Spec.parse("slai:offset=3,order=spf").with_setting("offset", 4)) == "slai:order=spf,offset=4"
    assert str(Spec.parse("slai").with_setting("offset", 4)) == "slai:offset=4"


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("1_000", int, 1000),
        (" 2e-1 ", float, 0.2),
        ("True", bool, True),
        ("0", bool, False),
        ("two words", str, "two words"),
        ("spf", Literal["fcfs", "spf"], "spf"),
        ("None", int | None, None),
        ("3", int | None, 3),
    ],
)
def test_values_are_read_by_the_type_of_their_field(text: str, kind: Any, value: object) -> None:
    found = parse_value(text, kind, "x")
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("1.5", int, "x: expected a whole number, got 1.5"),
        ("nan", float, "x: expected a number, got 'nan'"),
        ("yes", bool, "x: expected true or false, got 'yes'"),
        ("lifo", Literal["fcfs", "spf"], "x: expected fcfs or spf, got 'lifo'"),
        ("1", list, "x: expected a parameter of type bool, int, float or str to set, got one of <class 'list'>"),
    ],
)
def test_values_of_another_type_are_refused(text: str, kind: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_value(text, kind, "x")
    assert str(caught.value) == message


@given(st.floats(-1e12, 1e12) | st.booleans() | st.integers(-(2**53), 2**53))
def test_short_values_are_read_again(value: Any) -> None:
    assert parse_value(short(value), float if isinstance(value, int) else type(value), "x") == value


def test_lists_leave_out_what_is_empty() -> None:
    assert split_list(" a, ,b,") == ("a", "b")
    assert split_list("a;b c", ";") == ("a", "b c")
