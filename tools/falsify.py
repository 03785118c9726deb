"""Replay the claims of a notebook with the edits that must make them false.

    python tools/falsify.py book/bounds/spectral-norms.ipynb

The notebook's cells run once, in one namespace. At a claim's cell its edited source also runs, in a shallow
copy of the namespace as it was before that cell, and must raise the AssertionError of `claim`.
"""

import contextlib
import copy
import io
import os
import random
import sys
import traceback
from pathlib import Path

import nbformat
import numpy
import torch
from IPython.core.inputtransformer2 import TransformerManager


def replay(path):
    """`{cell id: why its claim was not falsified, or None}` of the cells that carry an edit.

    Raises:
        Exception: what a cell raises as it stands, unless it is tagged "raises-exception".
    """
    found, namespace = {}, {"__name__": "__main__"}
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type != "code":
            continue
        before, randomness = copy.copy(namespace), random_states()
        try:
            run(cell.source, namespace)
        except Exception:
            if "raises-exception" not in cell.metadata.get("tags", []):
                raise
        if "falsify" in cell.metadata:
            afterwards = random_states()
            set_random_states(randomness)
            found[cell.id] = surviving(cell.source.replace(*cell.metadata.falsify), before)
            set_random_states(afterwards)
    return found


def run(source, namespace):
    code = compile(TransformerManager().transform_cell(source), "<cell>", "exec")
    with contextlib.redirect_stdout(io.StringIO()):
        exec(code, namespace)


def surviving(edited, namespace):
    """None if the edited cell raises the AssertionError of `claim`; otherwise what happened instead."""
    try:
        run(edited, namespace)
    except AssertionError as error:
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        own = raised_in.name == "claims.py"
        return None if own else f"an assert of the cell failed, not its claim: {error}"
    except Exception as error:
        return f"the edited cell fails with {type(error).__name__}: {error}"
    return "the claim still holds after its falsify edit"


def random_states():
    return random.getstate(), numpy.random.get_state(), torch.get_rng_state()


def set_random_states(states):
    random.setstate(states[0])
    numpy.random.set_state(states[1])
    torch.set_rng_state(states[2])


def main(paths):
    os.environ["MPLBACKEND"] = "agg"
    torch.set_num_threads(1)
    failed = False
    for path in [Path(path).resolve() for path in paths]:
        os.chdir(path.parent)
        found = replay(path)
        survivors = {cell: why for cell, why in found.items() if why}
        for cell, why in survivors.items():
            print(f"{cell}: {why}.", file=sys.stderr)
        falsified = len(found) - len(survivors)
        print(f"{path.name}: {falsified} of {len(found)} claims are falsified by their edits.")
        failed |= bool(survivors)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
