"""Claims that are tests: a sentence of the book, the number behind it, and whether it holds.

A claim shows one line to the reader and leaves a record, of type `application/vnd.lipbook.claim+json`, from
which the ledger of the book is made. A claim that does not hold stops the notebook.

Chapter: how-to-read-a-certificate.
"""

import json
import math
import re
import tomllib
from pathlib import Path

from lipbook.bound import Bound, outward

CLAIM = "application/vnd.lipbook.claim+json"
_KEY = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*(/[a-z0-9]+(-[a-z0-9]+)*){1,2}")


def claim(
    key: str, statement: str, measured, holds: bool, source: str | None = None, digits: int = 3
) -> None:
    """Show a claim that holds; raise when it does not.

    Args:
        key: "part/chapter/name" (or "page/name"), unique in the book.
        statement: the sentence, readable on its own.
        measured: what was found: text, a number, a `Bound`, a pair (low, high), or a list or dict of them.
            Integers are shown whole and other numbers to `digits` significant digits, so that another machine
            shows the same; a bound and the ends of a pair are rounded outward.
        holds: a comparison made in the same cell.
        source: the theorem, paper or record behind the claim.
        digits: at least 1.

    Raises:
        AssertionError: `holds` is false; nothing is shown.
        TypeError, ValueError: an argument is not of this form.
    """
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise ValueError(f'key must look like "part/chapter/name", small letters and hyphens, got {key!r}.')
    if not isinstance(statement, str) or not statement.strip() or "\n" in statement:
        raise ValueError(f"statement must be a sentence on one line, got {statement!r}.")
    if source is not None and not isinstance(source, str):
        raise TypeError(f"source must be text or None, got {type(source).__name__}.")
    if isinstance(digits, bool) or not isinstance(digits, int) or digits < 1:
        raise ValueError(f"digits must be an int of at least 1, got {digits!r}.")
    if not _is_truth_value(holds):
        raise TypeError(f"holds must be True or False, got {holds!r}: compare in the call, or use bool(...).")
    shown = _readable(measured, digits)
    if not holds:
        exactly = repr(measured.value if isinstance(measured, Bound) else measured)
        raise AssertionError(
            f"the claim {key!r} does not hold: {statement} (measured: {shown}; exactly: {exactly})"
        )
    from IPython.display import display

    record = {
        "key": key,
        "statement": statement,
        "measured": shown,
        "holds": True,
        "source": source,
        "digits": digits,
    }
    display({"text/plain": f"✓ {statement}: {shown}.", CLAIM: record}, raw=True)


def results(name: str) -> dict:
    """The committed record of an experiment or a benchmark, such as "experiments/bounds/gram_rounding".

    Args:
        name: its path in the book's checkout, without ".json".

    Raises:
        ValueError: a name outside experiments/ and benchmarks/, or a record that is not JSON.
        FileNotFoundError: no checkout around the current folder or the package, or no such record.
    """
    if not isinstance(name, str) or not re.fullmatch(r"(experiments|benchmarks)(/[a-z0-9_]+)+", name):
        raise ValueError(f'name must look like "experiments/part/script", without ".json", got {name!r}.')
    here = Path.cwd().resolve()
    for folder in (here, *here.parents, *Path(__file__).resolve().parents):
        if _is_checkout(folder):
            break
    else:
        raise FileNotFoundError(f"{name}.json lies in the book's checkout: run the notebook there.")
    path = folder / f"{name}.json"
    if not path.exists():
        raise FileNotFoundError(f"the record {path} is missing: run python tools/record.py {name}.py")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"the record {path} is damaged ({error}): restore it with git checkout.") from error


def _is_checkout(folder):
    try:
        project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8")).get("project", {})
    except (OSError, ValueError):
        return False
    return project.get("name") == "lipbook"


def _is_truth_value(holds):
    if isinstance(holds, bool):
        return True
    return getattr(holds, "ndim", None) == 0 and str(getattr(holds, "dtype", "")) in ("bool", "torch.bool")


def _readable(measured, digits):
    if isinstance(measured, Bound):
        sign = "at most" if measured.kind == "upper" else "at least"
        return f"{sign} {outward(measured.value, measured.kind, digits)}"
    if isinstance(measured, dict):
        return ", ".join(f"{name} {_readable(value, digits)}" for name, value in measured.items())
    if isinstance(measured, tuple) and len(measured) == 2:
        return _interval(*measured, digits)
    if isinstance(measured, (list, tuple)):
        return ", ".join(_readable(value, digits) for value in measured)
    if isinstance(measured, (str, bool)):
        return str(measured)
    number = _number(measured)
    return str(number) if isinstance(number, (bool, int)) else f"{number:.{digits}g}"


def _interval(low, high, digits):
    """A pair rounded outward; of two bounds, the first must be a lower and the second an upper one."""
    kinds = tuple(end.kind for end in (low, high) if isinstance(end, Bound))
    low, high = (_number(end.value if isinstance(end, Bound) else end) for end in (low, high))
    if kinds not in ((), ("lower", "upper")) or low > high:
        raise ValueError(
            f"a pair must be (low, high) or (lower bound, upper bound), got {low!r} and {high!r}."
        )
    low, high = (
        str(end) if isinstance(end, int) else outward(end, kind, digits)
        for end, kind in ((low, "lower"), (high, "upper"))
    )
    return f"between {low} and {high}"


def _number(measured):
    """An int or a float; torch and NumPy scalars become the one or the other."""
    if getattr(measured, "ndim", None) == 0:
        measured = measured.item()
    if not isinstance(measured, (int, float)):
        raise TypeError(
            "measured must be text, a number, a Bound, a pair, or a list or dict of them, "
            f"got {type(measured).__name__}: take .item() or .tolist() of an array."
        )
    if math.isnan(measured):
        raise ValueError("measured is NaN: nothing was measured.")
    return measured
