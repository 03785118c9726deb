"""What `fit` may be asked for: a schedule, shifts, a device, and losses that need more than logits."""

import itertools
import math

import pytest
import torch
from torch import nn

from lipbook.layers import MaxMin, OrthogonalLinear
from lipbook.training import (
    EMMALoss,
    GloRoLoss,
    LogitAnnealingLoss,
    OffsetCrossEntropy,
    RadiusRamp,
    fit,
    loop,
    pair_constants,
)
from tests.training.spy import Spy

CROSS_ENTROPY = nn.CrossEntropyLoss()


def plain(*sizes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        linears = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    return nn.Sequential(*[layer for linear in linears for layer in (linear, nn.ReLU())][:-1])


def noisy(count, seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *shape, generator=generator), torch.randint(3, (count,), generator=generator)


def same_weights(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def by_hand(model, inputs, labels, steps, seed, batch_size, lr, loss=CROSS_ENTROPY):
    """The plain loop, without a line of the library."""
    optimizer = torch.optim.Adam(model.train().parameters())
    generator, order = torch.Generator().manual_seed(seed), []
    for k in range(steps):
        if not order:
            parts = -(-len(inputs) // batch_size)
            order = list(torch.randperm(len(inputs), generator=generator).tensor_split(parts))
        batch = order.pop(0)
        optimizer.param_groups[0]["lr"] = lr * (1 - k / steps)
        optimizer.zero_grad()
        loss(model(inputs[batch]), labels[batch]).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("options", [{}, {"shift": 0, "schedule": "linear", "device": "cpu"}])
def test_without_options_it_trains_bit_for_bit_as_a_plain_loop_does(options):
    train = noisy(50, 1, 1, 4, 4)
    model = nn.Sequential(nn.Flatten(), plain(16, 8, 3))
    found, _ = fit(model, train, None, CROSS_ENTROPY, 30, seed=4, batch_size=15, lr=0.02, **options)
    assert same_weights(found, by_hand(model, *train, 30, seed=4, batch_size=15, lr=0.02))


@pytest.mark.parametrize("steps", [1, 2, 9])
@pytest.mark.parametrize(
    ("schedule", "share"),
    [("linear", lambda t: 1 - t), ("cosine", lambda t: math.cos(math.pi * t / 2) ** 2)],
)
def test_the_learning_rate_is_that_of_the_schedule(schedule, share, steps):
    """Under a constant gradient Adam moves each weight by exactly its learning rate."""
    model, inputs = plain(1, 2).double(), torch.ones(5, 1, dtype=torch.float64)

    def slope(logits, labels):
        return (logits[:, 0] - logits[:, 1]).mean()

    trained, record = fit(
        model, (inputs, torch.zeros(5).long()), None, slope, steps, lr=0.25, schedule=schedule
    )
    rates = [0.25 * share(k / steps) for k in range(steps)]
    moved = (trained[0].bias - model[0].bias).tolist()
    assert moved == pytest.approx([-sum(rates), sum(rates)], rel=1e-6)
    fall = [4 * rate for rate in rates[:-1]]  # of the loss: two weights and two biases
    assert [a - b for a, b in itertools.pairwise(record.losses)] == pytest.approx(fall, rel=1e-6)


def dots(count, size, shift):
    """One bright pixel an image, of a brightness of its own, no closer to the edge than it may be moved."""
    generator = torch.Generator().manual_seed(0)
    images = torch.zeros(count, 1, size, size)
    places = torch.randint(shift, size - shift, (count, 2), generator=generator)
    images[torch.arange(count), 0, places[:, 0], places[:, 1]] = torch.arange(count) + 1.0
    return images, places


def moves_seen(shift, steps=60, count=40, size=7):
    """The moves of the images in each step, by where their pixels ended."""
    images, places = dots(count, size, shift)
    spy = Spy()
    model, labels = nn.Sequential(spy, nn.Flatten(), plain(size**2, 2)), torch.zeros(count).long()
    fit(model, (images, labels), (images, labels), CROSS_ENTROPY, steps, batch_size=count, shift=shift)
    steps_seen = []
    for batch in (x for training, x in spy.seen if training):
        numbers, _, y, x = batch.nonzero().T
        assert numbers.tolist() == list(range(count)), "each image keeps its one bright pixel"
        which = batch[numbers, 0, y, x].long() - 1
        assert sorted(which.tolist()) == list(range(count))
        steps_seen.append(torch.stack((y, x), 1)[which.argsort()] - places)
    judged = [x for training, x in spy.seen if not training and len(x) > 1]
    assert judged and all(torch.equal(x, images) for x in judged), "images are judged where they are"
    return torch.stack(steps_seen)


@pytest.mark.parametrize("shift", [1, 2])
def test_each_image_is_moved_by_at_most_the_shift_and_by_every_move_alike(shift):
    moves = moves_seen(shift)
    assert moves.abs().max() == shift
    found = torch.bincount(((2 * shift + 1) * (moves[..., 0] + shift) + moves[..., 1] + shift).flatten())
    expected = moves.numel() / 2 / (2 * shift + 1) ** 2
    assert len(found) == (2 * shift + 1) ** 2
    assert (found - expected).abs().max() < 5 * expected**0.5


def test_images_are_moved_independently_and_anew_at_each_step():
    moves = moves_seen(1)
    for row in (*moves, *moves.transpose(0, 1)):  # of one step, of one image: 40 or 60 draws from 9 moves
        assert len({tuple(move) for move in row.tolist()}) > 4
    again = (moves[1:] == moves[:-1]).all(dim=-1).double().mean().item()
    assert again == pytest.approx(1 / 9, abs=0.04)


def test_the_shift_changes_neither_the_order_nor_what_the_model_draws():
    """On images that are the same wherever they are moved to, it changes nothing at all."""
    inputs, labels = torch.zeros(40, 2, 4, 4), noisy(40, 1, 1)[1]
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 8), nn.Dropout(0.5), plain(8, 3))
    runs = [fit(model, (inputs, labels), None, CROSS_ENTROPY, 20, batch_size=9, shift=k) for k in (0, 2)]
    assert same_weights(runs[0][0], runs[1][0]) and runs[0][1] == runs[1][1]


class OfConstants(nn.Module):
    """A loss of the constants alone, which keeps what it was given."""

    needs_constants = True

    def __init__(self):
        super().__init__()
        self.given = []

    def forward(self, logits, labels, constants):
        self.given.append(constants)
        return constants.sum() / len(constants) ** 2


def test_a_loss_that_needs_constants_gets_them_with_gradients_in_the_dtype_of_the_model():
    model, loss = plain(4, 6, 3), OfConstants()
    trained, record = fit(model, noisy(40, 1, 4), None, loss, 30, lr=0.01)
    assert all(given.shape == (3, 3) and given.requires_grad for given in loss.given)
    assert all(given.dtype == torch.float32 and not given.diagonal().any() for given in loss.given)
    exact = pair_constants(model)
    assert torch.allclose(loss.given[0].double(), exact, rtol=0.05)
    assert record.losses[-1] < 0.8 * record.losses[0]
    assert (pair_constants(trained) < exact + 1e-9).all()
    assert not torch.equal(trained[0].weight, model[0].weight), "the gradient reaches the body"


def test_the_constants_are_asked_of_the_copy_in_train_mode_with_the_shape_of_a_sample(monkeypatch):
    asked = []

    def stand_in(model, differentiable=False, input_shape=None):
        asked.append((model, model.training, differentiable, input_shape))
        return model[-1].weight @ model[-1].weight.T

    monkeypatch.setattr(loop, "pair_constants", stand_in)
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 3)).eval()
    fit(model, noisy(20, 1, 2, 2, 2), noisy(9, 2, 2, 2, 2), OfConstants(), 4)
    assert len(asked) == 4 and {entry[1:] for entry in asked} == {(True, True, (2, 2, 2))}
    assert len({id(entry[0]) for entry in asked}) == 1 and asked[0][0] is not model


class Ramp:
    """Asked for the loss of each step; it has no value of its own."""

    def __init__(self, needs_constants):
        self.asked = []
        self.needs_constants = needs_constants

    def at(self, progress):
        self.asked.append(progress)
        return OfConstants() if self.needs_constants else lambda z, y: progress + CROSS_ENTROPY(z, y)

    def __call__(self, *arguments):
        raise TypeError("a ramp is no loss")


@pytest.mark.parametrize("needs_constants", [True, False])
def test_a_ramp_is_asked_for_the_loss_of_each_step(needs_constants):
    ramp = Ramp(needs_constants)
    _, record = fit(plain(4, 3), noisy(40, 1, 4), None, ramp, 8, lr=1e-9)
    assert ramp.asked == [k / 8 for k in range(8)]
    if not needs_constants:
        assert record.losses == pytest.approx([record.losses[0] + k / 8 for k in range(8)], abs=1e-4)


@pytest.mark.parametrize(
    "loss",
    [
        OffsetCrossEntropy(0.5, 0.25),
        EMMALoss(0.1),
        RadiusRamp(EMMALoss(0.1)),
        GloRoLoss(0.1),
        RadiusRamp(LogitAnnealingLoss(0.1), until=1.0),
    ],
    ids=repr,
)
@pytest.mark.parametrize("body", ["free", "orthogonal"])
def test_every_loss_of_certified_training_trains_and_resumes(tmp_path, loss, body):
    """The labels are those of a linear map, which both networks can learn. The second run reads the first."""
    inputs, _ = noisy(300, 1, 1, 2, 3)
    labels = inputs.flatten(1)[:, :3].argmax(dim=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = (
            plain(6, 12, 3) if body == "free" else [OrthogonalLinear(6, 8), MaxMin(), OrthogonalLinear(8, 3)]
        )
    model, data = nn.Sequential(nn.Flatten(), *layers), (inputs, labels)
    arguments = {"loss": loss, "steps": 60, "lr": 0.02, "batch_size": 100, "checkpoint": tmp_path / "run.pt"}
    trained, record = fit(model, data, data, **arguments)
    assert max(accuracy for _, accuracy in record.validation) > 0.7
    again, same = fit(model, data, data, **arguments)
    assert same_weights(trained, again) and record == same


def test_the_device_may_be_named():
    expected, record = fit(plain(4, 3), noisy(40, 1, 4), noisy(9, 2, 4), CROSS_ENTROPY, 5, device="cpu")
    for device in (torch.device("cpu"), "cpu:0"):
        found, same = fit(plain(4, 3), noisy(40, 1, 4), noisy(9, 2, 4), CROSS_ENTROPY, 5, device=device)
        assert same_weights(expected, found) and record == same
        assert {weight.device.type for weight in found.parameters()} == {"cpu"}


@pytest.mark.parametrize("device", ["cuda", "cuda:0", torch.device("cuda")])
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused(device):
    with pytest.raises(
        ValueError, match=r'device "cuda.*" is not on this machine \(.*\): use "cpu", or None'
    ):
        fit(plain(4, 3), noisy(40, 1, 4), None, CROSS_ENTROPY, 5, device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_where_none_is_named_it_is_the_gpu_that_torch_tells_of(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match='device "cuda" is not on this machine'):
        fit(plain(4, 3), noisy(40, 1, 4), None, CROSS_ENTROPY, 5)


def test_a_set_too_large_for_the_device_is_moved_batch_by_batch(monkeypatch):
    train, validation = noisy(60, 1, 4), noisy(20, 2, 4)
    expected, record = fit(plain(4, 3), train, validation, CROSS_ENTROPY, 20)
    monkeypatch.setattr(loop, "_SMALL", 0)
    found, same = fit(plain(4, 3), train, validation, CROSS_ENTROPY, 20)
    assert same_weights(expected, found) and record == same


def test_a_shift_needs_images_that_it_leaves_in_sight():
    flat, small = noisy(20, 1, 16), noisy(20, 1, 1, 5, 3)
    with pytest.raises(ValueError, match=r"shift=1 moves images of shape \(n, c, h, w\).*\(20, 16\)"):
        fit(plain(16, 3), flat, None, CROSS_ENTROPY, 3, shift=1)
    with pytest.raises(ValueError, match="shift=3 could move an image of 5 x 3 out of sight"):
        fit(nn.Sequential(nn.Flatten(), plain(15, 3)), small, None, CROSS_ENTROPY, 3, shift=3)
    fit(nn.Sequential(nn.Flatten(), plain(15, 3)), small, None, CROSS_ENTROPY, 3, shift=2)
    fit(plain(16, 3), flat, None, CROSS_ENTROPY, 3, shift=0)
