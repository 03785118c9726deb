"""Figures of one size and one palette, each with a text that says what it shows.

Figures are opaque light cards, so that they read alike on a white page and on a dark one. The palette is
Okabe and Ito's for colour-blind readers, darkened where a line would be faint on the card; direction is
always drawn as a shape too. Chapter: how-to-read-a-certificate.
"""

import base64
import io
import math
from collections.abc import Callable, Sequence
from html import escape

import matplotlib
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from lipbook.bound import Bound, CertificateError, outward

COLORS = {
    "truth": "#1A1A1A",
    "power": "#0072B2",
    "svd": "#00795B",
    "gram": "#C44E00",
    "frobenius": "#A2457F",
    "gradients": "#4433CC",
    "product": "#6B4400",
    "interval": "#E1005A",
    "linear": "#2D783C",
    "branch": "#0F1E78",
    "lipsdp": "#0F14F0",
    "eclipse-fast": "#0374E4",
}
_OTHER = "#555555"
_STYLE = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.prop_cycle": matplotlib.cycler(
        color=["#0072B2", "#C44E00", "#00795B", "#A2457F", "#9A6700", "#1A1A1A"]
    ),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "figure.dpi": 100,
    "figure.facecolor": "#FFFFFF",
    "figure.figsize": (6.4, 3.6),
    "font.size": 10.5,
    "grid.color": "#E4E4E4",
    "legend.frameon": False,
    "savefig.bbox": "standard",
    "savefig.facecolor": "#FFFFFF",
    "savefig.transparent": False,
}
matplotlib.rcParams.update(_STYLE)

__all__ = ["COLORS", "ladder", "show", "slider"]


def ladder(bounds: Sequence[Bound], labels: Sequence[str] | None = None) -> Figure:
    """Bounds on one quantity as rungs: the lower ones at the foot, the upper ones above, the truth between.

    Args:
        bounds: at least one; of one norm, region and output.
        labels: a name for each; its method by default.

    Raises:
        ValueError, TypeError: no bounds, other things than bounds, or bounds on different quantities.
        CertificateError: a lower bound above an upper one, so that one of them is wrong.
    """
    bounds = list(bounds)
    if not bounds:
        raise ValueError("a ladder needs at least one bound, got an empty list.")
    for bound in bounds:
        if not isinstance(bound, Bound):
            raise TypeError(f"a ladder is made of Bound objects, got {type(bound).__name__}.")
    labels = [bound.method for bound in bounds] if labels is None else list(labels)
    if len(labels) != len(bounds):
        raise ValueError(f"{len(bounds)} bounds need {len(bounds)} labels, got {len(labels)}.")
    if len({(bound.norm, bound.region, bound.output) for bound in bounds}) > 1:
        raise ValueError("the bounds differ in norm, region or output: they speak of different quantities.")
    lowest_upper = min((bound.value for bound in bounds if bound.kind == "upper"), default=None)
    highest_lower = max((bound.value for bound in bounds if bound.kind == "lower"), default=None)
    if None not in (lowest_upper, highest_lower) and highest_lower > lowest_upper:
        raise CertificateError(
            f"a lower bound, {highest_lower!r}, is above an upper one, {lowest_upper!r}: one is wrong."
        )
    rungs = sorted(zip(bounds, labels), key=lambda rung: (rung[0].kind == "upper", rung[0].value))
    return _drawn(rungs, highest_lower, lowest_upper)


def _drawn(rungs, highest_lower, lowest_upper):
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(6.4, 1.1 + 0.42 * len(rungs)))
        axes = figure.subplots()
    scale, left, right = _value_axis([bound.value for bound, _ in rungs])
    axes.set_xscale(scale)
    axes.set_xlim(left, right)
    if scale == "linear":
        axes.ticklabel_format(axis="x", useOffset=False)
    elif right < 100 * left:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
    key = "▲ lower bound   ▼ upper bound"
    if None not in (highest_lower, lowest_upper):
        axes.axvspan(max(highest_lower, left), min(lowest_upper, right), color="#D9D9D9")
        key += "   the truth is in the grey band"
    for height, (bound, _) in enumerate(rungs):
        marker = "v" if bound.kind == "upper" else "^"
        place = min(max(bound.value, left), right)  # what is outside stands at the edge
        axes.plot(place, height, marker, color=COLORS.get(bound.method, _OTHER), markersize=11, clip_on=False)
    names = [f"{label}  {'≤' if b.kind == 'upper' else '≥'} {outward(b.value, b.kind)}" for b, label in rungs]
    axes.set_yticks(range(len(rungs)), names)
    axes.set_ylim(-0.7, len(rungs) - 0.3)
    axes.set_xlabel(f"{_quantity(rungs[0][0])}\n{key}", loc="right")
    return figure


def _value_axis(values):
    """The scale ("log" where the positive values span a decade) and the two ends of the axis of values.

    What no axis can hold is left outside: zero beside a decade, infinity, a span of more than 30 decades,
    anything below 1e-306.
    """
    finite = [value for value in values if value < 1e300] or [0.0]
    positive = [value for value in finite if value > max(1e-30 * max(finite), 1e-306)]
    if positive and max(positive) > 10 * min(positive):
        margin = (max(positive) / min(positive)) ** 0.06
        return "log", min(positive) / margin, max(positive) * margin
    margin = max(0.06 * (max(finite) - min(finite)), 0.02 * max(finite)) if positive else 1.0
    return "linear", min(finite) - margin, max(finite) + margin


def _quantity(bound):
    """What a bound is a bound of, for the axis."""
    match bound.output:
        case None:
            of = ""
        case (i, j):
            of = f" of logits {i} − {j}"
        case i:
            of = f" of logit {i}"
    where = "everywhere" if bound.region is None else f"within {bound.region.radius:g} of a point"
    return f"Lipschitz constant{of}, norm {'∞' if bound.norm == math.inf else '2'}, {where}"


def show(figure: Figure, alt: str) -> None:
    """Show a figure as a PNG with `alt`, what a sighted reader would conclude from it, and close it.

    Raises:
        ValueError: `alt` is empty or too short to say anything.
        TypeError: not a figure, or not a text.
    """
    from IPython.display import display

    alt = _checked_alt(alt)
    data = {"image/png": _png(figure), "text/plain": alt}
    display(data, raw=True, metadata={"image/png": {"alt": alt}})


def slider(figures, label: str, alt: Callable[[object], str] | Sequence[str]):
    """A slider over figures drawn beforehand: it works with the arrow keys, and without a running Python.

    Args:
        figures: {value: figure} or a list of (value, figure), in the order of the slider; closed afterwards.
        label: what the values are.
        alt: a text for each value, as a list or as a function of the value.

    Returns:
        The widget; the last line of a cell shows it.

    Raises:
        ValueError, TypeError: fewer than two figures, a text missing or too short, another number of texts.
    """
    from ipywidgets import HTML, Layout, SelectionSlider, Stack, VBox, jslink

    frames = list(figures.items()) if isinstance(figures, dict) else list(figures)
    for frame in frames:
        if not isinstance(frame, tuple) or len(frame) != 2:
            raise TypeError(
                f"figures must be {{value: figure}} or (value, figure) pairs, got {type(frame).__name__}."
            )
    if not isinstance(label, str):
        raise TypeError(f"label must be a text, got {type(label).__name__}.")
    if len(frames) < 2:
        raise ValueError(f"a slider needs at least two figures, got {len(frames)}.")
    if len({str(value) for value, _ in frames}) < len(frames):
        values = ", ".join(str(value) for value, _ in frames)
        raise ValueError(f"two figures of the slider have the same value: {values}.")
    texts = [alt(value) for value, _ in frames] if callable(alt) else list(alt)
    if len(texts) != len(frames):
        raise ValueError(f"{len(frames)} figures need {len(frames)} texts, got {len(texts)}.")
    images = [_image(figure, text) for (_, figure), text in zip(frames, texts)]
    stack = Stack([HTML(image) for image in images], selected_index=0)
    control = SelectionSlider(
        options=[(str(value), index) for index, (value, _) in enumerate(frames)],
        description=label,
        layout=Layout(width="95%", max_width="30em"),
    )
    jslink((control, "index"), (stack, "selected_index"))
    return VBox([control, stack])


def _image(figure, alt):
    alt = escape(_checked_alt(alt), quote=True)
    return f'<img alt="{alt}" style="max-width:100%;height:auto" src="data:image/png;base64,{_png(figure)}">'


def _png(figure):
    """The figure as base64 text, the same bytes at each run, and the figure closed."""
    if not isinstance(figure, Figure):
        raise TypeError(f"figure must be a matplotlib Figure, got {type(figure).__name__}.")
    content = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(content, format="png", dpi=100, metadata={"Software": None})
    plt.close(figure)
    return base64.b64encode(content.getvalue()).decode("ascii")


def _checked_alt(alt):
    if not isinstance(alt, str):
        raise TypeError(f"alt must be a text that says what the figure shows, got {type(alt).__name__}.")
    alt = " ".join(alt.split())
    if len(alt) < 20:
        raise ValueError(f"alt must say what a sighted reader would conclude, got only {alt!r}.")
    return alt
