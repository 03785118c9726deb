"""Per-sample clipping without per-sample gradients: the norms of dense layers, from inputs and cotangents.

A dense layer whose input is x and whose output has the cotangent g, for one sample, has the gradient g x' for
its weight and g for its bias, of norms |g| |x| and |g|. With factors c_i the sum of the samples' gradients is
sum_i c_i g_i x_i', one matrix product, so that no sample's gradient is formed.

Source: Goodfellow, "Efficient per-example gradient computations", arXiv 1510.01799; Li, Tramèr, Liang and
Hashimoto, "Large language models can be strong differentially private learners", ICLR 2022 (ghost clipping);
Bu, Wang, Zha and Karypis, "Differentially private optimization on large model at small cost", ICML 2023 (one
backward pass). Chapter: privacy/without-clipping.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from lipbook.bound import UnsupportedLayerError
from lipbook.contracts import expand, loss_gradient_norm
from lipbook.contracts.gradients import refuse_backward_hooks
from lipbook.contracts.guard import name_of
from lipbook.training.checks import checked_set, require_fit, require_parts


class Pass(NamedTuple):
    """What one dense layer saw of a batch: its inputs (batch, in) and its outputs' cotangents (batch, out).

    The cotangents are those of the sum of the samples' losses, so that row i belongs to sample i alone.
    """

    name: str
    layer: nn.Linear
    inputs: Tensor
    cotangents: Tensor


def gradient_norms(model: nn.Module, loss: nn.Module, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The l_2 norm of each sample's gradient, for each parameter, without any sample's gradient.

    Args:
        model: an `nn.Sequential` whose trained parameters are those of `nn.Linear` layers on vectors.
        loss: with a `loss_gradient_norm` contract; read per sample.
        inputs: (batch, ...), in the model's dtype.
        labels: (batch,), from 0 to classes - 1.

    Returns:
        (batch,) for each parameter that requires gradients, by its name in `model.named_parameters()`. The
        norm of all of them together is the root of the sum of the squares.

    Raises:
        UnsupportedLayerError: another layer has parameters that are trained, or a layer is used twice; the
            loss has no contract.
        ValueError, TypeError: inputs or labels that do not fit, a layer on more than vectors.

    Chapter: privacy/without-clipping.
    """
    require_parts(model, loss)
    loss_gradient_norm(loss)
    layers = dense_chain(model)
    inputs, labels = checked_set((inputs, labels), "given")
    require_fit(model, inputs, labels, "given")
    device = next(model.parameters()).device
    norms = {}
    for seen in passes(layers, loss, inputs.to(device), labels.to(device)):
        norms |= {f"{seen.name}.{part}": size for part, size in _sizes(seen).items()}
    return norms


def clipped_sum(
    layers: tuple[tuple[str, nn.Module], ...], loss: nn.Module, inputs: Tensor, labels: Tensor, clip: float
) -> tuple[dict[str, Tensor], Tensor]:
    """The sum of the samples' gradients, each one shortened to norm `clip` where it is longer.

    It is the whole gradient of a sample that is clipped, of all parameters together.

    Args:
        layers: of `dense_chain(model)`.
        loss, inputs, labels: as in `gradient_norms`, unchecked.
        clip: positive.

    Returns:
        The sums, by the names of the parameters, and the samples' norms before clipping (batch,).
    """
    seen = passes(layers, loss, inputs, labels)
    squares = sum(size.square() for one in seen for size in _sizes(one).values())
    norms = squares.sqrt()
    factors = (clip / norms.clamp(min=clip)).unsqueeze(1)
    sums = {}
    for name, layer, entering, cotangents in seen:
        shortened = cotangents * factors
        if layer.weight.requires_grad:
            sums[f"{name}.weight"] = shortened.T @ entering
        if layer.bias is not None and layer.bias.requires_grad:
            sums[f"{name}.bias"] = shortened.sum(0)
    return sums, norms


def dense_chain(model: nn.Module) -> tuple[tuple[str, nn.Module], ...]:
    """(name, layer) of every layer in nested Sequentials, in order, if only `nn.Linear` layers are trained.

    Raises:
        UnsupportedLayerError: another layer has parameters that are trained, a layer is used twice, has no
            contracts, or has a hook that may change gradients.
        TypeError: the model is no `nn.Sequential`.
    """
    if not isinstance(model, nn.Sequential):
        raise TypeError(f"model must be an nn.Sequential, got {type(model).__name__}: put its layers in one.")
    expand(model)  # the guard looks at every layer
    refuse_backward_hooks(model)
    chain = tuple(_leaves(model))
    trained = [weight for _, layer in chain for weight in layer.parameters() if weight.requires_grad]
    if len({id(weight) for weight in trained}) < len(trained):
        raise UnsupportedLayerError(
            "the model uses a parameter twice: the norm of a sum of two gradients is not known from their "
            "norms. Give each layer parameters of its own, or train without clipping."
        )
    for _, layer in chain:
        if type(layer) is not nn.Linear and any(weight.requires_grad for weight in layer.parameters()):
            raise UnsupportedLayerError(
                f"{name_of(layer)} has parameters that are trained: per-sample norms are known here for "
                "nn.Linear only. Replace it, freeze it, or train without clipping."
            )
    return chain


def passes(layers, loss: nn.Module, inputs: Tensor, labels: Tensor) -> list[Pass]:
    """What each trained dense layer of the chain saw, from one forward and one backward pass."""
    recorded = []
    with torch.inference_mode(False), torch.enable_grad():
        values = inputs.detach()
        for name, layer in layers:
            if type(layer) is not nn.Linear:
                values = layer(values.clone() if getattr(layer, "inplace", False) else values)
                continue
            if values.ndim != 2:
                raise ValueError(
                    f"the layer {name} acts on samples of shape {tuple(values.shape[1:])}: per-sample norms "
                    "are known here for vectors. Put an nn.Flatten before it, or train without clipping."
                )
            entering = values.detach()
            bias = None if layer.bias is None else layer.bias.detach()
            values = functional.linear(values, layer.weight.detach(), bias)
            if any(weight.requires_grad for weight in layer.parameters()):
                values.requires_grad_()
                recorded.append((name, layer, entering, values))
        cotangents = torch.autograd.grad(loss(values, labels), [output for *_, output in recorded])
    # The cotangents are multiplied, not the loss: ClippedGradient shortens what comes back from it.
    rows = len(labels)
    return [Pass(*one[:3], cotangent * rows) for one, cotangent in zip(recorded, cotangents, strict=True)]


def _sizes(seen):
    """{"weight": |g| |x|, "bias": |g|} of each sample, of the parameters that are trained."""
    sizes = torch.linalg.vector_norm(seen.cotangents, dim=1)
    found = {}
    if seen.layer.weight.requires_grad:
        found["weight"] = sizes * torch.linalg.vector_norm(seen.inputs, dim=1)
    if seen.layer.bias is not None and seen.layer.bias.requires_grad:
        found["bias"] = sizes
    return found


def _leaves(model, prefix=""):
    for name, child in model._modules.items():
        if isinstance(child, nn.Sequential):
            yield from _leaves(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child
