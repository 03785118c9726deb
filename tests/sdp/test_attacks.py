"""Attacks on the semidefinite bounds: networks made to cancel, altered certificates, solvers that go astray.

The inequality is checked in rational arithmetic: the forms p, q and C are multiplied out from the weights as
fractions, and a matrix is positive semidefinite if elimination without rounding meets no negative pivot.
"""

import dataclasses
import math
from fractions import Fraction

import pytest
import torch
from torch import nn

from lipbook import Ball
from lipbook.bound import CertificateError
from lipbook.bounds import product_bound
from lipbook.bounds.preactivations import chain_of
from lipbook.bounds.stages import Linear, flat
from lipbook.contracts.definitions import slopes
from lipbook.layers import Abs, GroupSort, MaxMin, Residual
from lipbook.network import read
from lipbook.sdp import eclipse_fast, lipsdp
from lipbook.sdp.certificate import _proved_dual, proved, proves
from lipbook.sdp.constraints import Proposal, constraints_of
from lipbook.sdp.interior_point import propose
from lipbook.sdp.start import feasible_dual, feasible_multipliers
from tests.increments import drawn, linear

ACTIVATIONS = {
    "ReLU": nn.ReLU,
    "LeakyReLU": lambda: nn.LeakyReLU(0.1),
    "LeakyReLU that turns back": lambda: nn.LeakyReLU(-0.7),
    "LeakyReLU that is nearly linear": lambda: nn.LeakyReLU(1 - 1e-9),
    "LeakyReLU that is linear": lambda: nn.LeakyReLU(1.0),
    "Abs": Abs,
    "MaxMin": MaxMin,
    "GroupSort": lambda: GroupSort(4),
}


def rows_of(kind, outputs, inputs, generator):
    """A weight: ordinary, of a wide range, of nearly equal rows, or of differences that nearly cancel."""
    weight = torch.randn(outputs, inputs, generator=generator, dtype=torch.float64)
    if kind == "wide":
        return weight * 10 ** (16 * torch.rand(outputs, inputs, generator=generator, dtype=torch.float64) - 8)
    steps = torch.randint(-8, 9, (outputs, inputs), generator=generator)
    if kind == "equal":
        return weight[:1].repeat(outputs, 1) * (1 + 1e-15 * steps)
    if kind == "cancelling":
        return weight.sign() * 10 ** (6 * weight[:, :1].abs() - 3) * (1 + 1e-15 * steps)
    return weight


def adversary(name, seed):
    """A network of at most three hidden layers, each with a weight that is meant to lose digits."""
    generator = torch.Generator().manual_seed(seed)
    kinds = ["ordinary", "wide", "equal", "cancelling"]
    sizes = [1 + seed % 3, 4, *[4] * (seed % 2), 2]
    layers = []
    for fan_in, fan_out in zip(sizes, sizes[1:]):
        kind = kinds[int(torch.randint(4, (1,), generator=generator))]
        layers += [linear(rows_of(kind, fan_out, fan_in, generator)), ACTIVATIONS[name]()]
    if seed % 3 == 0:
        layers[2:2] = [Residual(nn.Sequential(linear(rows_of("equal", 4, 4, generator)), nn.ReLU()))]
    return nn.Sequential(*layers[:-1]).eval()


def inverses(name, seed):
    """Ill-conditioned weights, each followed by its inverse: what one product rounds the next enlarges."""
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for depth in range(2):
        left, _, right = torch.linalg.svd(torch.randn(4, 4, generator=generator, dtype=torch.float64))
        weight = left @ torch.diag(torch.logspace(0, -6, 4, dtype=torch.float64)) @ right
        layers += [linear(weight), ACTIVATIONS[name](), linear(torch.linalg.inv(weight))]
        layers += [] if depth else [nn.LeakyReLU(0.9)]
    return nn.Sequential(*layers).eval()


def times(weight, rows):
    """The product of a float matrix with rows of fractions, without rounding."""
    return [
        [sum(Fraction(w) * row[k] for w, row in zip(line, rows) if w) for k in range(len(rows[0]))]
        for line in weight.tolist()
    ]


def fractions(constraints, model, shape):
    """(P, Q, C) of a network whose slopes are not local, as fractions.

    Neurons that the stored rows leave out have the steepest slope.
    """
    form = [[Fraction(i == j) for j in range(constraints.inputs)] for i in range(constraints.inputs)]
    layers = [record for record in constraints.history if hasattr(record, "free")]
    P, Q = [], []
    for stage in flat(chain_of(read(model, shape)).stages):
        if isinstance(stage, Linear):
            form = times(stage.weight, form)
            continue
        layer, before = layers.pop(0), len(form[0])
        a, b = (Fraction(end.item()) for end in slopes(stage.activation))
        inside = [True] * len(form) if stage.where is None else stage.where.tolist()
        free, total = 0, len(layer.p)
        for j, row in enumerate(form):
            row = row + [Fraction(0)] * total
            if not layer.free[j]:
                form[j] = [(b if inside[j] else 1) * entry for entry in row]
                continue
            new = [Fraction(k == before + free) for k in range(before + total)]
            base = a if layer.factors[2, j] != 0 else Fraction(0)
            width = Fraction(layer.factors[1, j].item())
            assert width >= b - base
            P.append([e - (a - base) * v for e, v in zip(new, row)])
            Q.append([width * v - e for e, v in zip(new, row)])
            form[j] = [base * v + e for e, v in zip(new, row)]
            free += 1
    filled = [[row + [Fraction(0)] * (constraints.size - len(row)) for row in rows] for rows in (P, Q, form)]
    assert not layers and all(len(row) == constraints.size for rows in filled for row in rows)
    return filled


def exact_matrix(constraints, exact, value, multipliers):
    """M in fractions."""
    P, Q, C = exact
    size = constraints.size
    whole = [[Fraction(0)] * size for _ in range(size)]
    for k in range(constraints.inputs):
        whole[k][k] = Fraction(value) ** 2
    weights = [Fraction(number) for number in multipliers[constraints.groups].tolist()]
    terms = [(c, c, Fraction(1)) for c in C]
    terms += [pair for p, q, w in zip(P, Q, weights) for pair in ((p, q, w), (q, p, w))]
    for left, right, weight in terms:
        for i in (k for k in range(size) if left[k]):
            scaled = weight * left[i]
            for j in (k for k in range(size) if right[k]):
                whole[i][j] -= scaled * right[j]
    return whole


def is_semidefinite(whole):
    """Whether a symmetric matrix of fractions is positive semidefinite, by elimination."""
    whole = [list(row) for row in whole]
    for k, row in enumerate(whole):
        if row[k] < 0 or (row[k] == 0 and any(row[k:])):
            return False
        for below in whole[k + 1 :]:
            factor = below[k] / row[k] if row[k] else 0
            if factor:
                below[k:] = [entry - factor * above for entry, above in zip(below[k:], row[k:])]
    return True


def least_proved(constraints, multipliers, value):
    """The smallest float that `proves` accepts with these multipliers, up to the width of a bisection."""
    low = 0.0
    while low < (middle := (low + value) / 2) < value:
        low, value = (low, middle) if proves(constraints, middle, multipliers) else (middle, value)
    return value


SEEDS = [*range(2), *(pytest.param(seed, marks=pytest.mark.thorough) for seed in range(2, 24))]


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_least_value_that_is_proved_holds_without_rounding(name, seed):
    model, shape = adversary(name, seed), (1 + seed % 3,)
    sharing = ["neuron", "layer"][seed % 2]
    constraints = constraints_of(model, None, None, sharing)
    bound = lipsdp(model, multipliers=sharing)
    exact = fractions(constraints, model, shape)
    multipliers = bound.certificate.multipliers
    for value in (bound.value, least_proved(constraints, multipliers, bound.value)):
        assert is_semidefinite(exact_matrix(constraints, exact, value, multipliers))
    if any(map(any, exact[2])):  # the network is not constant
        assert not is_semidefinite(exact_matrix(constraints, exact, 0.0, multipliers))


@pytest.mark.parametrize("name", ["LeakyReLU that is nearly linear", "LeakyReLU that is linear", "MaxMin"])
@pytest.mark.parametrize("seed", SEEDS)
def test_what_inverses_enlarge_is_part_of_the_margin(name, seed):
    model = inverses(name, seed)
    constraints = constraints_of(model)
    bound = lipsdp(model)
    multipliers = bound.certificate.multipliers
    value = least_proved(constraints, multipliers, bound.value)
    exact = fractions(constraints, model, (4,))
    assert is_semidefinite(exact_matrix(constraints, exact, value, multipliers))


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_dual_matrix_that_is_proved_is_feasible_without_rounding(name, seed):
    model, shape = adversary(name, seed), (1 + seed % 3,)
    constraints = constraints_of(model, None, None, ["neuron", "layer"][seed % 2])
    P, Q, C = fractions(constraints, model, shape)
    outer, inner = propose(constraints).dual, feasible_dual(constraints)
    if outer is None:  # the stored outputs are 0: nothing is claimed
        return
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        feasible = _proved_dual(constraints, (1 - middle) * outer + middle * inner) is not None
        low, high = (low, middle) if feasible else (middle, high)
    Z = (1 - high) * outer + high * inner
    Z = (Z + Z.T) / 2
    value = _proved_dual(constraints, Z)
    if value is None:  # not even the inner matrix is: nothing is claimed
        return
    rows = [[Fraction(entry) for entry in row] for row in Z.tolist()]

    def form(left, right):
        ahead = [sum(z * r for z, r in zip(row, right) if r) for row in rows]
        return sum(entry * number for entry, number in zip(left, ahead) if entry)

    assert is_semidefinite(rows)
    held = [Fraction(0)] * constraints.multipliers
    for p, q, group in zip(P, Q, constraints.groups.tolist()):
        held[group] += form(p, q)
    assert min(held, default=0) >= 0
    assert Fraction(value) ** 2 * sum(rows[k][k] for k in range(constraints.inputs)) <= sum(
        form(c, c) for c in C
    )


@pytest.mark.parametrize("logits", [(0, 1), "pairs"])
@pytest.mark.parametrize("relative", [0.0, 1e-15, 1e-12])
def test_logits_that_are_equal_up_to_rounding_have_a_bound_near_their_difference(logits, relative):
    model, _ = drawn(lambda width: nn.ReLU(), seed=3, sizes=(3, 6, 6, 2))
    model[4].weight.data[1] = model[4].weight.data[0] * (1 + relative)
    difference = model[4].weight[0] - model[4].weight[1]
    hidden = product_bound(model[:4], input_shape=(3,)).value
    bound = lipsdp(model, logits)
    bound = bound if isinstance(logits, tuple) else bound[0, 1]
    assert bound.verify(model).value <= difference.norm().item() * hidden + 1e-12
    assert eclipse_fast(model, (0, 1)).verify(model).value >= bound.certificate.dual_value


@pytest.mark.parametrize("bound_of", [lipsdp, eclipse_fast])
def test_a_model_without_layers_has_the_constant_1(bound_of):
    model = nn.Sequential()
    value = bound_of(model, input_shape=(3,)).verify(model).value
    assert 1 <= value <= (1 + 1e-5 if bound_of is lipsdp else 1.01)


@pytest.mark.parametrize("alter", [lambda m: m.to("meta"), lambda m: m.to_sparse()])
def test_multipliers_that_cannot_be_read_are_a_certificate_error(alter):
    model, _ = drawn(lambda width: nn.ReLU(), seed=1)
    bound = lipsdp(model)
    altered = alter(bound.certificate.multipliers)
    certificate = dataclasses.replace(bound.certificate, multipliers=altered)
    with pytest.raises(CertificateError, match="float64 tensor on the CPU"):
        dataclasses.replace(bound, certificate=certificate).verify(model)


@pytest.mark.parametrize("square", [math.nan, math.inf, -1.0, 1e6, 0.0])
@pytest.mark.parametrize("weight", [math.nan, math.inf, -1.0, 1e300])
def test_whatever_a_solver_proposes_the_bound_is_at_most_that_of_the_inner_point(square, weight):
    model, _ = drawn(lambda width: nn.ReLU(), seed=1)
    constraints = constraints_of(model)
    inner = tuple(2 * part for part in feasible_multipliers(constraints))
    proposal = Proposal(square, torch.full_like(inner[1], weight), None, 1)
    value, multipliers = proved(constraints, proposal, inner)
    assert proves(constraints, value, multipliers)
    assert lipsdp(model).certificate.dual_value <= value <= math.sqrt(inner[0]) * (1 + 1e-12)


@pytest.mark.parametrize("radius", [1e-6, 1e-3, 0.1])
def test_ranges_of_very_different_widths_in_a_layer_leave_a_small_gap(radius):
    model, center = drawn(lambda width: nn.SELU(), seed=1, sizes=(4, 16, 16, 3))
    bound = lipsdp(model, region=Ball(center, radius))
    assert bound.verify(model).certificate.gap < 1e-3


@pytest.mark.parametrize("bound_of", [lipsdp, eclipse_fast])
def test_programs_too_large_to_write_out_are_refused_by_name(bound_of, monkeypatch):
    with pytest.raises(ValueError, match="1000000 coordinates or more"):
        bound_of(nn.Sequential(nn.Flatten()), input_shape=(1_000_000,))
    monkeypatch.setattr("lipbook.sdp.constraints.LARGEST_MATRIX", 20**2)
    assert bound_of(nn.Sequential(nn.ReLU()), input_shape=(10,)).value >= 1
    with pytest.raises(ValueError, match="22 coordinates or more"):
        bound_of(nn.Sequential(nn.ReLU()), input_shape=(11,))


@pytest.mark.parametrize("bound_of", [lipsdp, eclipse_fast])
@pytest.mark.parametrize("first", [MaxMin(), Residual(MaxMin())])
def test_a_shape_that_the_first_layers_read_is_not_guessed(bound_of, first):
    model = nn.Sequential(nn.ReLU(), first, nn.Flatten(), nn.Linear(4, 1)).eval()
    with pytest.raises(ValueError, match="takes groups of entries.*input_shape"):
        bound_of(model)
    for shape in ((2, 2), (4,)):
        assert bound_of(model, input_shape=shape).verify(model).value > 0
