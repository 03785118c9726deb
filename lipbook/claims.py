"""Claims that are tests: a sentence of the book, the number behind it, and whether it holds.

A claim shows one line to the reader and leaves a record, of type `application/vnd.lipbook.claim+json`, from
which the ledger of the book is made. A claim that does not hold stops the notebook.

Chapter: how-to-read-a-certificate.
"""

import json
import math
import re
from pathlib import Path

from lipbook.bound import Bound, outward

CLAIM = "application/vnd.lipbook.claim+json"
_KEY = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*(/[a-z0-9]+(-[a-z0-9]+)*){1,2}")


def claim(key: str, statement: str, measured, holds: bool, source: str | None = None, digits: int = 3) -> None:
    """Show a claim that holds; raise when it does not.

    Args:
        key: "part/chapter/name" (or "page/name"), unique in the book.
        statement: the sentence, readable on its own.
        measured: what was found: text, a number, a `Bound` (shown rounded outward), or a list, tuple or dict of
            them. Numbers are rounded to `digits` significant digits, so that another machine shows the same.
        holds: a comparison made in the same cell.
        source: the theorem, paper or record behind the claim.
        digits: at least 1.

    Raises:
        AssertionError: `holds` is false; nothing is shown.
        TypeError, ValueError: an argument is not of this form.
    """
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise ValueError(f'key must look like "part/chapter/name", in small letters and hyphens, got {key!r}.')
    if not isinstance(statement, str) or not statement.strip():
        raise ValueError(f"statement must be a sentence, got {statement!r}.")
    if source is not None and not isinstance(source, str):
        raise TypeError(f"source must be text or None, got {type(source).__name__}.")
    if isinstance(digits, bool) or not isinstance(digits, int) or digits < 1:
        raise ValueError(f"digits must be an int of at least 1, got {digits!r}.")
    if not _is_truth_value(holds):
        raise TypeError(f"holds must be True or False, got {holds!r}: compare in the call, or use bool(...).")
    shown = _readable(measured, digits)
    if not holds:
        raise AssertionError(f"the claim {key!r} does not hold: {statement} (measured: {shown}; exactly: {measured!r})")
    record = {"key": key, "statement": statement, "measured": shown, "holds": True, "source": source, "digits": digits}
    from IPython.display import display

    display({"text/plain": f"✓ {statement}: {shown}.", CLAIM: record}, raw=True)


def results(name: str) -> dict:
    """The committed record of an experiment or a benchmark, such as "experiments/bounds/gram_rounding".

    Args:
        name: its path in the book's checkout, without ".json".

    Raises:
        ValueError: a name outside experiments/ and benchmarks/.
        FileNotFoundError: no checkout around the current folder or the package, or no such record.
    """
    if not isinstance(name, str) or not re.fullmatch(r"(experiments|benchmarks)(/[a-z0-9_]+)+", name):
        raise ValueError(f'name must look like "experiments/part/script", without ".json", got {name!r}.')
    for folder in (*Path.cwd().resolve().parents, Path.cwd(), *Path(__file__).resolve().parents):
        if (folder / "pyproject.toml").exists() and (folder / "experiments").is_dir():
            path = folder / f"{name}.json"
            if path.exists():
                return json.loads(path.read_text(encoding="utf-8"))
            raise FileNotFoundError(f"the record {name}.json is missing: run python tools/record.py {name}.py")
    raise FileNotFoundError(f"{name}.json lies in the book's checkout: run the notebook from there, not from a copy alone.")


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
    if isinstance(measured, (list, tuple)):
        return ", ".join(_readable(value, digits) for value in measured)
    if isinstance(measured, (str, bool)):
        return str(measured)
    if not hasattr(measured, "__float__"):
        raise TypeError(f"measured must be text, a number, a Bound, or a list or dict of them, got {type(measured).__name__}.")
    number = float(measured)
    if math.isnan(number):
        raise ValueError("measured is NaN: nothing was measured.")
    return str(measured) if isinstance(measured, int) else f"{number:.{digits}g}"
