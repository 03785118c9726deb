"""The generated pages say what the notebooks and the recorded times say, and are up to date."""

import json

import pytest

from tools import reference

CLAIM = {
    "key": "bounds/one/below",
    "statement": "$|x| \\le 1$, on | every | input",
    "measured": "0.5",
    "holds": True,
    "source": None,
    "digits": 3,
}
TIME = {
    "seconds": 12.34,
    "date": "2026-11-21",
    "cores": 2,
    "versions": {"python": "3.11.2", "torch": "2.13.0"},
}
VALID = {"book/bounds/one.ipynb": [CLAIM], "book/front.ipynb": []}


def notebook(claims):
    outputs = [{"data": {reference.CLAIM: claim}} for claim in claims]
    head = {"cell_type": "markdown", "source": ["# One title\n", "\n", "text"]}
    return {"cells": [head, {"cell_type": "code", "source": [], "outputs": outputs}]}


@pytest.fixture
def book(tmp_path):
    """A function that writes a book with these claims by chapter, and returns its root."""

    def write(claims_by_path, times=None):
        for path, claims in claims_by_path.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(json.dumps(notebook(claims)))
        files = "".join(f"  - file: {path.removesuffix('.ipynb')}\n" for path in claims_by_path)
        (tmp_path / "_toc.yml").write_text(f"root: book/intro\nchapters:\n{files}  - file: book/notation\n")
        times = {path: TIME for path in claims_by_path} if times is None else times
        (tmp_path / "book/reference").mkdir(parents=True, exist_ok=True)
        (tmp_path / "book/reference/times.json").write_text(json.dumps(times))
        return tmp_path

    return write


def test_the_committed_pages_are_up_to_date():
    assert reference.main(["--check"]) == 0


def test_the_ledger_lists_every_claim_under_its_chapter(book):
    page = reference.pages(book(VALID))["claims.md"]
    assert "There are 1, on 1 of 2 executable pages." in page
    assert "## [One title](../bounds/one.ipynb)" in page and "front.ipynb" not in page
    assert "$|x| \\le 1$, on | every | input\n: Measured: 0.5.\n: `bounds/one/below`\n" in page


def test_the_status_page_lists_every_chapter_with_its_time(book):
    page = reference.pages(book(VALID))["status.md"]
    row = "* - [One title](../bounds/one.ipynb)\n  - 12.3\n  - 60\n  - 2026-11-21\n  - 2\n"
    assert row + "  - python 3.11.2, torch 2.13.0\n" in page
    assert page.index("../bounds/one.ipynb") < page.index("../front.ipynb"), "not in the order of the toc"
    assert "The median is 12.3 s, the longest 12.3 s." in page


@pytest.mark.parametrize(
    ("claims", "times", "words"),
    [
        ({"book/a.ipynb": [CLAIM, CLAIM]}, None, "two claims have the key 'bounds/one/below'"),
        ({"book/a.ipynb": [CLAIM], "book/b.ipynb": [CLAIM]}, None, "two claims have the key"),
        ({"book/a.ipynb": [CLAIM | {"holds": False}]}, None, "does not hold"),
        (VALID, {"book/front.ipynb": TIME}, "book/bounds/one.ipynb"),
        (VALID, {path: TIME for path in [*VALID, "book/gone.ipynb"]}, "book/gone.ipynb"),
    ],
    ids=["key twice in a chapter", "key twice in the book", "false claim", "no time", "time of no chapter"],
)
def test_a_book_that_contradicts_itself_is_refused(book, claims, times, words):
    with pytest.raises(ValueError, match=words):
        reference.pages(book(claims, times))


def test_a_page_that_is_out_of_date_fails_the_check_and_is_then_mended(book, capsys):
    root = book(VALID)
    assert reference.main(["--check"], root) == 1
    assert "python tools/reference.py" in capsys.readouterr().err
    assert reference.main([], root) == 0
    assert reference.main(["--check"], root) == 0
