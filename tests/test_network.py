"""A model read as a chain of primitives, against its forward pass."""

import pytest
import torch
from torch import nn

from lipbook import UnsupportedLayerError
from lipbook.contracts import expand, output_shape
from lipbook.layers import MaxMin, Normalize, Residual, SandwichLinear
from lipbook.network import checked_logits, count_logits, pairs_of, read, split_head

NESTED = nn.Sequential(
    Normalize(0.5, 0.25),
    nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(12, 6), MaxMin()), nn.Sequential()),
    Residual(nn.Sequential(nn.Linear(6, 6), nn.ReLU())),
    nn.Linear(6, 3),
)


def test_the_primitives_compute_what_the_model_computes_and_have_the_shapes_that_are_told():
    batch = values = torch.randn(2, 3, 4)
    for layer, before, after in read(NESTED, (3, 4)):
        assert before == values.shape[1:]
        values = layer(values)
        assert after == values.shape[1:]
    assert torch.equal(values, NESTED(batch))


def test_without_a_shape_no_shape_is_known():
    steps = read(NESTED)
    assert [type(step.layer) for step in steps] == [type(step.layer) for step in read(NESTED, (3, 4))]
    assert all(step.input_shape is None and step.output_shape is None for step in steps)


class Doubled(nn.Module):
    """A block that says what it is made of, and has no Lipschitz contract of its own."""

    def __init__(self):
        super().__init__()
        self.parts = nn.Sequential(nn.Linear(3, 3), nn.Sequential(SandwichLinear(3, 3)))

    def forward(self, inputs):
        return self.parts(inputs)


expand.register(Doubled, lambda layer: (layer.parts,))


def test_a_block_with_a_constant_of_its_own_stays_whole_and_another_is_taken_apart():
    sandwich, other = SandwichLinear(3, 3), Doubled()
    model = nn.Sequential(nn.Sequential(sandwich), other)
    assert [step.layer for step in read(model, (3,))] == [sandwich, other.parts[0], other.parts[1][0]]
    assert [type(layer) for layer in expand(model)] == [
        *[nn.Linear, nn.ReLU, nn.Linear, nn.Linear],
        *[nn.Linear, nn.ReLU, nn.Linear],
    ]


def test_a_layer_that_appears_twice_is_read_twice():
    layer = nn.Linear(3, 3)
    assert [step.layer for step in read(nn.Sequential(layer, nn.ReLU(), layer))][::2] == [layer, layer]


def test_the_empty_model_is_the_empty_chain():
    assert read(nn.Sequential(), (3,)) == ()


@pytest.mark.parametrize("model", [nn.Linear(3, 2), nn.ReLU(), Residual(nn.Linear(3, 3))], ids=repr)
def test_what_is_not_a_sequential_is_refused_with_advice(model):
    with pytest.raises(UnsupportedLayerError, match=r"wrap one layer as nn\.Sequential\(layer\)"):
        read(model)


class Halved(nn.Sequential):
    def forward(self, x):
        return super().forward(x) / 2


def hooked():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    model[1].register_forward_hook(lambda module, inputs, output: 2 * output)
    return model


def hidden():
    model = nn.Sequential(nn.Linear(3, 3))
    model[0].forward = lambda x: x
    return model


@pytest.mark.parametrize(
    ("model", "word"),
    [
        (Halved(nn.Linear(3, 3)), "forward"),
        (hooked(), "hook"),
        (hidden(), "hides"),
        (nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)), "train mode"),
        (nn.Sequential(nn.BatchNorm1d(3)), "train mode"),
        (nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.LSTM(3, 3))), "nn.LSTM"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_layer_in_a_state_of_which_no_contract_speaks_is_refused(model, word):
    with pytest.raises(UnsupportedLayerError, match=word):
        read(model, (3,))


@pytest.mark.parametrize("shape", [(4,), (3, 3), (12, 2), ()])
def test_a_shape_that_does_not_fit_is_refused(shape):
    with pytest.raises(ValueError):
        read(NESTED, shape)


def test_the_head_is_the_last_linear_map():
    for shape in (None, (3, 4)):
        body, head = split_head(read(NESTED, shape))
        assert len(body) == len(read(NESTED)) - 1
        assert torch.equal(head, NESTED[3].weight.double()) and count_logits(read(NESTED, shape), head) == 3


def test_the_head_of_a_linear_layer_over_rows_maps_every_row():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2, bias=False)).double()
    steps = read(model, (5, 4))
    body, head = split_head(steps)
    batch = torch.randn(7, 5, 4, dtype=torch.float64)
    features = model[:2](batch).flatten(1)
    assert torch.allclose(features @ head.T, model(batch).flatten(1), rtol=1e-12)
    assert count_logits(steps, head) == 10


@pytest.mark.parametrize("last", [nn.ReLU(), MaxMin(), nn.Softplus()], ids=repr)
def test_a_model_that_does_not_end_in_a_linear_map_has_no_head(last):
    model = nn.Sequential(nn.Linear(4, 6), last)
    steps = read(model, (4,))
    assert split_head(steps) == (steps, None) and count_logits(steps, None) == 6
    with pytest.raises(ValueError, match="pass input_shape"):
        count_logits(read(model), None)


@pytest.mark.parametrize("last", [nn.Flatten(), nn.BatchNorm1d(6).eval(), nn.Identity()], ids=repr)
def test_a_linear_map_without_a_size_of_its_own_is_no_head(last):
    steps = read(nn.Sequential(nn.Linear(4, 6), last), (4,))
    assert split_head(steps) == (steps, None)


def test_reading_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.ReLU()).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    split_head(read(model, (3,)))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state) and not model.training


@pytest.mark.parametrize("logits", [None, "pairs", 0, 2, (0, 2), (2, 1)])
def test_logits_that_the_model_has_are_given_back(logits):
    assert checked_logits(logits, 3) == logits


@pytest.mark.parametrize("logits", [3, -1, (0, 3), (-1, 0), (1, 1)])
def test_logits_that_the_model_does_not_have_are_a_value_error(logits):
    with pytest.raises(ValueError, match="from 0 to 2"):
        checked_logits(logits, 3)


@pytest.mark.parametrize("logits", [True, 1.0, "all", [0, 1], (0,), (), (0, 1, 2), (0, True), (0, None)])
def test_what_is_not_logits_is_a_type_error(logits):
    with pytest.raises(TypeError, match="logits must be None"):
        checked_logits(logits, 3)


def test_the_pairs_are_each_two_different_logits_once():
    assert pairs_of(3) == [(0, 1), (0, 2), (1, 2)] and pairs_of(1) == []
    assert len({frozenset(pair) for pair in pairs_of(10)}) == 45


def test_output_shapes_of_the_steps_are_those_of_the_whole():
    assert read(NESTED, (3, 4))[-1].output_shape == output_shape(NESTED, (3, 4))
