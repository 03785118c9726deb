"""What a private training run claims and what it released, so that anyone can recompute what it cost.

A record holds the sensitivity and the noise of every release, and nothing that depends on the data otherwise:
no size of a batch, and no number of records.

Source: Abadi et al., "Deep learning with differential privacy", CCS 2016. Chapter: privacy/without-clipping.
"""

import math
from collections import Counter
from dataclasses import dataclass, field, fields, replace

from torch import nn

from lipbook.bound import CertificateError, outward
from lipbook.privacy.accountant import epsilon_of
from lipbook.training.digests import digest

ADJACENCY = "add/remove"


@dataclass(frozen=True)
class Release:
    """What one step released: sums of gradients plus Gaussian noise, group by group, from one batch.

    `sensitivities` are the norms of what one record can add to each group of parameters, and
    `standard_deviations` those of the noise on each coordinate of it.
    """

    groups: tuple[str, ...]
    sensitivities: tuple[float, ...]
    standard_deviations: tuple[float, ...]

    def __post_init__(self):
        columns = {part.name: getattr(self, part.name) for part in fields(self)}
        for name, column in columns.items():
            if not isinstance(column, tuple) or not column or len(column) != len(self.groups):
                raise ValueError(f"{name} must be a tuple with one entry for each group, got {column!r}.")
        for name in ("sensitivities", "standard_deviations"):
            for number in columns[name]:
                if checked_number(number, name) < 0:
                    raise ValueError(f"{name} must be at least 0, got {number}.")

    @property
    def multipliers(self) -> tuple[float, ...]:
        """Noise in units of the sensitivity; a group to which nothing can be added has none."""
        pairs = zip(self.sensitivities, self.standard_deviations, strict=True)
        return tuple(deviation / size for size, deviation in pairs if size > 0)


@dataclass(frozen=True)
class Record:
    """What a run of `fit` claims, and what it released.

    The claim: the releases together, and so the returned model, are (`epsilon`, `delta`)-differentially
    private for data sets that differ in one record (`adjacency`). It rests on Poisson sampling with
    `sampling_rate`, at every step anew; no size of a batch is recorded, since those are private. `releases`
    has one entry a step, `noise_multiplier` is what each of them keeps to, and `accountant` computed it.
    `weights` is a digest of the returned model, and `seal` one of everything else: it shows a change made by
    mistake, not a forgery, since anyone can compute another.
    """

    epsilon: float
    delta: float
    sampling_rate: float
    steps: int
    noise_multiplier: float
    adjacency: str
    accountant: str
    releases: tuple[Release, ...] = field(repr=False)
    weights: str = field(repr=False)
    seal: str = field(repr=False, default="")

    def __post_init__(self):
        for name in ("epsilon", "delta", "sampling_rate", "noise_multiplier"):
            checked_number(getattr(self, name), name, above=0)
        for name in ("adjacency", "accountant", "weights", "seal"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"{name} must be a str, got {getattr(self, name)!r}.")
        if not isinstance(self.steps, int) or isinstance(self.steps, bool) or self.steps < 1:
            raise ValueError(f"steps must be an int of at least 1, got {self.steps!r}.")
        if not isinstance(self.releases, tuple) or not all(isinstance(r, Release) for r in self.releases):
            raise TypeError(f"releases must be a tuple of Release, got {type(self.releases).__name__}.")

    def recompute(self, accountant: str | None = None) -> float:
        """What the releases cost: an epsilon at `delta`, from their sensitivities and noise alone.

        Args:
            accountant: "pld" or "rdp"; None is the record's own.
        """
        method = self.accountant if accountant is None else accountant
        counts = Counter(release.multipliers for release in self.releases if release.multipliers)
        return epsilon_of(list(counts.items()), self.sampling_rate, self.delta, method)

    def verify(self, model: nn.Module | None = None) -> "Record":
        """Prove the claim from the releases, and return the record.

        Args:
            model: if given, it must have the weights that `fit` returned with this record.

        Raises:
            CertificateError: the releases cost more than `epsilon`, the record contradicts itself or was
                changed, or the model is another one.

        It proves the arithmetic of the record. That the batches were drawn, and the noise was added, as it
        says, is for an audit (`audit_run`) or the code to show.
        """
        if self.adjacency != ADJACENCY:
            raise CertificateError(
                f"the record claims {self.adjacency!r}: the sensitivities are those of {ADJACENCY!r}."
            )
        if len(self.releases) != self.steps:
            raise CertificateError(
                f"the record claims {self.steps} steps and holds {len(self.releases)} releases."
            )
        for step, release in enumerate(self.releases, 1):
            _require_noise(step, release, self.noise_multiplier)
        try:
            cost = self.recompute()
        except (ValueError, TypeError) as error:
            raise CertificateError(f"the record cannot be accounted for: {error}") from error
        if not cost <= self.epsilon:
            raise CertificateError(
                f"the releases cost epsilon {outward(cost, 'upper')} at delta {self.delta:g}, and the record "
                f"claims {self.epsilon:g}."
            )
        if self.seal != sealed(self).seal:
            raise CertificateError("the record is not as fit left it: one of its fields was changed.")
        if model is not None and weights_digest(model) != self.weights:
            raise CertificateError("the model has other weights than the one that this record belongs to.")
        return self


def sealed(record: Record) -> Record:
    """The same record with the seal of what it says."""
    kept = [getattr(record, part.name) for part in fields(record) if part.name != "seal"]
    return replace(record, seal=digest(*kept))


def _require_noise(step, release, multiplier):
    inverse = math.fsum((1 / part) ** 2 if part > 0 else math.inf for part in release.multipliers)
    if inverse * multiplier**2 > 1:
        raise CertificateError(
            f"step {step} has noise of {math.sqrt(1 / inverse):.6g} times the sensitivity, and the record "
            f"claims {multiplier:.6g}."
        )


def weights_digest(model: nn.Module) -> str:
    """A digest of the parameters and buffers of a model, with their names."""
    return digest({name: tensor for name, tensor in model.state_dict().items()})


def checked_number(value: float, name: str, above: float = -math.inf) -> float:
    """A finite float above `above`, if the value is such a number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r} of type {type(value).__name__}.")
    if not above < value < math.inf:
        least = "finite" if above == -math.inf else "positive and finite"
        raise ValueError(f"{name} must be {least}, got {value}.")
    return float(value)
