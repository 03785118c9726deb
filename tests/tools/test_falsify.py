"""Every claim of the book is made false by its edit; a useless edit is seen."""

import subprocess
import sys

import pytest
from nbformat.v4 import new_code_cell, new_notebook

from tools import falsify
from tools.notebook import ROOT, name, notebooks, write

BEFORE = """\
import torch
from lipbook.claims import claim
_ = torch.manual_seed(0)
limit, x = 1.0, torch.rand(())
"""
CLAIM = "y = torch.rand(())\nclaim('a/b', 'x is small', x, holds=bool(x < limit))"
AFTER = """\
z = torch.rand(())
_ = torch.manual_seed(0)
assert (x, y, z, limit) == (torch.rand(()), torch.rand(()), torch.rand(()), 1.0)
"""


@pytest.fixture
def made_up(tmp_path):
    """A function that writes a notebook whose second cell carries this edit, and returns its path."""

    def written(edit, claim=CLAIM):
        cells = [new_code_cell(source) for source in (BEFORE, claim, AFTER)]
        cells[1].metadata.falsify = edit
        write(tmp_path / "made-up.ipynb", new_notebook(cells=cells))
        return tmp_path / "made-up.ipynb"

    return written


def test_a_good_edit_falsifies_its_claim_and_changes_nothing_for_the_cells_after_it(made_up):
    edit = ["x < limit", "x + 1 + torch.rand(()) < limit"]
    assert list(falsify.replay(made_up(edit)).values()) == [None]


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (["x < limit", "x / 2 < limit"], "still holds"),
        (["x < limit", "w < limit"], "NameError"),
        (["claim(", "assert x > limit, 'here'; claim("], "an assert of the cell failed"),
    ],
    ids=["useless", "broken", "another assert"],
)
def test_an_edit_that_does_not_falsify_the_claim_is_seen(made_up, edit, words, capsys, monkeypatch):
    path = made_up(edit)
    (why,) = falsify.replay(path).values()
    assert words in why
    monkeypatch.chdir(path.parent)
    assert falsify.main([str(path)]) == 1
    assert "0 of 1 claims" in capsys.readouterr().out


def test_a_notebook_that_does_not_run_is_an_error(made_up):
    with pytest.raises(ZeroDivisionError):
        falsify.replay(made_up(["1", "2"], claim="1 / 0"))


@pytest.mark.thorough
@pytest.mark.parametrize("path", notebooks(), ids=name)
def test_every_claim_of_a_notebook_is_falsified_by_its_edit(path):
    command = [sys.executable, str(ROOT / "tools/falsify.py"), str(path)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
