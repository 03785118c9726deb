"""Ghost norms and clipped sums against a loop over samples, each with a backward pass of its own."""

import copy

import pytest
import torch
from torch import nn

from lipbook import UnsupportedLayerError
from lipbook.contracts.variants import changed_between, snapshot
from lipbook.layers import MaxMin, OrthogonalLinear, Residual
from lipbook.privacy import ClippedGradient, gradient_norms
from lipbook.privacy.clipping import clipped_sum, dense_chain
from lipbook.training import OffsetCrossEntropy

CE = nn.CrossEntropyLoss()


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def models():
    def filled(*layers):
        model = nn.Sequential(*layers).double()
        with torch.no_grad():
            for seed, weight in enumerate(model.parameters()):
                weight.copy_(drawn(*weight.shape, seed=seed))
        return model

    frozen = filled(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    frozen[2].weight.requires_grad_(False)
    frozen[4].bias.requires_grad_(False)
    return {
        "without biases": filled(nn.Linear(12, 8, bias=False), MaxMin(), nn.Linear(8, 3, bias=False)),
        "nested, with biases": filled(nn.Sequential(nn.Linear(12, 8), nn.Tanh()), nn.Linear(8, 3)),
        "in place": filled(nn.ReLU(inplace=True), nn.Linear(12, 8), nn.ReLU(inplace=True), nn.Linear(8, 3)),
        "partly frozen": frozen,
        "one layer": filled(nn.Flatten(), nn.Linear(12, 3)),
    }


LOSSES = {
    "cross-entropy": CE,
    "clipped": ClippedGradient(OffsetCrossEntropy(0.1, 0.25), 0.3),
    "hinge": nn.MultiMarginLoss(),
}


def one_by_one(model, loss, inputs, labels):
    """Each sample's gradient by autograd on a batch of one: a list of {name: gradient}."""
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    return [
        dict(
            zip(weights, torch.autograd.grad(loss(model(x[None].clone()), y[None]), tuple(weights.values())))
        )
        for x, y in zip(inputs, labels)
    ]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("model", models())
def test_norms_and_clipped_sums_equal_those_of_a_loop_over_the_samples(model, loss):
    model, loss = models()[model], LOSSES[loss]
    inputs, labels = drawn(7, 12, seed=9), torch.arange(7) % 3
    gradients = one_by_one(model, loss, inputs, labels)
    norms = gradient_norms(model, loss, inputs, labels)
    assert list(norms) == [name for name, weight in model.named_parameters() if weight.requires_grad]
    for name, sizes in norms.items():
        assert torch.allclose(sizes, torch.stack([gradient[name].norm() for gradient in gradients]))
    totals = torch.stack([torch.cat([part.flatten() for part in g.values()]).norm() for g in gradients])
    for clip in (0.5 * totals.median().item() + 1e-6, 2 * totals.max().item() + 1.0):
        sums, found = clipped_sum(dense_chain(model), loss, inputs.clone(), labels, clip)
        assert torch.allclose(found, totals)
        for name, value in sums.items():
            loop = sum(g[name] * min(1.0, clip / max(t.item(), 1e-300)) for g, t in zip(gradients, totals))
            assert torch.allclose(value, loop, atol=1e-12)


def test_one_clipped_gradient_has_norm_at_most_the_clip():
    model = models()["nested, with biases"]
    for row in range(5):
        sums, norms = clipped_sum(dense_chain(model), CE, drawn(5, 12)[[row]], torch.tensor([1]), 0.1)
        assert norms.item() > 0.1
        assert torch.cat([value.flatten() for value in sums.values()]).norm().item() == pytest.approx(0.1)


def test_a_sample_without_a_gradient_adds_nothing_and_no_nan():
    model = nn.Sequential(nn.Linear(2, 3, bias=False)).double()
    sums, norms = clipped_sum(dense_chain(model), CE, torch.zeros(2, 2).double(), torch.tensor([0, 1]), 1.0)
    assert not norms.any() and not sums["0.weight"].any()


def test_the_model_and_the_data_stay_as_they_are():
    model, inputs, labels = models()["in place"], drawn(4, 12), torch.tensor([0, 1, 2, 0])
    before, data = snapshot(model), inputs.clone()
    with torch.no_grad():
        gradient_norms(model, CE, inputs, labels)
    assert changed_between(before, snapshot(model)) is None
    assert torch.equal(inputs, data)


def tied():
    layer = nn.Linear(3, 3)
    return nn.Sequential(layer, nn.ReLU(), layer)


@pytest.mark.parametrize(
    ("model", "word"),
    [
        (tied(), "twice"),
        (nn.Sequential(OrthogonalLinear(3, 3)), "OrthogonalLinear"),
        (nn.Sequential(Residual(nn.Linear(3, 3))), "Residual"),
        (nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3)).eval(), "BatchNorm1d"),
        (nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Linear(3, 3), nn.Flatten()), "vectors"),
    ],
)
def test_what_has_no_ghost_norm_is_refused(model, word):
    with pytest.raises((UnsupportedLayerError, ValueError), match=word):
        gradient_norms(model, CE, torch.eye(3), torch.tensor([0, 1, 2]))


def test_frozen_layers_of_any_kind_may_stand_between():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double().eval()
    model[1].requires_grad_(False)
    inputs, labels = drawn(3, 3), torch.tensor([0, 1, 1])
    loop = one_by_one(copy.deepcopy(model), CE, inputs, labels)
    norms = gradient_norms(model, CE, inputs, labels)
    assert torch.allclose(norms["0.weight"], torch.stack([gradient["0.weight"].norm() for gradient in loop]))
