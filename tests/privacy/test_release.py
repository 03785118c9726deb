"""`fit` in private: what it releases, and with which noise."""

import dataclasses
import math

import pytest
import torch
from scipy.stats import chi2
from torch import nn

from lipbook import UnsupportedLayerError
from lipbook.bounds import product_bound
from lipbook.contracts.variants import changed_between, snapshot
from lipbook.layers import MaxMin, OrthogonalLinear, ToBall, ToSphere
from lipbook.privacy import ClippedGradient, epsilon, fit, sensitivity
from lipbook.privacy import release as module
from lipbook.training import OffsetCrossEntropy

CE = nn.CrossEntropyLoss()
SIGMA = 1.2  # the multiplier in every test; finding one for an epsilon takes seconds
BUDGET = {"delta": 1e-5, "steps": 4, "sampling_rate": 0.2, "input_norm": 1.0}
BUDGET["epsilon"] = epsilon(SIGMA, BUDGET["sampling_rate"], BUDGET["steps"], BUDGET["delta"])
ONCE = {**BUDGET, "steps": 1, "averaging": 0.0, "schedule": "constant"}


@pytest.fixture(autouse=True)
def budgets(monkeypatch):
    """The budgets that noise was asked for, in place of the search for a multiplier."""
    asked = []
    monkeypatch.setattr(module, "noise_multiplier", lambda *budget: asked.append(budget) or SIGMA)
    return asked


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def records(count=60, features=6, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed + 100)
    return drawn(count, features, seed=seed), torch.randint(classes, (count,), generator=generator)


def network(*sizes, activation=MaxMin, bias=False):
    layers = []
    for seed, (inputs, outputs) in enumerate(zip(sizes, sizes[1:])):
        layers += [nn.Linear(inputs, outputs, bias=bias), activation()]
        with torch.no_grad():
            layers[-2].weight.copy_(drawn(outputs, inputs, seed=seed) / math.sqrt(inputs))
    return nn.Sequential(*layers[:-1]).double()


def flat(model):
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


def moves(model, data, loss=CE, **options):
    """How far one step with a rate of 1 takes a model whose weights are not projected, and the record."""
    trained, record = fit(model, data, loss, **{**ONCE, "lr": 1.0, "project_every": None, **options})
    return flat(trained) - flat(model), record


@pytest.mark.parametrize("noise", ["global", "per layer"])
def test_an_empty_batch_releases_noise_of_the_recorded_size(noise):
    model, data = network(40, 30, 20), (drawn(1, 40), torch.tensor([0]))
    rate = 1e-3  # of one record: the batch is empty but once in 1000 times
    moved, record = moves(model, data, noise=noise, sampling_rate=rate)
    released = (moved * rate).split([weight.numel() for weight in model.parameters()])
    stds = record.releases[0].standard_deviations
    stds = stds * 2 if noise == "global" else stds
    for part, std in zip(released, stds, strict=True):
        statistic = (part / std).square().sum().item()
        assert chi2.ppf(1e-6, len(part)) < statistic < chi2.isf(1e-6, len(part))


def test_the_noise_of_a_record_is_the_multiplier_times_the_sensitivity():
    model = network(6, 8, 3)
    told = sensitivity(model, CE, 1.0)
    _, joint = moves(model, records())
    assert joint.releases[0].sensitivities == (told.total,)
    assert joint.releases[0].standard_deviations == pytest.approx([SIGMA * told.total], rel=1e-9)
    _, layered = moves(model, records(), noise="per layer")
    release = layered.releases[0]
    assert dict(zip(release.groups, release.sensitivities)) == told.per_parameter
    ratios = [std / size for size, std in zip(release.sensitivities, release.standard_deviations)]
    assert ratios == pytest.approx([SIGMA * math.sqrt(2)] * 2, rel=1e-9)


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("scale", ["sphere", "ball"])
def test_without_its_noise_a_release_is_the_sum_over_all_records(clip, scale):
    """Two data sets and one seed: the noise is the same, and the difference is that of the two sums."""
    model = network(6, 8, 3, bias=True, activation=nn.Tanh)
    one, other = records(seed=0), records(seed=1)
    options = {"sampling_rate": 1.0, "clip": clip, "scale": scale, "input_norm": 2.0}
    difference = (moves(model, one, **options)[0] - moves(model, other, **options)[0]) * -60

    def total(inputs, labels):
        sizes = inputs.norm(dim=1, keepdim=True)
        scaled = 2 * inputs / sizes if scale == "sphere" else inputs * (2 / sizes).clamp(max=1)
        found = 0
        for x, y in zip(scaled, labels):
            gradients = torch.autograd.grad(CE(model(x[None]), y[None]), tuple(model.parameters()))
            gradient = torch.cat([part.flatten() for part in gradients])
            found = found + gradient * (1 if clip is None else min(1, clip / gradient.norm().item()))
        return found

    assert torch.allclose(difference, total(*one) - total(*other), atol=1e-10)


def test_the_divisor_is_the_rate_times_the_records_and_not_the_size_of_the_batch():
    """Copies of one record: a batch of k moves the weights by k gradients over q N, and k is whole."""
    model, count, rate = network(6, 3), 40, 0.3
    one, other = (drawn(1, 6, seed=seed).expand(count, 6) for seed in (1, 2))
    labels = torch.zeros(count, dtype=torch.int64)
    sizes = []
    for seed in range(6):
        pair = [moves(model, (x, labels), sampling_rate=rate, seed=seed)[0] for x in (one, other)]
        expected = [
            torch.autograd.grad(CE(model(x[:1] / x[:1].norm()), labels[:1]), model[0].weight)[0].flatten()
            for x in (one, other)
        ]
        ratio = (pair[1] - pair[0]) / (expected[0] - expected[1])
        assert torch.allclose(ratio, ratio[0].expand_as(ratio), atol=1e-9)
        sizes.append(ratio[0].item() * rate * count)
    assert sizes == pytest.approx([round(size) for size in sizes], abs=1e-6)
    assert len(set(map(round, sizes))) > 1 and all(0 <= size <= count for size in sizes)


def test_the_divisor_may_be_a_public_number_and_then_the_true_one_leaves_no_trace():
    model, data = network(6, 3), records(60)
    moved, _ = moves(model, data)
    fixed, _ = moves(model, data, records=80)
    assert torch.allclose(fixed, moved * 60 / 80)


def test_a_delta_that_would_publish_a_record_is_refused():
    with pytest.raises(ValueError, match="less than 1 / 60"):
        fit(network(6, 3), records(60), CE, **{**ONCE, "delta": 1 / 60})


def test_a_large_batch_is_summed_in_parts_and_none_is_left_out(monkeypatch):
    whole, _ = moves(network(6, 8, 3), records(), sampling_rate=1.0)
    monkeypatch.setattr(module, "_CHUNK", 7)
    parts, _ = moves(network(6, 8, 3), records(), sampling_rate=1.0)
    assert torch.allclose(whole, parts, atol=1e-12)


def test_a_clipped_loss_is_clipped_per_sample_and_not_per_batch():
    """A loss clipped beyond its largest gradient is the loss itself."""
    model = network(6, 8, 3)
    loose = ClippedGradient(CE, 2.0)
    assert torch.allclose(moves(model, records())[0], moves(model, records(), loose)[0], atol=1e-12)


def test_the_noise_is_calibrated_for_the_whole_budget_at_once(budgets):
    _, record = fit(network(6, 3), records(), CE, **BUDGET)
    assert budgets == [(BUDGET["epsilon"], 0.2, 4, 1e-5, "pld")]
    assert record.noise_multiplier == SIGMA and record.epsilon == BUDGET["epsilon"]


def test_one_seed_gives_the_same_bits_and_another_does_not():
    model, data = network(6, 8, 3), records()
    torch.manual_seed(1)
    one, record = fit(model, data, CE, **BUDGET)
    torch.manual_seed(2)
    same, again = fit(model, data, CE, **BUDGET)
    assert torch.equal(flat(one), flat(same)) and record == again
    for other in (fit(model, data, CE, **BUDGET, seed=1), fit(model, records(seed=3), CE, **BUDGET)):
        assert not torch.equal(flat(one), flat(other[0]))


def test_the_model_the_data_and_the_random_state_stay_as_they_are():
    model, data = network(6, 8, 3).train(), records()
    model[0].weight.grad = torch.ones(8, 6).double()
    before, kept = snapshot(model), [part.clone() for part in data]
    with torch.inference_mode():
        trained, _ = fit(model, data, CE, **BUDGET)
    assert changed_between(before, snapshot(model)) is None
    assert all(torch.equal(part, copy) for part, copy in zip(data, kept))
    assert not trained.training and all(weight.grad is None for weight in trained.parameters())


def test_the_returned_model_scales_its_inputs_and_is_1_lipschitz_behind_that():
    trained, record = fit(network(6, 8, 8, 3), records(), CE, **BUDGET, lr=20.0)
    assert isinstance(trained[0], ToSphere) and trained[0].radius == 1
    assert product_bound(nn.Sequential(*trained[1:])).value <= 1 + 1e-9
    ball, _ = fit(network(6, 8, 3), records(), CE, **{**BUDGET, "input_norm": 2}, scale="ball")
    assert isinstance(ball[0], ToBall) and ball[0].radius == 2
    root = math.sqrt(2) * math.sqrt(3)
    assert [release.sensitivities[0] for release in record.releases] == pytest.approx([root] * 4, rel=1e-9)


def test_it_learns_what_two_classes_have_to_tell():
    inputs = drawn(5000, 6)
    labels = (inputs[:, 0] > 0).long()
    trained, record = fit(network(6, 2), (inputs, labels), CE, **BUDGET, lr=4.0, averaging=0.0)
    assert (trained(inputs).argmax(1) == labels).double().mean() > 0.9
    record.verify(trained)


def test_steps_between_projections_use_the_norms_of_the_weights_as_they_are():
    data, model = records(), network(6, 8, 8, 3)
    _, record = fit(model, data, CE, **BUDGET, project_every=3, lr=2.0)
    sizes = [release.sensitivities[0] for release in record.releases]
    projected = math.sqrt(2) * math.sqrt(3)
    assert sizes[0] == pytest.approx(projected) == sizes[3]
    assert min(sizes[1:3]) > 1.01 * projected
    record.verify()


def test_a_plain_subclass_of_a_sequential_may_stand_inside():
    class Block(nn.Sequential):
        pass

    model = nn.Sequential(Block(*network(6, 8, 8)), nn.Linear(8, 3, bias=False)).double()
    _, record = fit(model, records(), CE, **BUDGET)
    root = math.sqrt(2) * math.sqrt(3)
    assert [release.sensitivities[0] for release in record.releases] == pytest.approx([root] * 4, rel=0.01)


def test_biases_are_read_anew_at_every_step():
    _, record = fit(network(6, 8, 8, 3, bias=True), records(), CE, **BUDGET, lr=2.0)
    assert len({release.sensitivities for release in record.releases}) == 4


def test_convolutions_are_divided_by_their_norm():
    model = nn.Sequential(
        nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 4, 3, padding=1), MaxMin(), nn.Flatten(), nn.Linear(64, 2)
    ).double()
    with torch.no_grad():
        for seed, weight in enumerate(model.parameters()):
            weight.copy_(drawn(*weight.shape, seed=seed))
    data = records(features=16, classes=2)
    trained, record = fit(model, data, CE, **BUDGET, lr=2.0, averaging=0.0)
    assert product_bound(nn.Sequential(trained[2]), input_shape=(1, 4, 4)).value <= 1 + 1e-9
    record.verify(trained)


def test_clipping_trains_what_has_no_lipschitz_bound_to_speak_of():
    model = network(6, 8, 3, activation=nn.Tanh, bias=True)
    trained, record = fit(model, records(), CE, **BUDGET, clip=0.5, project_every=None)
    assert {release.sensitivities for release in record.releases} == {(0.5,)}
    record.verify(trained)
    projected, _ = fit(network(6, 8, 3), records(), CE, **BUDGET, clip=0.5, lr=50.0)
    assert product_bound(nn.Sequential(*projected[1:])).value <= 1 + 1e-9


def test_frozen_weights_stay_and_are_no_part_of_the_release():
    model = network(6, 8, 3)
    model[0].weight.requires_grad_(False)
    trained, record = fit(model, records(), CE, **BUDGET, noise="per layer")
    assert torch.equal(trained[1].weight, model[0].weight)
    assert {release.groups for release in record.releases} == {("2.weight",)}


def test_momentum_sums_the_gradients_and_forgets_them_geometrically():
    gradients, rates = drawn(3, 4), [0.5, 0.3, 0.1]
    weight, velocities = torch.zeros(4).double(), {}
    for gradient, rate in zip(gradients, rates):
        module._descend({"w": weight}, {"w": 7 * gradient}, velocities, 7.0, rate, 0.8)
    shares = [0.5 + 0.3 * 0.8 + 0.1 * 0.64, 0.3 + 0.1 * 0.8, 0.1]
    assert torch.allclose(weight, -sum(share * gradient for share, gradient in zip(shares, gradients)))


def test_the_average_is_exponential_and_its_weights_sum_to_one():
    iterates, average, layer = (
        drawn(5, 1, 3),
        {"weight": torch.zeros(1, 3).double()},
        nn.Linear(3, 1, bias=False),
    )
    for step, iterate in enumerate(iterates, 1):
        layer.weight = nn.Parameter(iterate)
        module._average(average, layer, 0.7, step)
    shares = 0.7 ** torch.arange(4, -1, -1).double()
    assert torch.allclose(average["weight"], (shares[:, None, None] * iterates).sum(0) / shares.sum())


def test_a_record_holds_no_size_of_a_batch_nor_the_number_of_records():
    same = [fit(network(6, 8, 3), records(count), CE, **BUDGET)[1] for count in (60, 61)]
    one, other = (dataclasses.replace(record, weights="", seal="") for record in same)
    assert one == other


def test_half_precision_is_refused():
    """A sum of 4,096 gradients of norm 1 is known to 2 in float16, and to 16 in bfloat16."""
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(TypeError, match="float32"):
            fit(network(6, 3).to(dtype), (drawn(60, 6).to(dtype), records()[1]), CE, **BUDGET)


def test_products_of_reduced_precision_are_refused():
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="reduced precision"):
        fit(network(6, 3), records(), CE, **BUDGET)
    try:
        torch.set_float32_matmul_precision("medium")
        with pytest.raises(ValueError, match="highest"):
            fit(network(6, 3), records(), CE, **BUDGET)
    finally:
        torch.set_float32_matmul_precision("highest")


def test_a_network_without_gradients_has_a_record_that_costs_nothing():
    model = network(6, 8, 3)
    for weight in model.parameters():
        weight.data.zero_()
    _, record = fit(model, records(), CE, **BUDGET, project_every=None)
    assert {release.sensitivities for release in record.releases} == {(0.0,)}
    assert record.verify().recompute() == 0


def test_layers_that_compute_their_weights_are_refused():
    model = nn.Sequential(OrthogonalLinear(6, 6), MaxMin(), nn.Linear(6, 3)).double()
    with pytest.raises(UnsupportedLayerError, match="OrthogonalLinear"):
        fit(model, records(), CE, **BUDGET)


def test_a_loss_of_the_weights_is_refused():
    with pytest.raises(UnsupportedLayerError, match="NLLLoss"):
        fit(network(6, 3), records(), nn.NLLLoss(), **BUDGET)


def test_a_convolution_is_named_whose_norm_depends_on_the_size_and_trains_undivided():
    circle = nn.Conv2d(1, 2, (1, 2), padding=(0, 1), padding_mode="circular")
    model = nn.Sequential(nn.Unflatten(1, (1, 2, 3)), circle, nn.Flatten(), nn.Linear(16, 3)).double()
    with pytest.raises(ValueError, match="Conv2d has no norm .* project_every=None"):
        fit(model, records(), CE, **BUDGET)
    fit(model, records(), CE, **BUDGET, project_every=None)[1].verify()


def test_weights_that_are_nan_from_the_start_are_refused():
    model = network(6, 3)
    model[0].weight.data[0, 0] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        fit(model, records(), CE, **BUDGET)


@pytest.mark.parametrize("project_every", [1, None])
def test_a_convolution_that_steps_to_infinity_is_named(project_every):
    model = nn.Sequential(nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(12, 3))
    with pytest.raises(FloatingPointError, match="smaller lr"):
        budget = {**BUDGET, "input_norm": 1e6, "project_every": project_every}
        fit(model.float(), (drawn(60, 6).float(), records()[1]), CE, **budget, lr=1e38)


def test_a_step_to_infinity_is_named():
    with pytest.raises(FloatingPointError, match="smaller lr"):
        budget = {**BUDGET, "input_norm": 1e6}
        fit(network(6, 8, 3).float(), (drawn(60, 6).float(), records()[1]), CE, **budget, lr=1e38)


def test_offset_cross_entropy_on_float32_images_keeps_its_dtype():
    model = nn.Sequential(nn.Flatten(), network(6, 8, 3)).float()
    images = drawn(60, 1, 2, 3).float()
    trained, record = fit(model, (images, records()[1]), OffsetCrossEntropy(0.0, 1 / 64), **BUDGET)
    assert trained(images).dtype == torch.float32
    record.verify(trained)
