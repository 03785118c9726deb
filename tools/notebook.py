"""Execute the book's notebooks, and write them so that the same book always gives the same bytes.

    python tools/notebook.py run book/bounds/spectral-norms.ipynb
    python tools/notebook.py normalise [--check] [notebooks]

`run` executes in the current environment on one thread, normalises, and records the time. `normalise` without
a path takes every notebook under book/; with `--check` it writes nothing and fails where it would have to.
"""

import argparse
import copy
import datetime
import json
import math
import os
import platform
import re
import sys
import time
from importlib import metadata
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parents[1]
TIMES = ROOT / "book/reference/times.json"
STATUS_PAGE = ROOT / "book/reference/status.md"
CELL_METADATA = ("exercise", "falsify", "mystnb", "nbgrader", "tags")
KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
RUNNING_TIME = re.compile(r"^\*\*Running time:\*\*.*$", re.MULTILINE)
PACKAGES = ("torch", "numpy", "matplotlib", "jupyter-book")
CALM_SECONDS = (5, 10, 15, 20, 25, 30, 40, 50, 60)


class NotebookError(ValueError):
    """A notebook that cannot be committed as it stands."""


def notebooks():
    """The paths of the book's notebooks, sorted."""
    return sorted(path for path in (ROOT / "book").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)


def name(path):
    """The path of a file as it is written in the book's records: from the root of the book, with slashes."""
    path = Path(path).resolve()
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.as_posix()


def read(path):
    return nbformat.reads(Path(path).read_text(encoding="utf-8"), as_version=4)


def text(notebook):
    """The bytes of a notebook as text: sorted keys, one space of indent, a final newline."""
    return nbformat.writes(notebook).rstrip("\n") + "\n"


def write(path, notebook):
    Path(path).write_text(text(notebook), encoding="utf-8", newline="\n")


def normalised(notebook, stem):
    """A copy of `notebook` without what changes from run to run; `stem` is the file's name without .ipynb.

    Raises:
        NotebookError: a cell was not executed, failed, wrote to stderr, or shows a figure without alt text.
    """
    notebook = copy.deepcopy(notebook)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    count = 0
    for position, cell in enumerate(notebook.cells, start=1):
        cell.id = f"{stem}-{position:03d}"
        cell.metadata = nbformat.from_dict({k: cell.metadata[k] for k in CELL_METADATA if k in cell.metadata})
        if cell.cell_type == "code":
            count += 1
            _normalise_code(cell, count)
    widgets = notebook.metadata.get("widgets")
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNELSPEC, "language_info": {"name": "python"}})
    if widgets:
        notebook.metadata.widgets = widgets
        _rename_widgets(notebook, stem)
    nbformat.validate(notebook)
    return notebook


def _normalise_code(cell, count):
    if cell.execution_count is None:
        raise NotebookError(f"cell {cell.id} was not executed (or is empty): run the notebook again.")
    cell.execution_count = count
    cell.outputs = _merged_streams(cell.outputs)
    for output in cell.outputs:
        if output.output_type == "execute_result":
            output.execution_count = count
        if output.output_type == "stream" and output.name == "stderr":
            text = output.text.strip()[:200]
            raise NotebookError(f"cell {cell.id} writes to stderr: {text!r}. Silence its cause.")
        if output.output_type == "error":
            if "raises-exception" not in cell.metadata.get("tags", []):
                raise NotebookError(f"cell {cell.id} fails with {output.ename}: {output.evalue[:200]}")
            output.traceback = [f"{output.ename}: {output.evalue}"]  # the frames name files of one machine
    images = [output for output in cell.outputs if "image/png" in output.get("data", {})]
    if len(images) > 1:
        raise NotebookError(f"cell {cell.id} shows {len(images)} figures: one a cell, each has an alt text.")
    for output in images:
        _carry_alt(cell, output)


def _merged_streams(outputs):
    merged = []
    for output in outputs:
        last = merged[-1] if merged else {}
        if output.output_type == "stream" and output.name == last.get("name"):
            last.text += output.text
        else:
            merged.append(output)
    return merged


def _carry_alt(cell, output):
    """Write the alt text that a figure was displayed with where the book's builder looks for it."""
    alt = output.metadata.get("image/png", {}).get("alt", "").strip()
    image = cell.metadata.setdefault("mystnb", {}).setdefault("image", {})
    if alt:
        image["alt"] = alt
    if not image.get("alt", "").strip():
        raise NotebookError(f"cell {cell.id} shows a figure without alt text: use lipbook.plot.show.")


def _rename_widgets(notebook, stem):
    """Give widget models names by their place in the notebook instead of random ones."""
    state = notebook.metadata.widgets[WIDGET_STATE].state
    views = [
        output.data[WIDGET_VIEW]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if WIDGET_VIEW in output.get("data", {})
    ]
    order = _widget_order(state, [view["model_id"] for view in views])
    names = {model: f"{stem}-widget-{position:04d}" for position, model in enumerate(order, start=1)}
    for view in views:
        view["model_id"] = names.get(view["model_id"], view["model_id"])
    renamed = {
        names[model]: _with_references(state[model], lambda other: f"IPY_MODEL_{names[other]}")
        for model in order
    }
    notebook.metadata.widgets = nbformat.from_dict(
        {WIDGET_STATE: {"state": renamed, "version_major": 2, "version_minor": 0}}
    )


def _widget_order(state, roots):
    """The models as met from the displayed ones; then those that only refer to them (links), by content."""
    order = {}

    def visit(model):
        if model in state and model not in order:
            order[model] = len(order)
            _with_references(state[model], visit)

    def content(model):
        if model in order:
            return order[model]
        return json.dumps(_with_references(state[model], content), sort_keys=True)

    for model in roots:
        visit(model)
    for model in sorted((model for model in state if model not in order), key=content):
        visit(model)
    return list(order)


def _with_references(value, replace):
    """`value` with `replace(model)` for every reference to a widget model, in the order of sorted keys."""
    if isinstance(value, dict):
        return {key: _with_references(value[key], replace) for key in sorted(value)}
    if isinstance(value, list):
        return [_with_references(item, replace) for item in value]
    if isinstance(value, str) and value.startswith("IPY_MODEL_"):
        return replace(value.removeprefix("IPY_MODEL_"))
    return value


def problem(path):
    """None if the notebook is as the normaliser writes it; otherwise a sentence saying why not."""
    try:
        expected = text(normalised(read(path), path.stem))
    except NotebookError as error:
        return str(error)
    found = path.read_text(encoding="utf-8")
    if found == expected:
        return None
    lines = zip(found.splitlines() + [""], expected.splitlines() + [""], strict=False)
    number, (ours, theirs) = next(
        ((n, pair) for n, pair in enumerate(lines, 1) if pair[0] != pair[1]), (0, ("", "its final newline"))
    )
    return f"line {number} should read {theirs.strip()[:80]!r}, it reads {ours.strip()[:80]!r}."


def execute(notebook, folder):
    """Run every cell of `notebook` in place, in `folder`; return the wall time in seconds."""
    os.environ.update(OMP_NUM_THREADS="1", PYTHONHASHSEED="0")
    notebook.metadata.pop("widgets", None)
    start = time.perf_counter()
    NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        extra_arguments=["--log-level=ERROR"],  # keeps a notice about the kernel's sockets off the terminal
        resources={"metadata": {"path": str(folder)}},
    ).execute()
    return time.perf_counter() - start


def run(path):
    """Execute, time and normalise one notebook; write it only if every cell succeeded."""
    from lipbook.__main__ import workload_seconds  # torch is slow to import and normalising does without it

    path = Path(path).resolve()
    notebook = read(path)
    if not notebook.cells or not RUNNING_TIME.search(notebook.cells[0].source):
        raise NotebookError('its first cell has no line "**Running time:**": add one, it is filled in here.')
    workload = workload_seconds()
    seconds = execute(notebook, path.parent)
    record = {
        "cores": os.cpu_count(),
        "date": datetime.date.today().isoformat(),
        "seconds": round(seconds, 1),
        "versions": versions(),
        "workload_seconds": round(workload, 2),
    }
    first = notebook.cells[0]
    first.source = RUNNING_TIME.sub(running_time(record, path), first.source, count=1)
    write(path, normalised(notebook, path.stem))
    if path.is_relative_to(ROOT):
        times = json.loads(TIMES.read_text(encoding="utf-8")) if TIMES.exists() else {}
        times[name(path)] = record
        TIMES.write_text(json.dumps(times, indent=1, sort_keys=True) + "\n", encoding="utf-8", newline="\n")
    return record


def versions():
    """The versions that a time depends on, without the build tags of one machine."""
    packages = {package: metadata.version(package).split("+")[0] for package in PACKAGES}
    return {"python": platform.python_version()} | packages


def running_time(record, path):
    """The line of a chapter's first cell that says how long it takes."""
    status = Path(os.path.relpath(STATUS_PAGE, Path(path).resolve().parent)).as_posix()
    return (
        f"**Running time:** about {calm(record['seconds'])} on one core of a laptop-class machine, "
        f"measured {record['date']} (see the [status page]({status}))."
    )


def calm(seconds):
    """A time in words, rounded up to a figure worth remembering."""
    rounded = next((step for step in CALM_SECONDS if seconds <= step), None)
    return f"{rounded} seconds" if rounded else f"{math.ceil(seconds / 60)} minutes"


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Execute and normalise the book's notebooks.")
    commands = parser.add_subparsers(dest="command", required=True)
    for command, nargs in (("run", "+"), ("normalise", "*")):
        commands.add_parser(command).add_argument("paths", nargs=nargs, type=Path)
    check = "write nothing, and fail where something would change"
    commands.choices["normalise"].add_argument("--check", action="store_true", help=check)
    options = parser.parse_args(arguments)
    failed = False
    for path in options.paths or notebooks():
        mend = f"python tools/notebook.py {options.command} {name(path)}"
        try:
            if options.command == "run":
                print(f"{name(path)}: {run(path)['seconds']} s")
            elif not options.check:
                write(path, normalised(read(path), path.stem))
            elif why := problem(path):
                failed = True
                print(f"{name(path)} is not normalised: {why}\n  Mend it with: {mend}", file=sys.stderr)
        except (NotebookError, CellExecutionError) as error:
            failed = True
            print(f"{name(path)}: {error}\n  When that is mended: {mend}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
