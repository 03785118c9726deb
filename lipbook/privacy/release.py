"""Private training: every step releases a noisy sum of gradients, and a record says what was released.

The sensitivity of the sum is that of the contracts at the current weights, and no gradient is clipped; or it
is the norm at which each sample's gradient is clipped. All else is post-processing of what was released, and
free: dividing, momentum, projecting the weights, averaging them, the next sensitivity.

The noise is of simulation grade: a floating-point Gaussian of a seeded generator. A deployment needs a
cryptographic generator, and a sampler whose values leave no holes (chapter privacy/dp-sgd). Gradients are
sums in floating point too, so that a bound may be exceeded by some units in the last place of the sum; half
and reduced precision, where these are large, are refused.

Source: Abadi et al., "Deep learning with differential privacy", CCS 2016; Béthune et al., "DP-SGD without
clipping: the Lipschitz neural network way", ICLR 2024. Chapter: privacy/without-clipping.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lipbook.contracts import lipschitz, loss_gradient_norm
from lipbook.contracts.gradients import trained_parameters
from lipbook.contracts.guard import name_of
from lipbook.contracts.structures import checked_count
from lipbook.layers import ToBall, ToSphere
from lipbook.privacy.accountant import noise_multiplier
from lipbook.privacy.clipping import clipped_sum, dense_chain
from lipbook.privacy.projection import contracted, nearest_semiorthogonal
from lipbook.privacy.records import ADJACENCY, Record, Release, checked_number, sealed, weights_digest
from lipbook.privacy.recursions import sensitivity
from lipbook.privacy.sampling import chunks, poisson_batch
from lipbook.training.checks import (
    checked_set,
    finite_parts,
    require_finite,
    require_fit,
    require_numbers,
    require_parts,
    require_schedule,
)

_ACCOUNTANT = "pld"
_CHUNK = 8192  # samples whose gradients are summed at once
_SPARE = 1 + 1e-12  # of the noise: its ratio to the sensitivity is never rounded below the multiplier
_ALL = "all parameters"
_SCHEDULES = {"linear": lambda done: 1 - done, "constant": lambda done: 1.0}
_SCALES = {"sphere": ToSphere, "ball": ToBall}
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)


def fit(
    model: nn.Sequential,
    train: tuple[Tensor, Tensor],
    loss: nn.Module,
    epsilon: float,
    delta: float,
    steps: int,
    sampling_rate: float,
    input_norm: float,
    noise: str = "global",
    clip: float | None = None,
    scale: str = "sphere",
    lr: float = 4.0,
    momentum: float = 0.0,
    schedule: str = "linear",
    averaging: float = 0.95,
    project_every: int | None = 1,
    seed: int = 0,
    progress: bool = False,
    records: int | None = None,
) -> tuple[nn.Sequential, Record]:
    """A privately trained copy of a classifier, in eval mode, and a record to recompute its epsilon from.

    Not for real people as it is: the noise is a floating-point Gaussian of a seeded generator, and who knows
    or guesses the seed (the default, 0, is known) takes it off, so that no epsilon holds.

    Each step draws a Poisson batch (every record with probability q = `sampling_rate`, independently), sums
    the gradients of its samples' losses, adds one Gaussian and divides by q N. It is released whatever the
    batch: an empty one gives noise alone, a large one is summed in parts. Then one step of SGD, the
    projection of the weights, and the average of the iterates, which is what comes back.

    Args:
        model: an `nn.Sequential` of layers with contracts; those that compute their weights are refused. It
            is trained as in eval mode, from the weights it has (projected). What these, or the statistics of
            a BatchNorm, cost when they were learned from the same records comes on top.
        train: inputs of shape (n, ...) in the model's dtype, and labels of shape (n,) from 0 to classes - 1.
        loss: with a `loss_gradient_norm` contract, such as nn.CrossEntropyLoss() or ClippedGradient.
        epsilon, delta: what all steps together may cost, under add/remove adjacency; delta is below 1 / n.
            The noise is calibrated for it before the first step. Choosing the other arguments on the same
            records is not counted.
        steps: of SGD, at least 1.
        sampling_rate: q, in (0, 1].
        input_norm: positive: every input is first scaled to this norm, or into the ball of this radius, each
            by itself. A column in large units or a common offset would drown the rest: remove these before,
            by public constants.
        noise: "global", one standard deviation on every coordinate, the multiplier times the sensitivity of
            the whole gradient; "per layer", for each of L parameters the multiplier times sqrt(L) times its
            own sensitivity, which is one joint release of the same cost.
        clip: None: no clipping, sensitivity by contract. C: each sample's whole gradient is shortened to C
            where it is longer, and the sensitivity is C; only `nn.Linear` layers may be trained then.
        scale: "sphere" (`ToSphere`) or "ball" (`ToBall`).
        lr: the learning rate of the first step.
        momentum: of SGD, in [0, 1).
        schedule: of the learning rate: "linear", down to 0, or "constant".
        averaging: in [0, 1): the weight of the past in the exponential average of the iterates (with the
            usual correction for its start); 0 returns the last iterate.
        project_every: after how many steps the weights of `nn.Linear` layers are brought near to orthogonal,
            of norm at most 1 (`privacy.projection`), and convolutions divided by their certified norm where
            that is above 1. Steps between use exact norms, which take longer. None: never.
        seed: of the batches and of the noise, each with a generator of its own.
        progress: show a bar.
        records: N of the divisor, fixed without looking. None is n, which epsilon then takes as public.

    Returns:
        `nn.Sequential(ToSphere(input_norm), *layers)`, and the `Record`. With one seed, on one machine and
        with as many threads, both are the same, bit for bit.

    Raises:
        UnsupportedLayerError: a layer or the loss has no contract that the sensitivity needs.
        ValueError, TypeError: a set that is empty, not finite, in half precision or not what the model takes;
            labels that are no classes; numbers out of range; unknown names; "per layer" noise with clipping;
            torch set to products of reduced precision.
        FloatingPointError: a weight became NaN or infinite.

    Chapter: privacy/without-clipping.
    """
    require_numbers(steps, seed, 1, lr, 0)
    require_schedule(schedule, tuple(_SCHEDULES))
    _require_options(noise, clip, scale, momentum, averaging, project_every)
    if records is not None:
        checked_count(records, "records", least=1)
    input_norm = checked_number(input_norm, "input_norm", above=0)
    require_parts(model, loss)
    loss_gradient_norm(loss)
    inputs, labels = checked_set(train, "train")
    _require_precision(inputs.dtype)
    with torch.inference_mode(False):
        network = copy.deepcopy(model).eval()
        network.zero_grad()
        require_fit(network, inputs, labels, "train")
        chain = None if clip is None else dense_chain(network)
        if clip is None:  # it refuses before seconds are spent
            sensitivity(network, loss, input_norm, tuple(inputs.shape[1:]))
        if project_every is not None:
            _project(network, start=True)
        multiplier = noise_multiplier(epsilon, sampling_rate, steps, delta, _ACCOUNTANT)
        if delta * len(inputs) >= 1:
            raise ValueError(
                f"delta = {delta} allows every one of {len(inputs)} records to be published with that "
                f"probability: take less than 1 / {len(inputs)}."
            )
        finite = finite_parts(network)
        scaling = _SCALES[scale](input_norm)
        inputs = torch.cat([scaling(part) for part in inputs.split(_CHUNK)])
        plan = Plan(
            loss, multiplier, sampling_rate, input_norm, noise, clip, chain, project_every, seed, records
        )
        rates = [lr * _SCHEDULES[schedule](step / steps) for step in range(steps)]
        average = {name: torch.zeros_like(weight) for name, weight in trained_parameters(network).items()}
        releases = []
        stepped = train_privately(network, inputs, labels, plan, rates, momentum)
        for step, release in enumerate(_shown(stepped, steps, progress), 1):
            releases.append(releases[-1] if releases and releases[-1] == release else release)
            _average(average, network, averaging, step)
        require_finite(network, finite, steps)
        network.load_state_dict(average, strict=False)
        network.zero_grad()
    trained = nn.Sequential(scaling, *network).eval()
    claimed = float(epsilon), float(delta), float(sampling_rate), steps, multiplier, ADJACENCY, _ACCOUNTANT
    return trained, sealed(Record(*claimed, tuple(releases), weights_digest(trained)))


class Plan(NamedTuple):
    """What every step of a run has in common; `chain` is the `dense_chain` of the network, for clipping."""

    loss: nn.Module
    multiplier: float
    sampling_rate: float
    input_norm: float
    noise: str = "global"
    clip: float | None = None
    chain: tuple | None = None
    project_every: int | None = 1
    seed: int = 0
    records: int | None = None


def train_privately(
    network: nn.Sequential,
    inputs: Tensor,
    labels: Tensor,
    plan: Plan,
    rates: Sequence[float],
    momentum: float,
) -> Iterator[Release]:
    """Train a network in place: after each step, with the next of the learning rates, comes its release.

    The inputs have their norm, and the weights are projected, if they are to be.
    """
    weights = trained_parameters(network)
    sampler = torch.Generator("cpu").manual_seed(plan.seed)
    noisy = torch.Generator("cpu").manual_seed(~plan.seed)  # it reads 32 bits: those of ~seed are other ones
    divisor, velocities = plan.sampling_rate * (plan.records or len(inputs)), {}
    projected, after_projection = plan.project_every is not None, None
    # Of projected weights only their norm of 1 matters: where nothing else is trained, nothing changes.
    same = set(weights) == {f"{name}.weight" for name in _lone_linears(network)}
    for step, rate in enumerate(rates, 1):
        known = after_projection if same and projected else None
        release, deviations = known or _planned(network, weights, plan, tuple(inputs.shape[1:]), projected)
        if projected:
            after_projection = release, deviations
        batch = poisson_batch(len(inputs), plan.sampling_rate, sampler)
        sums = _summed(network, weights, inputs, labels, batch, plan)
        _add_noise(sums, deviations, noisy)
        _descend(weights, sums, velocities, divisor, rate, momentum)
        del sums  # before the next forward pass
        projected = plan.project_every is not None and step % plan.project_every == 0
        if projected:
            _project(network)
        yield release


def _planned(network, weights, plan, shape, projected):
    """The release of this step, and the standard deviation of the noise on each parameter."""
    if plan.clip is None:
        norms = dict.fromkeys(_lone_linears(network), 1.0) if projected else None
        bounds = sensitivity(network, plan.loss, plan.input_norm, shape, norms)
        names, sizes, total = tuple(bounds.per_parameter), tuple(bounds.per_parameter.values()), bounds.total
    else:
        total = float(plan.clip)
    if plan.noise == "global":
        deviation = plan.multiplier * total * _SPARE
        return Release((_ALL,), (total,), (deviation,)), dict.fromkeys(weights, deviation)
    # L Gaussians of multiplier sigma sqrt(L) from one batch are one of multiplier sigma.
    deviations = tuple(plan.multiplier * math.sqrt(len(names)) * size * _SPARE for size in sizes)
    return Release(names, sizes, deviations), dict(zip(names, deviations))


def _summed(network, weights, inputs, labels, batch, plan):
    """The sum over the batch of the gradients of its samples' losses, clipped or not, by name."""
    device = next(iter(weights.values())).device
    sums = {}
    for part in chunks(batch, _CHUNK):
        samples = inputs[part.to(inputs.device)].to(device)
        classes = labels[part.to(labels.device)].to(device)
        if plan.clip is None:
            with torch.enable_grad():
                mean = plan.loss(network(samples), classes)
                gradients = torch.autograd.grad(mean, tuple(weights.values()), materialize_grads=True)
            # The gradients are multiplied, not the loss: ClippedGradient shortens what comes back from it.
            found = {name: gradient * len(part) for name, gradient in zip(weights, gradients)}
        else:
            found, _ = clipped_sum(plan.chain, plan.loss, samples, classes, plan.clip)
        sums = {name: gradient.add_(sums[name]) if sums else gradient for name, gradient in found.items()}
    return sums or {name: torch.zeros_like(weight) for name, weight in weights.items()}


def _add_noise(sums, deviations, generator):
    for name, gradient in sums.items():
        drawn = torch.empty(gradient.shape, dtype=gradient.dtype, device="cpu")
        gradient.add_(drawn.normal_(0, deviations[name], generator=generator).to(gradient.device))


@torch.no_grad()
def _descend(weights, sums, velocities, divisor, rate, momentum):
    for name, weight in weights.items():
        velocity = sums[name].div_(divisor)
        if momentum:
            velocity = velocities[name] = velocities.get(name, 0) * momentum + velocity
        weight.sub_(velocity, alpha=rate)
        if not torch.isfinite(weight).all():
            raise FloatingPointError(f"{name} is NaN or infinite after the step: take a smaller lr.")


@torch.no_grad()
def _project(network, start=False):
    """Bring the trained weights back, in place: every `nn.Linear` is of norm at most 1 then."""
    for layer in network.modules():
        if type(layer) is nn.Linear and layer.weight.requires_grad:
            near = nearest_semiorthogonal(layer.weight) if start else layer.weight
            layer.weight.copy_(contracted(near))
        elif isinstance(layer, _CONVOLUTIONS) and layer.weight.requires_grad:
            size = _size_free_norm(layer)
            if size > 1:
                layer.weight.div_(size)


def _size_free_norm(layer):
    try:
        return lipschitz(layer).value
    except ValueError as error:
        raise ValueError(
            f"{name_of(layer)} has no norm that holds at every size of an image, by which it could be "
            "divided: use zeros around it, or project_every=None."
        ) from error


def _lone_linears(network, prefix=""):
    """The names of the trained `nn.Linear` layers with only `nn.Sequential`s around them."""
    for name, child in network._modules.items():
        if type(child) is nn.Sequential:
            yield from _lone_linears(child, f"{prefix}{name}.")
        elif type(child) is nn.Linear and child.weight.requires_grad:
            yield f"{prefix}{name}"


@torch.no_grad()
def _average(average, network, decay, step):
    """The average of the iterates so far, with weights decay^(step - k) that sum to 1."""
    share = (1 - decay) / (1 - decay**step)
    for name, weight in trained_parameters(network).items():
        average[name].lerp_(weight, share)


def _require_precision(dtype):
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"the train inputs have the dtype {dtype}, in which rounding may move a sum of gradients by more "
            "than its sensitivity: use torch.float32 for them and the model."
        )
    reduced = torch.get_float32_matmul_precision() != "highest"
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda") or reduced:
        raise ValueError(
            "products have a reduced precision here, and gradients may be longer than their sensitivity: "
            'leave torch.autocast, and call torch.set_float32_matmul_precision("highest").'
        )


def _require_options(noise, clip, scale, momentum, averaging, project_every):
    if noise not in ("global", "per layer"):
        raise ValueError(f'noise must be "global" or "per layer", got {noise!r}.')
    if scale not in tuple(_SCALES):
        raise ValueError(f'scale must be "sphere" or "ball", got {scale!r}.')
    if clip is not None:
        checked_number(clip, "clip", above=0)
        if noise != "global":
            raise ValueError(
                f"noise {noise!r} does not go with clip={clip}, which clips the whole gradient of a sample: "
                'its noise is "global".'
            )
    for name, share in (("momentum", momentum), ("averaging", averaging)):
        if not checked_number(share, name) < 1 or share < 0:
            raise ValueError(f"{name} must be at least 0 and below 1, got {share}.")
    if project_every is not None:
        if isinstance(project_every, bool) or not isinstance(project_every, int):
            raise TypeError(f"project_every must be None or an int, got {project_every!r}.")
        if project_every < 1:
            raise ValueError(f"project_every must be at least 1, got {project_every}: None is never.")


def _shown(stepped, steps, progress):
    if not progress:
        return stepped
    from tqdm.auto import tqdm  # here: in a notebook it loads ipywidgets

    return tqdm(stepped, desc="fit", unit="step", total=steps)
