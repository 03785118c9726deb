"""Imports point one way, and `import lipbook` brings nothing that a script does not need."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import lipbook

PACKAGE = Path(lipbook.__file__).parent
BELOW = {
    "bound": set(),
    "norms": {"bound"},
    "contracts": {"bound", "norms"},
    "network": {"bound", "norms", "contracts"},
    "bounds": {"bound", "norms", "contracts", "network"},
    "sdp": {"bound", "norms", "contracts", "network", "bounds"},
    "layers": {"bound", "norms", "contracts"},
    "training": {"bound", "norms", "contracts", "network", "bounds"},
    "privacy": {"bound", "norms", "contracts", "network", "bounds", "layers", "training"},
    "data": {"bound", "norms", "contracts", "layers"},
    "plot": {"bound"},
    "claims": {"bound"},
}
ON_TOP = {"exercises", "__main__", "__init__"}  # they may use everything, and nothing imports them
MODULES = sorted(PACKAGE.rglob("*.py"))
PACKAGES = sorted(path.parent for path in PACKAGE.rglob("__init__.py"))


def room(module):
    """The part of the library that a dotted name or a path below lipbook/ belongs to."""
    first = module.split(".")[0]
    return "bound" if first in lipbook.__all__ else first


def imported_rooms(source, package):
    """The parts of lipbook that the source of a module of `package` (a dotted name) imports."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            origin = ".".join([*parents, *([node.module] if node.module else [])])
            names = [f"{origin}.{alias.name}" for alias in node.names]
        found |= {room(name.removeprefix("lipbook.")) for name in names if name.startswith("lipbook.")}
    return found


def forbidden(source, package, own):
    imported = imported_rooms(source, package) - {own}
    return imported & ON_TOP if own in ON_TOP else imported - BELOW[own]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_point_one_way(path):
    below = path.relative_to(PACKAGE)
    package = ".".join(["lipbook", *below.parts[:-1]])
    assert not forbidden(path.read_text(encoding="utf-8"), package, below.parts[0].removesuffix(".py"))


@pytest.mark.parametrize(
    ("source", "package", "own"),
    [
        ("from lipbook.bounds import spectral_norm", "lipbook.norms", "norms"),
        ("import lipbook.contracts.guard", "lipbook.norms", "norms"),
        ("from lipbook import plot", "lipbook.contracts", "contracts"),
        ("from ..exercises import check", "lipbook.bounds", "bounds"),
        ("def f():\n    from lipbook.data import digits", "lipbook.training", "training"),
    ],
)
def test_an_import_against_the_arrows_is_seen(source, package, own):
    assert forbidden(source, package, own)


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_module_is_named_like_a_public_name_of_its_package(package):
    dotted = ".".join(["lipbook", *package.relative_to(PACKAGE).parts])
    public = getattr(importlib.import_module(dotted), "__all__", [])
    entries = package.iterdir()
    assert not {path.stem for path in entries if path.suffix == ".py" or path.is_dir()} & set(public)


def test_import_lipbook_brings_torch_and_no_notebook_or_plotting_package():
    program = "import sys, lipbook, lipbook.bounds, lipbook.contracts, lipbook.layers; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert "torch" in loaded
    assert not {"matplotlib", "ipywidgets", "IPython", "sklearn", "scipy", "pandas"} & loaded


def test_parts_of_the_library_are_there_when_asked_for_and_not_before():
    program = """if True:
        import sys, lipbook
        print(*(name for name in sys.modules if name.startswith("lipbook")))
        print(lipbook.training.fit.__module__)
        print(*(getattr(lipbook, name).__name__ for name in sys.argv[1:]))
    """
    names = sorted({path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in MODULES})
    asked = [name for name in names if name[0] != "_" and name not in {"bound", "network"}]
    command = [sys.executable, "-c", program, *asked]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    first, function, parts = run.stdout.splitlines()
    assert set(first.split()) == {"lipbook", "lipbook.bound"}
    assert function.startswith("lipbook.training")
    assert parts.split() == [f"lipbook.{name}" for name in asked]


@pytest.mark.parametrize("name", ["trainning", "__wrapped__", "os"])
def test_the_library_has_no_attribute_that_is_no_part_of_it(name):
    with pytest.raises(AttributeError, match=f"'lipbook' has no attribute '{name}'"):
        getattr(lipbook, name)
    assert not hasattr(lipbook, name)
