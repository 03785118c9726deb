"""The losses of certified training: offset cross-entropy, GloRo, EMMA and logit annealing.

z are the logits, y the label, L the Lipschitz constant of the body, w_i the rows of the head and
D_ij = L |w_i - w_j| the constants of the pairs: where z_y - z_j > radius * D_yj for every j != y, no
perturbation of norm at most the radius changes the class. Each loss lets the other classes gain, or the label
lose, some of that before it compares them, and differs from the others in how much. The constants keep their
gradient: it is what makes the network lower them.

Each value is the mean over the batch, in natural logarithms, and the temperature acts alike in each: the
logits are shifted first, then divided by it, and the loss is multiplied by it, so that a small temperature
does not make the gradients large.

Sources: beside each class, with the code of its authors as read in November 2026. Chapter: training/losses.
"""

import copy
import math
import sys

import torch
from torch import Tensor, nn
from torch.nn import functional

from lipbook.contracts.losses import loss_gradient_norm

_LEAST_SHARE = 0.01  # of the radius: what a rival that is ahead of the label still gains


class OffsetCrossEntropy(nn.Module):
    """temperature * CE((z - offset * 1_y) / temperature, y): the label starts behind by the offset.

    Where every pair has the constant sqrt(2) L, an offset of sqrt(2) L * radius asks for that radius. A
    larger one buys radius with clean accuracy.

    Args:
        offset: what the label's logit loses; 0 is cross-entropy.
        temperature: positive; small ones look only at the rival that is closest.

    Raises:
        ValueError, TypeError: not such numbers; in the call, what `forward` says.

    Source: Prach and Lampert, "Almost-orthogonal layers for efficient general-purpose Lipschitz networks",
    ECCV 2022; its code multiplies by the temperature too. Chapter: training/losses.
    """

    def __init__(self, offset: float, temperature: float = 1.0):
        super().__init__()
        self.offset = _checked_number(offset, "offset")
        self.temperature = _checked_temperature(temperature)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss, 0-d in the logits' dtype; a NaN logit gives NaN, as in torch.

        logits (batch, classes), two classes at least; labels (batch,), int64. Otherwise a ValueError or
        TypeError.
        """
        _require_labelled(logits, labels)
        return _cross_entropy(_handicapped(logits, labels, self.offset), labels, self.temperature).mean()

    def extra_repr(self):
        return f"offset={self.offset}, temperature={self.temperature}"


@loss_gradient_norm.register(OffsetCrossEntropy)
def _offset_gradient(loss):
    """softmax less the label, whatever the offset and the temperature are."""
    return loss_gradient_norm(nn.CrossEntropyLoss())


class _RadiusLoss(nn.Module):
    needs_constants = True

    def __init__(self, radius: float, temperature: float = 1.0):
        super().__init__()
        self.radius = _checked_number(radius, "radius", least=0)
        self.temperature = _checked_temperature(temperature)

    def extra_repr(self):
        return f"radius={self.radius}, temperature={self.temperature}"


class GloRoLoss(_RadiusLoss):
    """temperature * CE((z, z_bottom) / temperature, y) over classes + 1: one more class, "not robust".

    z_bottom = max over j != p of (z_j + radius * D_pj), with p the *predicted* class (the first of the
    largest logits): the most that a rival of p can have, relative to z_p, inside the ball. It is below z_p
    where the prediction is certified. Of tied logits only p is left out, so a tie is never certified.

    With a radius of 0 the runner-up counts twice, which is more than cross-entropy.

    Args:
        radius: what the prediction should withstand, in the units of the input, at least 0.
        temperature: positive; 1 is none.

    Raises:
        ValueError, TypeError: not such numbers; in the call, what `forward` says.

    Source: Leino, Wang and Fredrikson, "Globally-robust neural networks", ICML 2021. Its code divides by a
    temperature too, without multiplying the loss by it, and leaves out every logit tied with the largest.
    Chapter: training/losses.
    """

    def forward(self, logits: Tensor, labels: Tensor, constants: Tensor) -> Tensor:
        """The loss, 0-d in the logits' dtype; a NaN logit gives NaN, as in torch.

        logits (batch, classes), two classes at least; labels (batch,), int64; constants (classes, classes),
        D_ij in row i, finite, at least 0, with a zero diagonal. Otherwise a ValueError or TypeError.
        """
        _require_labelled(logits, labels)
        bottom = _bottom(logits, self.radius * _checked_constants(constants, logits))
        return _cross_entropy(torch.cat((logits, bottom), dim=1), labels, self.temperature).mean()


class EMMALoss(_RadiusLoss):
    """temperature * CE(z' / temperature, y) with z'_j = z_j + radius_j D_yj: every rival gains at once.

    radius_j = clip((z_y - z_j) / D_yj, radius / 100, radius) is what it takes to reach the boundary with
    class j, and has no gradient; D_yj keeps its own. So a rival that the radius does not reach gains
    radius * D_yj, one within its reach draws level (z'_j = z_y), and one ahead, or nearly level, gains a
    hundredth of radius * D_yj. Where D_yj is 0, as on the diagonal, nothing is gained. A radius of 0 is
    cross-entropy.

    Args:
        radius: what the label should withstand, in the units of the input, at least 0.
        temperature: positive; 1 is none.

    Raises:
        ValueError, TypeError: not such numbers; in the call, what `forward` says.

    Source: Hu, Zou, Wang, Leino and Fredrikson, "Unlocking deterministic robustness certification on
    ImageNet", NeurIPS 2023; the code has the lower limit of a hundredth. Chapter: training/losses.
    """

    def forward(self, logits: Tensor, labels: Tensor, constants: Tensor) -> Tensor:
        """The loss, 0-d in the logits' dtype; a NaN logit gives NaN, as in torch.

        logits (batch, classes), two classes at least; labels (batch,), int64; constants (classes, classes),
        D_ij in row i, finite, at least 0, with a zero diagonal. Otherwise a ValueError or TypeError.
        """
        _require_labelled(logits, labels)
        perturbed = _perturbed(logits, labels, self.radius * _checked_constants(constants, logits))
        return _cross_entropy(perturbed, labels, self.temperature).mean()


class LogitAnnealingLoss(_RadiusLoss):
    """(1 - p)^power * temperature * CE(u, y): a sample counts less the surer it is.

    u = (z' - offset * 1_y) / temperature with z' the perturbed logits of `EMMALoss`, and p = softmax(u)_y,
    whose gradient is kept. With power 0 and radius 0 it is `OffsetCrossEntropy`.

    Args:
        radius: what the label should withstand, in the units of the input, at least 0.
        temperature: positive.
        offset: what the label's logit loses.
        power: of the annealing, at least 0.

    Raises:
        ValueError, TypeError: not such numbers; in the call, what `forward` says.

    Source: Lai, Huang, Kung and Chen, "Enhancing certified robustness via block reflector orthogonal layers
    and logit annealing loss", ICML 2025; the defaults are those of the code's BRONet, where the power is
    gamma. (The loss of its LipConvNet has a factor of 1/4 and no radius.) Chapter: training/losses.
    """

    def __init__(self, radius: float, temperature: float = 0.75, offset: float = 2.0, power: float = 5.0):
        super().__init__(radius, temperature)
        self.offset = _checked_number(offset, "offset")
        self.power = _checked_number(power, "power", least=0)

    def forward(self, logits: Tensor, labels: Tensor, constants: Tensor) -> Tensor:
        """The loss, 0-d in the logits' dtype; a NaN logit gives NaN, as in torch.

        logits (batch, classes), two classes at least; labels (batch,), int64; constants (classes, classes),
        D_ij in row i, finite, at least 0, with a zero diagonal. Otherwise a ValueError or TypeError.
        """
        _require_labelled(logits, labels)
        perturbed = _perturbed(logits, labels, self.radius * _checked_constants(constants, logits))
        losses = _cross_entropy(_handicapped(perturbed, labels, self.offset), labels, self.temperature)
        return (_annealing(losses / self.temperature, self.power) * losses).mean()

    def extra_repr(self):
        return (
            f"radius={self.radius}, temperature={self.temperature}, offset={self.offset}, power={self.power}"
        )


class RadiusRamp(nn.Module):
    """A schedule: the radius of a loss grows linearly from a share of it to the whole, then stays.

    It is not a loss itself, and says so when it is called: `fit` takes it, and asks `at` for the loss of each
    step.

    Args:
        loss: a loss with a radius, such as `EMMALoss(0.5)`; its radius is the one at the end.
        start: the share of the radius at the beginning, from 0 to 1.
        until: the share of the training after which the radius is whole, above 0 and at most 1.

    Attributes:
        needs_constants: that of the loss.

    Raises:
        TypeError, ValueError: a loss without a radius; shares out of range.

    Source: Hu, Zou, Wang, Leino and Fredrikson, "Unlocking deterministic robustness certification on
    ImageNet", NeurIPS 2023, in the code: over the first half of the epochs, on CIFAR from 0.1 to 3 times the
    radius that is certified later, so a start of 1/30 of the radius at the end. Chapter: training/losses.
    """

    def __init__(self, loss: nn.Module, start: float = 0.1, until: float = 0.5):
        super().__init__()
        if not isinstance(loss, nn.Module) or not isinstance(getattr(loss, "radius", None), (int, float)):
            given = f"the class {loss.__name__}" if isinstance(loss, type) else f"{loss!r}"
            raise TypeError(f"loss must be one with a radius, such as EMMALoss(0.5), got {given}.")
        self.loss = loss
        self.start = _checked_number(start, "start", least=0, most=1)
        self.until = _checked_number(until, "until", least=0, most=1)
        if self.until == 0:
            raise ValueError("until must be above 0, got 0: use the loss itself, without a ramp.")

    @property
    def needs_constants(self) -> bool:
        return getattr(self.loss, "needs_constants", False)

    def at(self, progress: float) -> nn.Module:
        """A copy of the loss with the radius of this progress: 0 is the first step, 1 the end of training.

        Raises:
            ValueError, TypeError: not a number from 0 to 1.
        """
        grown = min(_checked_number(progress, "progress", least=0, most=1) / self.until, 1.0)
        ramped = copy.copy(self.loss)
        ramped.radius = (self.start * (1 - grown) + grown) * self.loss.radius
        return ramped

    def forward(self, *arguments, **keywords):
        """A TypeError: ask `at` for the loss of one step."""
        raise TypeError(
            "a RadiusRamp is a schedule, not a loss: give it to fit, or ask ramp.at(progress), with progress "
            "from 0 to 1, for the loss of one step."
        )

    def extra_repr(self):
        return f"start={self.start}, until={self.until}"


def _cross_entropy(logits, labels, temperature):
    """temperature * CE(logits / temperature, labels), (batch,)."""
    return temperature * functional.cross_entropy(logits / temperature, labels, reduction="none")


def _handicapped(logits, labels, offset):
    """z - offset * 1_y."""
    lost = logits.new_full((len(labels), 1), -offset)
    return logits.scatter_add(1, labels.unsqueeze(1), lost)


def _bottom(logits, gains):
    """max over j != p of z_j + radius * D_pj, (batch, 1), from the gains radius * D."""
    predicted = logits.detach().argmax(dim=1)
    rivals = logits + gains[predicted]
    return rivals.scatter(1, predicted.unsqueeze(1), -math.inf).amax(dim=1, keepdim=True)


def _perturbed(logits, labels, gains):
    """z_j + radius_j D_yj, (batch, classes), from the gains radius * D."""
    gains = gains[labels]
    with torch.no_grad():
        margins = logits.gather(1, labels.unsqueeze(1)) - logits
        shares = margins / gains.clamp_min(torch.finfo(gains.dtype).tiny)  # no 0 / 0 where D is 0
        shares = shares.clamp(_LEAST_SHARE, 1.0).scatter(1, labels.unsqueeze(1), 0.0)
    return logits + shares * gains


def _annealing(losses, power):
    """(1 - p)^power from -log p; at p = 1 a power below 1 would have an infinite gradient, and has none."""
    return (-torch.expm1(-losses)).clamp_min(torch.finfo(losses.dtype).tiny) ** power


def _checked_number(number, name, least=-math.inf, most=math.inf):
    if not isinstance(number, (int, float)) or isinstance(number, bool):
        raise TypeError(f"{name} must be a number, got {number!r} of type {type(number).__name__}.")
    if not (least <= number <= most and abs(number) <= sys.float_info.max):  # a NaN fails both
        limits = [f"at least {least}"] * math.isfinite(least) + [f"at most {most}"] * math.isfinite(most)
        raise ValueError(f"{name} must be finite{''.join(', ' + limit for limit in limits)}, got {number}.")
    return float(number)


def _checked_temperature(temperature):
    temperature = _checked_number(temperature, "temperature", least=0)
    if temperature == 0:
        raise ValueError("temperature must be positive, got 0: 1 is plain cross-entropy.")
    return temperature


def _require_labelled(logits, labels):
    _require_dense(logits, "logits", "use torch.as_tensor")
    _require_dense(labels, "labels", "use torch.as_tensor")
    if not logits.is_floating_point():
        raise TypeError(f"the logits must have a real floating dtype, got {logits.dtype}.")
    if logits.ndim != 2 or len(logits) == 0 or logits.shape[1] < 2:
        raise ValueError(
            "the logits must be (batch, classes) with at least one sample and two classes, got shape "
            f"{tuple(logits.shape)}."
        )
    if labels.dtype != torch.int64:
        raise TypeError(f"the labels must be classes as torch.int64, got {labels.dtype}: use .long().")
    if labels.shape != logits.shape[:1]:
        raise ValueError(
            f"there must be one label for each sample, in shape ({len(logits)},), got {tuple(labels.shape)}."
        )
    _require_together(labels, logits, "labels")
    low, high = (end.item() for end in labels.aminmax())
    classes = logits.shape[1]
    if low < 0 or high >= classes:
        raise ValueError(f"the labels must be from 0 to {classes - 1}, got labels from {low} to {high}.")


def _checked_constants(constants, logits):
    """The constants in the logits' dtype, with their gradient."""
    _require_dense(constants, "constants", "use pair_constants(model)")
    if not constants.is_floating_point():
        raise TypeError(f"the constants must have a real floating dtype, got {constants.dtype}.")
    classes = logits.shape[1]
    if constants.shape != (classes, classes):
        raise ValueError(
            f"the constants must be one for each pair of classes, in shape ({classes}, {classes}), got "
            f"{tuple(constants.shape)}: use pair_constants(model) of the model that gave the logits."
        )
    _require_together(constants, logits, "constants")
    constants = constants.to(logits.dtype)
    low, high = (end.item() for end in constants.detach().aminmax())
    if not 0 <= low <= high < math.inf:  # a NaN fails too
        raise ValueError(
            f"the constants must be finite and at least 0, got from {low} to {high} in {logits.dtype}."
        )
    diagonal = constants.detach().diagonal().amax().item()
    if diagonal != 0:
        raise ValueError(f"the constants' diagonal must be 0 (a class against itself), got {diagonal}.")
    return constants


def _require_dense(tensor, name, advice):
    if not isinstance(tensor, Tensor):
        raise TypeError(f"the {name} must be a torch.Tensor, got {type(tensor).__name__}: {advice}.")
    if tensor.layout != torch.strided:
        raise TypeError(f"the {name} have the layout {tensor.layout}: use .to_dense().")
    if tensor.is_meta:
        raise ValueError(f"the {name} are on the device meta, where tensors have no values: {advice}.")


def _require_together(tensor, logits, name):
    if tensor.device != logits.device:
        raise ValueError(
            f"the {name} are on {tensor.device} and the logits on {logits.device}: move one of them."
        )
