"""The student's copies: every exercise and its check, no solution."""

import nbformat
import pytest

from tools import lint, student
from tools.notebook import notebooks, read

CHAPTERS = [path for path in notebooks() if "{exercise" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_the_solutions_are_gone_and_everything_else_stays(path):
    whole, copy = read(path), student.without_solutions(read(path))
    nbformat.validate(copy)
    text = "\n".join(cell.source for cell in copy.cells)
    assert "{solution" not in text and all("exercise" not in cell.metadata for cell in copy.cells)
    assert {key for _, key in lint.checked_exercises(copy)} == {
        key for _, key in lint.checked_exercises(whole)
    }
    assert text.count(":::{exercise}") == "\n".join(c.source for c in whole.cells).count(":::{exercise}") > 0
    assert copy.cells[-1] == whole.cells[-1]


def test_a_solution_that_never_ends_is_refused():
    cell = nbformat.v4.new_markdown_cell(":::{solution-start} x\n:::")
    with pytest.raises(ValueError, match="solution-end"):
        student.without_solutions(nbformat.v4.new_notebook(cells=[cell]))


def test_the_copies_keep_their_places(tmp_path):
    student.main([str(tmp_path)])
    made = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.ipynb")}
    assert made == {path.as_posix().partition("/book/")[2] for path in notebooks()}
