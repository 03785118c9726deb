"""Audits: is a sensitivity ever exceeded, and can an adversary refute a claimed epsilon?

`audit_gradients` looks for one sample whose gradient is longer than its bound; one is enough to prove the
bound wrong. `audit_run` reads one training run: canaries were put into the data or not by fair coins, someone
guessed the coins from what was released, and too many right guesses refute the claim. Neither proves privacy:
what they do not find may still be there.

Chapter: privacy/auditing.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lipbook.bound import UnsupportedLayerError, outward, require_values
from lipbook.contracts.guard import name_of, refusal
from lipbook.privacy.per_sample import SampleGradients, longest_gradients, scaled
from lipbook.privacy.recursions import Sensitivity, sensitivity
from lipbook.training.checks import checked_set, require_parts

_STARTS = 32  # samples, those with the longest gradients, from which the search begins
_ROUNDING = 1e-9  # relative: what float64 may add to a gradient that attains its bound


@dataclass(frozen=True)
class GradientAudit:
    """The longest gradient of one sample that was found, against its bound.

    `bound` and `largest` are of all parameters together, `per_parameter` is the longest found over the bound,
    for each parameter. A ratio above 1 proves the bound wrong; one of at most 1 proves nothing, and says that
    the bound is at most 1 / ratio times too large. `samples` counts the data that were looked at, besides the
    search.
    """

    bound: float
    largest: float
    per_parameter: dict[str, float]
    samples: int

    @property
    def ratio(self) -> float:
        """`largest / bound`."""
        return _ratio(self.largest, self.bound)

    @property
    def violations(self) -> tuple[str, ...]:
        """The parameters whose bound is exceeded by more than rounding, and "total"."""
        ratios = {**self.per_parameter, "total": self.ratio}
        return tuple(name for name, ratio in ratios.items() if ratio > 1 + _ROUNDING)

    def __repr__(self):
        found = f"{self.largest:.4g} of {self.bound:.4g}, ratio {self.ratio:.4f}"
        broken = f"EXCEEDED for {', '.join(self.violations)}" if self.violations else "not exceeded"
        return f"GradientAudit({broken}: {found}, {self.samples} samples)"


def audit_gradients(
    model: nn.Module,
    loss,
    inputs: Tensor,
    labels: Tensor,
    input_norm: float,
    bound: Sensitivity | None = None,
    search_steps: int = 0,
    seed: int = 0,
) -> GradientAudit:
    """The longest per-sample gradients that data and a search give, against the sensitivity.

    All samples are looked at, each as a batch of one would be, in float64. The search ascends from random
    points and from the data with the longest gradients, within the ball of `input_norm`, over inputs and
    labels: a share of its points for the whole gradient, and an equal share for each parameter. A bound that
    is exceeded raises nothing: look at `.violations`, or assert that there are none.

    Args:
        model: gives logits (batch, classes). Layers need contracts only where `bound` is None. Gradients are
            those of the parameters that require them, in the mode that the model is in.
        loss: of (logits, labels), the mean or the sum of a loss of each sample.
        inputs: (batch, ...), finite, each of l_2 norm `input_norm` at most.
        labels: (batch,), integers from 0 to classes - 1.
        input_norm: positive; infinite where the model begins with `ToBall` or `ToSphere`.
        bound: what to audit; None is `sensitivity(model, loss, input_norm)`. One with other numbers, from
            `dataclasses.replace`, may be wrong: this is what shows it.
        search_steps: at least 0; 60 come close to what can be found. 0 is the data alone.
        seed: of the search.

    Raises:
        UnsupportedLayerError: a layer in a state in which a sample's gradient depends on its batch, or on
            chance; without `bound`, one without a contract.
        ValueError, TypeError: inputs that are too long, NaN, labels that are no classes, a model or a loss
            that mixes the samples of a batch, a bound that misses a parameter, numbers out of range.

    Chapter: privacy/auditing.
    """
    require_parts(model, loss)
    inputs, labels = checked_set((inputs, labels), "audited")
    input_norm = _checked_search(input_norm, search_steps, seed)
    for module in model.modules():
        sentence = refusal(module)
        if sentence is not None:
            raise UnsupportedLayerError(f"{name_of(module)} {sentence}")
    if bound is None:
        bound = sensitivity(model, loss, input_norm, tuple(inputs.shape[1:]))
    limits = _checked_bound(bound, model)
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
        gradients = SampleGradients(model, loss, list(limits), inputs, labels)
        longest, lengths = torch.zeros(len(limits), dtype=torch.float64), []
        for start in range(0, len(inputs), gradients.chunk):
            rows = slice(start, start + gradients.chunk)
            x = _inside(inputs[rows].cpu().double(), input_norm, start)
            y = labels[rows].cpu()
            gradients.require_independence(x[:4], y[:4])
            norms = _finite(gradients.norms(x, y), start)
            longest = torch.maximum(longest, norms.amax(dim=0))
            lengths.append(torch.linalg.vector_norm(norms, dim=1))
        total = torch.cat(lengths)
        largest = total.amax().item()
        if search_steps:
            first = total.topk(min(len(total), _STARTS)).indices.to(inputs.device)
            x, y = _inside(inputs[first].cpu().double(), input_norm, 0), labels[first].cpu()
            norms, length = longest_gradients(gradients, x, y, input_norm, search_steps, seed)
            longest, largest = torch.maximum(longest, norms), max(largest, length)
    ratios = {name: _ratio(norm, limits[name]) for name, norm in zip(limits, longest.tolist())}
    return GradientAudit(float(bound.total), largest, ratios, len(inputs))


def _inside(x, input_norm, start):
    """The samples, those that rounding has put outside the ball put back."""
    norms = torch.linalg.vector_norm(x.flatten(1), dim=1)
    if norms.amax() > input_norm * (1 + 1e-6):
        row = int(norms.argmax())
        raise ValueError(
            f"the inputs must have norm at most input_norm = {input_norm:g}, and sample {start + row} has "
            f"{norms[row].item():.6g}: scale them, as lipbook.layers.ToBall({input_norm:g}) does."
        )
    return torch.where(norms.view(-1, *[1] * (x.ndim - 1)) > input_norm, scaled(x, input_norm), x)


def _finite(norms, start):
    if not torch.isfinite(norms).all():
        row = start + torch.nonzero(~torch.isfinite(norms).all(dim=1))[0].item()
        raise ValueError(f"the gradient of sample {row} is NaN or infinite: mend the model or the loss.")
    return norms


def _ratio(found, bound):
    if bound == 0:
        return 0.0 if found == 0 else math.inf
    return found / bound


def _checked_search(input_norm, search_steps, seed):
    input_norm = _number(input_norm, "input_norm")
    if not input_norm > 0:
        raise ValueError(f"input_norm must be positive, got {input_norm}.")
    for name, number in (("search_steps", search_steps), ("seed", seed)):
        if not isinstance(number, int) or isinstance(number, bool):
            raise TypeError(f"{name} must be an int, got {number!r} of type {type(number).__name__}.")
        if not 0 <= number < 2**63:
            raise ValueError(f"{name} must be at least 0 and below 2^63, got {number}.")
    return input_norm


def _checked_bound(bound, model):
    """The bound of each parameter that requires gradients."""
    if not isinstance(bound, Sensitivity):
        kind = type(bound).__name__
        raise TypeError(f"bound must be None or a Sensitivity, as sensitivity(...) gives it, got {kind}.")
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    missing = [name for name in names if name not in bound.per_parameter]
    if missing:
        raise ValueError(f"bound says nothing of {missing[0]!r}: give it one number for each parameter.")
    limits = {name: bound.per_parameter[name] for name in names}
    for name, limit in {**limits, "total": bound.total}.items():
        if not _number(limit, f"the bound of {name}") >= 0:
            raise ValueError(f"the bound of {name} must be at least 0, as norms are, got {limit}.")
    return {name: float(limit) for name, limit in limits.items()}


@dataclass(frozen=True)
class RunAudit:
    """What one run says about a claimed epsilon at `delta`, under add/remove adjacency.

    `epsilon` is a lower bound on that of the mechanism: over the coins and the noise it lies above the truth
    with a probability of at most 1 - `confidence`. `refutes` is `epsilon > claimed`; False proves nothing.
    """

    claimed: float
    epsilon: float
    delta: float
    correct: int
    guessed: int
    canaries: int
    confidence: float

    @property
    def refutes(self) -> bool:
        """Whether the lower bound is above the claim."""
        return self.epsilon > self.claimed

    def __repr__(self):
        right = f"{self.correct} of {self.guessed} guesses right, {self.canaries} canaries"
        verdict = f"refutes {self.claimed:g}" if self.refutes else f"does not refute {self.claimed:g}"
        found = f"epsilon >= {outward(self.epsilon, 'lower')} at delta {self.delta:g}"
        return f"RunAudit({found}, confidence {self.confidence:g}: {verdict}; {right})"


def audit_run(claimed, coins: Tensor, guesses: Tensor, delta: float, confidence: float = 0.95) -> RunAudit:
    """A lower bound on epsilon from one run into which canaries were put by fair coins.

    Of m canaries, canary i was a record of the data exactly where coin i, independent and fair, came up +1.
    From the canaries and what the run released, never from the coins, `guessed` coins were guessed and
    `correct` of them rightly. An (epsilon, delta) private mechanism lets that happen with a probability of
    at most Pr[Bin(guessed, p) >= correct] + m delta, p = e^epsilon / (1 + e^epsilon); the bound is the
    largest epsilon, rounded down, for which this is below 1 - confidence, and 0 where there is none.

    Fix the rule that guesses, and how many coins it guesses, before the coins are seen: the best of several
    numbers of guesses is no bound at this confidence. Count every canary whose coin was tossed.

    Args:
        claimed: the epsilon to refute, at least 0, or the record of a run of `lipbook.privacy.fit`.
        coins: (canaries,), +1 where the canary was in the data, -1 where it was not.
        guesses: (canaries,), +1, -1, or 0 to abstain.
        delta: of the claim, from 0 to below (1 - confidence) / canaries.
        confidence: between 0 and 1.

    Raises:
        ValueError, TypeError: arguments that are not of this form; a delta so large that no guesses could
            refute anything, or smaller than that of the record.

    Source: Steinke, Nasr and Jagielski, "Privacy auditing with one (1) training run", NeurIPS 2023, in a form
    with m delta in place of their sharper term. Chapter: privacy/auditing.
    """
    delta, confidence = _number(delta, "delta"), _number(confidence, "confidence")
    epsilon = _claimed_epsilon(claimed, delta)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, such as 0.95, got {confidence}.")
    if not 0 <= delta < 1:
        raise ValueError(f"delta must be from 0 to below 1, such as 1e-5, got {delta}.")
    coins = _checked_signs(coins, "coins", (-1, 1))
    guesses = _checked_signs(guesses, "guesses", (-1, 0, 1))
    if len(coins) != len(guesses):
        raise ValueError(f"there must be one guess a coin, 0 to abstain: {len(guesses)} for {len(coins)}.")
    spare = math.nextafter(1 - confidence, 0) - math.nextafter(len(coins) * delta, 1)
    if spare <= 0:
        raise ValueError(
            f"{len(coins)} canaries at delta {delta} can refute nothing at confidence {confidence}, as "
            "canaries * delta must be below 1 - confidence: toss fewer coins, or audit a smaller delta."
        )
    correct, guessed = int((coins == guesses).sum()), int((guesses != 0).sum())
    lower = _least_epsilon(correct, guessed, spare)
    return RunAudit(epsilon, lower, delta, correct, guessed, len(coins), confidence)


def _least_epsilon(correct: int, guessed: int, level: float) -> float:
    """At most the largest epsilon with Pr[Bin(guessed, p) >= correct] < level, by bisection; at least 0."""
    from scipy.special import betaincc, expit  # here: importing the library does not load it

    def is_refuted(epsilon):
        # The tail in terms of 1 - p, which keeps its digits where p is close to 1.
        tail = betaincc(guessed - correct + 1, correct, expit(-epsilon))
        return tail * (1 + _ROUNDING) < level

    if correct == 0 or not is_refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while is_refuted(high):
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if is_refuted(middle) else (low, middle)
    return low


def _claimed_epsilon(claimed, delta):
    if hasattr(claimed, "epsilon") and hasattr(claimed, "delta"):
        if delta < claimed.delta:
            raise ValueError(
                f"the record claims its epsilon at delta {claimed.delta}, and nothing at {delta}: audit it "
                "at its own delta, or a larger one."
            )
        claimed = claimed.epsilon
    epsilon = _number(claimed, "claimed")
    if not epsilon >= 0:
        raise ValueError(f"claimed must be an epsilon, at least 0, got {epsilon}.")
    return epsilon


def _checked_signs(signs, name, allowed):
    if not isinstance(signs, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(signs).__name__}: use torch.as_tensor.")
    if signs.dtype == torch.bool or signs.is_complex():
        raise TypeError(f"{name} must be numbers from {allowed}, got {signs.dtype}: use 2 * {name} - 1.")
    if signs.ndim != 1 or len(signs) == 0:
        raise ValueError(f"{name} must have the shape (canaries,), one at least, got {tuple(signs.shape)}.")
    require_values(signs, name)
    strange = signs[~torch.isin(signs, torch.tensor(allowed, dtype=signs.dtype, device=signs.device))]
    if len(strange):
        raise ValueError(f"{name} must be numbers from {allowed}, got {strange[0].item()}.")
    return signs.detach().cpu().long()


def _number(number, name):
    if not isinstance(number, (int, float)) or isinstance(number, bool):
        raise TypeError(f"{name} must be a number, got {number!r} of type {type(number).__name__}.")
    return float(number)
