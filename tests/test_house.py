"""The files that keep the house agree with each other."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[1]
VENDOR = ROOT / "book" / "_static" / "vendor"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MACHINE_PATH = re.compile(r"(?<![\w.)}])/(?:work|root|tmp|home/(?!someone/)\w+)/|\b[A-Z]:\\+Users\\")


def text(path):
    return (ROOT / path).read_text(encoding="utf-8")


def tracked():
    """The files that git knows; a copy without git has none to look at."""
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("not a git checkout: there is no list of its files.")
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True)
    return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


def declared():
    extras = PROJECT["optional-dependencies"]
    return [Requirement(line) for lines in (PROJECT["dependencies"], *extras.values()) for line in lines]


def name_of(package):
    return re.sub(r"[-_.]+", "-", package).lower()


def constraints():
    lines = [line for line in text("constraints.txt").splitlines() if line and not line.startswith("#")]
    return {name_of(name): version for name, version in (line.split("==") for line in lines)}


@pytest.mark.parametrize("requirement", declared(), ids=lambda requirement: requirement.name)
def test_every_dependency_was_tested_at_an_exact_version_in_its_range(requirement):
    version = constraints().get(name_of(requirement.name))
    assert version, f"{requirement.name} is missing from constraints.txt"
    assert requirement.specifier.contains(version), f"{requirement} does not allow the tested {version}"


def test_conda_installs_the_same_from_the_same_files():
    *packages, pip = yaml.safe_load(text("environment.yml"))["dependencies"]
    python = next(Requirement(package) for package in packages if package.startswith("python"))
    assert python.specifier == SpecifierSet(PROJECT["requires-python"])
    assert pip == {"pip": ["-c constraints.txt", "-e .[book,test]"]}
    assert "-c constraints.txt -e '.[book,test]'" in text("Makefile")


def test_the_workflow_tries_the_oldest_versions_that_the_package_allows():
    job = yaml.safe_load(text(".github/workflows/tests.yml"))["jobs"]["tests"]
    rows = job["strategy"]["matrix"]["include"]
    oldest = {str(r.specifier).removeprefix(">=") for r in declared() if r.name == "torch"}
    python = PROJECT["requires-python"].removeprefix(">=")
    assert any(
        row["python"] == python and row["torch"].removeprefix("torch==") in {f"{v}.0" for v in oldest}
        for row in rows
    )
    assert {row["os"].split("-")[0] for row in rows} == {"ubuntu", "macos", "windows"}


def test_the_citation_names_the_version_of_the_package():
    assert str(yaml.safe_load(text("CITATION.cff"))["version"]) == PROJECT["version"]


def test_the_table_of_contents_and_the_pages_agree():
    listed = re.findall(r"(?:root|file): (\S+)", text("_toc.yml"))
    assert len(listed) == len(set(listed))
    pages = {
        str(path.relative_to(ROOT).with_suffix("").as_posix())
        for kind in ("md", "ipynb")
        for path in (ROOT / "book").rglob(f"*.{kind}")
        if not {"_static", ".ipynb_checkpoints"} & set(path.parts)
    }
    assert set(listed) - {"genindex"} == pages


def test_make_help_lists_every_target():
    makefile = text("Makefile")
    targets = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split()
    assert set(targets) == set(re.findall(r"^([a-z-]+):.*## \S", makefile, re.MULTILINE))
    if shutil.which("make"):
        said = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
        assert re.findall(r"^make ([a-z-]+) ", said, re.MULTILINE) == targets


def test_what_is_vendored_has_a_licence_beside_it():
    folders = [folder for folder in VENDOR.iterdir() if folder.is_dir()]
    described = re.findall(r"^([a-z-]+)/ ", text(VENDOR / "ORIGIN.txt"), re.MULTILINE)
    assert {folder.name for folder in folders} == set(described)
    for folder in folders:
        assert text(folder / "LICENSE").strip(), f"the licence in {folder.name} is empty"


def test_no_file_names_a_path_of_the_machine_it_was_made_on():
    found = {}
    for path in tracked():
        if VENDOR in path.parents:
            continue
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        for line in lines:
            if match := MACHINE_PATH.search(line):
                found[str(path.relative_to(ROOT))] = match.group()
    assert found == {}


@pytest.mark.parametrize("path", ["work/main/x", "root/.cache", "tmp/x", "home/ann/book"])
def test_a_machine_path_is_recognised(path):
    assert MACHINE_PATH.search(f"in /{path}") and MACHINE_PATH.search(f'"/{path}"')
    assert MACHINE_PATH.search("C:" + r"\Users\ann")


@pytest.mark.parametrize(
    "line", ["https://example.org/home/ann/x", "a framework/home/ann/", "{root}/home/ann/x"]
)
def test_an_address_is_not_a_machine_path(line):
    assert not MACHINE_PATH.search(line)
