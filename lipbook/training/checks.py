"""What a training run asks of its arguments, and of what it meets on the way."""

import math
import os
from pathlib import Path

import torch
from torch import nn

from lipbook.bound import require_values
from lipbook.contracts.guard import name_of, require_layer


def require_numbers(steps: int, seed: int, batch_size: int, lr: float, shift: int) -> None:
    counts = ("steps", steps, 1), ("seed", seed, 0), ("batch_size", batch_size, 1), ("shift", shift, 0)
    for name, number, least in counts:
        if not isinstance(number, int) or isinstance(number, bool):
            raise TypeError(f"{name} must be an int, got {number!r} of type {type(number).__name__}.")
        if not least <= number < 2**63:
            raise ValueError(f"{name} must be at least {least} and below 2^63, got {number}.")
    if not isinstance(lr, (int, float)) or isinstance(lr, bool):
        raise TypeError(f"lr must be a number, got {lr!r} of type {type(lr).__name__}.")
    if not 0 < lr < math.inf:
        raise ValueError(f"lr must be a positive, finite learning rate, got {lr}.")


def require_schedule(schedule: str, known: tuple[str, ...]) -> None:
    if not isinstance(schedule, str) or schedule not in known:
        names = " or ".join(f'"{name}"' for name in known)
        raise ValueError(f"schedule must be {names}, got {schedule!r}.")


def require_parts(model: nn.Module, loss) -> None:
    require_layer(model)
    tensors = dict((*model.named_parameters(), *model.named_buffers()))
    for name, tensor in tensors.items():
        if tensor.device.type == "meta":
            raise ValueError(
                f"{name} is on the meta device and has no values: use model.to_empty and fill it."
            )
    devices = sorted({str(tensor.device) for tensor in tensors.values()})
    if len(devices) > 1:
        raise ValueError(f"the model is spread over {' and '.join(devices)}: move it to one device.")
    if not any(weight.requires_grad for weight in model.parameters()):
        raise ValueError(f"{name_of(model)} has no parameter that requires a gradient: nothing to train.")
    if isinstance(loss, type):
        raise TypeError(f"loss is the class {loss.__name__}: pass an instance, {loss.__name__}().")
    if not callable(loss):
        raise TypeError(f"loss must be a function of (logits, labels), got {loss!r}.")


def checked_device(device: torch.device | str | None) -> torch.device:
    """The device to train on: one of this machine, with its number."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if not isinstance(device, (torch.device, str)):
        raise TypeError(f'device must be None, a torch.device or a name such as "cpu", got {device!r}.')
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f'device {device!r} is none that torch knows: use "cpu" or "cuda".') from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f'device must be the CPU or a CUDA GPU, got "{device}": use "cpu" or "cuda".')
    if device.type == "cpu":
        return torch.device("cpu")  # without a number, as tensors say it
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(
            f'device "{device}" is not on this machine ({reason}): use "cpu", or None for what there is.'
        ) from error


def checked_path(checkpoint: str | Path | None) -> Path | None:
    """Where the state of a run is kept: a file, in a folder that exists."""
    if checkpoint is None:
        return None
    if not isinstance(checkpoint, (str, Path)):
        raise TypeError(
            f"checkpoint must be None or the path of a file, got {checkpoint!r} of type "
            f"{type(checkpoint).__name__}."
        )
    path = Path(checkpoint)
    if path.is_dir():
        raise ValueError(f"checkpoint is the folder {str(path)!r}: name a file in it.")
    if not path.parent.is_dir():
        raise ValueError(f"checkpoint is {str(path)!r}, and its folder does not exist: make it first.")
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"checkpoint is {str(path)!r}, and its folder cannot be written to: name another.")
    return path


def require_images(inputs: torch.Tensor, shift: int) -> None:
    """Raise unless images of this shape can be moved by so many pixels and still be seen."""
    if shift and inputs.ndim != 4:
        raise ValueError(
            f"shift={shift} moves images of shape (n, c, h, w), and the train inputs have the shape "
            f"{tuple(inputs.shape)}: reshape them, with nn.Flatten first in the model, or use shift=0."
        )
    if shift and shift >= min(inputs.shape[2:]):
        height, width = inputs.shape[2:]
        raise ValueError(f"shift={shift} could move an image of {height} x {width} out of sight: take less.")


def checked_set(pair, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The inputs and the labels of a pair, detached, the labels as int64."""
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        size = f" of {len(pair)}" if isinstance(pair, (tuple, list)) else ""
        raise TypeError(f"{name} must be a pair (inputs, labels), got a {type(pair).__name__}{size}.")
    inputs, labels = pair
    for part, tensor in (("inputs", inputs), ("labels", labels)):
        if not isinstance(tensor, torch.Tensor):
            kind = type(tensor).__name__
            raise TypeError(f"the {name} {part} must be a torch.Tensor, got {kind}: use torch.as_tensor.")
        if tensor.device.type == "meta":
            raise ValueError(f"the {name} {part} are on the meta device and have no values: use real ones.")
        if tensor.layout != torch.strided:
            raise TypeError(f"the {name} {part} have the layout {tensor.layout}: use .to_dense().")
    if not inputs.is_floating_point():
        raise TypeError(f"the {name} inputs must have a real floating dtype, got {inputs.dtype}.")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"the {name} labels must be integers (classes), got {labels.dtype}: use .long().")
    if inputs.numel() == 0:
        raise ValueError(f"the {name} set is empty: its inputs have the shape {tuple(inputs.shape)}.")
    if labels.ndim != 1 or inputs.ndim == 0 or len(inputs) != len(labels):
        raise ValueError(
            f"the {name} set needs one label for each input, in shape (n,): got inputs "
            f"{tuple(inputs.shape)} and labels {tuple(labels.shape)}."
        )
    if not torch.isfinite(inputs).all():
        row = torch.nonzero(~torch.isfinite(inputs).flatten(1).all(dim=1))[0].item()
        raise ValueError(f"the {name} inputs have a NaN or infinite entry, first in sample {row}: mend it.")
    return inputs.detach(), labels.detach().long()


def checked_classes(classes: torch.Tensor, name: str, count: int) -> torch.Tensor:
    """The classes of a batch of `count` inputs, detached, on the CPU and as int64."""
    if not isinstance(classes, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(classes).__name__}: use torch.as_tensor.")
    if classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool:
        raise TypeError(f"{name} must be integers (classes), got {classes.dtype}: use .long().")
    if classes.shape != (count,):
        raise ValueError(f"{name} must have the shape ({count},) of the batch, got {tuple(classes.shape)}.")
    require_values(classes, name)
    return classes.detach().cpu().long()


def require_fit(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, name: str) -> None:
    """Raise unless the model (a copy, in eval mode) gives these inputs logits that have these classes."""
    shape, dtype = tuple(inputs.shape[1:]), inputs.dtype
    device = next(model.parameters()).device
    try:
        with torch.no_grad():
            logits = model(inputs[:1].to(device, copy=True))  # a copy: a layer may act in place
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"the model does not take the {name} inputs, {dtype} of shape {shape}: {reason}"
        ) from error
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or len(logits) != 1:
        got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ValueError(f"the model must give logits of shape (batch, classes), got {got} for one input.")
    classes = logits.shape[1]
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"the {name} labels must be from 0 to {classes - 1}, as the model has {classes} logits: "
            f"got labels from {labels.min().item()} to {labels.max().item()}."
        )


def require_loss_value(value, step: int) -> None:
    if not isinstance(value, torch.Tensor) or value.ndim != 0:
        got = f"shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
        raise ValueError(f'the loss must be one number (reduction="mean"), as a tensor, got {got}.')
    if not value.requires_grad:
        raise ValueError("the loss has no gradient: compute it from the logits without .detach() or .item().")
    if not torch.isfinite(value):
        raise FloatingPointError(
            f"the loss is {value.item()} at step {step}: take a smaller lr, or look for a division by 0 or "
            "the logarithm of 0 in the model or the loss."
        )


def require_gradients(weights: list[nn.Parameter]) -> None:
    if all(weight.grad is None for weight in weights):
        raise ValueError("the loss depends on no weight of the model: compute it from the logits.")


def finite_parts(model: nn.Module) -> set[str]:
    """The names of the parameters and buffers that are finite throughout: a mask need not be."""
    tensors = (*model.named_parameters(), *model.named_buffers())
    return {name for name, tensor in tensors if torch.isfinite(tensor).all()}


def require_finite(model: nn.Module, parts: set[str], step: int) -> None:
    """Raise unless these parts are finite: running statistics may overflow while the loss is finite."""
    lost = sorted(parts - finite_parts(model))
    if lost:
        raise FloatingPointError(
            f"{lost[0]} is NaN or infinite at step {step}: take a smaller lr, scale the inputs, or look for "
            "an infinite gradient (the square root or a norm at 0) in the model or the loss."
        )


def require_judgeable(logits: torch.Tensor, step: int) -> None:
    if torch.isnan(logits).any():
        raise FloatingPointError(
            f"a logit of a validation sample is NaN at step {step}, in eval mode: look for a division by 0 "
            "or the logarithm of 0 in the model."
        )
