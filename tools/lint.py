"""The house rules for notebooks, each a function that returns sentences about what breaks it.

    python tools/lint.py [notebooks]

A rule is called with a notebook and its `chapter`, the path below book/ without .ipynb, for instance
"bounds/spectral-norms". What can only be judged over all notebooks at once is in tests/tools.
"""

import ast
import re
import sys
from pathlib import Path

from IPython.core.inputtransformer2 import TransformerManager

CLAIM = "application/vnd.lipbook.claim+json"
CODE_LINES = 25
HIDDEN = {"hide-input", "hide-cell", "remove-input", "remove-cell"}
STRUCK_WORDS = re.compile(r"\b(clearly|simply|note that)\b", re.IGNORECASE)
SECTIONS = ("objectives", "exercises", "takeaways")
EXERCISES = range(5, 9)
ACCEPTED = "{key}: right."  # the line that lipbook.exercises.check prints


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def prose(notebook):
    """`(cell, text)` of the markdown cells, without code blocks, code spans and mathematics."""
    quoted = re.compile(r"^```.*?^```|`[^`\n]*`|\$\$.*?\$\$|\$[^$]*\$", re.MULTILINE | re.DOTALL)
    return [(c, quoted.sub(" ", c.source)) for c in notebook.cells if c.cell_type == "markdown"]


def tree(source):
    """The syntax tree of a cell, IPython's own syntax included."""
    return ast.parse(TransformerManager().transform_cell(source))


def calls(source, function):
    """The calls of `function` by its bare name or as an attribute."""
    nodes = [node for node in ast.walk(tree(source)) if isinstance(node, ast.Call)]
    names = [getattr(node.func, "id", None) or getattr(node.func, "attr", None) for node in nodes]
    return [node for node, name in zip(nodes, names, strict=True) if name == function]


def checked_exercises(notebook):
    """`(cell, key)` of every `check(key, answer)`."""
    return [
        (cell, call.args[0].value)
        for cell in code_cells(notebook)
        for call in calls(cell.source, "check")
        if call.args and isinstance(call.args[0], ast.Constant)
    ]


def claim_keys(notebook):
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return [output.data[CLAIM]["key"] for output in outputs if CLAIM in output.get("data", {})]


def no_cell_ends_in_a_semicolon(notebook, chapter):
    return [
        f"{cell.id} ends in a semicolon, which the comparison of outputs cannot read: assign to _ instead."
        for cell in code_cells(notebook)
        if cell.source.rstrip().endswith(";")
    ]


def code_cells_are_short(notebook, chapter):
    return [
        f"{cell.id} has {len(cell.source.splitlines())} lines: split it, hide it, or move it to the library."
        for cell in code_cells(notebook)
        if len(cell.source.splitlines()) > CODE_LINES
        and not (HIDDEN | {"solution"}) & set(cell.metadata.get("tags", []))
    ]


def fences_are_colons(notebook, chapter):
    return [
        f"{cell.id} opens a directive with backticks: use colons, which read as prose everywhere."
        for cell in notebook.cells
        if cell.cell_type == "markdown" and re.search(r"^\s*```+\s*\{", cell.source, re.MULTILINE)
    ]


def images_have_alt_text(notebook, chapter):
    """Those that are written in markdown or HTML; the normaliser sees to figures."""
    shown = [text for _, text in prose(notebook)]
    shown += [str(o.get("data", {}).get("text/html", "")) for c in code_cells(notebook) for o in c.outputs]
    widgets = next(iter(notebook.metadata.get("widgets", {}).values()), {"state": {}})
    shown += [str(model["state"].get("value", "")) for model in widgets["state"].values()]
    images = re.findall(r"<img\b[^>]*>|!\[[^\]]*\]\(", "\n".join(shown))
    spoken = re.compile(r"""\balt=("[^"]*\w[^"]*"|'[^']*\w[^']*')|^!\[.*\w""")
    return [f"an image has no alt text: {image[:60]}" for image in images if not spoken.search(image)]


def prose_is_plain(notebook, chapter):
    return [
        f"{cell.id} says {match.group()!r}: strike it, or show why it is so."
        for cell, text in prose(notebook)
        for match in STRUCK_WORDS.finditer(text)
    ]


def a_chapter_has_its_sections(notebook, chapter):
    """Objectives, five to eight exercises and takeaways, in the chapters of a part."""
    if "/" not in chapter:
        return []
    text = "\n".join(cell.source for cell, _ in prose(notebook))
    marks = [line.lower() for line in text.splitlines() if line.startswith(("#", "**", ":::"))]
    found = [f"nothing is headed {word!r}." for word in SECTIONS if not any(word in mark for mark in marks)]
    exercises = len(re.findall(r"^:::+\{exercise(?:-start)?\}", text, re.MULTILINE))
    if exercises not in EXERCISES:
        found.append(f"it has {exercises} exercises: a chapter has five to eight.")
    return found


def solutions_are_checked_and_accepted(notebook, chapter):
    """A solution's cell ends in `_ = check(key, answer)` with the key in its metadata, and was accepted."""
    found = []
    for cell in code_cells(notebook):
        if "solution" not in cell.metadata.get("tags", []):
            continue
        key = cell.metadata.get("exercise")
        last = cell.source.rstrip().splitlines()[-1]
        printed = "".join(output.get("text", "") for output in cell.outputs)
        if not re.fullmatch(rf"_ = check\([\"']{re.escape(str(key))}[\"'], .+\)", last):
            found.append(f"{cell.id}: a solution ends in `_ = check({key!r}, answer)`, as its metadata says.")
        elif ACCEPTED.format(key=key) not in printed.splitlines():
            found.append(f"{cell.id}: the solution of {key} was not accepted, it printed {printed[:80]!r}.")
    return found


def claims_can_be_falsified(notebook, chapter):
    """A claim has its own cell, computes `holds`, and carries an edit that changes more than a comparison."""
    found = []
    for cell in code_cells(notebook):
        claims = calls(cell.source, "claim")
        edit = cell.metadata.get("falsify")
        if not claims and edit is None:
            continue
        if len(claims) != 1:
            found.append(f"{cell.id} makes {len(claims)} claims: one a cell, so that its edit falsifies it.")
        elif not (isinstance(edit, list) and len(edit) == 2 and all(isinstance(part, str) for part in edit)):
            found.append(f"{cell.id} makes a claim without the metadata `falsify: [old, new]`.")
        elif cell.source.count(edit[0]) != 1:
            times = cell.source.count(edit[0])
            found.append(f"{cell.id}: its falsify text {edit[0]!r} occurs {times} times, not once.")
        else:
            found += _judged_edit(cell, edit)
    return found


def _judged_edit(cell, edit):
    edited = cell.source.replace(*edit)
    if not _computes_holds(cell.source):
        return [f"{cell.id}: `holds` is a literal: compute it."]
    if _without_comparisons(edited) == _without_comparisons(cell.source):
        return [f"{cell.id}: its falsify edit changes only a comparison (or nothing): change an operand."]
    if not _computes_holds(edited):
        return [f"{cell.id}: its falsify edit replaces what is checked by a literal: change an operand."]
    return []


def _computes_holds(source):
    """Whether the `holds` of the cell's claim depends on a name that is not itself set to a literal here."""
    call = calls(source, "claim")[0]
    holds = [keyword.value for keyword in call.keywords if keyword.arg == "holds"] + call.args[3:4]
    names = {node.id for argument in holds for node in ast.walk(argument) if isinstance(node, ast.Name)}
    for node in ast.walk(tree(source)):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            names -= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return bool(names - {"bool"})


def _without_comparisons(source):
    """The syntax tree of a cell, written out with every comparison operator the same and no `not`."""

    class Same(ast.NodeTransformer):
        def visit_Compare(self, node):
            self.generic_visit(node)
            return ast.Compare(node.left, [ast.Eq() for _ in node.ops], node.comparators)

        def visit_UnaryOp(self, node):
            self.generic_visit(node)
            return node.operand if isinstance(node.op, ast.Not) else node

    return ast.dump(Same().visit(tree(source)))


def claim_keys_begin_with_the_chapter(notebook, chapter):
    return [
        f"the claim {key!r} must be called {chapter}/..., after its chapter."
        for key in claim_keys(notebook)
        if not re.fullmatch(rf"{re.escape(chapter)}/[\w/-]+", key)
    ]


RULES = (
    no_cell_ends_in_a_semicolon,
    code_cells_are_short,
    fences_are_colons,
    images_have_alt_text,
    prose_is_plain,
    a_chapter_has_its_sections,
    solutions_are_checked_and_accepted,
    claims_can_be_falsified,
    claim_keys_begin_with_the_chapter,
)


def main(paths):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tools.notebook import name, notebooks, problem, read

    failed = False
    for path in [Path(path).resolve() for path in paths] or notebooks():
        chapter = name(path).removeprefix("book/").removesuffix(".ipynb")
        found = [sentence for rule in RULES for sentence in rule(read(path), chapter)]
        for sentence in [*filter(None, [problem(path)]), *found]:
            failed = True
            print(f"{name(path)}: {sentence}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
