"""Copies of the chapters for a class: the exercises with their checks, without the solutions.

    python tools/student.py [folder]        (_build/student by default)

The notebooks keep their places below the folder, so that the links between them work.
"""

import copy
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.notebook import ROOT, name, notebooks, read, write


def without_solutions(notebook):
    """A copy of a notebook without its cells from `solution-start` to `solution-end`, or of a `solution`."""
    kept, inside = [], False
    for cell in notebook.cells:
        source = cell.source.lstrip()
        inside = inside or source.startswith(":::{solution-start}")
        if not inside and not source.startswith(":::{solution}"):
            kept.append(cell)
        inside = inside and not source.startswith(":::{solution-end}")
    if inside:
        raise ValueError("a solution-start has no solution-end.")
    student = copy.deepcopy(notebook)
    student.cells = copy.deepcopy(kept)
    return student


def main(arguments=None):
    arguments = sys.argv[1:] if arguments is None else arguments
    folder = Path(arguments[0]) if arguments else ROOT / "_build/student"
    for path in notebooks():
        target = folder / Path(name(path)).relative_to("book")
        target.parent.mkdir(parents=True, exist_ok=True)
        write(target, without_solutions(read(path)))
        print(target)


if __name__ == "__main__":
    main()
