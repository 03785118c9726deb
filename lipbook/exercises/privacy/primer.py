"""Checks of the exercises of privacy/primer."""

import math

from lipbook.exercises.registry import exercise


@exercise("privacy/primer/1")
def before_and_after(probability):
    if not math.isclose(float(probability), math.e / (99 + math.e), rel_tol=1e-3):
        return "the odds, 1 to 99, change by a factor of at most e: what probability belongs to the new odds?"
    return None


@exercise("privacy/primer/2")
def add_remove_replace(pairs):
    pairs = [tuple(float(number) for number in pair) for pair in pairs]
    if len(pairs) != 4 or any(len(pair) != 2 for pair in pairs):
        return "give four pairs: (add or remove, replace)."
    right = ((1, 1), (1, math.sqrt(2)), (2, 4), (0.5, 0.5))
    hints = (
        "how far can one count move?",
        "a replaced record leaves one count and joins another: how long is that change, as a vector?",
        "which vector of norm 2 is the farthest from a vector of norm 2?",
        "how far apart can two numbers of the interval be?",
    )
    for number, (pair, expected, hint) in enumerate(zip(pairs, right, hints), start=1):
        if not all(math.isclose(a, b, rel_tol=1e-3) for a, b in zip(pair, expected)):
            return f"function {number}: {hint}"
    return None


def _laplace_by_integral(ε, b, n=20_000):
    """The integral of max(p - e^ε q, 0), p and q Laplace around 1 and 0, by the midpoint rule."""
    left, right = -8 * b, 1 + 40 * b
    step = (right - left) / n
    points = (left + (k + 0.5) * step for k in range(n))
    gains = (math.exp(-abs(t - 1) / b) - math.exp(ε - abs(t) / b) for t in points)
    return sum(max(gain, 0.0) for gain in gains) * step / (2 * b)


@exercise("privacy/primer/3")
def laplace_exactly(laplace_delta):
    for ε, b in ((0.5, 1.0), (0.0, 2.0), (0.2, 0.7), (2.0, 0.4), (1.0, 1.0), (3.0, 0.5)):
        found, truth = float(laplace_delta(ε, b)), _laplace_by_integral(ε, b)
        if found < -1e-12:
            return f"a δ is never negative, and at ε = {ε}, b = {b} yours is {found:.4f}."
        if not abs(found - truth) < 1e-4:
            return f"at ε = {ε}, b = {b} an integral gives {truth:.4f}, and yours is {found:.4f}."
    return None


@exercise("privacy/primer/4")
def family(group):
    for ε, δ, k in ((1.0, 1e-5, 1), (1.0, 1e-5, 3), (0.1, 1e-6, 10), (0.0, 0.01, 4)):
        first, second = (float(number) for number in group(ε, δ, k))
        chained = 0.0
        for _ in range(k):
            chained = math.exp(ε) * chained + δ
        if not math.isclose(first, k * ε, abs_tol=1e-9):
            return f"the first number of {k} records is {k} times that of one."
        if not math.isclose(second, chained, rel_tol=1e-6):
            return (
                f"ε = {ε}, δ = {δ}, k = {k}: the second number is {chained:.4g}; each record multiplies the "
                "δ before it by a factor, and adds one of its own."
            )
    return None


@exercise("privacy/primer/5")
def divisor_that_tells(number):
    found = float(number)
    if math.isclose(found, 0.0, abs_tol=1e-6):
        return "that is right for one order: which density is larger far out, and by what factor?"
    far = math.sqrt((1 + math.log(2)) * 2 / 3)
    tails = [0.5 * math.erfc(t / math.sqrt(2)) for t in (far, 2 * far)]
    if not math.isclose(found, 2 * (tails[0] - math.e * tails[1]), rel_tol=5e-3):
        return (
            "where is the wider density more than e times the narrower one? Integrate the difference there."
        )
    return None


def _laplace_tail(t, scale):
    return 0.5 * math.exp(-t / scale) if t > 0 else 1 - 0.5 * math.exp(t / scale)


@exercise("privacy/primer/6")
def largest_value(triple):
    without, record, threshold = triple
    without, record = (sorted(float(value) for value in values) for values in (without, record))
    if not 1 <= len(without) <= 4 or len(record) != len(without) + 1:
        return "the first list has one to four values, and the second has exactly one more."
    if not all(0 < value <= 1 for value in record):
        return "all values lie in (0, 1]."
    rest = list(record)
    for value in without:
        if value not in rest:
            return "the second list is the first one with one record added."
        rest.remove(value)
    low, high = (_laplace_tail(float(threshold) - sum(v), max(v)) for v in (without, record))
    if not high > 100 * low:
        return (
            f"the output exceeds {threshold} with probability {low:.3g} without the record, {high:.3g} with."
        )
    return None


@exercise("privacy/primer/7")
def privacy_report(numbers):
    listed = {int(number) for number in numbers}
    if len(listed) != 5 or not listed <= set(range(1, 11)):
        return "give five different numbers, from 1 to 10."
    sound = {
        1: "sentence 1 says what the promise speaks of, and says it right.",
        3: "sentence 3: how far can one number between 0 and 60 move a sum?",
        4: "sentence 4: compare it with the multiplier that the chapter found for this epsilon and delta.",
        6: "sentence 6: does rounding read the data, or only what was already released?",
        9: "sentence 9: what does the theorem about the test let the adversary know?",
    }
    for number, hint in sound.items():
        if number in listed:
            return hint
    return None
