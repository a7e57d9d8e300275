"""Length models: shipped tables against the data, measuring, log-normal, empirical rows, spec strings."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.demand.length_models import EmpiricalLengths, LogNormalLengths, parse_lengths, table_names
from engine.demand.lengths import TABLE_FOLDER, JointQuantileTable, measure_table
from engine.errors import InputError

# Measured from the public files: rows; mean and p10/p50/p90/p99 of the prompt, of the output; correlation.
MEASURED = {
    "openchat_sharegpt4": (30731, 2340.03, (74, 1730, 5696, 7434), 438.71, (84, 415, 834, 998), 0.041),
    "azure2023_conv": (19366, 1154.70, (207, 1020, 2734, 4142), 211.13, (54, 129, 424, 601), -0.112),
    "azure2023_code": (8819, 2047.85, (147, 1469, 5188, 7436), 27.88, (7, 13, 55, 251), 0.001),
}
LEVELS = (0.1, 0.5, 0.9, 0.99)


@pytest.mark.parametrize("name", MEASURED)
def test_shipped_tables_reproduce_the_measured_lengths(name: str) -> None:
    rows, prompt_mean, prompt_quantiles, output_mean, output_quantiles, correlation = MEASURED[name]
    model = parse_lengths(name)
    assert isinstance(model, JointQuantileTable)
    assert model.rows == rows
    prompt, output = model.draw(np.random.default_rng(0), 1_000_000)
    assert np.quantile(prompt, LEVELS) == pytest.approx(prompt_quantiles, rel=0.03)
    assert np.quantile(output, LEVELS) == pytest.approx(output_quantiles, rel=0.03)
    assert prompt.mean() == pytest.approx(prompt_mean, rel=0.01)
    assert output.mean() == pytest.approx(output_mean, rel=0.01)
    assert np.corrcoef(prompt, output)[0, 1] == pytest.approx(correlation, abs=0.02)
    assert min(prompt.min(), output.min()) >= 1


def test_default_lengths_fit_8192_tokens() -> None:
    prompt, output = parse_lengths("openchat_sharegpt4").draw(np.random.default_rng(1), 300_000)
    assert (prompt + output).max() <= 8192
    assert output.max() <= 1024


def test_shipped_tables_are_small_and_say_where_they_come_from() -> None:
    assert table_names() == tuple(sorted(MEASURED))
    for path in TABLE_FOLDER.glob("*.json"):
        fields = json.loads(path.read_text(encoding="utf-8"))
        assert path.stat().st_size < 20_000
        assert fields["name"] == path.stem
        assert all(fields[key] for key in ("source", "licence", "rows", "method"))


def test_a_measured_table_keeps_the_dependence_of_the_lengths(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    prompt = rng.integers(1, 2000, 5000)
    output = 2100 - prompt + rng.integers(0, 100, 5000)
    table = measure_table(prompt, output, name="mine", source="a test", licence="none")
    table.save(tmp_path / "mine.json")
    drawn_prompt, drawn_output = parse_lengths(str(tmp_path / "mine.json")).draw(rng, 100_000)
    correlation = np.corrcoef(prompt, output)[0, 1]
    assert np.corrcoef(drawn_prompt, drawn_output)[0, 1] == pytest.approx(correlation, abs=0.01)
    assert drawn_output.mean() == pytest.approx(output.mean(), rel=0.01)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.json"]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 10_000), st.integers(1, 3000)), min_size=40, max_size=120),
    st.integers(1, 20),
    st.integers(0, 1000),
)
def test_tables_never_leave_the_measured_range(pairs: list[tuple[int, int]], bins: int, seed: int) -> None:
    prompt, output = np.array(pairs).T
    table = measure_table(prompt, output, name="t", source="s", licence="l", bins=bins)
    drawn_prompt, drawn_output = table.draw(np.random.default_rng(seed), 500)
    for drawn, given_values in ((drawn_prompt, prompt), (drawn_output, output)):
        assert drawn.min() >= given_values.min()
        assert drawn.max() <= given_values.max()


def test_a_table_of_known_pairs_draws_the_known_output_of_each_bin() -> None:
    prompt = np.repeat([10, 20, 30, 40], 100)
    table = measure_table(prompt, prompt * 3, name="t", source="s", licence="l", bins=4)
    drawn_prompt, drawn_output = table.draw(np.random.default_rng(0), 20_000)
    on_an_atom = np.isin(drawn_prompt, (10, 20, 30, 40))
    # Between two atoms the interpolated quantile function spends up to two steps of one percent.
    assert on_an_atom.mean() > 0.93
    assert np.array_equal(drawn_output[on_an_atom], 3 * drawn_prompt[on_an_atom])


@pytest.mark.parametrize(
    ("prompt", "output", "bins", "message"),
    [
        ([1] * 10, [1] * 9, 2, "as many prompts as outputs, got 10 and 9"),
        ([1] * 10, [1] * 10, 6, r"bins: expected 1\.\.5 for 10 rows"),
        ([1, 0], [1, 1], 1, r"prompt lengths\[1\]: .* got 0"),
        ([1, 1], [1.0, np.nan], 1, r"output lengths\[1\]: .* got nan"),
        ([], [], 1, "not empty"),
    ],
)
def test_measuring_refuses_bad_data(prompt: Any, output: Any, bins: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        measure_table(prompt, output, name="t", source="s", licence="l", bins=bins)


def broken_table(**changes: Any) -> str:
    fields = json.loads((TABLE_FOLDER / "azure2023_code.json").read_text(encoding="utf-8"))
    return json.dumps({key: value for key, value in (fields | changes).items() if value is not ...})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", "expected JSON, got something else"),
        ("[1]", "expected a length table with format"),
        (broken_table(format="x"), "expected a length table with format"),
        (broken_table(rows=...), "missing or unknown: rows"),
        (broken_table(extra=1), "missing or unknown: extra"),
        (broken_table(prompt_tokens=["a"]), r"prompt_tokens\[0\]: expected a number >= 0, got 'a'"),
        (broken_table(prompt_tokens=[1.0, 2.0]), "one value for each level"),
        (broken_table(output_levels=[0.0, 0.5]), "increasing levels from 0 to 1"),
        (broken_table(output_tokens=[[3.0, 2.0]]), "bins of one value for each level"),
        (broken_table(max_total_tokens=5000), "prompts below 5000"),
    ],
)
def test_broken_table_files_are_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "table.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        JointQuantileTable.load(path)
    assert "\n" not in str(caught.value)


def test_unwritable_table_is_an_input_error(tmp_path: Path) -> None:
    table = parse_lengths("azure2023_code")
    assert isinstance(table, JointQuantileTable)
    with pytest.raises(InputError, match="cannot write"):
        table.save(Path("/dev/null/table.json"))


def test_lognormal_lengths_have_the_logarithms_asked_for() -> None:
    prompt, output = parse_lengths("lognormal:6,0.5,5,0.8,100000").draw(np.random.default_rng(0), 100_000)
    assert (np.log(prompt).mean(), np.log(prompt).std()) == pytest.approx((6.0, 0.5), rel=0.01)
    assert (np.log(output).mean(), np.log(output).std()) == pytest.approx((5.0, 0.8), rel=0.01)


@settings(deadline=None)
@given(st.floats(-1e4, 1e4), st.floats(0, 1e4), st.floats(-1e4, 1e4), st.floats(0, 1e4), st.integers(2, 10_000))
def test_lognormal_lengths_stay_within_the_total(p_mu: float, p_s: float, o_mu: float, o_s: float, total: int) -> None:
    prompt, output = LogNormalLengths(p_mu, p_s, o_mu, o_s, total).draw(np.random.default_rng(0), 100)
    assert min(prompt.min(), output.min()) >= 1
    assert (prompt + output).max() <= total


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 400), st.integers(0, 2**32))
def test_empirical_lengths_draw_rows(size: int, n: int, seed: int) -> None:
    lengths = EmpiricalLengths(np.arange(1, size + 1), np.arange(1, size + 1) + 1000)
    prompt, output = lengths.draw(np.random.default_rng(seed), n)
    assert prompt.shape == (n,)
    assert np.array_equal(output, prompt + 1000)
    assert set(prompt.tolist()) <= set(range(1, size + 1))
    if n <= size:
        assert len(set(prompt.tolist())) == n


def test_drawing_all_empirical_rows_shuffles_them_by_seed() -> None:
    lengths = EmpiricalLengths(np.arange(1, 101), np.arange(1, 101))
    first, second = (lengths.draw(np.random.default_rng(seed), 100)[0].tolist() for seed in (0, 1))
    assert first != second
    assert sorted(first) == sorted(second) == list(range(1, 101))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "nowhere",
            "expected one of azure2023_code, azure2023_conv, openchat_sharegpt4, fixed:.*got 'nowhere'",
        ),
        ("fixed", "got 'fixed'"),
        ("fixed:1", "expected 2 numbers, got 1"),
        ("fixed:1,x", "expected a number, got 'x'"),
        ("fixed:1.5,2", "prompt_tokens: expected a whole number >= 1, got 1.5"),
        ("fixed:inf,2", "expected a number, got 'inf'"),
        ("fixed:0,2", "got 0"),
        ("lognormal:1,2", "expected 4 or 5 numbers, got 2"),
        ("lognormal:1,-1,1,1", "prompt_sigma: expected a number >= 0, got -1"),
        ("lognormal:1,nan,1,1", "expected a number, got 'nan'"),
        ("lognormal:1,1,1,1,1", "max_total_tokens: expected a whole number >= 2, got 1"),
        ("missing.json", "cannot read a length table"),
    ],
)
def test_bad_length_specs_are_refused(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_lengths(spec)
