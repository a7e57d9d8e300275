"""Service tiers from texts and mappings: what they mean, and what is said about wrong ones."""

from typing import Any

import pytest

from engine import DEFAULT_TIERS, InputError, Tier, parse_tiers
from engine.demand.requests import MAX_TIERS
from engine.demand.tiers import describe_tiers


def test_the_default_tiers_can_be_written() -> None:
    written = parse_tiers(["name=strict,share=0.05,tbt=0.1,ttft=2", "name=relaxed,tbt=0.5"])
    assert written == DEFAULT_TIERS == parse_tiers([])
    assert parse_tiers(DEFAULT_TIERS) == DEFAULT_TIERS


def test_texts_mappings_and_short_keys_mean_the_same() -> None:
    text = parse_tiers(["name=a,share=0.25,tbt=1,ttft=3,weight=2,strict=yes", "name=b,share=0.75,tbt=0.1,strict=no"])
    assert text == (Tier("a", 0.25, 1.0, 3.0, 2.0, True), Tier("b", 0.75, 0.1, strict=False))
    assert text == parse_tiers(
        [{"name": "a", "share": 0.25, "tbt": 1, "ttft_s": 3, "weight": 2, "strict": True}, text[1]]
    )


@pytest.mark.parametrize(("tbt", "strict"), [("0.05", True), ("0.2", True), ("0.21", False), ("3", False)])
def test_a_tier_that_does_not_say_is_strict_by_its_deadline(tbt: str, strict: bool) -> None:
    (tier,) = parse_tiers([f"name=one,tbt={tbt}"])
    assert (tier.share, tier.strict) == (1.0, strict)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["name=a,share=0.5,tbt=1"], "expected shares that sum to 1, got 0.5"),
        (["name=a,share=0.7,tbt=1", "name=b,share=0.7,tbt=1"], r"sum to 1, got 1\.4 \(a 0\.7, b 0\.7\)"),
        (["name=a,share=1.5,tbt=1", "name=b,tbt=1"], "share: expected .*1.5"),
        (["name=a,tbt=1", "name=b,tbt=1"], "expected share=FRACTION in all tiers but one"),
        (["name=a,share=.5,tbt=1", "name=a,share=.5,tbt=2"], "expected distinct names, got a, a"),
        (["name=a,tbt=0"], "tbt_s: expected .*seconds"),
        (["name=a,tbt=-1"], "tbt_s: expected .*seconds"),
        (["name=a,tbt=nan"], "tbt: expected a finite number, got 'nan'"),
        (["name=a,tbt=1e999"], "tbt: expected a finite number"),
        (["name=a,tbt=1,ttft=inf"], "ttft: expected a finite number"),
        (["name=a,tbt=1,weight=-1"], "weight: expected .*-1"),
        (["name=a,tbt=1,strict=2"], "strict: expected yes or no"),
        (["name=a,tbt=1,deadline=2"], "expected keys among name, share, tbt, ttft, weight, strict, got 'deadline'"),
        (["name=a,tbt=1,tbt_s=2"], "expected each key once, got 'tbt' twice"),
        (["name=a,tbt"], "expected key=value"),
        (["name=a"], r"expected tbt=\.\.\., got none"),
        (["tbt=1"], r"expected name=\.\.\., got none"),
        (["name=a.b,tbt=1"], "expected a name without"),
        (["name=,tbt=1"], "expected 1 to 60 printable characters"),
        ([{"name": 3, "tbt": 1}], "name: expected a word, got 3"),
        ([{"name": "a", "tbt": True}], "tbt: expected a finite number, got True"),
        ([{"name": "a", "tbt": [1]}], "tbt: expected a finite number"),
        ([3], "expected name=..., *share=..., *tbt=... or a mapping"),
        ("name=a,tbt=1", "expected a list of tiers"),
        ({"name": "a"}, "expected a list of tiers"),
        (5, "expected a list of tiers, got 5"),
        ([f"name=t{k},share={1 / 65},tbt=1" for k in range(65)], f"at most {MAX_TIERS}, got 65"),
    ],
)
def test_wrong_tiers_are_one_line(given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse_tiers(given)
    assert "\n" not in str(caught.value)


def test_tiers_are_described_in_one_line() -> None:
    assert describe_tiers(DEFAULT_TIERS) == "strict 5 %, TTFT 2 s, TBT 0.1 s; relaxed 95 %, TTFT 2 s, TBT 0.5 s"


def test_text_is_a_number_on_the_command_line_only() -> None:
    assert parse_tiers(["name=a,tbt=0.1"])[0].tbt_s == 0.1
    with pytest.raises(InputError, match=r"tbt: expected a finite number, got '0\.1'"):
        parse_tiers([{"name": "a", "tbt": "0.1"}])
    with pytest.raises(InputError, match="printable characters, got ' '"):
        parse_tiers([{"name": " ", "tbt": 0.1}])
