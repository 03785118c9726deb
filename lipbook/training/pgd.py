"""An attack: projected gradient descent on the margin of a classifier, in an l_2 ball and a box.

A certificate says which inputs no perturbation can break, an attack which ones some perturbation does: the
robust accuracy lies between what the one proves and what the other leaves. That an attack finds nothing
proves nothing.

Chapter: training/margins.
"""

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lipbook.bound import UnsupportedLayerError, require_values
from lipbook.contracts.guard import name_of, refusal, require_copyable, require_layer
from lipbook.contracts.variants import faithful_copy
from lipbook.training.checks import checked_classes

_CHUNK = 250  # inputs attacked at once: what a step touches stays in the cache
_FIRST, _LAST = 2.0, 0.02  # the lengths of the first and of the last step, in radii


def attack(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    radius: float,
    clamp: tuple[float, float] | None = (0, 1),
    steps: int = 50,
    restarts: int = 2,
    seed: int = 0,
    targets: Tensor | None = None,
) -> Tensor:
    """For each input a perturbed one, within the radius in l_2, whose margin is the smallest that was found.

    The margin is ``z_y - max_{j != y} z_j``, negative where another class wins, and with targets it is
    ``max_{j != t} z_j - z_t``, negative where class t wins. Each step goes down its normalised gradient,
    without the entries that the box blocks, and then back into the box and the ball. The first restart begins
    at the input; each further one begins at a random point of the ball, the same offset for every input, and
    spends its first half on one class: the target, or the second, third, ... most likely wrong one.

    The share of inputs that keep their class is an upper bound on the robust accuracy, never a certificate.
    The ball and the box hold exactly, for the returned numbers in their dtype. The search runs in the dtype
    of the model, and margins are judged in float64, with the weights of the forward pass. Inputs that are
    misclassified already (with targets: classified as the target) come back unchanged, and inputs that one
    restart has broken get no further one. So a further restart never gives a larger margin (a further step
    may), and a result does not depend on the other inputs of the batch, to rounding.

    Args:
        model: gives logits (batch, classes) for inputs in the dtype of its parameters; in eval mode, where
            its train mode differs.
        inputs: (batch, ...), finite and in the box.
        labels: (batch,), the classes y, integers.
        radius: of the ball, at least 0, in the unit of the inputs; 0 gives back a copy of the inputs.
        clamp: the least and the largest value of an entry; None: no box.
        steps: of each restart, at least 1.
        restarts: at least 1.
        seed: of the random offsets.
        targets: None, or (batch,) the classes t to reach, each other than the label.

    Returns:
        A tensor of the shape, dtype and device of `inputs`.

    Raises:
        UnsupportedLayerError: not a module, or a layer in a state in which it may not be copied, or in train
            mode where that differs.
        ValueError, TypeError: an empty batch, NaN, inputs outside the box, labels or targets that are no
            classes, a target that is the label, a model that does not take the inputs or whose margins are
            not finite, a radius or count out of range.

    Source: Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018, section
    2.1; the margin as objective, as in Carlini and Wagner, "Towards Evaluating the Robustness of Neural
    Networks", IEEE Symposium on Security and Privacy 2017; restarts after one class each, as in Croce and
    Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free Attacks",
    ICML 2020.

    Chapter: training/margins.
    """
    _require_model(model)
    _require_numbers(radius, steps, restarts, seed)
    low, high = _checked_box(clamp)
    _require_inputs(inputs, low, high)
    labels = checked_classes(labels, "labels", len(inputs))
    if targets is not None:
        targets = checked_classes(targets, "targets", len(inputs))
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.no_grad():
        twin = faithful_copy(model)[0].eval()
        model, dtype = _searchable_copy(model, inputs.dtype)
        starts = inputs.detach().cpu().clone()
        _require_logits(model, starts[:1].to(dtype, copy=True), labels, targets)
        search = _Search(model, dtype, twin, float(radius), low, high, steps, restarts, seed)
        goals = [None] * len(starts) if targets is None else targets.split(_CHUNK)
        chunks = zip(starts.split(_CHUNK), labels.split(_CHUNK), goals)
        return torch.cat([_attack_chunk(search, *chunk) for chunk in chunks]).to(inputs.device)


class _Search(NamedTuple):
    model: nn.Module  # in its own dtype, at least float32
    dtype: torch.dtype  # of `model`
    twin: nn.Module  # the same weights in float64
    radius: float
    low: float
    high: float
    steps: int
    restarts: int
    seed: int


def _attack_chunk(search, starts, labels, targets):
    """`attack` of a few inputs."""
    generator = torch.Generator("cpu").manual_seed(search.seed)
    best = starts.clone()
    logits = search.twin(starts.to(torch.float64, copy=True))
    least = _margins(logits, labels, targets)
    if not torch.isfinite(least).all():
        row = logits[~torch.isfinite(least)][0].tolist()
        raise ValueError(f"the logits of an input are {row}, not all finite: mend the model or the input.")
    others = logits.argsort(dim=1, descending=True, stable=True)
    others = others[others != labels[:, None]].view(len(labels), -1)
    open_rows = torch.nonzero(~_is_reached(logits, labels, targets))[:, 0]
    for restart in range(search.restarts):
        offset = torch.zeros(starts[0].numel(), dtype=torch.float64)
        pursued = None
        if restart > 0:
            offset = search.radius * _in_unit_ball(starts[0].numel(), generator)
            pursued = others[:, restart % others.shape[1]] if targets is None else targets
        if not len(open_rows):
            break
        rows = open_rows
        chosen = [None if classes is None else classes[rows] for classes in (labels, targets, pursued)]
        points = _descend(search, starts[rows], offset, *chosen, generator)
        points = exactly_inside(points, starts[rows], search.radius, search.low, search.high)
        logits = search.twin(points.to(torch.float64, copy=True))
        margins = _margins(logits, *chosen[:2])
        better = margins < least[rows]  # not where it is NaN
        best[rows[better]], least[rows[better]] = points[better], margins[better]
        open_rows = rows[~(better & _is_reached(logits, *chosen[:2]))]
    return best


def _descend(search, starts, offset, labels, targets, pursued, generator):
    """The points with the smallest margins on one descent from starts + offset, in the dtype of the model."""
    shape, centers = starts.shape, starts.to(search.dtype).flatten(1)
    low, high, radius = search.low, search.high, search.radius
    points = _approximately_inside(centers + offset.to(search.dtype), centers, radius, low, high)
    best, least = points, torch.full((len(points),), math.inf, dtype=search.dtype)
    for step in range(search.steps + 1):
        leaf = points.detach().requires_grad_()
        with torch.enable_grad():
            logits = search.model(leaf.clone().view(shape))  # a copy: a layer may act in place
            margins = _margins(logits, labels, targets)
            objective = margins
            if pursued is not None and 2 * step < search.steps:
                objective = _entries(logits, labels) - _entries(logits, pursued)
            gradient = _gradient(objective, leaf)
        margins = margins.detach()
        better = margins < least
        least = torch.where(better, margins, least)
        best = torch.where(better[:, None], points, best)
        if step == search.steps:
            return best
        down = _directions(gradient, points, low, high, generator)
        progress = step / max(1, search.steps - 1)
        length = _LAST + (_FIRST - _LAST) * (1 + math.cos(math.pi * progress)) / 2
        points = _approximately_inside(points + length * radius * down, centers, radius, low, high)


def _gradient(objective, leaf):
    """The gradient of each entry of the objective at its point; 0 where the model has none."""
    if not objective.requires_grad:
        return torch.zeros_like(leaf)
    (gradient,) = torch.autograd.grad(objective.sum(), leaf, materialize_grads=True)
    return gradient


def _directions(gradient, points, low, high, generator):
    """Unit vectors downhill, 0 where they would leave the box; random ones where nothing is left of them."""
    down = torch.nan_to_num(-gradient, nan=0.0, posinf=0.0, neginf=0.0)
    blocked = ((points <= low) & (down < 0)) | ((points >= high) & (down > 0))
    down = down.masked_fill_(blocked, 0)
    stray = torch.randn(points.shape[1], generator=generator, dtype=torch.float64).to(points.dtype)
    flat = down.abs().amax(dim=1, keepdim=True)  # scaled first: squares of small numbers are 0
    down = torch.where(flat > 0, down / flat, stray)
    return down / torch.linalg.vector_norm(down, dim=1, keepdim=True)


def _approximately_inside(points, centers, radius, low, high):
    """`points` clamped to the box, then drawn towards the centers into their balls."""
    moves = points.clamp(low, high).sub_(centers)
    lengths = torch.linalg.vector_norm(moves, dim=1, keepdim=True)
    return moves.mul_((radius / lengths).clamp_(max=1)).add_(centers)


def exactly_inside(points: Tensor, centers: Tensor, radius: float, low: float, high: float) -> Tensor:
    """Points near `points`, in the dtype of `centers` and in exact arithmetic in their balls and in the box.

    Each entry is rounded towards its center, so that rounding neither lengthens a move nor leaves
    the box. Where even so float64 cannot tell that a point is in its ball, it is the center.
    """
    shape, dtype, rounded_centers = centers.shape, centers.dtype, centers.flatten(1)
    centers = rounded_centers.double()
    moves = points.double().flatten(1) - centers
    lengths = torch.linalg.vector_norm(moves, dim=1, keepdim=True)
    # What the roundings of this function may add, relative to the radius and to the entries.
    slack = 2.0**-50 * (moves.shape[1] + 16)
    reach = radius * (1 - slack) - 2.0**-51 * torch.linalg.vector_norm(centers, dim=1, keepdim=True)
    ends = centers + moves * (reach / lengths).clamp(0, 1)
    ends = torch.where(lengths > 0, ends, centers).clamp(low, high)
    points = ends.to(dtype)
    beyond = torch.where(ends > centers, points.double() > ends, points.double() < ends)
    points = torch.where(beyond, torch.nextafter(points, rounded_centers), points)
    distances = ((points.double() - centers) / radius).square().sum(dim=1, keepdim=True)
    return torch.where(distances <= 1 - slack / 4, points, rounded_centers).view(shape)


def _in_unit_ball(size, generator):
    """A random point of the unit ball, uniform, in float64."""
    direction = torch.randn(size, generator=generator, dtype=torch.float64)
    length = torch.rand((), generator=generator, dtype=torch.float64) ** (1 / size)
    return length * direction / torch.linalg.vector_norm(direction)


def _margins(logits, labels, targets):
    if targets is not None:
        return _largest_other(logits, targets) - _entries(logits, targets)
    return _entries(logits, labels) - _largest_other(logits, labels)


def _is_reached(logits, labels, targets):
    classes = logits.argmax(dim=1)
    return classes != labels if targets is None else classes == targets


def _entries(logits, classes):
    return logits.gather(1, classes[:, None])[:, 0]


def _largest_other(logits, classes):
    return logits.scatter(1, classes[:, None], -math.inf).amax(dim=1)


def _searchable_copy(model, dtype):
    """The model in eval mode and its dtype (that of the inputs where it has none), at least float32."""
    model = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    tensors = (*model.parameters(), *model.buffers())
    dtype = next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), dtype)
    if dtype in (torch.float32, torch.float64):
        return model, dtype
    return model.float(), torch.float32


def _require_model(model):
    require_layer(model)
    require_copyable(model)
    for module in model.modules():
        sentence = refusal(module)
        if isinstance(module, parametrizations._SpectralNorm) and module.training:
            sentence = (
                "is in train mode, where each forward pass changes the weight: call model.eval() first."
            )
        if sentence is not None:
            raise UnsupportedLayerError(f"{name_of(module)} {sentence}")


def _require_numbers(radius, steps, restarts, seed):
    if not isinstance(radius, (int, float)) or isinstance(radius, bool):
        raise TypeError(f"radius must be a number, got {radius!r} of type {type(radius).__name__}.")
    if not 0 <= radius < math.inf:
        raise ValueError(f"radius must be finite and at least 0, got {radius}.")
    for name, number, least in (("steps", steps, 1), ("restarts", restarts, 1), ("seed", seed, 0)):
        if not isinstance(number, int) or isinstance(number, bool):
            raise TypeError(f"{name} must be an int, got {number!r} of type {type(number).__name__}.")
        if not least <= number < 2**63:
            raise ValueError(f"{name} must be at least {least} and below 2^63, got {number}.")


def _checked_box(clamp):
    if clamp is None:
        return -math.inf, math.inf
    if not isinstance(clamp, (tuple, list)) or len(clamp) != 2:
        raise TypeError(f"clamp must be a pair (low, high), or None for no box, got {clamp!r}.")
    if not all(isinstance(end, (int, float)) and not isinstance(end, bool) for end in clamp):
        raise TypeError(f"clamp must be a pair of numbers, or None for no box, got {clamp!r}.")
    low, high = map(float, clamp)
    if not low < high:
        raise ValueError(f"clamp must be a pair (low, high) with low < high, got {clamp!r}.")
    return low, high


def _require_inputs(inputs, low, high):
    if not isinstance(inputs, Tensor):
        raise TypeError(f"inputs must be a torch.Tensor, got {type(inputs).__name__}: use torch.as_tensor.")
    if not inputs.is_floating_point():
        raise TypeError(f"inputs must have a real floating dtype, got {inputs.dtype}: use .float().")
    if inputs.layout != torch.strided:
        raise TypeError(f"inputs must be a dense tensor, got layout {inputs.layout}: use .to_dense().")
    if inputs.ndim < 2:
        raise ValueError(f"inputs must be a batch, of shape (batch, ...), got {tuple(inputs.shape)}.")
    if inputs.numel() == 0:
        raise ValueError(f"inputs is empty, of shape {tuple(inputs.shape)}: there is nothing to attack.")
    require_values(inputs, "inputs")
    finite = torch.isfinite(inputs).flatten(1).all(dim=1)
    if not finite.all():
        row = torch.nonzero(~finite)[0].item()
        raise ValueError(f"inputs has an entry that is NaN or infinite, first in sample {row}: mend it.")
    least, largest = inputs.min().item(), inputs.max().item()
    if least < low or largest > high:
        raise ValueError(
            f"inputs reach from {least:g} to {largest:g}, outside the box clamp=({low:g}, {high:g}): pass "
            "the box of your data, or None for none. Where the model was trained on standardised inputs, "
            "make that its first layer (lipbook.layers.Normalize) and pass raw ones."
        )


def _require_logits(model, inputs, labels, targets):
    shape, dtype = tuple(inputs.shape[1:]), inputs.dtype
    try:
        logits = model(inputs)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"the model does not take inputs of shape {shape} in {dtype}: {reason}") from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != 1 or logits.shape[1] < 2:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"the model must give two logits or more, (batch, classes), got {got} for one input."
        )
    for name, classes in (("labels", labels), ("targets", targets)):
        if classes is not None and (classes.min() < 0 or classes.max() >= logits.shape[1]):
            raise ValueError(
                f"{name} must be from 0 to {logits.shape[1] - 1}, as the model has {logits.shape[1]} logits: "
                f"got {classes.min().item()} to {classes.max().item()}."
            )
    if targets is not None and (targets == labels).any():
        row = torch.nonzero(targets == labels)[0].item()
        raise ValueError(f"targets must differ from labels: both are {labels[row].item()} in sample {row}.")
