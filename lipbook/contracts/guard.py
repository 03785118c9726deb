"""What must hold of a layer before a contract may speak of it, all in one place.

A contract reads a layer's weights and attributes; the forward pass may do something else. The guard refuses
every layer where the two could part: it never guesses. Refusals name the layer and say what to do.
"""

import functools
import math
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import Buffer, Parameter, UninitializedTensorMixin
from torch.nn.utils import parametrizations, parametrize

from lipbook.bound import UnsupportedLayerError, as_float64

# What a subclass may define without the registered forward pass ever reading it.
_HARMLESS = frozenset(
    "__init__ extra_repr __repr__ reset_parameters __doc__ __module__ __qualname__ __constants__ "
    "__annotations__ __annotate__ __annotate_func__ __annotations_cache__ __conditional_annotations__ "
    "__firstlineno__ __static_attributes__ __orig_bases__ __parameters__ __type_params__ __weakref__ "
    "__dict__ __slotnames__".split()
)
_KNOWN_PARAMETRISATIONS = (
    parametrizations._WeightNorm,
    parametrizations._Orthogonal,
    parametrizations._SpectralNorm,
)
_KNOWN_TENSORS = (torch.Tensor, Parameter, Buffer)


def guard(layer: nn.Module, owner: type) -> None:
    """Return if a contract registered for the class `owner` may speak of `layer`.

    Raises:
        UnsupportedLayerError: the layer could compute something else than `owner` does; the message says what
            was found and what to do.
        ValueError: a weight or an attribute is NaN or infinite.
    """
    rules = (
        _uninitialised(layer),
        _redefined(layer, owner),
        _instance_attributes(layer),
        _hooks(layer),
        _parametrisations(layer),
        _tensors(layer),
    )
    for sentence in rules:
        if sentence is not None:
            raise UnsupportedLayerError(f"{name_of(layer)} {sentence}")
    _refuse_non_finite(layer)
    sentence = refusal(layer)
    if sentence is not None:
        raise UnsupportedLayerError(f"{name_of(layer)} {sentence}")


def require_copyable(layer: nn.Module) -> None:
    """Raise `UnsupportedLayerError` if a copy of the layer would not show what the guard refuses in it."""
    for module in layer.modules():
        sentence = _uninitialised(module) or _instance_attributes(module) or _tensors(module)
        if sentence is not None:
            raise UnsupportedLayerError(f"{name_of(module)} {sentence}")


def require_layer(layer) -> None:
    """Raise `UnsupportedLayerError` unless `layer` is an instance of `nn.Module`."""
    if isinstance(layer, type):
        name = name_of(layer)
        raise UnsupportedLayerError(f"{name} is a class, not a layer: pass an instance, {name}(...).")
    if isinstance(layer, Mapping):
        raise UnsupportedLayerError(
            f"a {type(layer).__name__} is not a torch.nn.Module: if it holds weights, build the model and "
            "load them with model.load_state_dict(...)."
        )
    if not isinstance(layer, nn.Module):
        raise UnsupportedLayerError(
            f"{layer!r} is not a torch.nn.Module: pass a layer, such as nn.ReLU() instead of torch.relu."
        )


def name_of(layer) -> str:
    """The class of a layer as a reader would write it: nn.Linear."""
    kind = layer if isinstance(layer, type) else type(layer)
    if not isinstance(layer, type) and isinstance(layer, nn.Module) and parametrize.is_parametrized(layer):
        kind = parametrize.type_before_parametrizations(layer)
    return f"nn.{kind.__name__}" if getattr(nn, kind.__name__, None) is kind else kind.__qualname__


@functools.singledispatch
def refusal(layer) -> str | None:
    """Why every contract of this layer is refused in its present state, or None.

    Register a function for a class whose contracts hold only in eval mode, or for some of its attributes:
    `refusal.register(MyLayer)`. What it returns continues a sentence that begins with the layer's name.
    """
    return None


def attribute(layer: nn.Module, name: str) -> float:
    """A numeric attribute of a layer as a float, refused if it is not a number or is NaN."""
    value = getattr(layer, name)
    if isinstance(value, torch.Tensor) or not isinstance(value, (int, float)) or isinstance(value, bool):
        raise UnsupportedLayerError(f"{name_of(layer)} has {name}={value!r}: set it to a Python number.")
    if math.isnan(value):
        raise ValueError(f"{name_of(layer)} has {name}=nan: a contract needs a number.")
    return float(value)


def finite_attribute(layer: nn.Module, name: str) -> float:
    """The same, refused if infinite too."""
    value = attribute(layer, name)
    if math.isinf(value):
        raise ValueError(f"{name_of(layer)} has {name}={value}: a contract needs a finite number.")
    return value


def _uninitialised(layer):
    tensors = [*layer._parameters.values(), *layer._buffers.values()]
    lazy = isinstance(layer, LazyModuleMixin) and layer.has_uninitialized_params()
    if lazy or any(isinstance(tensor, UninitializedTensorMixin) for tensor in tensors):
        return "is not initialised yet: run one batch through it first."
    return None


def _redefined(layer, owner):
    """A class between the layer and the registered one that defines what the forward pass could read."""
    harmless = _HARMLESS
    for kind in type(layer).__mro__:
        if kind in owner.__mro__:
            continue
        if kind is type(layer) and parametrize.is_parametrized(layer):
            harmless = _HARMLESS | {"__getstate__", "__deepcopy__", *layer.parametrizations}
        else:
            harmless = _HARMLESS
        names = sorted(set(vars(kind)) - harmless)
        if names:
            return (
                f"is a subclass of {name_of(owner)} that defines {', '.join(names)}, so the contract of "
                f"{name_of(owner)} may not hold for it: register its own contracts "
                f"(lipbook.contracts.lipschitz.register({kind.__name__}), ...) and attack them with "
                "lipbook.contracts.check(layer, input_shape)."
            )
    return None


def _instance_attributes(layer):
    for name in vars(layer):
        if callable(getattr(type(layer), name, None)):
            return (
                f"has an instance attribute {name!r}, which hides the method of its class: "
                f"delete it (del layer.{name}), or write a subclass and register its contracts."
            )
    if layer._compiled_call_impl is not None:
        return "was compiled in place: read its contracts before layer.compile(), or from a deep copy of it."
    return None


def _hooks(layer):
    if layer._forward_hooks or layer._forward_pre_hooks:
        return (
            "has a forward hook, which may change what it computes: remove it (handle.remove(), or "
            "torch.nn.utils.prune.remove), and use torch.nn.utils.parametrizations instead of the old-style "
            "torch.nn.utils.spectral_norm and weight_norm."
        )
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return "is under a global forward hook, which may change its output: remove it (handle.remove())."
    return None


def _parametrisations(layer):
    if not parametrize.is_parametrized(layer):
        return None
    if parametrize._cache_enabled:
        return (
            "is read inside parametrize.cached(), where its weight may be an old one: leave the block first."
        )
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        return "is read under torch.autocast, which may round its weight to half precision: leave the block."
    for name, chain in layer.parametrizations.items():
        for step in chain:
            if type(step) not in _KNOWN_PARAMETRISATIONS:
                return (
                    f"has the parametrisation {type(step).__name__} on {name}, which lipbook does not know: "
                    "keep its value (torch.nn.utils.parametrize.remove_parametrizations(layer, "
                    f"{name!r})), or write a layer that computes it and register its contracts."
                )
            problem = _instance_attributes(step) or _hooks(step)
            if problem:
                return f"has a parametrisation {type(step).__name__} on {name} that {problem}"
            if isinstance(step, parametrizations._SpectralNorm) and step.training:
                return (
                    f"has spectral_norm on {name} in train mode, where every reading of {name} changes it: "
                    "call layer.eval() first."
                )
        problem = _instance_attributes(chain) or _hooks(chain)
        if problem:
            return f"has a list of parametrisations on {name} that {problem}"
    return None


def _own_tensors(layer):
    yield from layer._parameters.items()
    yield from layer._buffers.items()
    yield from ((name, value) for name, value in vars(layer).items() if isinstance(value, torch.Tensor))
    if parametrize.is_parametrized(layer):
        yield from layer.parametrizations.named_parameters()
        yield from layer.parametrizations.named_buffers()


def _tensors(layer):
    for name, tensor in _own_tensors(layer):
        if tensor is None:
            continue
        if tensor.is_meta:
            return f"has {name} on the meta device: give it numbers (layer.to_empty(...), load_state_dict)."
        if tensor.is_complex():
            return f"has a complex {name}: write it as a real layer of twice the size."
        if tensor.is_quantized:
            return f"has a quantised {name}: replace it with a layer that holds the dequantised weight."
        if type(tensor) not in _KNOWN_TENSORS:
            return (
                f"has {name} of the tensor subclass {type(tensor).__name__}, whose arithmetic is its own: "
                "replace it with a plain tensor."
            )
        if tensor.layout != torch.strided:
            return f"has a sparse {name}: replace it with {name}.to_dense()."
        if isinstance(tensor, Parameter) and not tensor.is_floating_point():
            return f"has {name} of dtype {tensor.dtype}: convert it to a floating dtype."
    return None


def _refuse_non_finite(layer):
    for name, tensor in _own_tensors(layer):
        if tensor is not None and tensor.is_floating_point() and tensor.numel():
            as_float64(tensor, f"{name} of {name_of(layer)}")


_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


def _refuse_batch_norm(layer):
    if layer.running_mean is None or layer.running_var is None:
        return (
            "keeps no running statistics, so that each sample's output depends on its batch: build it with "
            "track_running_stats=True and train it before it is read."
        )
    if layer.training:
        return "is in train mode, where each sample's output depends on its batch: call layer.eval() first."
    total = as_float64(layer.running_var, "running_var") + finite_attribute(layer, "eps")
    if not ((total > 0) & torch.isfinite(total)).all():
        return "has an entry of running_var + eps that is not positive and finite: its output is not defined."
    return None


def _refuse_dropout(layer):
    if layer.training and attribute(layer, "p") != 0:
        return f"is in train mode with p={layer.p}, where it is random: call layer.eval() first."
    return None


@refusal.register(nn.Flatten)
def _refuse_flatten(layer):
    if layer.start_dim < 1:
        return f"has start_dim={layer.start_dim}, which may join samples: use start_dim=1 or more."
    return None


@refusal.register(nn.Unflatten)
def _refuse_unflatten(layer):
    if not isinstance(layer.dim, int) or isinstance(layer.dim, bool) or layer.dim == 0:
        return f"has dim={layer.dim!r}, which is named or splits the batch: use a whole number other than 0."
    return None


@refusal.register(nn.Softplus)
def _refuse_softplus(layer):
    if attribute(layer, "beta") == 0:
        return "has beta=0, which divides by zero: use another beta."
    if attribute(layer, "threshold") < 20:
        return (
            f"has threshold={layer.threshold}, below 20: torch's softplus jumps there, and has no Lipschitz "
            "constant. Use threshold=20 (the default) or more."
        )
    return None


@refusal.register(nn.Hardtanh)
def _refuse_hardtanh(layer):
    if attribute(layer, "min_val") >= attribute(layer, "max_val"):
        return f"has min_val={layer.min_val} and max_val={layer.max_val}: use min_val < max_val."
    return None


@refusal.register(nn.CELU)
def _refuse_celu(layer):
    if attribute(layer, "alpha") <= 0:
        return f"has alpha={layer.alpha}, where its slope is unbounded or not defined: use alpha > 0."
    return None


@refusal.register(nn.GELU)
def _refuse_gelu(layer):
    if layer.approximate not in ("none", "tanh"):
        return f"has approximate={layer.approximate!r}: use 'none' or 'tanh'."
    return None


for _kind in _BATCH_NORMS:
    refusal.register(_kind, _refuse_batch_norm)
for _kind in _DROPOUTS:
    refusal.register(_kind, _refuse_dropout)
