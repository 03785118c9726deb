"""How large the output of a layer, and the gradients of its parameters, can be for one sample.

Let |x| <= X for the input and |g| <= G for the cotangent, the gradient of the sample's loss with respect to
the output. A dense layer has the gradient g x' for its weight, of norm |g| |x| <= X G. A convolution has the
product of g, as a matrix (channels, windows), with the windows of x, a matrix in which each pixel stands as
often as it is read: at most sqrt(reads) X G. A bias that is added at P positions has the sum of P gradients,
at most sqrt(P) G.

All norms are l_2 (Frobenius), of the real-arithmetic function of the stored weights; where the function has a
kink, of every convex combination of its Jacobians nearby. Source: Béthune et al., "DP-SGD without clipping",
ICLR 2024, without its formula for biases on feature maps. Chapter: privacy/without-clipping.
"""

import math
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrize

from lipbook.bound import UnsupportedLayerError, as_float64
from lipbook.contracts.certificates import product_up, shapes_through
from lipbook.contracts.convolution import axes_of, plane_of
from lipbook.contracts.definitions import (
    REGISTRIES,
    checked_shape,
    expand,
    guarded,
    lipschitz,
    no_contract,
    numel,
    output_shape,
    owner_of,
    refuse_answer,
    registrar,
    slopes,
)
from lipbook.contracts.guard import finite_attribute, guard, name_of, require_layer
from lipbook.contracts.pooling import AXES, root_up
from lipbook.contracts.rounding import enclose
from lipbook.contracts.stock import BATCH_NORMS, DROPOUTS, RESHAPINGS, channel_scale
from lipbook.contracts.structures import Reflection, Sorting
from lipbook.norms.spectral import gamma

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)
_VANISHING = (*RESHAPINGS, *DROPOUTS, *AXES)


def output_norm(layer: nn.Module, input_norm: float, input_shape: tuple[int, ...] | None = None) -> float:
    """An upper bound on ``|f(x)|`` over all inputs of norm at most `input_norm`, in l_2.

    A layer that has no function of its own for it gets its Lipschitz constant times `input_norm`, plus
    ``|f(0)|``.

    Args:
        layer: with contracts.
        input_norm: at least 0; infinite where nothing is known of the input.
        input_shape: the shape of one sample; None where f(0) = 0 at every size.

    Raises:
        UnsupportedLayerError: the layer has no contract that tells, or is in a state of which it does not
            speak.
        ValueError, TypeError: not such a norm, a shape that the layer does not take, none where it matters.

    Register: `@output_norm.register(MyLayer)` over a function `(layer, input_norm, input_shape) -> float`.
    Chapter: privacy/without-clipping.
    """
    require_layer(layer)
    owner = owner_of(layer, REGISTRIES["output_norm"], REGISTRIES["lipschitz"])
    if owner is None:
        raise no_contract(layer, "output_norm")
    guard(layer, owner)
    checked_size(input_norm, "input_norm")
    if input_shape is not None:
        checked_shape(input_shape)
    own = owner in REGISTRIES["output_norm"].registry
    function = REGISTRIES["output_norm"].dispatch(owner) if own else _grown
    answer = function(layer, float(input_norm), input_shape)
    if not isinstance(answer, float) or not answer >= 0:
        refuse_answer(layer, "output_norm", "a float of at least 0", answer)
    return answer


def parameter_gradient_norm(
    layer: nn.Module,
    input_norm: float,
    cotangent_norm: float,
    input_shape: tuple[int, ...] | None = None,
) -> dict[str, float]:
    """Upper bounds on the l_2 norms of one sample's gradients, by the names of the parameters.

    Only parameters that require gradients are named: a frozen one has no gradient to bound. Where one tensor
    is used several times, its first name has the sum of the bounds.

    Args:
        layer: with contracts. One that computes its weight from its parameters (Cayley, AOL, SLL,
            `torch.nn.utils.parametrizations`) is refused: its gradient has the factor of that as well.
        input_norm: at least the norm of the layer's input, one sample.
        cotangent_norm: at least the norm of the gradient of the sample's loss with respect to the output.
        input_shape: the shape of one sample; None where no bound depends on it.

    Raises:
        UnsupportedLayerError, ValueError, TypeError: as `output_norm`.

    Register: `@parameter_gradient_norm.register(MyLayer)` over a function `(layer, input_norm,
    cotangent_norm, input_shape) -> dict`.
    Chapter: privacy/without-clipping.
    """
    require_layer(layer)
    owner = owner_of(layer, *REGISTRIES.values())
    if owner is None:
        raise no_contract(layer, "parameter_gradient_norm")
    guard(layer, owner)
    checked_size(input_norm, "input_norm")
    checked_size(cotangent_norm, "cotangent_norm")
    if input_shape is not None:
        checked_shape(input_shape)
    refuse_backward_hooks(layer)
    trained = trained_parameters(layer)
    if not trained:
        expand(layer)  # raises if a layer inside has no contract
        return {}
    function = _own_gradients(layer)
    answer = function(layer, float(input_norm), float(cotangent_norm), input_shape)
    what = f"a dict with a float of at least 0 for each of {', '.join(trained)}"
    if not isinstance(answer, dict) or not trained.keys() <= answer.keys():
        refuse_answer(layer, "parameter_gradient_norm", what, answer)
    if not all(isinstance(value, float) and value >= 0 for value in answer.values()):
        refuse_answer(layer, "parameter_gradient_norm", what, answer)
    return {name: answer[name] for name in trained}


for _name in ("output_norm", "parameter_gradient_norm"):
    globals()[_name].register = registrar(_name)


def checked_size(size: float, name: str) -> float:
    """`size` as a float, if it is a number of at least 0, infinity included."""
    if isinstance(size, bool) or not isinstance(size, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(size).__name__}.")
    if not size >= 0:
        raise ValueError(f"{name} must be at least 0, got {size}.")
    return float(size)


def trained_parameters(layer: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require gradients, each once, by name."""
    return {name: weight for name, weight in layer.named_parameters() if weight.requires_grad}


def refuse_backward_hooks(module: nn.Module) -> None:
    """Raise where a hook may change a gradient on its way back."""
    for part in module.modules():
        hooks = [part._backward_hooks, part._backward_pre_hooks]
        for weight in filter(torch.is_tensor, part._parameters.values()):
            hooks += [weight._backward_hooks, weight._post_accumulate_grad_hooks]
        if any(hooks) or torch_module._global_backward_hooks or torch_module._global_backward_pre_hooks:
            raise UnsupportedLayerError(
                f"{name_of(part)} has a backward hook, which may change gradients: remove it "
                "(handle.remove())."
            )


def sum_up(*terms: float) -> float:
    """The sum of non-negative floats, exact where a float holds it, else rounded up."""
    if math.inf in terms:
        return math.inf
    exact = sum(map(Fraction, terms))
    try:
        total = float(exact)
    except OverflowError:
        return math.inf
    return total if total >= exact else math.nextafter(total, math.inf)


def _own_gradients(layer):
    if parametrize.is_parametrized(layer):
        raise UnsupportedLayerError(
            f"{name_of(layer)} computes {', '.join(layer.parametrizations)} from other parameters, and the "
            "gradients of those have the factor of that computation too: use a plain layer whose weight is "
            "projected after each step (lipbook.privacy.fit does), or freeze its parameters."
        )
    owner = owner_of(layer, REGISTRIES["parameter_gradient_norm"])
    if owner is None:
        raise UnsupportedLayerError(
            f"{name_of(layer)} has parameters that require gradients, and no contract that bounds these: it "
            "may compute its weight from them. Use a plain layer whose weight is projected after each step "
            "(lipbook.privacy.fit does), freeze it, or register a bound with "
            f"lipbook.contracts.parameter_gradient_norm.register({name_of(layer)})."
        )
    return guarded(layer, "parameter_gradient_norm")


# Output norms.


def _grown(layer, input_norm, input_shape):
    """``|f(x)| <= |f(x) - f(0)| + |f(0)|``."""
    constant = lipschitz(layer, 2, input_shape).value
    return sum_up(product_up([constant, input_norm]), _at_zero(layer, input_shape))


def _at_zero(layer, input_shape):
    """An upper bound on ``|f(0)|``."""
    if _vanishes_at_zero(layer):
        return 0.0
    if input_shape is None:
        raise ValueError(f"what {name_of(layer)} makes of zeros depends on their shape: pass input_shape.")
    zeros = torch.zeros(1, *input_shape, dtype=torch.float64, device="cpu")
    values, errors = enclose(layer, zeros, zeros)
    entries = values.abs() + errors
    size = torch.linalg.vector_norm(entries).item() * (1 + gamma(entries.numel() + 4))
    tiny = 2.0**-500 * entries.numel()  # squares below the floats are lost
    return math.nextafter(size + tiny, math.inf)


def _vanishes_at_zero(layer):
    """Whether f(0) = 0 for samples of every shape that the layer takes."""
    owner = owner_of(layer, REGISTRIES["lipschitz"])
    if owner in _VANISHING:
        return True
    if owner in (nn.Linear, *_CONVOLUTIONS):
        return layer.bias is None
    if owner_of(layer, REGISTRIES["slopes"]) is not owner:
        return False
    if isinstance(slopes(layer), (Sorting, Reflection)):
        return True
    with torch.no_grad():
        return not layer(torch.zeros(1, 1, dtype=torch.float64, device="cpu")).any()


@output_norm.register(nn.Sequential)
def _sequential_output_norm(layer, input_norm, input_shape):
    children = tuple(layer._modules.values())
    for child, shape in zip(children, shapes_through(children, input_shape)):
        input_norm = output_norm(child, input_norm, shape)
    return input_norm


# Gradients of the parameters.


@parameter_gradient_norm.register(nn.Linear)
def _linear_gradients(layer, input_norm, cotangent_norm, input_shape):
    """The weight's is the sum over positions of g_t x_t', at most sum ``|g_t| |x_t|``."""
    bounds = {"weight": product_up([input_norm, cotangent_norm])}
    if layer.bias is not None:
        shape = output_shape(layer, _required(layer, input_shape))
        bounds["bias"] = _bias_gradient(numel((1, *shape[:-1])), cotangent_norm)
    return bounds


def _bias_gradient(positions, cotangent_norm):
    return product_up([root_up(Fraction(positions)), cotangent_norm])


def _required(layer, input_shape):
    if input_shape is None:
        raise ValueError(
            f"the gradients of {name_of(layer)} depend on the size of a sample: pass input_shape."
        )
    return input_shape


def _conv_gradients(layer, input_norm, cotangent_norm, input_shape):
    reads = root_up(Fraction(_reads(layer, input_shape)))
    bounds = {"weight": product_up([reads, input_norm, cotangent_norm])}
    if layer.bias is not None:
        shape = output_shape(layer, _required(layer, input_shape))
        bounds["bias"] = _bias_gradient(numel((1, *shape[1:])), cotangent_norm)
    return bounds


def _reads(layer, input_shape):
    """How often one pixel is read at most, by any tap of any window (for a transpose: written)."""
    axes, transposed = axes_of(layer), isinstance(layer, nn.ConvTranspose2d)
    if input_shape is not None:
        shape = output_shape(layer, input_shape)
        sizes = plane_of(layer, input_shape, input_shape[0])
        read, windows = (shape[1:], sizes) if transposed else (sizes, None)
        taps = [axis.taps(size) for axis, size in zip(axes, read)]
        if transposed:
            taps = [axis[:count] for axis, count in zip(taps, windows)]
        return math.prod(axis[axis >= 0].bincount(minlength=1).max().item() for axis in taps)
    if layer.padding_mode != "zeros":
        _required(layer, None)
    # Tap t of window o is pixel o stride + t dilation - padding: a pixel is read by every so many taps.
    steps = [axis.stride // math.gcd(axis.stride, axis.dilation) for axis in axes]
    return math.prod(-(-axis.kernel // step) for axis, step in zip(axes, steps))


def _batch_norm_gradients(layer, input_norm, cotangent_norm, input_shape):
    """gamma_c has the sum over positions of g_cp (x_cp - mean_c) / sqrt(var_c + eps)."""
    shape = output_shape(layer, _required(layer, input_shape))
    positions = numel((1, *shape[1:]))
    scale = channel_scale(as_float64(layer.running_var, "running_var"), finite_attribute(layer, "eps"), None)
    offset = (scale * as_float64(layer.running_mean, "running_mean")).abs().max().item()
    margin = 1 + 2.0**-48
    centred = sum_up(
        product_up([input_norm, scale.max().item(), margin]),
        product_up([offset, margin, root_up(Fraction(positions))]),
    )
    weight = product_up([centred, cotangent_norm])
    return {"weight": weight, "bias": _bias_gradient(positions, cotangent_norm)}


# Chains: the norm of the input is carried forward, the norm of the cotangent backward.


class Step(NamedTuple):
    """What the recursions know at one layer of a chain.

    `input_norm` bounds its input, `cotangent_norm` the cotangent at its output (infinite below every trained
    layer, where no gradient is needed); `input_shape` is None where it is not known.
    """

    name: str
    layer: nn.Module
    input_norm: float
    cotangent_norm: float
    input_shape: tuple[int, ...] | None


def recursion(
    chain: list[tuple[str, nn.Module]],
    input_norm: float,
    cotangent_norm: float,
    input_shape: tuple[int, ...] | None,
    norms: dict[str, float] | None = None,
) -> list[Step]:
    """One `Step` a layer of a chain of (name, layer), X_{l+1} = output_norm(X_l) and G_{l-1} = Lip(f_l) G_l.

    `norms` holds upper bounds on the l_2 constants of some of the layers, used instead of `lipschitz`: the
    caller answers for them.
    """
    norms = norms or {}
    shapes = shapes_through(tuple(layer for _, layer in chain), input_shape)
    entering = []
    for (name, layer), shape in zip(chain, shapes):
        entering.append(input_norm)
        if name in norms:
            input_norm = sum_up(product_up([norms[name], input_norm]), _at_zero(layer, shape))
        else:
            input_norm = output_norm(layer, input_norm, shape)
    trained = [k for k, (_, layer) in enumerate(chain) if trained_parameters(layer)]
    lowest = trained[0] if trained else len(chain)
    leaving = [math.inf] * len(chain)
    for k in range(len(chain) - 1, lowest - 1, -1):
        leaving[k] = cotangent_norm
        if k > lowest:
            name, layer = chain[k]
            constant = norms[name] if name in norms else lipschitz(layer, 2, shapes[k]).value
            cotangent_norm = product_up([constant, cotangent_norm])
    return [Step(*named, X, G, shape) for named, X, G, shape in zip(chain, entering, leaving, shapes)]


def gradients_of(steps: list[Step], model: nn.Module) -> dict[str, float]:
    """The bounds of every trained parameter of a chain, by its first name in the model."""
    bounds = {}
    for name, layer, *known in steps:
        inner = parameter_gradient_norm(layer, *known)
        bounds |= {f"{name}.{parameter}": bound for parameter, bound in inner.items()}
    return _summed_over_uses(model, bounds)


def _summed_over_uses(model, bounds):
    """A tensor that is used k times has the sum of k gradients."""
    first, total = {}, {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        if name in bounds:
            name, bound = first.setdefault(id(weight), name), bounds[name]
            total[name] = sum_up(total.get(name, 0.0), bound)
    return total


@parameter_gradient_norm.register(nn.Sequential)
def _sequential_gradients(layer, input_norm, cotangent_norm, input_shape):
    chain = list(layer._modules.items())
    return gradients_of(recursion(chain, input_norm, cotangent_norm, input_shape), layer)


for _kind in _CONVOLUTIONS:
    parameter_gradient_norm.register(_kind, _conv_gradients)
for _kind in BATCH_NORMS:
    parameter_gradient_norm.register(_kind, _batch_norm_gradients)
