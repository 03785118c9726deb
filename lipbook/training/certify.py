"""From a Lipschitz constant to a certified radius, and to an accuracy that no attack can break.

Where z_y - z_j is D_yj-Lipschitz, no input within (z_y(x) - z_j(x)) / D_yj of x has logit j above logit y.
For a last linear map with the rows w_i after a body with the constant L, D_ij = L |w_i - w_j|.
Sources: Tsuzuku, Sato and Sugiyama, "Lipschitz-margin training", NeurIPS 2018; Leino, Wang and Fredrikson,
"Globally-robust neural networks", ICML 2021.

Chapter: training/margins.
"""

import math
import reprlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lipbook.bound import Bound, as_float64
from lipbook.bounds.product import product_bound
from lipbook.contracts.definitions import checked_shape
from lipbook.contracts.rounding import enclose
from lipbook.contracts.trained import trained_norm
from lipbook.network import count_logits, pairs_of, read, split_head
from lipbook.training.checks import checked_classes

_CHUNK = 1000  # samples whose logits are computed at once


def certified_radius(
    model: nn.Sequential,
    inputs: Tensor,
    bound: dict[tuple[int, int], Bound] | Bound | None = None,
    rule: str = "pairs",
) -> Tensor:
    """For each input, a radius within which the model's class does not change.

    The class is the one with the largest logit, in real arithmetic. Rule "pairs": the least of
    (z_y - z_j) / D_yj over the other classes j. Rule "vector": (z_y - z_j) / (sqrt(2) L), where L is the
    constant of the output vector; sqrt(2) is 2 in norm inf. Logits are computed in float64 with a bound on
    their rounding error, and every step is rounded down.

    Args:
        model: an `nn.Sequential` of layers with contracts. An input scaling is one of its layers
            (`lipbook.layers.Normalize`): radii are in the unit of `inputs`.
        inputs: (batch, ...), finite; one image is image[None].
        bound: None is `product_bound` of the model, in norm 2. For rule "pairs" upper bounds on each pair
            of logits, as `product_bound`, `lipsdp` and `local_bound` give them for logits="pairs"; for rule
            "vector" one upper bound on the output vector. They are verified for this model first. Bounds over
            a `Ball` serve the inputs inside it, with radii that end at its border.
        rule: "pairs" or "vector".

    Returns:
        float64 (batch,), in the norm of the bound: at most the distance to the nearest input of another
        class. It is 0 where nothing is certified, as at a tie, and infinite where no input has another class.

    Raises:
        UnsupportedLayerError: a layer without a contract, or in a state of which it does not speak.
        CertificateError: a bound handed in that its certificate does not prove for this model.
        ValueError, TypeError: an empty batch, NaN, inputs that the model does not take, rule "pairs" without
            a last linear map, bounds of another form than the rule needs or for samples of another shape.

    Chapter: training/margins.
    """
    _, radii, _ = _certificates(model, inputs, bound, rule)
    return radii


@dataclass(frozen=True)
class CertifiedAccuracy:
    """How many samples are classified rightly, whatever moves them by at most `radius` in norm `norm`.

    `norm` is that of the bound, 2 or `math.inf`. `value` is `count / total`, a lower bound on the accuracy
    under every attack on these samples. If they are drawn at random, [low, high] contains the certified
    accuracy on their distribution with the probability `confidence`, or more (the exact interval of Clopper
    and Pearson, Biometrika 26, 1934).
    """

    count: int
    total: int
    radius: float
    norm: float
    confidence: float
    low: float
    high: float

    @property
    def value(self) -> float:
        """The fraction of the samples."""
        return self.count / self.total

    def __float__(self):
        return self.value

    def __repr__(self):
        parts = f"{self.count} of {self.total} at radius {self.radius:g} in norm {self.norm:g}"
        interval = f"{100 * self.confidence:g} % interval {self.low:.4f} to {self.high:.4f}"
        return f"CertifiedAccuracy({parts}: {self.value:.4f}, {interval})"


def certified_accuracy(
    model: nn.Sequential,
    inputs: Tensor,
    labels: Tensor,
    radius: float,
    bound: dict[tuple[int, int], Bound] | Bound | None = None,
    rule: str = "pairs",
    confidence: float = 0.95,
) -> CertifiedAccuracy:
    """The fraction of samples whose class is the label, with a `certified_radius` above `radius`.

    Args:
        model, inputs, bound, rule: as `certified_radius`.
        labels: (batch,), integers from 0 to classes - 1.
        radius: at least 0, in the norm of the bound and the unit of the inputs: what is 0.1 for pixels from
            0 to 1 is 25.5 for pixels from 0 to 255. The inequality is strict: at radius 0 a sample counts if
            its class is certain.
        confidence: of the interval, between 0 and 1.

    Raises:
        UnsupportedLayerError, CertificateError: as `certified_radius`.
        ValueError, TypeError: as `certified_radius`; labels that are no classes or not one an input, a radius
            that is negative or not finite, a confidence that is not between 0 and 1.

    Chapter: training/margins.
    """
    radius = _checked_number(radius, "radius")
    if not 0 <= radius < math.inf:
        raise ValueError(f"radius must be finite and at least 0, got {radius}.")
    confidence = _checked_number(confidence, "confidence")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, such as 0.95, got {confidence}.")
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels must be a torch.Tensor, got {type(labels).__name__}: use torch.as_tensor.")
    classes, radii, norm = _certificates(model, inputs, bound, rule, labels)
    right = (classes == labels.to(classes)) & (radii > radius)
    count, total = int(right.sum()), len(right)
    return CertifiedAccuracy(count, total, radius, norm, confidence, *_interval(count, total, confidence))


def pair_constants(
    model: nn.Sequential, differentiable: bool = False, input_shape: tuple[int, ...] | None = None
) -> Tensor:
    """The matrix of D_ij, by which logit i minus logit j is Lipschitz in l_2; zeros on the diagonal.

    Args:
        model: an `nn.Sequential` of layers with contracts that ends in a linear map.
        differentiable: give an estimate with gradients instead, in the dtype and on the device of the model,
            also in train mode: the norms of free linear layers come from power iteration, those that hold by
            construction count as they are. It is for a loss, and never for a certificate.
        input_shape: the shape of one sample, where a layer's size matters.

    Returns:
        (classes, classes): float64 upper bounds, or the estimate.

    Raises:
        UnsupportedLayerError: a layer without a contract, or in a state of which it does not speak.
        ValueError, TypeError: no last linear map, one logit only, NaN or infinite weights, a shape that is
            missing or does not fit.

    Chapter: training/losses.
    """
    if not isinstance(differentiable, bool):
        raise TypeError(f"differentiable must be True or False, got {differentiable!r}.")
    steps = read(model, None if input_shape is None else checked_shape(input_shape))
    body, head = _body_and_head(steps)
    if differentiable:
        return _estimate(body, steps[-1], head.shape[1])
    return _matrix(product_bound(model, logits="pairs", input_shape=input_shape), len(head))


def _estimate(body, last, features):
    norm = 1.0
    for step in body:
        norm = norm * trained_norm(step.layer, step.input_shape)
    first = next(last.layer.parameters())
    unit_vectors = torch.eye(features, dtype=first.dtype, device=first.device)
    unit_vectors = unit_vectors.reshape(features, *(last.input_shape or (features,)))
    rows = (last.layer(unit_vectors) - last.layer(torch.zeros_like(unit_vectors[:1]))).flatten(1).T
    return norm * torch.linalg.vector_norm(rows[:, None] - rows, dim=-1)


def _body_and_head(steps):
    body, head = split_head(steps)
    if head is None:
        ends = type(steps[-1].layer).__name__ if steps else "nothing"
        raise ValueError(
            f"the model must end in a linear map with rows to tell apart, such as nn.Linear, and it ends in "
            f'{ends}: use rule="vector", or end it in one.'
        )
    if len(head) == 1:
        raise ValueError("the model has one logit, and so no pairs: certify classes with two logits or more.")
    return body, head


def _certificates(model, inputs, bound, rule, labels=None):
    """The class in real arithmetic, where its radius is positive, and the radius of each input; the norm."""
    if rule not in ("pairs", "vector"):
        raise ValueError(f'rule must be "pairs" or "vector", got {rule!r}.')
    steps = read(model)
    inputs = as_float64(inputs, "inputs")
    if inputs.ndim < 2:
        raise ValueError(
            f"inputs must be a batch, of shape (batch, ...), got {tuple(inputs.shape)}: "
            "one image is image[None]."
        )
    shape = tuple(inputs.shape[1:])
    steps = read(model, shape)
    count = _count(steps, shape, rule, bound)
    if labels is not None:
        _check_labels(labels, len(inputs), count)
    constants, norm, region = _constants(model, shape, count, bound, rule)
    chunks = [enclose(model, chunk, torch.zeros_like(chunk)) for chunk in inputs.split(_CHUNK)]
    values, errors = zip(*chunks)
    classes, radii = _radii(torch.cat(values), torch.cat(errors), constants)
    if region is not None:
        radii = torch.minimum(radii, _room(inputs, region, norm))
    return classes, radii, norm


def _count(steps, shape, rule, bound):
    """How many logits there are, each a number of the output vector."""
    after = steps[-1].output_shape if steps else shape
    if len(after) != 1:
        raise ValueError(f"the model must give logits of shape (classes,) for one input, and gives {after}.")
    if rule == "pairs" and bound is None:
        _body_and_head(steps)
    count = count_logits(steps, None) if steps else after[0]
    if count == 1:
        raise ValueError("the model has one logit, and so no pairs: certify classes with two logits or more.")
    return count


def _constants(model, shape, count, bound, rule):
    """(classes, classes) constants, the norm that they speak of, and the region, or None for everywhere."""
    if rule == "vector":
        if bound is None:
            bound = product_bound(model, input_shape=shape)
        else:
            _prove(bound, None, model, shape)
        # |z_i - z_j| is at most sqrt(2) |z|_2, and at most 2 |z|_inf.
        factor = math.nextafter(math.sqrt(2), 2) if bound.norm == 2 else 2.0
        value = math.nextafter(factor * bound.value, math.inf) if bound.value > 0 else 0.0
        return torch.full((count, count), value, dtype=torch.float64, device="cpu"), bound.norm, bound.region
    if bound is None:
        return _matrix(product_bound(model, logits="pairs", input_shape=shape), count), 2, None
    pairs = pairs_of(count)
    if not isinstance(bound, dict) or set(bound) != set(pairs):
        raise ValueError(
            f'for rule "pairs" bound must be a dict of the upper bounds of all {len(pairs)} pairs (i, j) of '
            f'{count} logits, i < j, as product_bound(model, logits="pairs") gives it, got '
            f'{_told(bound)}. One bound on the output vector goes with rule="vector".'
        )
    bounds = {pair: bound[pair] for pair in pairs}
    for pair in pairs:
        _prove(bounds[pair], pair, model, shape)
    first = bounds[pairs[0]]
    if any((other.norm, other.region) != (first.norm, first.region) for other in bounds.values()):
        raise ValueError("the bounds speak of different norms or regions: compute them with the same.")
    return _matrix(bounds, count), first.norm, first.region


def _told(bound):
    return f"one of {len(bound)} entries" if isinstance(bound, dict) else repr(bound)


def _prove(bound, output, model, shape):
    if not isinstance(bound, Bound):
        raise TypeError(f"bound must be a Bound, got {_told(bound)} of type {type(bound).__name__}.")
    if bound.kind != "upper":
        raise ValueError(f"a radius rests on upper bounds, got {bound!r}.")
    if bound.output != output:
        meant = "the output vector" if output is None else f"logits {output[0]} - {output[1]}"
        raise ValueError(f"bound must be on {meant}, got {bound!r}.")
    proved_for = _input_shape(bound.certificate)
    if proved_for not in (None, shape):
        raise ValueError(
            f"the bound is proved for inputs of shape {proved_for}, and these have {shape}: the norm of a "
            "convolution depends on the size of the image. Compute it with the input_shape of the inputs."
        )
    bound.verify(model)


def _input_shape(certificate):
    """The only shape of a sample that a certificate speaks of, or None."""
    shapes = getattr(certificate, "shapes", ())
    return shapes[0] if shapes else getattr(certificate, "input_shape", None)


def _matrix(bounds, count):
    constants = torch.zeros(count, count, dtype=torch.float64, device="cpu")
    for (i, j), bound in bounds.items():
        constants[i, j] = constants[j, i] = bound.value
    return constants


def _radii(values, errors, constants):
    """The class and the radius of each row of logits that are within `errors` of `values`."""
    classes = values.argmax(dim=1)
    top, doubt = (part.gather(1, classes[:, None]) for part in (values, errors))
    margins = _down(_down(top - values) - _up(doubt + errors))
    divisors = constants[classes]
    radii = torch.where(divisors > 0, _down(margins / divisors), math.inf)
    radii = torch.where(margins > 0, radii, 0.0)  # also where an error is infinite or a margin NaN
    radii = radii.scatter(1, classes[:, None], math.inf)
    return classes, radii.amin(dim=1).clamp(min=0)


def _room(inputs, region, norm):
    """How far one may go from each input, in every direction of this norm, without leaving the ball."""
    if inputs.shape[1:] != region.center.shape:
        shapes = f"{tuple(region.center.shape)}, and the inputs {tuple(inputs.shape[1:])}"
        raise ValueError(f"the center of the bound's region has shape {shapes}: they must agree.")
    gaps = _up((inputs - region.center).abs().flatten(1))
    n = gaps.shape[1]
    if region.norm == math.inf:
        return _down(region.radius - gaps.amax(dim=1)).clamp(min=0)
    # n squares and their sum lose less than n + 4 roundings; a step in l_inf may be sqrt(n) times as far.
    far = _up(gaps.square().sum(dim=1).sqrt() * (1 + (n + 4) * 2.0**-52)) + 2.0**-500
    room = _down(region.radius - _up(far)).clamp(min=0)
    return room if norm == 2 else _down(room / math.nextafter(math.sqrt(n), math.inf)).clamp(min=0)


def _down(numbers):
    return torch.nextafter(numbers, torch.full_like(numbers, -math.inf))


def _up(numbers):
    return torch.nextafter(numbers, torch.full_like(numbers, math.inf))


def _check_labels(labels, total, count):
    labels = checked_classes(labels, "labels", total)
    if labels.min() < 0 or labels.max() >= count:
        ends = f"{labels.min().item()} to {labels.max().item()}"
        raise ValueError(f"labels must be from 0 to {count - 1}, the model's classes, got {ends}.")


def _checked_number(number, name):
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        got = f"{reprlib.repr(number)} of type {type(number).__name__}"
        raise TypeError(f"{name} must be one number, got {got}: {_how_to_number(number, name)}.")
    if isinstance(number, int) and abs(number) > 2**53:
        raise ValueError(f"{name} must be a float or an int of at most 2^53, got {number}.")
    return float(number)


def _how_to_number(number, name):
    if isinstance(number, (list, tuple)) or math.prod(getattr(number, "shape", ())) != 1:
        return f"make one call for each {name}"
    convertible = not isinstance(number, bool) and (isinstance(number, str) or hasattr(number, "__float__"))
    return "use float(...)" if convertible else "pass a float, such as 0.5"


def _interval(count, total, confidence):
    """The ends of the interval of Clopper and Pearson, rounded outward."""
    from scipy.special import betainccinv, betaincinv  # here: importing the library does not load it

    tail = (1 - confidence) / 2
    low = 0.0 if count == 0 else float(betaincinv(count, total - count + 1, tail))
    high = 1.0 if count == total else float(betainccinv(count + 1, total - count, tail))
    return low * (1 - 1e-9), min(1.0, high * (1 + 1e-9))
