"""Write the two generated pages of the book's reference: the claims ledger, and time and versions.

    python tools/reference.py [--check]

The ledger is read from the outputs of the committed notebooks, the times from what `tools/notebook.py run`
recorded. With `--check` nothing is written, and a page that is out of date is an error.
"""

import argparse
import json
import re
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CLAIM = "application/vnd.lipbook.claim+json"
CHAPTER_BUDGET = 60
MEDIAN_BUDGET = 25


def chapters(root):
    """`{path from the root: notebook}` of the book, in the order of the table of contents."""
    contents = (root / "_toc.yml").read_text(encoding="utf-8")
    entries = re.findall(r"^[\s-]*(?:root|file): *(\S+)", contents, re.MULTILINE)
    files = [root / f"{entry}.ipynb" for entry in entries]
    return {
        file.relative_to(root).as_posix(): json.loads(file.read_text(encoding="utf-8"))
        for file in files
        if file.exists()
    }


def title(notebook):
    """The first heading of a notebook."""
    first = "".join(notebook["cells"][0]["source"])
    return next(line[2:].strip() for line in first.splitlines() if line.startswith("# "))


def claims(notebook):
    """The claims in a notebook's outputs, in order."""
    return [
        output["data"][CLAIM]
        for cell in notebook["cells"]
        for output in cell.get("outputs", [])
        if CLAIM in output.get("data", {})
    ]


def claims_page(notebooks):
    """The ledger: every claim of the book, what was measured, and where it comes from.

    Raises:
        ValueError: a key is used twice, or a committed claim does not hold.
    """
    found = {path: claims(notebook) for path, notebook in notebooks.items()}
    keys = [claim["key"] for entries in found.values() for claim in entries]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"two claims have the key {key!r}: a key names one claim.")
    for claim in sum(found.values(), []):
        if claim["holds"] is not True:
            raise ValueError(f"the claim {claim['key']!r} does not hold in the committed notebook.")
    page = [
        "# Claims",
        "",
        "Every claim that the book checks, as it was when its chapter was last run.",
        "A cell of the chapter computes what was measured, and fails if the claim is false.",
        "This page is written from the committed notebooks by `python tools/reference.py`.",
        "",
        f"There are {len(keys)}, on {sum(map(bool, found.values()))} of {len(notebooks)} executable pages.",
    ]
    for path, entries in found.items():
        if entries:
            page += ["", f"## [{title(notebooks[path])}]({link(path)})"]
            page += [line for claim in entries for line in ("", *entry(claim))]
    return "\n".join(page) + "\n"


def entry(claim):
    """The lines of one claim: the sentence, what was measured, where it comes from."""
    source = f" Source: {claim['source']}." if claim["source"] else ""
    return [claim["statement"], f": Measured: {claim['measured']}.{source}", f": `{claim['key']}`"]


def status_page(notebooks, times):
    """How long each chapter took, against its budget, with what versions.

    Raises:
        ValueError: a chapter was not timed, or a time is recorded for a chapter that is not in the book.
    """
    if set(notebooks) != set(times):
        wrong = ", ".join(sorted(set(notebooks) ^ set(times)))
        raise ValueError(f"recorded times and notebooks do not match: {wrong}. See `tools/notebook.py run`.")
    page = [
        "# Time and versions",
        "",
        "How long each executable page takes when all its cells run, on one core.",
        "`python -m lipbook` estimates the same for the machine that it runs on.",
        f"No chapter may take more than {CHAPTER_BUDGET} s, and half of them no more than {MEDIAN_BUDGET} s.",
        "This page is written from what `make run` records, by `python tools/reference.py`.",
    ]
    if not notebooks:
        return "\n".join(page) + "\n"
    seconds = [times[path]["seconds"] for path in notebooks]
    page += ["", f"The median is {statistics.median(seconds):.1f} s, the longest {max(seconds):.1f} s.", ""]
    rows = []
    for path, notebook in notebooks.items():
        time = times[path]
        chapter = f"[{title(notebook)}]({link(path)})"
        versions = ", ".join(f"{package} {version}" for package, version in sorted(time["versions"].items()))
        spent = f"{time['seconds']:.1f}"
        rows.append([chapter, spent, CHAPTER_BUDGET, time["date"], time["cores"], versions])
    page += table(
        "30 10 10 12 8 30",
        ["Page", "Seconds", "Budget", "Measured", "Cores of the machine", "Versions"],
        rows,
    )
    return "\n".join(page) + "\n"


def link(path):
    """A notebook's address as the reference pages, one folder down in book/, write it."""
    return f"../{path.removeprefix('book/')}"


def table(widths, head, rows):
    """The lines of a table whose cells may hold mathematics with bars in it."""
    lines = [":::{list-table}", ":header-rows: 1", f":widths: {widths}", ""]
    for row in [head, *rows]:
        cells = [" ".join(str(cell).split()) for cell in row]
        lines += [f"{'  -' if n else '* -'} {cell}".rstrip() for n, cell in enumerate(cells)]
    return [*lines, ":::"]


def pages(root):
    """`{file name: text}` of the generated pages."""
    notebooks = chapters(root)
    recorded = root / "book/reference/times.json"
    times = json.loads(recorded.read_text(encoding="utf-8")) if recorded.exists() else {}
    return {"claims.md": claims_page(notebooks), "status.md": status_page(notebooks, times)}


def main(arguments=None, root=ROOT):
    parser = argparse.ArgumentParser(description="Write the generated reference pages.")
    check = "write nothing, and fail where something would change"
    parser.add_argument("--check", action="store_true", help=check)
    check = parser.parse_args(arguments).check
    stale = []
    try:
        for page, text in pages(root).items():
            path = root / "book/reference" / page
            if path.exists() and path.read_text(encoding="utf-8") == text:
                continue
            stale.append(page)
            if not check:
                path.write_text(text, encoding="utf-8", newline="\n")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    if stale and check:
        print(f"{', '.join(stale)} out of date. Mend it with: python tools/reference.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
