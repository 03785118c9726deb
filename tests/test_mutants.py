"""Every mutant of `tests/mutants.py` applies to the library as it is, and fails the tests that it names."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutants import MUTANTS

ROOT = Path(__file__).resolve().parents[1]
WHICH_COPY = """\
from pathlib import Path
import lipbook

def test_the_copy_is_what_is_tested():
    assert Path(lipbook.__file__).resolve().parents[1] == Path(__file__).resolve().parent
"""


def mutant_id(mutant):
    return f"{mutant.file}: {mutant.old[:40]}"


def source(root, mutant):
    return (root / "lipbook" / mutant.file).read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def copy(tmp_path_factory):
    """A copy of the library with its tests, away from the installed one."""
    root = tmp_path_factory.mktemp("copy")
    for folder in ("lipbook", "tests", "tools"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    (root / "test_copy.py").write_text(WHICH_COPY, encoding="utf-8")
    return root


def run_tests(root, tests):
    environment = os.environ | {"PYTHONPATH": str(root), "LIPBOOK_THOROUGH": "0"}
    command = [sys.executable, "-B", "-m", "pytest", "-qx", "-p", "no:cacheprovider", "test_copy.py", *tests]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("mutant", MUTANTS, ids=mutant_id)
def test_a_mutant_applies_exactly_once(mutant):
    assert source(ROOT, mutant).count(mutant.old) == 1
    assert mutant.old != mutant.new
    assert all((ROOT / path).is_file() for path in mutant.tests.split())


@pytest.mark.thorough
def test_the_copy_passes_without_a_mutant(copy):
    run = run_tests(copy, sorted({path for mutant in MUTANTS for path in mutant.tests.split()}))
    assert run.returncode == 0, run.stdout


@pytest.mark.thorough
@pytest.mark.parametrize("mutant", MUTANTS, ids=mutant_id)
def test_a_mutant_fails_a_test(mutant, copy):
    right = source(copy, mutant)
    file = copy / "lipbook" / mutant.file
    try:
        file.write_text(right.replace(mutant.old, mutant.new), encoding="utf-8")
        run = run_tests(copy, mutant.tests.split())
    finally:
        file.write_text(right, encoding="utf-8")
    assert run.returncode == 1, f"no test failed, or none could start:\n{run.stdout}{run.stderr}"
    assert "FAILED test_copy.py" not in run.stdout
