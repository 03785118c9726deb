"""Every committed notebook keeps the house rules, and every rule can fail."""

import json

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tools import lint
from tools.notebook import TIMES, name, notebooks, problem, read, running_time

NOTEBOOKS = notebooks()
ids = {"ids": name}


def chapter(path):
    return name(path).removeprefix("book/").removesuffix(".ipynb")


@pytest.mark.parametrize("path", NOTEBOOKS, **ids)
def test_a_notebook_is_normalised(path):
    assert problem(path) is None


@pytest.mark.parametrize("path", NOTEBOOKS, **ids)
@pytest.mark.parametrize("rule", lint.RULES, ids=lambda rule: rule.__name__)
def test_a_notebook_keeps_the_rule(rule, path):
    assert rule(read(path), chapter(path)) == []


@pytest.mark.parametrize("path", NOTEBOOKS, **ids)
def test_a_notebook_says_how_long_it_takes_as_recorded(path):
    record = json.loads(TIMES.read_text(encoding="utf-8"))[name(path)]
    assert running_time(record, path) in read(path).cells[0].source.splitlines()


def test_claim_keys_are_unique():
    keys = [key for path in NOTEBOOKS for key in lint.claim_keys(read(path))]
    assert sorted(keys) == sorted(set(keys))


def code(source, *outputs, **metadata):
    return new_code_cell(source, metadata=metadata, outputs=list(outputs), execution_count=1)


def claim_cell(old="limit)", new="limit / 9)", source='claim("a/b/c", "small", x, holds=x < limit)', **other):
    key = new_output("display_data", {lint.CLAIM: {"key": "a/b/c"}})
    return code(source, key, falsify=[old, new], **other)


def solution(printed, last='_ = check("a/b/1", 3)', key="a/b/1"):
    return code(f"answer = 3\n{last}", new_output("stream", text=printed), tags=["solution"], exercise=key)


def sections(exercises=5, without="nothing"):
    text = "# T\n\n:::{admonition} Objectives\n:::\n\n## Exercises\n\n## Takeaways\n"
    text = text.replace(without, "Other")
    return [new_markdown_cell(text + ":::{exercise} One\n:label: one\n:::\n" * exercises)]


ACCEPTED = lint.ACCEPTED.format(key="a/b/1") + "\n"

GOOD = {
    lint.no_cell_ends_in_a_semicolon: [code("x = 1; y = 2\nx")],
    lint.code_cells_are_short: [code("x = 1\n" * 25), code("x = 1\n" * 40, tags=["hide-input"])],
    lint.fences_are_colons: [new_markdown_cell(":::{note}\nText\n:::\n\n```python\nx = {}\n```")],
    lint.images_have_alt_text: [new_markdown_cell('![A line.](a.png) <img src="a.png" alt="A line.">')],
    lint.prose_is_plain: [new_markdown_cell("We clear it. The simplex. `simply`")],
    lint.a_chapter_has_its_sections: sections(),
    lint.solutions_are_checked_and_accepted: [solution(ACCEPTED)],
    lint.claims_can_be_falsified: [claim_cell()],
    lint.claim_keys_begin_with_the_chapter: [claim_cell()],
}

BAD = [
    (lint.no_cell_ends_in_a_semicolon, [code("plt.plot(x);")]),
    (lint.no_cell_ends_in_a_semicolon, [code("plt.plot(x); \n")]),
    (lint.code_cells_are_short, [code("x = 1\n" * 26)]),
    (lint.fences_are_colons, [new_markdown_cell("Text\n\n```{note}\nText\n```")]),
    (lint.images_have_alt_text, [new_markdown_cell("![](a.png)")]),
    (lint.images_have_alt_text, [new_markdown_cell('<img src="a.png" alt="">')]),
    (lint.images_have_alt_text, [code("x", new_output("display_data", {"text/html": "<img src='a'>"}))]),
    (lint.prose_is_plain, [new_markdown_cell("Clearly, it holds.")]),
    (lint.prose_is_plain, [new_markdown_cell("We simply add.")]),
    (lint.prose_is_plain, [new_markdown_cell("Note that $x$ is small.")]),
    (lint.a_chapter_has_its_sections, sections(4)),
    (lint.a_chapter_has_its_sections, sections(9)),
    (lint.a_chapter_has_its_sections, sections(without="Objectives")),
    (lint.a_chapter_has_its_sections, sections(without="Exercises")),
    (lint.a_chapter_has_its_sections, sections(without="Takeaways")),
    (lint.solutions_are_checked_and_accepted, [solution("a/b/1: not yet: it is larger.")]),
    (lint.solutions_are_checked_and_accepted, [solution("")]),
    (lint.solutions_are_checked_and_accepted, [solution(ACCEPTED, key="a/b/2")]),
    (lint.solutions_are_checked_and_accepted, [solution(ACCEPTED, last='check("a/b/1", 3)')]),
    (lint.claims_can_be_falsified, [code('claim("a/b/c", "small", x, holds=x < 1)')]),
    (lint.claims_can_be_falsified, [claim_cell(old="absent")]),
    (lint.claims_can_be_falsified, [claim_cell(old="x")]),
    (lint.claims_can_be_falsified, [claim_cell(old="<", new=">=")]),
    (lint.claims_can_be_falsified, [claim_cell(old="x < limit", new="not x < limit")]),
    (lint.claims_can_be_falsified, [claim_cell(old="x < limit", new="False")]),
    (lint.claims_can_be_falsified, [claim_cell(new="limit)  # nothing")]),
    (lint.claims_can_be_falsified, [claim_cell(old="1", new="2", source='claim("a/b/c", "s", 1, True)')]),
    (lint.claims_can_be_falsified, [claim_cell("1", "2", 'ok = True\nclaim("k", "s", 1, ok)')]),
    (lint.claims_can_be_falsified, [claim_cell(source=claim_cell().source + "\n" + 'claim("d", "e", 1, y)')]),
    (lint.claims_can_be_falsified, [code("x = 1", falsify=["1", "2"])]),
    (lint.claim_keys_begin_with_the_chapter, [claim_cell(), claim_cell(source="")]),
]


def test_every_rule_is_tried():
    assert set(GOOD) == set(lint.RULES) == {rule for rule, _ in BAD}


@pytest.mark.parametrize("rule", lint.RULES, ids=lambda rule: rule.__name__)
def test_a_rule_passes_what_is_right(rule):
    assert rule(new_notebook(cells=GOOD[rule]), "a/b") == []


@pytest.mark.parametrize(("rule", "cells"), BAD, ids=[rule.__name__ for rule, _ in BAD])
def test_a_rule_sees_what_is_wrong(rule, cells):
    where = "a/other" if rule is lint.claim_keys_begin_with_the_chapter else "a/b"
    assert all(len(sentence.split()) > 3 for sentence in rule(new_notebook(cells=cells), where))
    assert rule(new_notebook(cells=cells), where)


def test_front_matter_needs_no_sections():
    assert lint.a_chapter_has_its_sections(new_notebook(cells=[]), "how-to-read-a-certificate") == []


def test_an_image_without_alt_text_in_a_widget_is_seen():
    notebook = new_notebook()
    state = {"state": {"1": {"state": {"value": '<img src="data:">'}}}}
    notebook.metadata.widgets = nbformat.from_dict({"application/vnd.jupyter.widget-state+json": state})
    assert lint.images_have_alt_text(notebook, "a/b")
