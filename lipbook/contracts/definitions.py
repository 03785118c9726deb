"""What the library asks of a layer: one function a contract, guarded, over a private singledispatch.

Each function finds the function registered for the layer's class, lets the guard refuse what that function
cannot speak of, and checks the form of what comes back. `NAME.register(MyLayer)` adds a layer of your own;
attack it with `lipbook.contracts.check` before you trust it.

Chapter: how-to-read-a-certificate.
"""

import functools

import torch
from torch import Tensor, nn

from lipbook.bound import Bound, UnsupportedLayerError, as_float64, checked_norm
from lipbook.contracts.guard import guard, name_of, require_layer
from lipbook.contracts.structures import Reflection, Sorting


def _unregistered(layer, *arguments, **keywords):
    raise NotImplementedError  # the guarded function never lets a layer through to here


_lipschitz = functools.singledispatch(_unregistered)
_affine = functools.singledispatch(_unregistered)
_output_shape = functools.singledispatch(_unregistered)
_expand = functools.singledispatch(_unregistered)
_slopes = functools.singledispatch(_unregistered)
_residual = functools.singledispatch(_unregistered)
_enclose = functools.singledispatch(_unregistered)
_output_norm = functools.singledispatch(_unregistered)
_parameter_gradient_norm = functools.singledispatch(_unregistered)

REGISTRIES = {
    "lipschitz": _lipschitz,
    "affine": _affine,
    "output_shape": _output_shape,
    "expand": _expand,
    "slopes": _slopes,
    "residual": _residual,
    "enclose": _enclose,
    "output_norm": _output_norm,
    "parameter_gradient_norm": _parameter_gradient_norm,
}


def lipschitz(layer: nn.Module, norm: float = 2, input_shape: tuple[int, ...] | None = None) -> Bound:
    """An upper bound on the Lipschitz constant of a layer with respect to its input.

    ``sup |f(x) - f(y)| / |x - y|`` over all x != y, in the same norm on both sides. The bound is about the
    real-arithmetic function of the stored weights; `bound.verify(layer)` proves it again, unless a
    contract of your own gave a bound without a certificate (an object with `verify(bound, layer)`).

    Args:
        layer: a layer with a contract, or an `nn.Sequential` of them (the product of their bounds).
        norm: 2 or `math.inf`.
        input_shape: the shape of one sample, where the size matters; None asks for a bound at every size.

    Raises:
        UnsupportedLayerError: the layer has no contract, or is in a state of which it does not speak.
        ValueError, TypeError: another norm, a shape that the layer does not take, NaN or infinite weights.

    Register: `@lipschitz.register(MyLayer)` over a function `(layer, norm, input_shape) -> Bound`.
    """
    function = guarded(layer, "lipschitz")
    norm = checked_norm(norm)
    if input_shape is not None:
        checked_shape(input_shape)
    bound = function(layer, norm, input_shape)
    if not isinstance(bound, Bound) or _form(bound) != ("upper", norm, None, None):
        refuse_answer(layer, "lipschitz", f"an upper Bound in norm {norm} of the output, everywhere", bound)
    return bound


def affine(layer: nn.Module, input_shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The float64 operator (weight, bias) of a linear layer: vec(f(x)) = weight vec(x) + bias.

    Args:
        layer: a linear layer with a contract (BatchNorm and Dropout in eval mode are linear).
        input_shape: the shape of one sample.

    Returns:
        weight of shape (numbers out, numbers in) and bias of shape (numbers out,), on the CPU: the
        stored numbers themselves, and for BatchNorm within a few units in the last place of what it adds.

    Raises:
        UnsupportedLayerError, ValueError, TypeError: as `lipschitz`.

    Register: `@affine.register(MyLayer)` over a function `(layer, input_shape) -> (weight, bias)`.
    """
    function = guarded(layer, "affine")
    checked_shape(input_shape)
    answer = function(layer, tuple(input_shape))
    numbers = numel(input_shape)
    what = f"a finite float64 weight (numbers out, {numbers}) and a finite float64 bias (numbers out,)"
    if not _are_float64(answer):
        refuse_answer(layer, "affine", what, answer)
    weight, bias = answer
    if weight.ndim != 2 or bias.shape != weight.shape[:1] or weight.shape[1] != numbers:
        refuse_answer(layer, "affine", what, f"the shapes {tuple(weight.shape)} and {tuple(bias.shape)}")
    if not (torch.isfinite(weight).all() and torch.isfinite(bias).all()):
        refuse_answer(layer, "affine", what, "entries that are NaN or infinite")
    return weight, bias


def output_shape(layer: nn.Module, input_shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the output of one sample of shape `input_shape`.

    Raises:
        UnsupportedLayerError: as `lipschitz`.
        ValueError, TypeError: not a shape, or one that the layer does not take.

    Register: `@output_shape.register(MyLayer)` over a function `(layer, input_shape) -> tuple`.
    """
    function = guarded(layer, "output_shape")
    checked_shape(input_shape)
    shape = function(layer, tuple(input_shape))
    if not isinstance(shape, tuple):
        refuse_answer(layer, "output_shape", "a tuple of positive integers", shape)
    return checked_shape(tuple(shape))


def expand(layer: nn.Module, blocks: bool = True) -> tuple[nn.Module, ...]:
    """The primitives that a block is made of, in the order in which they act; a primitive gives itself.

    Every nested `nn.Sequential` is flattened. A layer that appears twice appears twice.

    Args:
        layer: a layer with a contract.
        blocks: False leaves a block whole that is no `nn.Sequential` and has a Lipschitz contract of its own.

    Raises:
        UnsupportedLayerError: a layer without any contract, or in a state of which they do not speak.

    Register: `@expand.register(MyBlock)` over a function `(layer) -> tuple of layers`; a layer that has any
    other contract, and not this one, is a primitive. What the function returns is expanded in turn.
    """
    require_layer(layer)
    if not isinstance(blocks, bool):
        raise TypeError(f"blocks must be True or False, got {blocks!r}.")
    owner = owner_of(layer, *REGISTRIES.values())
    if owner is None:
        raise no_contract(layer, "expand")
    guard(layer, owner)
    if owner_of(layer, _expand) is not owner:
        return (layer,)
    if not blocks and owner is not nn.Sequential and owner in _lipschitz.registry:
        return (layer,)
    parts = _expand.dispatch(owner)(layer)
    if not isinstance(parts, tuple) or not all(isinstance(part, nn.Module) for part in parts):
        refuse_answer(layer, "expand", "a tuple of layers", parts)
    return tuple(
        primitive for part in parts for primitive in ((layer,) if part is layer else expand(part, blocks))
    )


def slopes(
    activation: nn.Module, lower: Tensor | None = None, upper: Tensor | None = None
) -> tuple[Tensor, Tensor] | Sorting | Reflection:
    """Bounds (a, b) on the slopes (f(x) - f(y)) / (x - y) of an elementwise activation, or its structure.

    Args:
        activation: a layer with a contract.
        lower, upper: tensors of one shape, finite, lower <= upper: the pre-activations x and y are within.
            Both None: everywhere.

    Returns:
        float64 tensors a and b, shaped as `lower` (0-d when it is None), rounded outward. For an activation
        that acts on groups of entries, a `Sorting` or a `Reflection`: what it does everywhere.

    Raises:
        UnsupportedLayerError: as `lipschitz`.
        ValueError, TypeError: only one end given, other shapes, NaN or infinite ends, lower > upper.

    Register: `@slopes.register(MyActivation)` over a function `(activation, lower, upper)` that
    returns (a, b), a `Sorting` or a `Reflection`.
    """
    function = guarded(activation, "slopes")
    if (lower is None) != (upper is None):
        raise ValueError("slopes takes both lower and upper, or neither (everywhere): got only one of them.")
    if lower is not None:
        lower, upper = _checked_interval(lower, upper)
    answer = function(activation, lower, upper)
    if isinstance(answer, (Sorting, Reflection)):
        return answer
    shape = torch.Size() if lower is None else lower.shape
    what = f"float64 tensors a <= b of shape {tuple(shape)}, a Sorting or a Reflection"
    if not _are_float64(answer):
        refuse_answer(activation, "slopes", what, answer)
    a, b = answer
    if a.shape != shape or b.shape != shape or not (a <= b).all():
        refuse_answer(activation, "slopes", what, answer)
    return a, b


def residual(block: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The layers (skip, f) of a block that computes skip(x) + f(x).

    Returns:
        skip, a linear layer with the contract `affine` (`nn.Identity()` where the block computes x + f(x)),
        and f, a layer or an `nn.Sequential`.

    Raises:
        UnsupportedLayerError: as `lipschitz`, of the block or of a layer in f.

    Register: `@residual.register(MyBlock)` over a function `(block) -> (skip, f)`.
    """
    answer = guarded(block, "residual")(block)
    what = "a pair of layers (skip, f)"
    if not isinstance(answer, tuple) or len(answer) != 2:
        refuse_answer(block, "residual", what, answer)
    if not all(isinstance(part, nn.Module) for part in answer):
        refuse_answer(block, "residual", what, answer)
    for part in answer:
        expand(part)  # the guard looks at every layer of it
    if "affine" not in contracts_of(answer[0]):
        refuse_answer(block, "residual", "a skip that has an affine contract", answer[0])
    return answer


def guarded(layer: nn.Module, contract: str):
    """The function registered for this contract of a layer, once the guard has let the layer through."""
    require_layer(layer)
    owner = owner_of(layer, REGISTRIES[contract])
    if owner is None:
        raise no_contract(layer, contract)
    guard(layer, owner)
    return REGISTRIES[contract].dispatch(owner)


def _form(bound):
    return bound.kind, bound.norm, bound.region, bound.output


def _are_float64(answer):
    if not isinstance(answer, tuple) or len(answer) != 2:
        return False
    return all(isinstance(part, Tensor) and part.dtype == torch.float64 for part in answer)


def refuse_answer(layer: nn.Module, contract: str, what: str, answer) -> None:
    """Raise the TypeError for a registered function whose answer is not of the form that it promises."""
    raise TypeError(
        f"the {contract} contract of {name_of(layer)} must return {what}; it returned {answer!r}."
    )


def contracts_of(layer: nn.Module) -> tuple[str, ...]:
    """The names of the contracts registered for the class of a layer."""
    return tuple(name for name, registry in REGISTRIES.items() if owner_of(layer, registry))


def checked_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """`shape` if it is a non-empty tuple of positive integers; otherwise a TypeError or a ValueError."""
    advice = "the shape of one sample is a tuple of positive integers, such as (784,) or (1, 28, 28)"
    if not isinstance(shape, tuple):
        raise TypeError(f"got the shape {shape!r}: {advice}.")
    if not shape or any(not isinstance(size, int) or isinstance(size, bool) or size < 1 for size in shape):
        raise ValueError(f"got the shape {shape!r}: {advice}.")
    return shape


def numel(shape: tuple[int, ...]) -> int:
    """How many numbers one sample of this shape holds."""
    return torch.Size(shape).numel()


def registrar(name: str):
    """The function `NAME.register` of a contract."""
    registry = REGISTRIES[name]

    def register(kind: type, function=None):
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)) or kind is nn.Module:
            raise TypeError(f"{name}.register takes a subclass of torch.nn.Module, got {kind!r}.")
        return registry.register(kind, function)

    register.__doc__ = f"Register the {name} contract of a class: `@{name}.register(MyLayer)`."
    return register


for _name in ("lipschitz", "affine", "output_shape", "expand", "slopes", "residual"):
    globals()[_name].register = registrar(_name)


def owner_of(layer: nn.Module, *registries) -> type | None:
    """The class nearest to the layer's own for which one of the registries holds a function, or None."""
    known = [registry.registry for registry in registries]
    kinds = (kind for kind in type(layer).__mro__ if kind is not object)
    return next((kind for kind in kinds if any(kind in functions for functions in known)), None)


def no_contract(layer: nn.Module, contract: str) -> UnsupportedLayerError:
    """The error for a layer that has not got this contract; it says which it has, and what to do."""
    name, others = name_of(layer), contracts_of(layer)
    title = {"lipschitz": "Lipschitz"}.get(contract, contract.replace("_", " "))
    last = ""
    if isinstance(layer, (nn.Softmax, nn.LogSoftmax)):
        last = " As the last layer of a classifier leave it out: the class stays that of the largest logit."
    if contract == "expand":
        return UnsupportedLayerError(
            f"{name} has no contract at all: replace it, or register its contracts "
            f"(lipbook.contracts.lipschitz.register({name}), ...) and attack them with "
            f"lipbook.contracts.check(layer, input_shape).{last}"
        )
    reads = f"it has only {', '.join(others)}" if others else "it is not among the layers that lipbook reads"
    return UnsupportedLayerError(
        f"{name} has no {title} contract: {reads}. Replace it, or register one with "
        f"lipbook.contracts.{contract}.register({name}) and attack it with "
        f"lipbook.contracts.check(layer, input_shape).{last}"
    )


def _checked_interval(lower, upper):
    lower, upper = as_float64(lower, "lower"), as_float64(upper, "upper")
    if lower.shape != upper.shape:
        shapes = f"{tuple(lower.shape)} and {tuple(upper.shape)}"
        raise ValueError(f"lower and upper must have one shape, got {shapes}: broadcast them first.")
    if (lower > upper).any():
        raise ValueError("lower must be at most upper, entry by entry: an entry of lower is above its upper.")
    return lower, upper
