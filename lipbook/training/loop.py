"""A plain training loop: Adam, a learning rate that falls to 0, the best of what it judged.

`fit` trains a copy, on a GPU when there is one, and gives it back with a record of what happened. On a CPU
the same seed on the same machine gives the same weights, bit for bit, and so does a run that was interrupted
and goes on from its checkpoint.

Source: Kingma and Ba, "Adam: A Method for Stochastic Optimization", arXiv 1412.6980. The cosine: Loshchilov
and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", arXiv 1608.03983, without restarts.
"""

import contextlib
import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from lipbook.training.batches import batches, moved
from lipbook.training.certify import pair_constants
from lipbook.training.checks import (
    checked_device,
    checked_path,
    checked_set,
    finite_parts,
    require_finite,
    require_fit,
    require_gradients,
    require_images,
    require_judgeable,
    require_loss_value,
    require_numbers,
    require_parts,
    require_schedule,
)
from lipbook.training.resuming import Run, fingerprint, resume, save

_JUDGEMENTS = 20  # how often in a run the validation accuracy is measured
_CHUNK = 1000  # samples judged at once
_SMALL = 2**30  # bytes: a set up to this size is moved to the device whole

_SCHEDULES = {  # the share of the learning rate, once this share of the steps is done
    "linear": lambda done: 1 - done,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
}


@dataclass(frozen=True)
class Record:
    """What a run of `fit` left behind, the same whether or not it was interrupted and resumed.

    `steps` is their number. `losses` holds the loss of each step's batch. `validation` holds pairs (step,
    accuracy in [0, 1]), with steps counted from 1, and is empty without a validation set. `best_step` is the
    step after which the returned weights were taken.
    """

    steps: int
    losses: tuple[float, ...]
    validation: tuple[tuple[int, float], ...]
    best_step: int


def fit(
    model: nn.Module,
    train: tuple[torch.Tensor, torch.Tensor],
    validation: tuple[torch.Tensor, torch.Tensor] | None,
    loss: Callable[..., torch.Tensor],
    steps: int,
    seed: int = 0,
    batch_size: int = 256,
    lr: float = 1e-3,
    progress: bool = False,
    schedule: str = "linear",
    shift: int = 0,
    checkpoint: str | Path | None = None,
    device: torch.device | str | None = None,
) -> tuple[nn.Module, Record]:
    """A trained copy of a classifier, in eval mode, and the record of its training.

    Step k of Adam, k = 1 ... steps, has the learning rate lr * (1 - t) or lr * (1 + cos(pi * t)) / 2, with
    t = (k - 1) / steps. Each epoch goes through all samples once, in a new order, in batches as equal as they
    can be: no short one is left at its end.

    Args:
        model: gives logits of shape (batch, classes); its copy is trained in train mode, judged in eval mode.
            Parameters that do not require a gradient stay as they are.
        train: inputs of shape (n, ...) in the model's dtype, and labels of shape (n,) from 0 to classes - 1.
        validation: the same, judged 20 times in a run: the copy with the highest accuracy is returned, the
            earliest of equals. With None it is the copy after the last step.
        loss: a module or function of (logits, labels) that gives one number, such as nn.CrossEntropyLoss().
            One that is marked `needs_constants` gets pair_constants(copy, differentiable=True) as its third
            argument; one that has a method `at`, such as RadiusRamp, is asked for the loss of each step, with
            t of the step.
        steps: of the optimiser, at least 1.
        seed: of the batches' order, of the shifts and of what the model draws, such as dropout.
        batch_size: the most samples in a batch.
        lr: the learning rate of the first step.
        progress: show a bar.
        schedule: of the learning rate, "linear" or "cosine".
        shift: each image of a batch is moved by (dy, dx) pixels, drawn anew, uniformly from
            [-shift, shift]^2; zeros move in. It needs train inputs of shape (n, c, h, w).
        checkpoint: a file in which the state of the run is kept, written anew at each of the 20 judgements,
            with or without a validation set. Where it exists the run goes on from it, and ends as it would
            have without the interruption: on the same device, with as many threads, and with a loss that
            keeps no state of its own. It stays after the last step: the same call then returns the same
            result at once. Delete it to train anew.
        device: to train on. None is the CUDA GPU when there is one, otherwise the CPU. The data may be on
            any; what is returned is on the device of the model that was given.

    Raises:
        ValueError, TypeError: a set that is empty, not finite or not what the model takes; labels that are no
            classes; a loss that is not one number with a gradient; a count, rate, schedule or shift out of
            range; a device that is not there; a checkpoint that is damaged or of another run; for a loss that
            needs constants, what `pair_constants` raises.
        FloatingPointError: the loss, a weight or a running statistic became NaN or infinite, or a validation
            logit NaN; the message names the step.
    """
    require_numbers(steps, seed, batch_size, lr, shift)
    require_schedule(schedule, tuple(_SCHEDULES))
    require_parts(model, loss)
    device, path = checked_device(device), checked_path(checkpoint)
    train = checked_set(train, "train")
    require_images(train[0], shift)
    validation = None if validation is None else checked_set(validation, "validation")
    settings = {"steps": steps, "seed": seed, "batch_size": batch_size, "lr": lr, "schedule": schedule}
    settings |= {"shift": shift, "device": device.type}
    with _drawing(seed, device) as generators, torch.inference_mode(False), torch.enable_grad():
        home = next(model.parameters()).device
        model, loss = copy.deepcopy(model).to(device).eval(), _on(device, loss)
        require_fit(model, *train, "train")
        if validation is not None:
            require_fit(model, *validation, "validation")
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        finite = finite_parts(model)
        run = Run(model, torch.optim.Adam(weights, lr=lr), generators)
        own = None if path is None else fingerprint(model, loss, train, validation, **settings)
        if path is not None and path.exists():
            resume(run, path, own)
        train = _near(device, train)
        judged = None if validation is None else _near(device, validation)
        judgements = {steps * k // _JUDGEMENTS for k in range(1, _JUDGEMENTS + 1)}
        drawn = itertools.islice(batches(len(train[0]), batch_size, seed, shift), run.step, None)
        for step in _counted(run.step + 1, steps, progress):
            done = (step - 1) / steps
            value = _value(loss, done, model.train(), *_batch(train, *next(drawn), shift, device))
            require_loss_value(value, step)
            _descend(run.optimizer, weights, value, lr * _SCHEDULES[schedule](done))
            run.losses.append(value.item())
            run.step = step
            if step in judgements:
                require_finite(model, finite, step)
                if judged is not None:
                    _judge(run, *judged, device)
                if path is not None:
                    save(run, path, own)
    best, best_step = (model, steps) if run.best is None else (run.best, run.best_step)
    best.zero_grad()
    return best.to(home).eval(), Record(steps, tuple(run.losses), tuple(run.validation), best_step)


@contextlib.contextmanager
def _drawing(seed, device):
    """Torch's own generators, seeded; they are put back as they were at the end."""
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index])
    states = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(seed)
        yield generators
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def _on(device, loss):
    """The loss, or a copy on the device where it has tensors elsewhere."""
    held = (*loss.parameters(), *loss.buffers()) if isinstance(loss, nn.Module) else ()
    return copy.deepcopy(loss).to(device) if any(tensor.device != device for tensor in held) else loss


def _near(device, pair):
    """The inputs and labels on the device, where they are small enough to stay there."""
    return tuple(part.to(device) if part.nbytes <= _SMALL else part for part in pair)


def _batch(pair, indices, moves, shift, device):
    """The inputs, moved, and the labels of these samples."""
    inputs, labels = (part[indices.to(part.device)].to(device) for part in pair)
    return moved(inputs, moves, shift) if shift else inputs, labels


def _value(loss, done, model, inputs, labels):
    """The loss of a batch, once this share of the steps is done."""
    loss = loss.at(done) if hasattr(loss, "at") else loss
    logits = model(inputs)
    if not getattr(loss, "needs_constants", False):
        return loss(logits, labels)
    constants = pair_constants(model, differentiable=True, input_shape=tuple(inputs.shape[1:]))
    return loss(logits, labels, constants)


def _descend(optimizer, weights, value, rate):
    """One step against the gradient of the loss, with this learning rate."""
    optimizer.param_groups[0]["lr"] = rate
    optimizer.zero_grad()
    value.backward(inputs=weights)  # no gradient is left on what the loss itself may hold
    require_gradients(weights)
    optimizer.step()


def _judge(run, inputs, labels, device):
    """Measure the accuracy, and keep a copy of the model if it is the best so far."""
    with torch.no_grad():
        # copies: a layer may act in place
        chunks = (chunk.to(device, copy=True) for chunk in inputs.split(_CHUNK))
        logits = torch.cat([run.model.eval()(chunk) for chunk in chunks])
    require_judgeable(logits, run.step)
    accuracy = (logits.argmax(dim=1) == labels.to(device)).double().mean().item()
    run.validation.append((run.step, accuracy))
    if accuracy > run.highest:
        run.best, run.best_step, run.highest = copy.deepcopy(run.model), run.step, accuracy


def _counted(first, last, progress):
    numbers = range(first, last + 1)
    if not progress:
        return numbers
    from tqdm.auto import tqdm  # here: in a notebook it loads ipywidgets

    return tqdm(numbers, desc="fit", unit="step", initial=first - 1, total=last)
