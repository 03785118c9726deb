"""Audits: gradients against a loop of autograd, and lower bounds on epsilon against enumerated mechanisms."""

import dataclasses
import itertools
import math
from types import SimpleNamespace

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lipbook import UnsupportedLayerError
from lipbook.contracts.variants import changed_between, snapshot
from lipbook.layers import MaxMin, OrthogonalLinear, ToBall
from lipbook.privacy import ClippedGradient, audit_gradients, audit_run, per_sample, sensitivity
from lipbook.privacy.recursions import Sensitivity
from lipbook.training import OffsetCrossEntropy

LOSS = nn.CrossEntropyLoss()


def drawn(seed):
    return torch.Generator().manual_seed(seed)


def on_sphere(count, *shape, seed=0, radius=1.0):
    x = torch.randn(count, *shape, generator=drawn(seed), dtype=torch.float64)
    return radius * x / torch.linalg.vector_norm(x.flatten(1), dim=1).view(-1, *[1] * len(shape))


def classes(count, number=3, seed=0):
    return torch.randint(number, (count,), generator=drawn(seed))


def filled(model, seed=0, scale=1.0):
    with torch.no_grad():
        for p in model.parameters():
            size = scale / math.sqrt(p[0].numel() if p.ndim > 1 else 4)
            p.copy_(torch.randn(p.shape, generator=drawn(seed), dtype=torch.float64) * size)
    return model.double()


def gradients_one_by_one(model, loss, x, y):
    """{name: norms (batch,)} by one backward pass a sample."""
    rows = []
    for row, label in zip(x, y):
        model.zero_grad()
        loss(model(row[None]), label[None]).backward()
        rows.append({n: p.grad.norm().item() for n, p in model.named_parameters() if p.requires_grad})
    model.zero_grad()
    return {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in rows[0]}


def unit_bound(model):
    """A bound of 1 on everything, so that the ratios of an audit are norms."""
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    return Sensitivity({name: 1.0 for name in names}, 1.0, 1.0, ())


class Twice(nn.Module):
    """Reads the weight of its dense layer outside of it as well."""

    def __init__(self):
        super().__init__()
        self.map = nn.Linear(4, 4)

    def forward(self, x):
        return self.map(x) @ self.map.weight


class Tokens(nn.Module):
    def forward(self, x):
        return x.mean(dim=1)


class Centred(nn.Module):
    def forward(self, x):
        return x - x.mean(dim=0)


class Noisy(nn.Module):
    def forward(self, x):
        return x + 0.1 * torch.randn_like(x)


def tied():
    square = nn.Linear(4, 4)
    return nn.Sequential(square, nn.Tanh(), square, nn.Linear(4, 3))


def half_frozen():
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    model[0].weight.requires_grad_(False)
    return model


NETWORKS = {
    "dense": (lambda: nn.Sequential(nn.Linear(4, 6), MaxMin(), nn.Linear(6, 3)), (4,)),
    "acting in place": (lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 3)), (4,)),
    "a layer": (lambda: nn.Linear(4, 3), (4,)),
    "tied": (tied, (4,)),
    "read twice": (lambda: nn.Sequential(Twice(), nn.Linear(4, 3)), (4,)),
    "on tokens": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), Tokens()), (7, 4)),
    "half frozen": (half_frozen, (4,)),
    "convolutional": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)),
        (1, 4, 4),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("loss", [LOSS, nn.CrossEntropyLoss(reduction="sum"), OffsetCrossEntropy(0.1, 0.2)])
def test_gradients_are_those_of_a_loop_over_the_samples(name, loss):
    build, shape = NETWORKS[name]
    model = filled(build())
    x, y = on_sphere(9, *shape), classes(9)
    truth = gradients_one_by_one(model, loss, x, y)
    audit = audit_gradients(model, loss, x, y, 1.0, unit_bound(model))
    assert set(audit.per_parameter) == set(truth)
    for parameter, norms in truth.items():
        assert audit.per_parameter[parameter] == pytest.approx(norms.max().item(), rel=1e-9)
    assert audit.largest == pytest.approx(torch.stack([*truth.values()]).norm(dim=0).max().item(), rel=1e-9)


@pytest.mark.parametrize("row", range(7))
def test_the_longest_gradient_is_found_in_every_chunk(row, monkeypatch):
    monkeypatch.setattr(per_sample, "_CHUNK", 3)
    model = filled(nn.Sequential(nn.Linear(4, 3, bias=False)))
    x = on_sphere(7, 4) / 100
    x[row] *= 100
    alone = audit_gradients(model, LOSS, x[row : row + 1], classes(7)[row : row + 1], 1.0)
    audit = audit_gradients(model, LOSS, x, classes(7), 1.0)
    assert audit.largest == pytest.approx(alone.largest)
    assert audit.per_parameter == pytest.approx(alone.per_parameter)


def test_dense_layers_are_audited_without_forming_a_gradient_of_each_sample(monkeypatch):
    monkeypatch.setattr(per_sample, "vmap", None)
    model = filled(nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 3)))
    assert audit_gradients(model, LOSS, on_sphere(6, 2, 2), classes(6), 1.0, search_steps=3).samples == 6


@settings(max_examples=12)
@given(seed=st.integers(0, 10**6), scale=st.sampled_from([0.3, 1.0, 3.0]), hidden=st.sampled_from([2, 6]))
def test_a_sensitivity_is_never_exceeded(seed, scale, hidden):
    model = nn.Sequential(nn.Linear(5, hidden), MaxMin(), nn.Linear(hidden, 3))
    model = filled(model, seed, scale)
    audit = audit_gradients(model, LOSS, on_sphere(4, 5, seed=seed), classes(4), 1.0, None, 15, seed)
    assert not audit.violations
    assert 0 < audit.ratio <= 1 + 1e-9


@pytest.mark.parametrize("loss", [OffsetCrossEntropy(0, 1 / 64), ClippedGradient(LOSS, 0.5)])
def test_the_search_reaches_a_bound_that_is_attained(loss):
    layers = [OrthogonalLinear(8, 8, bias=False, method="qr").weight.detach() for _ in range(3)]
    model = nn.Sequential(*(layer for _ in layers for layer in (nn.Linear(8, 8, bias=False), MaxMin())))[:-1]
    for layer, weight in zip(model[::2], layers):
        layer.weight.data = weight
    x, y = on_sphere(2, 8) / 100, classes(2, 8)
    data, search = (audit_gradients(model, loss, x, y, 1.0, search_steps=steps) for steps in (0, 60))
    assert data.ratio < 0.1
    assert 0.98 < search.ratio <= 1 + 1e-9
    assert min(search.per_parameter.values()) > 0.98


def test_a_bias_counted_once_and_not_at_every_position_is_caught():
    model = filled(nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3)))
    x, y = on_sphere(20, 1, 6, 6), classes(20)
    right = sensitivity(model, LOSS, 1.0, (1, 6, 6))
    wrong = {**right.per_parameter, "0.bias": right.per_parameter["0.bias"] / 6}
    assert not audit_gradients(model, LOSS, x, y, 1.0, right, search_steps=20).violations
    audit = audit_gradients(
        model, LOSS, x, y, 1.0, dataclasses.replace(right, per_parameter=wrong), search_steps=20
    )
    assert audit.violations == ("0.bias",)
    assert "EXCEEDED for 0.bias" in repr(audit)


def test_a_total_that_is_too_small_is_caught_though_each_parameter_is_not():
    model = filled(nn.Sequential(nn.Linear(4, 3)))
    x, y = on_sphere(5, 4), classes(5)
    found = audit_gradients(model, LOSS, x, y, 1.0, unit_bound(model))
    wrong = Sensitivity({"0.weight": 2.0, "0.bias": 2.0}, found.largest / 1.01, 1.0, ())
    audit = audit_gradients(model, LOSS, x, y, 1.0, wrong)
    assert audit.violations == ("total",)
    assert audit.ratio == pytest.approx(1.01)


@pytest.mark.parametrize(
    ("model", "error"),
    [
        (nn.Sequential(Centred(), nn.Linear(4, 3)), ValueError),
        (nn.Sequential(Noisy(), nn.Linear(4, 3)), ValueError),
        (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)), UnsupportedLayerError),
        (nn.Sequential(nn.Dropout(), nn.Linear(4, 3)), UnsupportedLayerError),
    ],
)
def test_a_model_that_mixes_samples_or_is_random_is_refused(model, error):
    for count in (1, 5):
        with pytest.raises(error, match="batch|random"):
            audit_gradients(model, LOSS, on_sphere(count, 4), classes(count), 1.0, unit_bound(model))


def test_a_loss_that_weighs_samples_by_how_many_there_are_of_their_class_is_refused():
    def by_class(logits, labels):
        counts = torch.bincount(labels, minlength=3)
        return (nn.functional.cross_entropy(logits, labels, reduction="none") / counts[labels]).sum()

    model = filled(nn.Sequential(nn.Linear(4, 3)))
    with pytest.raises(ValueError, match="loss of a sample depends on the other samples"):
        audit_gradients(model, by_class, on_sphere(6, 4), torch.zeros(6).long(), 1.0, unit_bound(model))


@pytest.mark.parametrize("wrong", [math.nan, -1.0])
def test_a_bound_that_no_norm_could_exceed_is_refused(wrong):
    model, x, y = filled(nn.Linear(4, 3)), on_sphere(5, 4), classes(5)
    total = dataclasses.replace(unit_bound(model), total=wrong)
    one = dataclasses.replace(unit_bound(model), per_parameter={"weight": 1.0, "bias": wrong})
    for bound, name in ((total, "total"), (one, "bias")):
        with pytest.raises(ValueError, match=f"{name} (must be at least 0|is NaN)"):
            audit_gradients(model, LOSS, x, y, 1.0, bound)


def test_a_layer_that_is_used_twice_is_searched_too():
    model, x, y = filled(tied()), on_sphere(9, 4), classes(9)
    truth = gradients_one_by_one(model, LOSS, x, y)["0.weight"].max().item()
    found = audit_gradients(model, LOSS, x, y, 1.0, search_steps=2)
    assert truth <= found.per_parameter["0.weight"] * sensitivity(model, LOSS, 1.0).per_parameter["0.weight"]
    assert not found.violations


def test_a_loss_without_second_derivatives_is_searched_too():
    model, x, y = filled(nn.Sequential(nn.Linear(4, 3))), on_sphere(9, 4), classes(9)
    data, search = (audit_gradients(model, nn.MultiMarginLoss(), x, y, 1.0, None, k) for k in (0, 2))
    assert 0 < data.largest <= search.largest <= search.bound


class Hinge(nn.Module):
    """Flat where no logit is above 50."""

    def forward(self, logits, labels):
        return (logits - 50).relu().sum(dim=1).mean()


@pytest.mark.parametrize("loss, scale", [(ClippedGradient(LOSS, 1e-12), 1.0), (Hinge(), 300.0)])
def test_the_mean_of_losses_that_are_tiny_or_flat_is_not_read_as_their_sum(loss, scale):
    model, x, y = filled(nn.Linear(4, 3), scale=scale), on_sphere(9, 4), classes(9)
    truth = gradients_one_by_one(model, loss, x, y)["weight"].max().item()
    assert truth > 0
    found = audit_gradients(model, loss, x, y, 1.0, unit_bound(model))
    assert found.per_parameter["weight"] == pytest.approx(truth, rel=1e-9)


def test_an_infinite_gradient_in_the_search_is_not_passed_over():
    model, x, y = filled(nn.Sequential(nn.Linear(4, 3))), on_sphere(9, 4), classes(9)
    gradients = per_sample.SampleGradients(model, LOSS, ["0.weight", "0.bias"], x, y)
    gradients.norms = lambda *_, **__: torch.full((len(x) + 32, 2), math.inf, dtype=torch.float64)
    with pytest.raises(ValueError, match="NaN or infinite"):
        per_sample.longest_gradients(gradients, x, y, 1.0, steps=1, seed=0)


def test_an_audit_leaves_the_model_and_the_random_state_alone():
    model = filled(nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 3))).float()
    x, y = on_sphere(6, 4).float(), classes(6)
    before, kept = snapshot(model), x.clone()
    first = audit_gradients(model, LOSS, x, y, 1.0, search_steps=5, seed=3)
    assert changed_between(before, snapshot(model)) is None
    assert torch.equal(x, kept)
    assert audit_gradients(model, LOSS, x, y, 1.0, search_steps=5, seed=3) == first


def test_inputs_on_the_sphere_in_float32_are_read_as_on_it():
    model = filled(nn.Sequential(nn.Linear(700, 3, bias=False)))
    x = torch.nn.functional.normalize(torch.rand(200, 700, generator=drawn(0)))
    assert x.double().norm(dim=1).max() > 1
    bound = Sensitivity({"0.weight": math.sqrt(2)}, math.sqrt(2), math.sqrt(2), ())
    assert not audit_gradients(model, ClippedGradient(LOSS, 0.1), x, classes(200), 1.0, bound).violations


def test_inputs_of_every_length_are_audited_where_the_model_shortens_them():
    model = filled(nn.Sequential(ToBall(1.0), nn.Linear(4, 3)))
    audit = audit_gradients(model, LOSS, 50 * on_sphere(5, 4), classes(5), math.inf, search_steps=10)
    assert not audit.violations
    assert audit.bound == sensitivity(model[1:], LOSS, 1.0).total


# One run.


def exact_tail(correct, guessed, epsilon):
    """Pr[Bin(guessed, e^epsilon / (1 + e^epsilon)) >= correct], by a sum in 60 digits."""
    with mpmath.workdps(60):
        p = 1 / (1 + mpmath.exp(-mpmath.mpf(epsilon)))
        terms = (
            mpmath.binomial(guessed, k) * p**k * (1 - p) ** (guessed - k) for k in range(correct, guessed + 1)
        )
        return mpmath.fsum(terms)


def audited(correct, guessed, canaries, delta, confidence, claimed=0.0):
    """The audit of a run in which so many of so many guesses were right."""
    coins = torch.ones(canaries, dtype=torch.int64)
    guesses = torch.tensor([1] * correct + [-1] * (guessed - correct) + [0] * (canaries - guessed))
    return audit_run(claimed, coins, guesses, delta, confidence)


@given(guessed=st.integers(1, 60), data=st.data(), delta=st.sampled_from([0.0, 1e-9, 1e-5, 3e-4]))
def test_the_lower_bound_is_the_largest_epsilon_that_the_theorem_refutes(guessed, data, delta):
    correct = data.draw(st.integers(0, guessed))
    confidence = data.draw(st.sampled_from([0.5, 0.95, 0.975]))
    found = audited(correct, guessed, 60, delta, confidence).epsilon
    level = 1 - mpmath.mpf(confidence) - 60 * mpmath.mpf(delta)
    if found == 0:
        assert exact_tail(correct, guessed, 1e-6) >= level
    else:
        assert exact_tail(correct, guessed, found) < level
        assert exact_tail(correct, guessed, found + 1e-6) >= level


@pytest.mark.parametrize("truth", [0.0, 0.5, 2.0])
@pytest.mark.parametrize(("guessed", "confidence"), [(12, 0.95), (40, 0.8), (40, 0.95)])
def test_randomised_response_is_refuted_no_more_often_than_the_confidence_allows(truth, guessed, confidence):
    # The number of right guesses is binomial, so that the probability of an error can be summed exactly.
    refuted = [audited(k, guessed, guessed, 0.0, confidence, truth).refutes for k in range(guessed + 1)]
    least = refuted.index(True) if True in refuted else guessed + 1
    assert all(refuted[least:])
    error = exact_tail(least, guessed, truth)
    assert error <= 1 - confidence
    assert exact_tail(least - 1, guessed, truth) > 1 - confidence - 1e-6, "a sharper audit would be as honest"


def test_a_mechanism_that_seldom_names_one_record_is_refuted_no_more_often_than_allowed():
    # With probability m delta it publishes one coin, and otherwise nothing: (0, delta)-private. One guess.
    canaries, delta = 10, 0.04
    right = canaries * delta + (1 - canaries * delta) / 2
    for confidence in (0.05, 0.2, 0.35, 0.5):
        error = right * audited(1, 1, canaries, delta, confidence).refutes
        error += (1 - right) * audited(0, 1, canaries, delta, confidence).refutes
        assert error <= 1 - confidence


def hockey_stick(kernel, epsilon):
    """The least delta with which a mechanism on coins (2, ..., 2, outputs) is (epsilon, delta)-private."""
    gaps = []
    for coin in range(kernel.ndim - 1):
        one, other = kernel.unbind(dim=coin)
        gaps += [
            (a - math.exp(epsilon) * b).clamp(min=0).sum(-1).max() for a, b in ((one, other), (other, one))
        ]
    return max(gaps).item()


def best_guesser(kernel, guessed):
    """For each v the largest probability with which any rule gets v of `guessed` guesses right."""
    count = kernel.ndim - 1
    joint = kernel.reshape(2**count, -1) / 2**count
    coins = torch.tensor([*itertools.product((-1, 1), repeat=count)])
    rules = [g for g in itertools.product((-1, 0, 1), repeat=count) if sum(map(abs, g)) == guessed]
    right = (coins[:, None] == torch.tensor(rules)).sum(dim=2).double()  # (coins, rules)
    return [((right >= v).double().T @ joint).amax(dim=0).sum().item() for v in range(guessed + 2)]


@pytest.mark.parametrize("seed", range(20))
def test_no_guesser_of_any_mechanism_on_three_coins_beats_the_bound(seed):
    generator = drawn(seed)
    sharpness = 4 * torch.rand((), generator=generator)
    kernel = torch.softmax(sharpness * torch.randn(2, 2, 2, 5, generator=generator).double(), dim=-1)
    kernel = torch.lerp(kernel.mean(dim=(0, 1, 2), keepdim=True).expand_as(kernel), kernel, 0.4)
    for epsilon, guessed in itertools.product((0.0, 0.3, 1.0), (1, 2, 3)):
        delta = min(hockey_stick(kernel, epsilon) * (1 + 1e-12), 0.99)
        reached = best_guesser(kernel, guessed)
        for confidence in (0.02, 0.2, 0.5, 0.8):
            if 3 * delta < 0.999 * (1 - confidence):
                refuted = [
                    audited(v, guessed, 3, delta, confidence, epsilon).refutes for v in range(guessed + 1)
                ]
                least = refuted.index(True) if True in refuted else guessed + 1
                assert reached[least] <= 1 - confidence


def test_a_record_that_claims_no_number_is_refused():
    coins = torch.ones(10)
    with pytest.raises(ValueError, match="claimed must be an epsilon"):
        audit_run(SimpleNamespace(epsilon=math.nan, delta=1e-5), coins, coins, 1e-5)


def test_every_coin_that_was_tossed_counts_and_the_surplus_of_a_record_is_read():
    few, many = (audited(90, 100, canaries, 1e-5, 0.95).epsilon for canaries in (100, 4000))
    assert many < few
    record = SimpleNamespace(epsilon=1.0, delta=1e-5)
    assert audited(90, 100, 200, 1e-5, 0.95, record).refutes
    assert audited(90, 100, 200, 1e-4, 0.95, record).refutes
    with pytest.raises(ValueError, match="its own delta"):
        audited(90, 100, 200, 1e-6, 0.95, record)
    with pytest.raises(ValueError, match="can refute nothing"):
        audited(90, 100, 5001, 1e-5, 0.95)


def test_long_runs_without_a_wrong_guess_are_resolved():
    level = 0.05
    for guessed in (10**3, 10**6):
        p = level ** (1 / guessed)
        expected = math.log(p) - math.log(-math.expm1(math.log(level) / guessed))
        assert audited(guessed, guessed, guessed, 0.0, 0.95).epsilon == pytest.approx(expected, rel=1e-6)
