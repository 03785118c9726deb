"""`check` reads an answer, says one line, and never lets a reader's mistake stop the notebook."""

import importlib
import sys

import pytest

import lipbook.exercises
from lipbook.exercises import check
from lipbook.exercises.registry import CHECKS, exercise

CHAPTER = """\
from lipbook.exercises.registry import exercise

@exercise("demo/first-steps/1")
def two(answer):
    return None if answer == 2 else "count again."

@exercise("demo/first-steps/2")
def squares(function):
    return None if function(3) == 9 else "three times three?"

@exercise("demo/first-steps/10")
def anything(answer):
    return None
"""


@pytest.fixture
def chapter(tmp_path, monkeypatch):
    """The file of a made-up chapter, demo/first-steps, that the package finds; forgotten afterwards."""
    monkeypatch.setattr(lipbook.exercises, "__path__", [*lipbook.exercises.__path__, str(tmp_path)])
    path = tmp_path / "demo/first_steps.py"
    path.parent.mkdir()
    path.write_text(CHAPTER)
    known = dict(CHECKS)
    importlib.invalidate_caches()
    yield path
    for module in [name for name in sys.modules if name.startswith("lipbook.exercises.demo")]:
        del sys.modules[module]
    vars(lipbook.exercises).pop("demo", None)
    CHECKS.clear()
    CHECKS.update(known)


def said(capsys, key, answer):
    """What `check` returns and the one line that it prints."""
    verdict = check(key, answer)
    out, err = capsys.readouterr()
    assert out.count("\n") == 1 and out.startswith(f"{key}: ") and not err
    return verdict, out.removeprefix(f"{key}: ").rstrip("\n")


def test_a_right_answer(chapter, capsys):
    assert said(capsys, "demo/first-steps/1", 2) == (True, "right.")


def test_a_wrong_answer_gets_its_advice(chapter, capsys):
    assert said(capsys, "demo/first-steps/1", 3) == (False, "not yet: count again.")


def test_no_answer_is_not_a_wrong_one(chapter, capsys):
    assert said(capsys, "demo/first-steps/10", None) == (False, "not answered yet.")


def test_an_answer_may_be_a_function(chapter, capsys):
    assert said(capsys, "demo/first-steps/2", lambda x: x * x)[0] is True


def test_what_an_answer_raises_is_one_line(chapter, capsys):
    def answer(x):
        raise ValueError("one\ntwo")

    assert said(capsys, "demo/first-steps/2", answer) == (False, "not yet: raised ValueError: one two")


def test_an_interrupt_is_not_swallowed(chapter):
    def answer(x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check("demo/first-steps/2", answer)


def test_a_chapter_is_imported_when_it_is_first_asked_for(chapter, capsys):
    assert "lipbook.exercises.demo.first_steps" not in sys.modules
    said(capsys, "demo/first-steps/1", 2)
    assert "lipbook.exercises.demo.first_steps" in sys.modules


def test_an_unknown_number_lists_the_keys_of_the_chapter_in_order(chapter):
    keys = "demo/first-steps/1, demo/first-steps/2, demo/first-steps/10"
    with pytest.raises(ValueError, match=f"'demo/first-steps/3'.*{keys}"):
        check("demo/first-steps/3", 1)


@pytest.mark.parametrize("key", ["demo/second-steps/1", "no-such-part/first-steps/1"])
def test_an_unknown_chapter_is_named(chapter, key):
    with pytest.raises(ValueError, match=key.removesuffix("/1")):
        check(key, 1)


def test_a_package_that_the_chapter_lacks_is_not_taken_for_a_missing_chapter(chapter):
    chapter.write_text("import no_such_package\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        check("demo/first-steps/1", 1)


def test_one_key_names_one_exercise(chapter):
    chapter.write_text(CHAPTER.replace("first-steps/2", "first-steps/1"))
    with pytest.raises(ValueError, match="twice"):
        check("demo/first-steps/1", 2)


def test_a_chapter_may_be_reloaded(chapter, capsys):
    said(capsys, "demo/first-steps/1", 2)
    importlib.reload(sys.modules["lipbook.exercises.demo.first_steps"])
    assert said(capsys, "demo/first-steps/1", 2)[0] is True


@pytest.mark.parametrize("key", ["demo/other-steps/1", "first-steps/1", "1"])
def test_an_exercise_that_check_could_not_find_is_not_registered(key):
    with pytest.raises(ValueError, match="belongs in"):
        exercise(key)(lambda answer: None)
    assert key not in CHECKS


def test_a_number_where_a_function_is_asked_for_is_said_in_words(capsys):
    assert check("bounds/spectral-norms/3", 2.0) is False
    assert "the answer is a function, not float" in capsys.readouterr().out
