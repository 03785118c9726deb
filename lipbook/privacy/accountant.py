"""The cost of T noisy releases: epsilon of subsampled Gaussians, by two accountants; the noise for a target.

One release is the sum of per-sample gradients over a Poisson batch (each record drawn with probability q,
independently) plus a Gaussian whose standard deviation is the noise multiplier times the sensitivity, the
norm of what one record can add. Data sets are neighbours if one has one record more (add/remove).

"pld" convolves the distribution of the privacy loss, rounded pessimistically, in both directions; "rdp" adds
Renyi divergences and converts the best order. Both are upper bounds, up to the rounding of float64 sums; for
that of the convolutions delta is lowered by 1e-12, ten times what was measured.

Source: Abadi et al. 2016; Mironov, Talwar and Zhang 2019 (rdp); Koskela, Jalko and Honkela 2020 and
Doroshenko et al. 2022 (pld), in the implementation of dp-accounting. Chapter: privacy/dp-sgd.
"""

import math
from collections import Counter
from collections.abc import Sequence
from contextlib import contextmanager
from functools import lru_cache

_ORDERS = (
    *(1 + k / 100 for k in range(2, 10)),
    *(1 + k / 10 for k in range(1, 100)),
    *range(11, 64),
    *(80, 96, 128, 192, 256, 512, 1024, 2048, 4096),
)
_NO_NOISE = 1e-3  # below this multiplier one release already costs an epsilon above 1e4
_USELESS = 100  # above this epsilon the bound of "rdp" stands: the grid of "pld" would grow with epsilon
_SMALLEST_DELTA = 1e-10  # for "pld", which loses _ROUNDED of it
_ROUNDED = 1e-12  # more than the masses, of about 1e-13, that its convolutions may lose by rounding


def epsilon(
    noise_multiplier: float | Sequence[float],
    sampling_rate: float,
    steps: int,
    delta: float,
    method: str = "pld",
) -> float:
    """An epsilon such that `steps` releases are (epsilon, delta)-differentially private.

    Args:
        noise_multiplier: standard deviation of the noise in units of the sensitivity. A sequence: one per
            group of parameters, all released from the same batch, which is one Gaussian with multiplier
            (sum of sigma_l^-2)^(-1/2), subsampled once.
        sampling_rate: probability with which each record enters a batch, in (0, 1]; 1: no subsampling.
        steps: number of releases; 0 costs nothing.
        delta: in (0, 1); at least 1e-10 for "pld".
        method: "pld", or "rdp", the second opinion, which is often 10 % above and never below.

    Infinite for a multiplier below 1e-3. Above 100, where nothing is private, "pld" returns what "rdp" does.

    Raises:
        ValueError, TypeError: when an argument is not of this form.

    Chapter: privacy/dp-sgd.
    """
    return epsilon_of([(noise_multiplier, steps)], sampling_rate, delta, method)


def epsilon_of(
    releases: Sequence[tuple[float | Sequence[float], int]],
    sampling_rate: float,
    delta: float,
    method: str = "pld",
) -> float:
    """As `epsilon`, for releases with different noise: pairs (noise multiplier, how many releases).

    Each may depend on what the earlier ones released, as long as the multipliers are fixed in advance.
    Multipliers are read to ten digits, rounded down, and equal ones are composed at once; "pld" needs up to a
    second for every different one.

    Raises:
        ValueError, TypeError: when an argument is not of this form.

    Chapter: privacy/dp-sgd.
    """
    rate, delta = _checked(sampling_rate, delta, method)
    counts = Counter()
    if isinstance(releases, (str, bytes)) or not isinstance(releases, Sequence):
        kind = type(releases).__name__
        raise TypeError(f"releases must be a list of pairs (noise multiplier, count), got {kind}.")
    for release in releases:
        if not isinstance(release, (tuple, list)) or len(release) != 2:
            raise ValueError(f"each release must be a pair (noise multiplier, count), got {release!r}.")
        multiplier, count = _joint(release[0]), _steps(release[1])
        if count:
            counts[multiplier] += count
    return _compose(tuple(sorted(counts.items())), rate, delta, method)


def noise_multiplier(
    epsilon: float, sampling_rate: float, steps: int, delta: float, method: str = "pld"
) -> float:
    """The smallest noise multiplier, rounded up to five digits, for which `steps` releases cost `epsilon`.

    Args:
        epsilon: the target, at least 1e-3; `epsilon(result, ...)` is at most this.
        sampling_rate, steps, delta, method: as for `epsilon`; at least one step.

    Raises:
        ValueError, TypeError: when an argument is not of this form.

    Chapter: privacy/dp-sgd.
    """
    target = _number(epsilon, "epsilon")
    if not 1e-3 <= target < math.inf:
        raise ValueError(f"epsilon must be finite and at least 1e-3, got {epsilon}.")
    rate, delta = _checked(sampling_rate, delta, method)
    steps = _steps(steps)
    if steps == 0:
        raise ValueError("steps must be at least 1, got 0: no release needs no noise.")
    return _calibrate(target, rate, steps, delta, method)


@lru_cache(maxsize=256)
def _calibrate(target, rate, steps, delta, method):
    from scipy.optimize import brentq

    def excess(multiplier):
        cost = _compose(((_joint(multiplier), steps),), rate, delta, method)
        return math.log(min(max(cost, 1e-12), 1e300) / target)

    high = 1.0 if method == "rdp" else _calibrate(target, rate, steps, delta, "rdp")
    while excess(high) > 0:
        high *= 2
    low = 0.8 * high
    while excess(low) <= 0:
        if low < _NO_NOISE:
            return _up(low)
        low, high = low / 2, low
    root = _up(brentq(excess, low, high, xtol=1e-6 * low, rtol=1e-6))
    while excess(root) > 0:
        root = _up(root * (1 + 1e-6))
    return root


@lru_cache(maxsize=1024)
def _compose(counts, rate, delta, method):
    if not counts:
        return 0.0
    if counts[0][0] < _NO_NOISE:
        return math.inf
    from dp_accounting.pld import PLDAccountant
    from dp_accounting.rdp import RdpAccountant

    with _without_warnings():
        renyi = _spent(RdpAccountant(_ORDERS), counts, rate, delta)
        if method == "rdp" or renyi > _USELESS or renyi == 0:
            return renyi
        grid = max(1e-7, min(3e-4, renyi / 1e4), renyi / 1e5)
        convolved = _spent(PLDAccountant(value_discretization_interval=grid), counts, rate, delta - _ROUNDED)
        return min(renyi, convolved)


def _spent(accountant, counts, rate, delta):
    import dp_accounting

    for multiplier, count in counts:
        event = dp_accounting.GaussianDpEvent(multiplier)
        if rate < 1:
            event = dp_accounting.PoissonSampledDpEvent(rate, event)
        accountant.compose(event, count)
    return float(accountant.get_epsilon(delta))


@contextmanager
def _without_warnings():
    # An order whose series does not converge is left out, which is sound and not worth a warning each.
    from absl import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _joint(multiplier):
    several = isinstance(multiplier, (tuple, list))
    parts = [_number(part, "noise_multiplier") for part in (multiplier if several else [multiplier])]
    if not parts:
        raise ValueError("noise_multiplier is an empty sequence: give one multiplier a group of parameters.")
    for part in parts:
        if not 0 <= part < math.inf:
            raise ValueError(f"noise_multiplier must be finite and at least 0, got {part}.")
    least = min(parts)
    if least == 0:
        return 0.0
    joint = least / math.sqrt(sum((least / part) ** 2 for part in parts)) if len(parts) > 1 else least
    if joint < _NO_NOISE:
        return 0.0
    # Ten digits, so that multipliers which differ by rounding (sigma, and sigma Delta / Delta) become one.
    step = 10.0 ** (math.floor(math.log10(joint)) - 9)
    return math.floor(joint / step + 1e-3) * step


def _up(value):
    step = 10.0 ** (math.floor(math.log10(value)) - 4)
    return round(math.ceil(value / step - 1e-9) * step, 12)


def _checked(sampling_rate, delta, method):
    rate, delta = _number(sampling_rate, "sampling_rate"), _number(delta, "delta")
    if not 0 < rate <= 1:
        raise ValueError(f"sampling_rate must be above 0 and at most 1, got {rate}: it is a probability.")
    if not 0 < delta < 1:
        raise ValueError(f"delta must be above 0 and below 1, got {delta}: it is a probability.")
    if method not in ("pld", "rdp"):
        raise ValueError(f'method must be "pld" or "rdp", got {method!r}.')
    if method == "pld" and delta < _SMALLEST_DELTA:
        raise ValueError(f'"pld" is not precise at delta {delta} < 1e-10: use method="rdp".')
    return rate, delta


def _steps(steps):
    if isinstance(steps, bool) or not hasattr(steps, "__index__"):
        raise TypeError(f"steps must be a whole number, got {steps!r}.")
    if int(steps) < 0:
        raise ValueError(f"steps must be at least 0, got {steps}.")
    return int(steps)


def _number(value, name):
    if isinstance(value, (bool, str)) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}.")
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must be one number, got {value!r}.") from None
    if math.isnan(number):
        raise ValueError(f"{name} is NaN: look for the step that produced it.")
    return number
