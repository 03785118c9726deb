"""The API page: its examples run as printed, and it documents every public name."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import lipbook
import pytest

PAGE = (Path(__file__).resolve().parents[1] / "book/reference/api.md").read_text(encoding="utf-8")
SECTIONS = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
FENCES = re.compile(r"^```pycon\n(.*?)^```$", re.MULTILINE | re.DOTALL)
DIRECTIVE = re.compile(r"^\.\. auto(module|class|function|exception|data):: (\S+)$", re.MULTILINE)


def public_modules():
    names = (info.name for info in pkgutil.walk_packages(lipbook.__path__, "lipbook."))
    modules = [lipbook] + [importlib.import_module(name) for name in names if not name.endswith("__main__")]
    return [module for module in modules if hasattr(module, "__all__")]


def documented():
    objects = []
    for kind, name in DIRECTIVE.findall(PAGE):
        if kind == "module":
            module = importlib.import_module(name)
            objects += [getattr(module, member) for member in module.__all__]
        else:
            module, _, attribute = name.rpartition(".")
            objects.append(getattr(importlib.import_module(module), attribute))
    return {id(thing) for thing in objects}


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.splitlines()[0])
def test_each_group_has_an_example_and_it_prints_what_the_page_says(section):
    examples = "".join(FENCES.findall(section))
    test = doctest.DocTestParser().get_doctest(examples, {}, section.splitlines()[0], "api.md", 0)
    assert test.examples, "a group without an example"
    report = []
    outcome = doctest.DocTestRunner().run(test, out=report.append)
    assert outcome.failed == 0, "".join(report)


@pytest.mark.parametrize("module", public_modules(), ids=lambda module: module.__name__)
def test_every_public_name_is_documented(module):
    known = documented()
    missing = [name for name in module.__all__ if id(getattr(module, name)) not in known]
    assert not missing, f"{module.__name__}: not on the API page: {missing}"


def test_every_automodule_lists_its_members():
    for directive in re.findall(r"^\.\. automodule::.*\n(?:   :.*\n)*", PAGE, re.MULTILINE):
        assert ":members:" in directive, directive
