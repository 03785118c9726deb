"""A plain training loop: Adam, a learning rate that falls linearly to 0, the best checkpoint.

`fit` trains a copy on the CPU and gives it back with a record of what happened. The same seed on the same
machine gives the same weights, bit for bit.

Source: Kingma and Ba, "Adam: A Method for Stochastic Optimization", arXiv 1412.6980.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from lipbook.training.checks import (
    checked_set,
    finite_parts,
    require_finite,
    require_fit,
    require_gradients,
    require_judgeable,
    require_loss_value,
    require_numbers,
    require_parts,
)

_JUDGEMENTS = 20  # how often in a run the validation accuracy is measured
_CHUNK = 1000  # samples judged at once


@dataclass(frozen=True)
class Record:
    """What a run of `fit` left behind.

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
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    steps: int,
    seed: int = 0,
    batch_size: int = 256,
    lr: float = 1e-3,
    progress: bool = False,
) -> tuple[nn.Module, Record]:
    """A trained copy of a classifier, in eval mode, and the record of its training.

    Step k of Adam, k = 1 ... steps, has the learning rate lr * (1 - (k - 1) / steps). Each epoch goes through
    all samples once, in a new order, in batches as equal as they can be: no short one is left at its end.

    Args:
        model: gives logits of shape (batch, classes); its copy is trained in train mode, judged in eval mode.
            Parameters that do not require a gradient stay as they are.
        train: inputs of shape (n, ...) in the model's dtype, and labels of shape (n,) from 0 to classes - 1.
        validation: the same, judged 20 times in a run: the copy with the highest accuracy is returned, the
            earliest of equals. With None it is the copy after the last step.
        loss: a module or function of (logits, labels) that gives one number, such as nn.CrossEntropyLoss().
        steps: of the optimiser, at least 1.
        seed: of the batches' order and of what the model draws, such as dropout.
        batch_size: the most samples in a batch.
        lr: the learning rate of the first step.
        progress: show a bar.

    Raises:
        ValueError, TypeError: a set that is empty, not finite or not what the model takes; labels that are no
            classes; a loss that is not one number with a gradient; a count or rate out of range.
        FloatingPointError: the loss, a weight or a running statistic became NaN or infinite, or a validation
            logit NaN; the message names the step.
    """
    require_numbers(steps, seed, batch_size, lr)
    require_parts(model, loss)
    inputs, labels = checked_set(train, "train")
    judged = None if validation is None else checked_set(validation, "validation")
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        torch.default_generator.manual_seed(seed)
        model = copy.deepcopy(model).eval()
        require_fit(model, inputs, labels, "train")
        if judged is not None:
            require_fit(model, *judged, "validation")
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        finite = finite_parts(model)
        optimizer = torch.optim.Adam(weights, lr=lr)
        batches = _batches(len(inputs), batch_size, torch.Generator("cpu").manual_seed(seed))
        judgements = {steps * k // _JUDGEMENTS for k in range(1, _JUDGEMENTS + 1)}
        losses, accuracies = [], []
        best, best_step, highest = model, steps, -1.0
        for step in _counted(steps, progress):
            batch = next(batches)
            value = loss(model.train()(inputs[batch]), labels[batch])
            require_loss_value(value, step)
            optimizer.param_groups[0]["lr"] = lr * (1 - (step - 1) / steps)
            optimizer.zero_grad()
            value.backward(inputs=weights)  # no gradient is left on what the loss itself may hold
            require_gradients(weights)
            optimizer.step()
            losses.append(value.item())
            if step in judgements:
                require_finite(model, finite, step)
            if step in judgements and judged is not None:
                accuracy = _accuracy(model.eval(), *judged, step)
                accuracies.append((step, accuracy))
                if accuracy > highest:
                    best, best_step, highest = copy.deepcopy(model), step, accuracy
    best.zero_grad()
    return best.eval(), Record(steps, tuple(losses), tuple(accuracies), best_step)


def _batches(count, batch_size, generator):
    """Indices of one batch after another, without end: each epoch a new order, cut as evenly as it can be."""
    while True:
        order = torch.randperm(count, generator=generator, device="cpu")
        yield from order.tensor_split(math.ceil(count / batch_size))


def _accuracy(model, inputs, labels, step):
    with torch.no_grad():
        # copies: a layer may act in place
        logits = torch.cat([model(chunk.clone()) for chunk in inputs.split(_CHUNK)])
    require_judgeable(logits, step)
    return (logits.argmax(dim=1) == labels).double().mean().item()


def _counted(steps, progress):
    numbers = range(1, steps + 1)
    if not progress:
        return numbers
    from tqdm.auto import tqdm  # here: in a notebook it loads ipywidgets

    return tqdm(numbers, desc="fit", unit="step")
