"""Exercises: what the notebooks ask is what the library checks, and wrong answers are refused."""

import importlib
import pkgutil

import pytest

import lipbook.exercises
from lipbook.exercises import check
from lipbook.exercises.registry import CHECKS
from tests.exercises.wrong_answers import WRONG
from tools import lint
from tools.notebook import notebooks, read

for module in pkgutil.walk_packages(lipbook.exercises.__path__, "lipbook.exercises."):
    importlib.import_module(module.name)
REGISTERED = sorted(CHECKS)


def test_the_notebooks_ask_what_is_registered():
    asked = {key for path in notebooks() for _, key in lint.checked_exercises(read(path))}
    assert sorted(asked) == REGISTERED


def test_every_exercise_has_one_solution_cell():
    cells = [cell for path in notebooks() for cell in lint.code_cells(read(path))]
    solved = [cell.metadata["exercise"] for cell in cells if "exercise" in cell.metadata]
    assert sorted(solved) == REGISTERED


def test_every_exercise_has_three_recorded_wrong_answers():
    assert {key: len(answers) for key, answers in WRONG.items()} == dict.fromkeys(REGISTERED, 3)


def test_the_line_of_acceptance_is_the_one_that_the_house_rules_look_for(monkeypatch, capsys):
    monkeypatch.setitem(CHECKS, REGISTERED[0], lambda answer: None)
    assert check(REGISTERED[0], 1) is True
    assert capsys.readouterr().out == lint.ACCEPTED.format(key=REGISTERED[0]) + "\n"


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("key", REGISTERED)
def test_a_wrong_answer_is_refused_with_advice(key, number, capsys):
    assert check(key, WRONG[key][number]) is False
    assert len(capsys.readouterr().out.split(":", 1)[1].split()) >= 4
