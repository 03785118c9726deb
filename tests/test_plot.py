"""Figures: opaque cards with a text, always the same bytes; ladders that read true; no kernel for sliders."""

import base64
import io
import itertools
import math
import subprocess
import sys
from fractions import Fraction
from html.parser import HTMLParser

import IPython.display
import ipywidgets
import matplotlib
import nbformat
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ipywidgets.embed import dependency_state
from matplotlib import pyplot as plt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from lipbook import Ball, Bound, CertificateError
from lipbook.plot import COLORS, ladder, show, slider

ALT = 'A line climbs from 0 to 1 & stays "below" the <dashed> limit.'
# Machado, Oliveira and Fernandes, IEEE TVCG 15(6), 2009: severity 1, applied to linear RGB.
SIGHT = {
    "trichromat": np.eye(3),
    "protanope": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranope": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
}
LOWERS = st.lists(st.floats(0, 10), max_size=4)
UPPERS = st.lists(st.floats(10), max_size=4)


def linear(color):
    channels = np.array(to_rgb(color))
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    """CIE 1976 L*a*b* of linear sRGB, white point D65."""
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ rgb
    x, y, z = np.cbrt(np.clip(xyz / [0.9505, 1, 1.089], 0.008856, None))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def pixels(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGBA"))


def line(values=(0, 1)):
    figure = Figure()
    figure.subplots().plot(values)
    return figure


def displayed(figure, alt=ALT):
    """What `show` displays, as (data, metadata); exactly one display."""
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(IPython.display, "display", lambda data, raw, metadata: calls.append((data, metadata)))
        show(figure, alt)
    (call,) = calls
    return call


def png(figure):
    return base64.b64decode(displayed(figure)[0]["image/png"])


def bounds_of(lowers, uppers):
    below = [Bound(value, "lower", method="power") for value in lowers]
    return below + [Bound(value, "upper", method="svd") for value in uppers]


def markers(figure):
    """The marks of a ladder from the foot up, as (height, place, marker)."""
    drawn = [line for line in figure.axes[0].lines if line.get_marker() in "^v"]
    return sorted((line.get_ydata()[0], line.get_xdata()[0], line.get_marker()) for line in drawn)


@pytest.mark.parametrize("method", COLORS)
def test_a_mark_of_any_method_stands_out_from_the_card(method):
    luminance = linear(COLORS[method]) @ [0.2126, 0.7152, 0.0722]
    assert 1.05 / (luminance + 0.05) >= 4.5


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("pair", list(itertools.combinations(COLORS, 2)), ids="-".join)
def test_two_methods_never_look_alike(pair, sight):
    first, second = (lab(np.clip(SIGHT[sight] @ linear(COLORS[method]), 0, 1)) for method in pair)
    assert np.linalg.norm(first - second) > 10


@given(lowers=LOWERS, uppers=UPPERS, order=st.randoms())
def test_a_ladder_stands_in_order_and_reads_true_whatever_it_is_given(lowers, uppers, order):
    bounds = bounds_of(lowers, uppers)
    if not bounds:
        return
    order.shuffle(bounds)
    figure = ladder(bounds)
    heights, places, shapes = zip(*markers(figure))
    assert heights == tuple(range(len(bounds)))
    assert "".join(shapes) == "^" * len(lowers) + "v" * len(uppers)
    assert list(places) == sorted(places[: len(lowers)]) + sorted(places[len(lowers) :])
    left, right = figure.axes[0].get_xlim()
    assert left <= min(places) and max(places) <= right
    values = [*sorted(lowers), *sorted(uppers)]
    for value, tick in zip(values, figure.axes[0].get_yticklabels(), strict=True):
        *_, sign, number = tick.get_text().split()
        shown = math.inf if number == "inf" else Fraction(number)
        assert shown >= value if sign == "≤" else shown <= value


@pytest.mark.parametrize(
    "bounds",
    [
        bounds_of([1.0], [1.0 + 1e-12]),
        bounds_of([0.0, 3e-9], [2.0, 4e7, math.inf]),
        bounds_of([], [2.0]),
        bounds_of([0.0], [0.0]),
        bounds_of([], [math.inf]),
        bounds_of(range(10, 20), range(20, 30)),
        [Bound(1e-300, "upper", math.inf, Ball(torch.zeros(3), 0.25), (3, 5), "a method with a long name")],
    ],
    ids=["equal", "wide", "one", "zero", "infinite", "many", "long"],
)
def test_nothing_is_cut_off(bounds):
    card = pixels(png(ladder(bounds)))
    assert all((edge == 255).all() for edge in (card[0], card[-1], card[:, 0], card[:, -1]))


def test_wide_spans_are_logarithmic_and_narrow_ones_are_not():
    assert ladder(bounds_of([0.0, 0.1], [20.0])).axes[0].get_xscale() == "log"
    assert ladder(bounds_of([1.0], [2.0])).axes[0].get_xscale() == "linear"


def test_labels_follow_their_bounds():
    ticks = ladder(bounds_of([1], [3, 2]), ["a", "b", "c"]).axes[0].get_yticklabels()
    assert [tick.get_text().split()[0] for tick in ticks] == ["a", "c", "b"]


def test_the_axis_says_what_is_bounded():
    region = Ball(torch.zeros(3), 0.25)
    label = ladder([Bound(1, "upper", math.inf, region, (3, 5))]).axes[0].get_xlabel()
    assert "Lipschitz constant of logits 3 − 5, norm ∞, within 0.25 of a point" in label
    assert "Lipschitz constant, norm 2, everywhere" in ladder([Bound(1, "upper")]).axes[0].get_xlabel()


@given(value=st.floats(1e-300, 1e300))
def test_a_lower_bound_above_an_upper_one_is_a_contradiction(value):
    above = math.nextafter(value, math.inf)
    with pytest.raises(CertificateError, match="one is wrong"):
        ladder([Bound(2 * above, "upper"), Bound(value, "upper"), Bound(above, "lower")])
    ladder([Bound(value, "upper"), Bound(value, "lower")])


def test_the_text_travels_with_the_picture():
    data, metadata = displayed(line(), f"  {ALT}\n")
    assert set(data) == {"image/png", "text/plain"}
    assert data["text/plain"] == ALT and metadata == {"image/png": {"alt": ALT}}


def test_a_picture_is_an_opaque_white_card():
    card = pixels(png(line()))
    assert card.shape == (360, 640, 4)
    assert (card[..., 3] == 255).all() and (card[0] == 255).all() and (card[:, 0] == 255).all()


def test_the_same_figure_has_the_same_bytes_and_nothing_of_when_or_where():
    content = png(line())
    assert content == png(line())
    assert not Image.open(io.BytesIO(content)).info.keys() - {"dpi"}


def test_the_settings_of_the_reader_do_not_change_a_ladder():
    bounds = bounds_of([1.0], [2.0, 30.0])
    expected = png(ladder(bounds))
    theirs = {"savefig.bbox": "tight", "savefig.dpi": 50, "figure.constrained_layout.use": False}
    with plt.style.context("dark_background"), matplotlib.rc_context(theirs):
        before = dict(matplotlib.rcParams)
        assert pixels(png(ladder(bounds)))[0, 0].tolist() == [255] * 4
        assert len(pixels(expected)) == len(pixels(png(ladder(bounds))))
        assert before == dict(matplotlib.rcParams)


def test_a_shown_figure_is_closed():
    figure, axes = plt.subplots()
    axes.plot([0, 1])
    displayed(figure)
    assert not plt.fignum_exists(figure.number)


class Images(HTMLParser):
    """The attributes of the images in a piece of HTML."""

    def __init__(self, source):
        super().__init__()
        self.found = []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        assert tag == "img"
        self.found.append(dict(attrs))


def test_each_frame_is_its_figure_with_its_text():
    expected = [png(line((0, k))) for k in (1, 2, 3)]
    widget = slider({k: line((0, k)) for k in (1, 2, 3)}, "steps", lambda k: f"{ALT} At step {k}.")
    control, stack = widget.children
    assert control.description == "steps"
    assert isinstance(stack, ipywidgets.Stack) and stack.selected_index == control.index == 0
    assert control.options == (("1", 0), ("2", 1), ("3", 2))
    for k, frame, content in zip((1, 2, 3), stack.children, expected, strict=True):
        (image,) = Images(frame.value).found
        assert image["alt"] == f"{ALT} At step {k}."
        assert image["src"] == "data:image/png;base64," + base64.b64encode(content).decode()
        assert "max-width:100%" in image["style"] and len(frame.value) < 30_000


def test_pairs_and_a_list_of_texts_serve_as_well():
    texts = [f"{ALT} {k}" for k in "ab"]
    _, stack = slider([(0.5, line()), (0.25, line())], "radius", texts).children
    assert [Images(frame.value).found[0]["alt"] for frame in stack.children] == texts


def test_two_frames_of_one_value_are_refused():
    with pytest.raises(ValueError, match="same value: 1, 1"):
        slider([(1, line()), (1, line())], "steps", [ALT, ALT])


def test_the_frames_follow_the_slider_without_python():
    widget = slider({1: line(), 2: line()}, "steps", [ALT, ALT])
    state = dependency_state([widget])
    links = [model["state"] for model in state.values() if model["model_name"] == "LinkModel"]
    control, stack = widget.children
    assert [link["source"] + link["target"] for link in links] == [
        [f"IPY_MODEL_{control.model_id}", "index", f"IPY_MODEL_{stack.model_id}", "selected_index"]
    ]


NOTEBOOK = [
    "from matplotlib.figure import Figure\nfrom lipbook import Bound\nfrom lipbook.claims import claim\n"
    "from lipbook.plot import ladder, show, slider",
    "def drawn(k):\n    figure = Figure()\n    figure.subplots().plot([0, k])\n    return figure\n\n"
    "slider({k: drawn(k) for k in range(3)}, 'steps', lambda k: f'A line that ends at height {k}.')",
    "show(ladder([Bound(1, 'lower'), Bound(2, 'upper')]), 'One bound below and one above the truth.')",
    "claim('a/b', 'One is less than two', measured=1 / 3, holds=1 < 2)",
]


def test_an_executed_notebook_shows_them_and_compares_strictly(tmp_path):
    cells = [nbformat.v4.new_code_cell(source) for source in NOTEBOOK]
    path = tmp_path / "made_up.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    execute = ["-m", "nbconvert", "--to", "notebook", "--execute", "--inplace", path]
    subprocess.run([sys.executable, *execute], check=True, capture_output=True)
    notebook = nbformat.read(path, 4)
    _, (moving,), (still,), (claimed,) = (cell.outputs for cell in notebook.cells)
    assert len(moving.data["text/plain"]) < 200
    assert "0x" not in moving.data["text/plain"] and "base64" not in moving.data["text/plain"]
    state = notebook.metadata.widgets["application/vnd.jupyter.widget-state+json"].state
    models = {model.model_name for model in state.values()}
    assert {"LinkModel", "StackModel", "SelectionSliderModel", "HTMLModel"} <= models
    alt = still.metadata["image/png"]["alt"]
    assert alt == still.data["text/plain"] == "One bound below and one above the truth."
    assert claimed.data["application/vnd.lipbook.claim+json"]["measured"] == "0.333"
    strict = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval", "--nbval-current-env", path.name]
    for _ in range(2):
        run = subprocess.run([sys.executable, *strict], cwd=tmp_path, capture_output=True, text=True)
        assert run.returncode == 0, run.stdout


def test_an_axis_of_less_than_two_decades_has_plain_numbers_and_no_others():
    figure = ladder([Bound(22.0, "lower"), Bound(540.0, "upper")])
    FigureCanvasAgg(figure).draw()
    axis = figure.axes[0].xaxis
    left, right = figure.axes[0].get_xlim()
    shown = [tick.label1.get_text() for tick in axis.get_major_ticks() if left <= tick.get_loc() <= right]
    assert shown == ["20", "50", "100", "200", "500"]
    assert not any(tick.label1.get_text() for tick in axis.get_minor_ticks())
