"""A claim is one line and one record, rounded so that machines agree; a false one stops and shows nothing."""

import json
import math
from decimal import Decimal
from fractions import Fraction

import IPython.display
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lipbook.claims
from lipbook import Bound
from lipbook.claims import CLAIM, claim, results

KEY, STATEMENT = "bounds/spectral-norms/made-up", "Two is less than three"
FINITE = st.floats(1e-200, 1e200)


def shown(measured, holds=True, **options):
    """What `claim` displays, as (line, record); exactly one display."""
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(IPython.display, "display", lambda data, raw: calls.append(data))
        claim(KEY, STATEMENT, measured, holds, **options)
    (data,) = calls
    assert set(data) == {"text/plain", CLAIM}
    assert json.loads(json.dumps(data)) == data
    return data["text/plain"], data[CLAIM]


def measured_text(measured, **options):
    line, record = shown(measured, **options)
    assert line == f"✓ {STATEMENT}: {record['measured']}."
    return record["measured"]


def test_the_record_says_what_was_claimed():
    _, record = shown(2.5, source="Theorem 1")
    assert record == {
        "key": KEY,
        "statement": STATEMENT,
        "measured": "2.5",
        "holds": True,
        "source": "Theorem 1",
        "digits": 3,
    }


@given(value=FINITE, digits=st.integers(1, 12))
def test_a_number_is_shown_to_its_digits(value, digits):
    text = Fraction(measured_text(value, digits=digits))
    unit = Fraction(Decimal(1).scaleb(Decimal(value).adjusted() - digits + 1))
    assert abs(text - Fraction(value)) <= unit / 2


@given(value=FINITE, kind=st.sampled_from(["upper", "lower"]), digits=st.integers(1, 12))
def test_a_bound_stays_a_bound_when_it_is_rounded(value, kind, digits):
    words = measured_text(Bound(value, kind), digits=digits).split()
    assert words[:2] == (["at", "most"] if kind == "upper" else ["at", "least"])
    text = Fraction(words[2])
    assert text >= Fraction(value) if kind == "upper" else text <= Fraction(value)
    assert math.isclose(text, value, rel_tol=1.001 * 10.0 ** (1 - digits))


@given(ends=st.tuples(FINITE, FINITE).map(sorted).map(tuple), bounds=st.booleans())
def test_a_pair_contains_what_it_was_made_of(ends, bounds):
    low, high = (Bound(ends[0], "lower"), Bound(ends[1], "upper")) if bounds else ends
    _, left, _, right = measured_text((low, high)).split()
    assert Fraction(left) <= Fraction(ends[0]) and Fraction(right) >= Fraction(ends[1])


@pytest.mark.parametrize(
    "pair", [(2.0, 1.0), (Bound(1, "upper"), Bound(2, "lower")), (Bound(1, "upper"), Bound(2, "upper"))]
)
def test_a_pair_the_wrong_way_round_is_refused(pair):
    with pytest.raises(ValueError, match="low, high"):
        shown(pair)


@pytest.mark.parametrize(
    "count", [12_345, np.int64(12_345), torch.tensor(12_345), torch.ones(12_345).gt(0).sum()], ids=repr
)
def test_counts_are_shown_whole(count):
    assert measured_text(count) == "12345"


def test_collections_name_their_parts():
    assert measured_text({"gram": Bound(1.23456, "upper"), "steps": [1, 2.34567]}) == (
        "gram at most 1.24, steps 1, 2.35"
    )


@pytest.mark.parametrize("measured", [math.pi, (math.pi, 4.5678), [math.pi], {"π": math.pi}])
def test_noise_below_the_digits_changes_nothing(measured):
    def shaken(value):
        if isinstance(value, dict):
            return {name: shaken(part) for name, part in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(map(shaken, value))
        return value * (1 + 1e-9)

    assert shown(measured) == shown(shaken(measured))


@pytest.mark.parametrize(
    "measured",
    [torch.ones(3), np.ones(2), 1j, b"text", None, object()],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_measurement_is_refused_by_type(measured):
    with pytest.raises(TypeError, match=type(measured).__name__):
        shown(measured)


@pytest.mark.parametrize("true", [True, np.True_, torch.tensor(True), torch.ones(3).gt(0).all()], ids=repr)
def test_truth_values_of_numpy_and_torch_serve(true):
    shown(1, holds=true)


@pytest.mark.parametrize(
    "holds",
    [1, 0, None, "yes", "", [], torch.tensor(1), torch.ones(2).gt(0), np.float64(1), np.array([True])],
)
def test_anything_but_a_truth_value_is_refused(holds):
    with pytest.raises(TypeError, match="holds"):
        shown(1, holds=holds)


@pytest.mark.parametrize("false", [False, np.False_, torch.tensor(False)], ids=repr)
@pytest.mark.parametrize("measured", [1 / 3, Bound(1 / 3, "upper"), torch.tensor(1 / 3, dtype=torch.float64)])
def test_a_false_claim_shows_nothing_and_raises_with_the_exact_value(monkeypatch, false, measured):
    monkeypatch.setattr(IPython.display, "display", lambda *_, **__: pytest.fail("it was displayed"))
    monkeypatch.setattr(torch._tensor_str.PRINT_OPTS, "precision", 16)
    with pytest.raises(AssertionError, match=f"{KEY}.*{STATEMENT}.*0.333333333333333"):
        claim(KEY, STATEMENT, measured, false)


@pytest.mark.parametrize(
    "key", ["a", "a/b/c/d", "a//b", "a/b/", "a/b_c/d", "a/b/C", "-a/b/c", "a/b/c\n", "a/b/é"]
)
def test_a_key_of_another_form_is_refused(key):
    with pytest.raises(ValueError, match="key must look like"):
        claim(key, STATEMENT, 1, True)


@pytest.fixture
def checkout(tmp_path):
    """A made-up checkout with one record, inside another checkout of the same shape."""
    for folder, value in ((tmp_path, "outer"), (tmp_path / "inner", "inner")):
        (folder / "experiments/bounds").mkdir(parents=True)
        (folder / "experiments/bounds/made_up.json").write_text(json.dumps({"value": value}))
        (folder / "pyproject.toml").write_text('[project]\nname = "lipbook"\n')
    (tmp_path / "inner/book/bounds").mkdir(parents=True)
    return tmp_path / "inner"


@pytest.mark.parametrize("below", [".", "book/bounds"])
def test_results_come_from_the_nearest_checkout(checkout, monkeypatch, below):
    monkeypatch.chdir(checkout / below)
    assert results("experiments/bounds/made_up") == {"value": "inner"}


@pytest.mark.parametrize("other", ['[project]\nname = "thesis"\n', "[tool.black]\n", "not toml ["])
def test_another_project_is_no_checkout(checkout, monkeypatch, other):
    (checkout / "pyproject.toml").write_text(other)
    monkeypatch.chdir(checkout)
    assert results("experiments/bounds/made_up") == {"value": "outer"}


def test_results_of_the_package_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "values" in results("experiments/bounds/gram_rounding")


def test_without_a_checkout_the_error_says_where_to_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lipbook.claims, "__file__", str(tmp_path / "lipbook/claims.py"))
    with pytest.raises(FileNotFoundError, match="checkout"):
        results("experiments/bounds/made_up")


def test_a_missing_record_says_what_makes_it(checkout, monkeypatch):
    monkeypatch.chdir(checkout)
    with pytest.raises(FileNotFoundError, match=r"tools/record.py benchmarks/bounds/other.py"):
        results("benchmarks/bounds/other")


def test_a_damaged_record_is_named(checkout, monkeypatch):
    (checkout / "experiments/bounds/made_up.json").write_text('{"value": ')
    monkeypatch.chdir(checkout)
    with pytest.raises(ValueError, match=r"made_up.json is damaged"):
        results("experiments/bounds/made_up")


@pytest.mark.parametrize(
    "name",
    [
        "pyproject",
        "/etc/passwd",
        "experiments",
        "experiments/",
        "experiments/../secret",
        "experiments/bounds/..",
        "experiments\\bounds\\made_up",
        "experiments/bounds/made_up.json",
        "book/reference/times",
    ],
)
def test_a_name_outside_the_records_is_refused(checkout, monkeypatch, name):
    monkeypatch.chdir(checkout)
    with pytest.raises(ValueError, match="name must look like"):
        results(name)
