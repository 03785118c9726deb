"""The normaliser: the same book gives the same bytes, and what cannot be committed is refused."""

import copy
import json

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tools import notebook as tool

PNG = "iVBORw0KGgo="


def executed(*cells):
    return new_notebook(cells=[new_markdown_cell("# Title\n\n**Running time:** later."), *cells])


def cell(*outputs, count=7, **metadata):
    return new_code_cell("x", execution_count=count, metadata=metadata, outputs=list(outputs))


def figure(alt):
    return new_output("display_data", {"image/png": PNG}, metadata={"image/png": {"alt": alt}} if alt else {})


def widget(name, **state):
    return {"model_module": "@jupyter-widgets/controls", "model_name": name, "state": state}


def with_widgets(names):
    """A slider linked to a stack of two frames, the models called by `names`, in their sorted order."""
    box, slider, stack, one, two, link, layout = names
    ref = "IPY_MODEL_{}".format
    models = {
        box: widget("VBoxModel", children=[ref(slider), ref(stack)]),
        slider: widget("SelectionSliderModel", layout=ref(layout)),
        stack: widget("StackModel", children=[ref(one), ref(two)]),
        one: widget("HTMLModel", value="same"),
        two: widget("HTMLModel", value="same"),
        link: widget("LinkModel", source=[ref(slider), "index"], target=[ref(stack), "selected_index"]),
        layout: widget("LayoutModel"),
    }
    version = {"version_major": 2, "version_minor": 0}
    view = {tool.WIDGET_VIEW: {"model_id": box, **version}, "text/plain": "VBox()"}
    notebook = executed(cell(new_output("display_data", view)))
    state = {"state": dict(sorted(models.items())), **version}
    notebook.metadata.widgets = nbformat.from_dict({tool.WIDGET_STATE: state})
    return notebook


def test_what_changes_from_run_to_run_is_dropped_and_the_rest_stays():
    kept = {"tags": ["a"], "mystnb": {"figure": {"name": "f"}}, "nbgrader": {}, "falsify": ["a", "b"]}
    kept["exercise"] = "bounds/a-chapter/1"
    noisy = cell(execution={"iopub.execute_input": "12:00"}, collapsed=False, **kept)
    notebook = executed(noisy, cell(count=9))
    notebook.metadata.update(kernelspec={"name": "mine"}, language_info={"version": "3.11.2"}, toc={})
    found = tool.normalised(notebook, "a-chapter")
    assert found.cells[1].metadata == kept
    assert [c.id for c in found.cells] == ["a-chapter-001", "a-chapter-002", "a-chapter-003"]
    assert [c.execution_count for c in found.cells[1:]] == [1, 2]
    assert set(found.metadata) == {"kernelspec", "language_info"}
    assert found.metadata.kernelspec.name == "python3"
    assert found.metadata.language_info == {"name": "python"}
    assert notebook.cells[1].execution_count == 7, "the notebook that was given is not changed"


def test_normalising_twice_changes_nothing():
    result = new_output("execute_result", {"text/plain": "3"}, execution_count=12)
    notebook = tool.normalised(executed(cell(figure("A line.")), cell(result)), "a")
    assert tool.text(tool.normalised(notebook, "a")) == tool.text(notebook)
    assert notebook.cells[2].outputs[0].execution_count == 2


def test_streams_that_the_kernel_sent_in_pieces_are_one():
    pieces = [new_output("stream", text=text) for text in ("a", "b\n", "c")]
    shown = new_output("display_data", {"text/plain": "d"})
    outputs = tool.normalised(executed(cell(*pieces, shown, *copy.deepcopy(pieces))), "a").cells[1].outputs
    assert [output.get("text") for output in outputs] == ["ab\nc", None, "ab\nc"]


def test_the_alt_text_of_a_figure_is_carried_to_where_the_builder_looks():
    rising = cell(figure("It rises."), mystnb={"image": {"alt": "old", "width": 9}})
    found = tool.normalised(executed(rising), "a")
    assert found.cells[1].metadata.mystnb.image == {"alt": "It rises.", "width": 9}


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (cell(figure("")), "alt text"),
        (cell(figure(" ")), "alt text"),
        (cell(figure("a"), figure("b")), "2 figures"),
        (cell(new_output("stream", name="stderr", text="a warning")), "a warning"),
        (cell(new_output("error", ename="ValueError", evalue="broken", traceback=[])), "ValueError: broken"),
        (cell(count=None), "not executed"),
    ],
    ids=["no alt", "blank alt", "two figures", "stderr", "error", "not executed"],
)
def test_what_cannot_be_committed_is_refused(bad, words):
    with pytest.raises(tool.NotebookError, match=words):
        tool.normalised(executed(bad), "a")


def test_an_expected_error_keeps_its_name_and_loses_the_files_of_this_machine():
    error = new_output("error", ename="ValueError", evalue="broken", traceback=["File /home/someone/a.py"])
    found = tool.normalised(executed(cell(error, tags=["raises-exception"])), "a")
    assert found.cells[1].outputs[0].traceback == ["ValueError: broken"]


def test_widgets_have_the_same_names_whatever_the_kernel_called_them():
    texts = {
        tool.text(tool.normalised(with_widgets(names), "a"))
        for names in ("abcdefg", "gfedcba", "dgbfaec", [f"{n:032x}" for n in (9, 3, 7, 1, 8, 2, 4)])
    }
    assert len(texts) == 1
    text = texts.pop()
    assert tool.text(tool.normalised(nbformat.reads(text, as_version=4), "a")) == text
    view = json.loads(text)["cells"][1]["outputs"][0]["data"][tool.WIDGET_VIEW]["model_id"]
    models = json.loads(text)["metadata"]["widgets"][tool.WIDGET_STATE]["state"]
    assert models[view]["model_name"] == "VBoxModel"
    references = [word for word in text.split('"') if word.startswith("IPY_MODEL_")]
    assert len(references) == 7 and {ref.removeprefix("IPY_MODEL_") for ref in references} <= set(models)


def test_check_says_which_line_differs_and_how_to_mend_it(tmp_path, capsys):
    path = tmp_path / "a.ipynb"
    tool.write(path, executed(cell(new_output("stream", text="kept"))))
    before = path.read_bytes()
    assert tool.main(["normalise", "--check", str(path)]) == 1
    assert path.read_bytes() == before
    said = capsys.readouterr().err
    assert "line " in said and f"python tools/notebook.py normalise {path.as_posix()}" in said
    assert tool.main(["normalise", str(path)]) == 0
    assert tool.main(["normalise", "--check", str(path)]) == 0
    path.write_text(path.read_text(encoding="utf-8").rstrip("\n"), encoding="utf-8")
    assert "final newline" in tool.problem(path)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.1, "5 seconds"), (5, "5 seconds"), (5.1, "10 seconds"), (60, "60 seconds"), (61, "2 minutes")],
)
def test_times_are_rounded_up(seconds, words):
    assert tool.calm(seconds) == words


def test_the_running_time_line_links_to_the_status_page():
    line = tool.running_time({"seconds": 12.0, "date": "2026-11-21"}, tool.ROOT / "book/bounds/a.ipynb")
    assert line.startswith("**Running time:** about 15 seconds on one core")
    assert "2026-11-21" in line and "(../reference/status.md)" in line


LIVE = """\
import os
from IPython.display import display
print(os.environ["OMP_NUM_THREADS"], os.environ["PYTHONHASHSEED"], hash("a") % 1000, flush=True)
print("again")
alt = {"image/png": {"alt": "It rises."}}
display({"image/png": "iVBORw0KGgo=", "text/plain": "figure"}, raw=True, metadata=alt)
"""
WIDGETS = """\
import ipywidgets
stack = ipywidgets.Stack([ipywidgets.HTML(str(k)) for k in range(3)], selected_index=0)
slider = ipywidgets.SelectionSlider(options=[(str(k), k) for k in range(3)])
ipywidgets.jslink((slider, "index"), (stack, "selected_index"))
ipywidgets.VBox([slider, stack])
"""


def test_running_three_times_gives_the_same_bytes(tmp_path):
    path = tmp_path / "live.ipynb"
    tool.write(path, executed(new_code_cell(LIVE), new_code_cell(WIDGETS)))
    seen = set()
    for _ in range(3):
        record = tool.run(path)
        seen.add(path.read_text(encoding="utf-8").replace(record["date"], "today"))
    assert len(seen) == 1
    notebook = tool.read(path)
    assert notebook.cells[1].outputs[0].text.startswith("1 0 ") and len(notebook.cells[1].outputs) == 2
    assert notebook.cells[1].metadata.mystnb.image.alt == "It rises."
    assert "about 5 seconds" in notebook.cells[0].source
    assert tool.problem(path) is None
    assert set(record) == {"cores", "date", "seconds", "versions", "workload_seconds"}
    assert 0 < record["seconds"] and 0 < record["workload_seconds"]
    assert {"python", "torch", "numpy", "matplotlib", "jupyter-book"} == set(record["versions"])


def test_a_notebook_that_fails_is_left_as_it_was(tmp_path, capsys):
    path = tmp_path / "live.ipynb"
    tool.write(path, executed(new_code_cell("1 / 0")))
    before = path.read_bytes()
    assert tool.main(["run", str(path)]) == 1
    assert path.read_bytes() == before
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_notebook_without_the_line_for_its_time_is_not_run(tmp_path):
    path = tmp_path / "live.ipynb"
    tool.write(path, new_notebook(cells=[new_markdown_cell("# Title")]))
    with pytest.raises(tool.NotebookError, match="Running time"):
        tool.run(path)
