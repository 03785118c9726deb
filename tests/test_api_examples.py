"""The API page: its examples run as printed, and it documents every public name."""

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import lipbook

PAGE = (Path(__file__).resolve().parents[1] / "book/reference/api.md").read_text(encoding="utf-8")
SECTIONS = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
FENCES = re.compile(r"^```pycon\n(.*?)^```$", re.MULTILINE | re.DOTALL)
WHOLE_MODULES = ("lipbook.claims", "lipbook.plot")
DIRECTIVE = re.compile(r"^\.\. (automodule|autoclass|autofunction|py:data):: (\S+)$", re.MULTILINE)


def public_names(module):
    """What `module` offers: its `__all__`; without one, the functions that it defines under a public name."""
    defined = [
        name for name, thing in vars(module).items() if getattr(thing, "__module__", None) == module.__name__
    ]
    functions = [name for name in defined if inspect.isfunction(getattr(module, name)) and name[0] != "_"]
    return getattr(module, "__all__", functions)


def public_modules():
    names = (info.name for info in pkgutil.walk_packages(lipbook.__path__, "lipbook."))
    modules = [lipbook] + [importlib.import_module(name) for name in names if not name.endswith("__main__")]
    return [module for module in modules if hasattr(module, "__all__") or module.__name__ in WHOLE_MODULES]


def documented():
    objects = []
    for kind, name in DIRECTIVE.findall(PAGE):
        if kind == "automodule":
            module = importlib.import_module(name)
            # autodoc passes over data without a doc comment: such a name needs a py:data of its own
            objects += filter(callable, (getattr(module, member) for member in public_names(module)))
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
    missing = [name for name in public_names(module) if id(getattr(module, name)) not in known]
    assert not missing, f"{module.__name__}: not on the API page: {missing}"


def test_every_automodule_lists_its_members():
    for directive in re.findall(r"^\.\. automodule::.*\n(?:   :.*\n)*", PAGE, re.MULTILINE):
        assert ":members:" in directive, directive
