"""`LipschitzResidual`: H x + G relu(W x + b), the block that one diagonal multiplier certifies.

P and Q are the blocks of a stack with orthonormal columns (Q is not itself orthogonal), [H; R'] is the
constant times a contraction, and Psi is diagonal and positive. With

    G = sqrt(2) P Psi,    W = sqrt(2) Psi^-1 (Q'R' - P'H)

and any diagonal D with entries in [0, 1], which is what relu does to an increment, H + G D W is the first
rows of (I - 2 S D S') [H; R'], S = [P; -Q]: a reflection for D of zeros and ones, and never an expansion.

Sandwich layers are the blocks with H = 0, SLL and CPL layers those with H = I. The parameterisation is the
book's own.

Chapter: layers/direct-parameterizations.
"""

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lipbook.bound import Bound, UnsupportedLayerError, as_float64
from lipbook.contracts.certificates import RecomputedCertificate
from lipbook.contracts.definitions import guarded, lipschitz, output_shape, residual
from lipbook.contracts.guard import finite_attribute, name_of, refusal
from lipbook.contracts.rounding import enclose
from lipbook.contracts.structures import checked_count
from lipbook.contracts.trained import trained_norm
from lipbook.layers.maps import cayley
from lipbook.layers.orthogonal import plain_linear, refuse_shapes, require_features, reset_bias
from lipbook.layers.parametrised import Parametrised, wide
from lipbook.layers.residual import enclose_residual
from lipbook.norms.spectral import UNIT_ROUNDOFF, gamma, normalised, spectral_norm, unscaled_up

LARGEST_LOG = 10.0  # of Psi: beyond it, products of a scale and its inverse lose their digits
_ROOT_OF_TWO = math.sqrt(2.0)


class LipschitzResidual(Parametrised):
    """H x + G relu(W x + b), with a constant of at most `lipschitz` whatever its parameters are.

    At the start both stacks are balanced: Q = I / sqrt(2), and H = lipschitz I / sqrt(2) where x has the size
    of the output.

    Args:
        in_features, hidden, out_features: the sizes of x, b and the output.
        lipschitz: the constant, positive and finite.

    Attributes:
        stack: (hidden + out_features, hidden), of which a Cayley map makes [Q; P].
        passing: (out_features + hidden, in_features), of which one makes [H; R'] / lipschitz.
        psi: (hidden,), the logarithms of Psi, read within [-10, 10].
        bias: (hidden,).

    Raises:
        ValueError, TypeError: sizes that are not positive ints, a constant that is not positive and finite.

    Source: the book's own, proved in the chapter. Chapter: layers/direct-parameterizations.
    """

    def __init__(self, in_features: int, hidden: int, out_features: int, lipschitz: float = 1.0):
        super().__init__()
        self.in_features = checked_count(in_features, "in_features", least=1)
        self.hidden = checked_count(hidden, "hidden", least=1)
        self.out_features = checked_count(out_features, "out_features", least=1)
        self.lipschitz = _checked_constant(lipschitz)
        self.stack = nn.Parameter(torch.empty(hidden + out_features, hidden))
        self.passing = nn.Parameter(torch.empty(out_features + hidden, in_features))
        self.psi = nn.Parameter(torch.empty(hidden))
        self.bias = nn.Parameter(torch.empty(hidden))
        self.reset_parameters()

    def reset_parameters(self):
        """Balanced stacks with random directions, Psi = I, a bias as in `nn.Linear`."""
        balanced_(self.stack)
        balanced_(self.passing)
        nn.init.zeros_(self.psi)
        reset_bias(self.bias, self.in_features)

    def factors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(P, Q, H, R'), with orthonormal columns in [P; Q] and a norm of `lipschitz` of [H; R']."""
        Q, P = cayley(wide(self.stack)).split([self.hidden, self.out_features])
        H, R = (self.lipschitz * cayley(wide(self.passing))).split([self.out_features, self.hidden])
        return P, Q, H, R

    def compute(self) -> tuple[Tensor, Tensor, Tensor]:
        """(H, G, W) from the parameters."""
        P, Q, H, R = self.factors()
        scale = exp_of(wide(self.psi))
        G = _ROOT_OF_TWO * P * scale
        W = _ROOT_OF_TWO * (Q.mT @ R - P.mT @ H) / scale[:, None]
        return H, G, W

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, ..., in_features) to (batch, ..., out_features)."""
        H, G, W = self.weights()
        return F.linear(inputs, H) + F.linear(torch.relu(F.linear(inputs, W, self.bias)), G)

    def plain(self, input_shape: tuple[int, ...] | None = None) -> nn.Sequential:
        """The same function as Linear, ReLU, Linear, by x = relu(x) - relu(-x)."""
        H, G, W = self.materialise()
        return plain_block(H, G, W, self.bias)

    def extra_repr(self):
        sizes = f"in_features={self.in_features}, hidden={self.hidden}, out_features={self.out_features}"
        return f"{sizes}, lipschitz={self.lipschitz}"


def balanced_(free: Tensor) -> None:
    """A free matrix whose Cayley map is [I; O] / sqrt(2), O a random matrix with orthonormal columns or rows.

    The Cayley map of [0; V] is [(1 - v^2) I; -2 v O] / (1 + v^2) for V = v O, and v = tan(pi / 8) balances
    the two. A square matrix has no V, and becomes I.
    """
    tall = free if free.shape[0] >= free.shape[1] else free.T
    columns = tall.shape[1]
    with torch.no_grad():
        tall[:columns].zero_()
        if len(tall) > columns:
            tall[columns:] = math.tan(math.pi / 8) * nn.init.orthogonal_(torch.empty_like(tall[columns:]))


def exp_of(logs: Tensor) -> Tensor:
    """The positive numbers with these logarithms, which are read within [-10, 10]."""
    return logs.clamp(-LARGEST_LOG, LARGEST_LOG).exp()


def plain_block(H: Tensor, G: Tensor, W: Tensor, bias: Tensor) -> nn.Sequential:
    """H x + G relu(W x + b) as [G H -H] relu([W; I; -I] x + [b; 0; 0])."""
    identity = torch.eye(W.shape[1], dtype=W.dtype, device=W.device)
    entering, leaving = torch.cat([W, identity, -identity]), torch.cat([G, H, -H], dim=1)
    biases = torch.cat([bias, bias.new_zeros(2 * len(identity))])
    return nn.Sequential(plain_linear(entering, biases), nn.ReLU(), plain_linear(leaving, None))


# The Lipschitz contract of every block of this family: in norm 2, at every size of the samples.


@functools.singledispatch
def constant(layer: nn.Module, margin: int) -> float:
    """An upper bound on the constant of a block in norm 2, rounded up, `margin` times as far as is needed."""
    raise NotImplementedError


def register_block(kind: type, function: Callable[[nn.Module, int], float]) -> None:
    """Register `constant` of a block, and the Lipschitz contract that proves it by computing it anew."""
    constant.register(kind, function)
    lipschitz.register(kind, _block_lipschitz)


def _block_lipschitz(layer, norm, input_shape):
    if norm != 2:
        raise UnsupportedLayerError(
            f"{name_of(layer)} has no constant in norm {norm}, only in norm 2: use norm=2, or bound the "
            "plain layers that its method plain() gives."
        )
    if input_shape is not None:
        output_shape(layer, input_shape)
    # More than the proof needs, so that another machine's order of summation proves the value too.
    value = constant(layer, 4)
    return Bound(value, "upper", method="block", certificate=RecomputedCertificate(_proved, norm))


def _proved(layer):
    if guarded(layer, "lipschitz") is not _block_lipschitz:  # a subclass may have a contract of its own
        raise TypeError(f"{name_of(layer)} is not a block that this certificate speaks of.")
    return constant(layer, 1)


def norm_up(matrix: Tensor, units: int, margin: int) -> float:
    """A bound on the norm of a matrix whose entries are within so many units 2^-53, relatively, of these."""
    rounded = units * UNIT_ROUNDOFF * _frobenius_norm(matrix)
    value = spectral_norm(matrix).value * (1 + (margin - 1) * 2.0**-40)
    return math.nextafter((value + margin * rounded) * (1 + 2.0**-50), math.inf)


def _frobenius_norm(matrix):
    """With entries of any size, whose squares may be beyond the floats."""
    scaled, exponent = normalised(matrix)
    return unscaled_up(scaled.norm().item(), exponent)


def scale_of(layer: nn.Module) -> Tensor:
    """Psi in float64: positive, and close to what `compute` uses; any positive numbers give a true bound."""
    return exp_of(as_float64(layer.psi, "psi"))


def _constant(layer, margin):
    """With P = G Psi^-1 / sqrt(2) as it is stored, and any Q and R', let W_0 = sqrt(2) Psi^-1 (Q'R' - P'H).

    H + G D W_0 is the first rows of (I - 2 S D S') [H; R'], S = [P; -Q], and 0 <= S D S' <= |S|^2 I. The
    rest, G D (W - W_0), is G Psi^-1 times D times Psi (W - W_0), because diagonal matrices commute.
    """
    with torch.no_grad(), torch.autocast(layer.psi.device.type, enabled=False):
        H, G, W = (as_float64(weight, "a weight") for weight in layer.materialise())
        _, Q, _, R = (as_float64(factor, "a factor") for factor in layer.factors())
    scale = scale_of(layer)
    P = G / (_ROOT_OF_TWO * scale)
    scaled = scale[:, None] * W
    rest = scaled - _ROOT_OF_TWO * (Q.T @ R - P.T @ H)
    sizes = scaled.abs() + _ROOT_OF_TWO * (Q.abs().T @ R.abs() + P.abs().T @ H.abs())
    rounded = gamma(sum(P.shape) + 8) * _frobenius_norm(sizes)
    stack = norm_up(torch.cat([P, Q]), 4, margin)
    passing = norm_up(torch.cat([H, R]), 0, margin)
    distance = _ROOT_OF_TWO * stack * (norm_up(rest, 0, margin) + margin * rounded)
    value = max(1.0, 2 * stack**2 - 1) * passing + distance
    return math.nextafter(value * (1 + 2.0**-48), math.inf)


register_block(LipschitzResidual, _constant)


@refusal.register(LipschitzResidual)
def _refuse(layer):
    if not 0 < finite_attribute(layer, "lipschitz"):
        return f"has lipschitz={layer.lipschitz}: set it to a positive number."
    return refuse_shapes(
        layer,
        stack=(layer.hidden + layer.out_features, layer.hidden),
        passing=(layer.out_features + layer.hidden, layer.in_features),
        psi=(layer.hidden,),
        bias=(layer.hidden,),
    )


@output_shape.register(LipschitzResidual)
def _output_shape(layer, input_shape):
    require_features(layer, input_shape, layer.in_features)
    return (*input_shape[:-1], layer.out_features)


@residual.register(LipschitzResidual)
def _residual(layer):
    H, G, W = layer.materialise()
    return plain_linear(H, None), nn.Sequential(plain_linear(W, layer.bias), nn.ReLU(), plain_linear(G, None))


enclose.register(LipschitzResidual, enclose_residual)


@trained_norm.register(LipschitzResidual)
def _trained_norm(layer, input_shape):
    return layer.lipschitz


def _checked_constant(lipschitz):
    if isinstance(lipschitz, bool) or not isinstance(lipschitz, (int, float)):
        raise TypeError(f"lipschitz must be a number, got {type(lipschitz).__name__}.")
    if not 0 < lipschitz < math.inf:
        raise ValueError(f"lipschitz must be positive and finite, got {lipschitz}.")
    return float(lipschitz)
