"""`fit`: it learns, from a copy, the same way every time, and gives back the best of what it judged."""

import copy
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lipbook.training import fit
from tests.training.spy import Spy

CROSS_ENTROPY = nn.CrossEntropyLoss()


def separable(count=300, seed=0):
    """Points of the plane, at least 0.2 away from the line that separates their two classes."""
    inputs = torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))
    labels = (inputs.sum(dim=1) > 0).long()
    return inputs + 0.2 * (2 * labels[:, None] - 1), labels


def noisy(count, seed):
    """Inputs with labels that have nothing to do with them."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 4, generator=generator), torch.randint(3, (count,), generator=generator)


def plain(*sizes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        linears = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    return nn.Sequential(*[layer for linear in linears for layer in (linear, nn.ReLU())][:-1])


def drawing():
    """A model that draws while it trains, and keeps running statistics."""
    first, second = plain(4, 8), plain(8, 3)
    return nn.Sequential(first, nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(), second)


def same_weights(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def batches_of(count, batch_size, steps, seed=0):
    """The samples, by number, in each batch that a run of `fit` trains on."""
    spy = Spy()
    inputs = torch.arange(count, dtype=torch.float32)[:, None]
    model = nn.Sequential(spy, plain(1, 2))
    fit(model, (inputs, torch.zeros(count).long()), None, CROSS_ENTROPY, steps, seed, batch_size)
    return [x.flatten().long().tolist() for training, x in spy.seen if training]


def test_it_learns_what_a_line_separates():
    train, validation, fresh = (separable(seed=seed) for seed in range(3))
    model, record = fit(plain(2, 2), train, validation, CROSS_ENTROPY, steps=300, lr=0.1)
    for inputs, labels in (train, validation, fresh):
        assert torch.equal(model(inputs).argmax(dim=1), labels)
    assert record.validation[-1] == (300, 1.0)
    assert record.losses[-1] < record.losses[0] / 5


@pytest.mark.parametrize("training", [True, False])
def test_what_is_given_stays_as_it_was(training):
    model, loss = drawing().train(training), nn.CrossEntropyLoss(weight=torch.ones(3))
    model[0].eval()
    model[4][0].bias.grad = torch.full((3,), 7.0)
    loss.temperature = nn.Parameter(torch.ones(()))
    inputs, labels = noisy(50, seed=1)
    inputs.requires_grad_()
    before, modes = copy.deepcopy(model.state_dict()), [part.training for part in model.modules()]
    kept, random_state = (inputs.detach().clone(), labels.clone()), torch.get_rng_state()
    trained, _ = fit(
        model, (inputs, labels), noisy(9, seed=2), lambda z, y: loss(z * loss.temperature, y), steps=30
    )
    assert not same_weights(trained, model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert modes == [part.training for part in model.modules()]
    assert torch.equal(model[4][0].bias.grad, torch.full((3,), 7.0)) and model[0][0].weight.grad is None
    assert torch.equal(inputs, kept[0]) and torch.equal(labels, kept[1])
    assert inputs.grad is None and loss.temperature.grad is None
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not any(part.training for part in trained.modules())
    assert all(weight.grad is None for weight in trained.parameters())


@pytest.mark.parametrize("first", [nn.Identity(), nn.Flatten()], ids=str)
def test_a_model_that_acts_in_place_leaves_the_data_as_they_were(first):
    model = nn.Sequential(first, nn.ReLU(inplace=True), plain(4, 3))
    train, validation = noisy(40, seed=1), noisy(9, seed=2)
    fit(model, train, validation, CROSS_ENTROPY, 3)
    assert torch.equal(train[0], noisy(40, seed=1)[0])
    assert torch.equal(validation[0], noisy(9, seed=2)[0])


def test_the_seed_alone_decides_the_weights():
    train, validation, start = noisy(70, seed=1), noisy(20, seed=2), drawing()
    runs = []
    for seed, state in ((0, 5), (0, 6), (1, 5)):
        torch.manual_seed(state)
        runs.append(fit(start, train, validation, CROSS_ENTROPY, steps=25, seed=seed, batch_size=16))
    (first, record), (again, same_record), (other, _) = runs
    assert same_weights(first, again) and record == same_record
    assert not same_weights(first, other)


def test_the_checkpoint_that_comes_back_is_the_earliest_of_the_best():
    """Each judged checkpoint is kept as its logits of one-hot inputs, and judged anew by hand."""
    spy, (_, labels) = Spy(), noisy(12, seed=2)
    inputs = torch.eye(12)
    train = (torch.randn(64, 12, generator=torch.Generator().manual_seed(3)), noisy(64, seed=3)[1])
    model = nn.Sequential(plain(12, 3), spy)
    best, record = fit(model, train, (inputs, labels), CROSS_ENTROPY, 40, batch_size=8, lr=0.3)
    judged = [logits for training, logits in spy.seen if not training and len(logits) == 12]
    right = [sum(int(z.argmax()) == y for z, y in zip(logits, labels.tolist())) for logits in judged]
    assert record.validation == tuple((2 * k + 2, count / 12) for k, count in enumerate(right))
    earliest = right.index(max(right))
    assert right.count(max(right)) > 1 and right[-1] < max(right), (
        "this run has no ties, or improves to its end"
    )
    assert record.best_step == 2 * earliest + 2
    assert torch.equal(best(inputs), judged[earliest])


def test_judging_changes_nothing_and_without_it_the_last_weights_come_back():
    spy = Spy()
    model, train, validation = nn.Sequential(drawing(), spy), noisy(60, seed=1), noisy(25, seed=2)
    arguments = {"loss": CROSS_ENTROPY, "steps": 30, "batch_size": 20, "lr": 0.05}
    fit(model, train, validation, **arguments)
    last_judged = spy.seen[-1][1]
    last, record = fit(model, train, None, **arguments)
    assert torch.equal(last(validation[0]), last_judged)
    assert record.validation == () and record.best_step == record.steps == 30 == len(record.losses)


@pytest.mark.parametrize(("steps", "count"), [(1, 1), (7, 7), (20, 20), (50, 20), (999, 20)])
def test_a_run_is_judged_twenty_times_or_at_every_step_of_a_short_one(steps, count):
    _, record = fit(plain(2, 2), separable(9), separable(5), CROSS_ENTROPY, steps)
    judged = [step for step, _ in record.validation]
    assert len(judged) == count and judged[-1] == steps
    gaps = {b - a for a, b in itertools.pairwise([0, *judged])}
    assert max(gaps) - min(gaps) <= 1


@given(count=st.integers(1, 40), batch_size=st.integers(1, 50), seed=st.integers(0, 9))
def test_an_epoch_visits_every_sample_once_in_even_batches(count, batch_size, seed):
    parts = -(-count // batch_size)
    batches = batches_of(count, batch_size, 2 * parts, seed)
    for epoch in (batches[:parts], batches[parts:]):
        assert sorted(itertools.chain(*epoch)) == list(range(count))
    sizes = [len(batch) for batch in batches]
    assert max(sizes) <= batch_size and max(sizes) - min(sizes) <= 1


def test_each_epoch_has_its_own_order():
    orders = [tuple(itertools.chain(*batches_of(30, 10, 9)[3 * k : 3 * k + 3])) for k in range(3)]
    assert len({*orders, tuple(range(30))}) == 4


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_the_learning_rate_falls_linearly_to_zero(steps):
    """Under a constant gradient Adam moves each weight by exactly its learning rate."""
    model = plain(1, 2).double()
    trained, record = fit(
        model,
        (torch.ones(5, 1, dtype=torch.float64), torch.zeros(5).long()),
        None,
        lambda logits, labels: (logits[:, 0] - logits[:, 1]).mean(),
        steps,
        lr=0.25,
    )
    moved = (trained[0].bias - model[0].bias).tolist()
    assert moved == pytest.approx([-0.25 * (steps + 1) / 2, 0.25 * (steps + 1) / 2], rel=1e-6)
    first_move = 4 * 0.25  # of the loss: two weights and two biases
    fall = [first_move * (1 - k / steps) for k in range(steps - 1)]
    assert [a - b for a, b in itertools.pairwise(record.losses)] == pytest.approx(fall, rel=1e-6)


def test_it_trains_in_train_mode_and_judges_in_eval_mode():
    spy = Spy()
    model, record = fit(
        nn.Sequential(spy, nn.BatchNorm1d(4), nn.Dropout(0.5), plain(4, 3)).eval(),
        noisy(30, seed=1),
        (val := noisy(11, seed=2)),
        CROSS_ENTROPY,
        20,
        batch_size=10,
    )
    assert {(training, len(x)) for training, x in spy.seen if len(x) > 1} == {(True, 10), (False, 11)}
    assert model[1].num_batches_tracked == record.best_step
    accuracy = (model(val[0]).argmax(dim=1) == val[1]).double().mean().item()
    assert accuracy == max(found for _, found in record.validation)


def test_shared_weights_stay_shared_and_frozen_ones_stay():
    shared = plain(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared, plain(4, 4).requires_grad_(False), plain(4, 3))
    trained, _ = fit(model, noisy(40, seed=1), noisy(9, seed=2), CROSS_ENTROPY, 10)
    assert trained[0] is trained[2] and not same_weights(trained[0], shared)
    assert same_weights(trained[3], model[3])
    assert not any(weight.requires_grad for weight in trained[3].parameters())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_trains_where_gradients_are_switched_off(mode):
    expected, _ = fit(plain(4, 3), noisy(40, seed=1), None, CROSS_ENTROPY, 5)
    with mode():
        found, _ = fit(plain(4, 3), noisy(40, seed=1), None, CROSS_ENTROPY, 5)
    assert same_weights(expected, found)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_labels_of_any_integer_dtype_do(dtype):
    inputs, labels = noisy(40, seed=1)
    expected, _ = fit(plain(4, 3), (inputs, labels), None, CROSS_ENTROPY, 5)
    found, _ = fit(plain(4, 3), (inputs, labels.to(dtype)), None, CROSS_ENTROPY, 5)
    assert same_weights(expected, found)


def spoiled_from(step, value):
    calls = itertools.count(1)
    return lambda z, y: CROSS_ENTROPY(z, y) * (value if next(calls) >= step else 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(value):
    state = torch.get_rng_state()
    with pytest.raises(FloatingPointError, match=f"loss is {value} at step 17: take a smaller lr"):
        fit(drawing(), noisy(40, seed=1), None, spoiled_from(17, value), 30)
    assert torch.equal(torch.get_rng_state(), state)


def test_weights_that_are_not_finite_after_the_last_step_are_not_returned():
    def kink(logits, labels):
        return (0 * logits).square().sum().sqrt()  # a finite loss whose gradient is 0 times infinity

    with pytest.raises(FloatingPointError, match="0.bias is NaN or infinite at step 1"):
        fit(plain(4, 3), noisy(40, seed=1), None, kink, 1)


def test_a_running_statistic_that_overflows_while_the_loss_is_finite_is_not_returned():
    inputs, labels = noisy(40, seed=1)
    with pytest.raises(FloatingPointError, match="0.running_var is NaN or infinite at step 1"):
        fit(nn.Sequential(nn.BatchNorm1d(4), plain(4, 3)), (1e30 * inputs, labels), None, CROSS_ENTROPY, 20)


def test_a_buffer_that_was_infinite_from_the_start_is_nobodys_business():
    model = plain(4, 3)
    model.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    trained, _ = fit(model, noisy(40, seed=1), None, CROSS_ENTROPY, 3)
    assert torch.equal(trained.mask, model.mask)


class NotANumber(nn.Module):
    def forward(self, x):
        return x if self.training else x * torch.nan


def test_logits_that_are_nan_in_eval_mode_alone_are_not_judged():
    model = nn.Sequential(plain(4, 3), NotANumber())
    with pytest.raises(FloatingPointError, match="a logit of a validation sample is NaN at step 2"):
        fit(model, noisy(40, seed=1), noisy(9, seed=2), CROSS_ENTROPY, 40)


def test_a_loss_of_something_else_than_the_logits_is_refused():
    other = nn.Parameter(torch.ones(()))
    with pytest.raises(ValueError, match="depends on no weight of the model"):
        fit(plain(4, 3), noisy(40, seed=1), None, lambda z, y: other.square(), 3)


def test_the_default_device_does_not_matter():
    expected, _ = fit(plain(4, 3), noisy(40, seed=1), noisy(9, seed=2), CROSS_ENTROPY, 5)
    model, train, validation = plain(4, 3), noisy(40, seed=1), noisy(9, seed=2)
    with torch.device("meta"):
        found, _ = fit(model, train, validation, CROSS_ENTROPY, 5)
    assert same_weights(expected, found)


@pytest.mark.parametrize("progress", [False, True])
def test_a_bar_is_shown_only_when_asked_for(capsys, progress):
    fit(plain(4, 3), noisy(40, seed=1), noisy(9, seed=2), CROSS_ENTROPY, 30, progress=progress)
    shown = capsys.readouterr()
    assert shown.out == "" and ("30/30" in shown.err) == progress
    assert progress or shown.err == ""


def test_a_record_cannot_be_changed():
    _, record = fit(plain(4, 3), noisy(40, seed=1), None, CROSS_ENTROPY, 3)
    with pytest.raises(AttributeError):
        record.best_step = 1
