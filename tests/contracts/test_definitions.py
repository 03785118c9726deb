"""Bad input to the contract functions, and the form of what a registered function must return."""

import math

import pytest
import torch
from torch import nn

from lipbook import Bound, UnsupportedLayerError
from lipbook.contracts import (
    Reflection,
    Sorting,
    affine,
    expand,
    lipschitz,
    output_shape,
    residual,
    slopes,
)

ONES = torch.ones(3)
NOT_SHAPES = [([3], TypeError), (3, TypeError), ("3", TypeError), ((), ValueError), ((0,), ValueError)]
NOT_SHAPES += [((-1,), ValueError), ((3.0,), ValueError), ((True,), ValueError), ((None, 3), ValueError)]


@pytest.mark.parametrize("shape, error", NOT_SHAPES)
def test_a_shape_is_a_tuple_of_positive_integers(shape, error):
    for read in (affine, output_shape, lambda layer, shape: lipschitz(layer, 2, shape)):
        with pytest.raises(error, match="tuple of positive integers"):
            read(nn.Identity(), shape)


def test_a_torch_size_is_a_shape():
    assert output_shape(nn.Flatten(), torch.zeros(2, 3).shape) == (6,)


@pytest.mark.parametrize("norm", [1, 3, "2", None, math.nan, True])
def test_the_norm_is_two_or_infinity(norm):
    with pytest.raises(ValueError, match="norm must be 2 or math.inf"):
        lipschitz(nn.ReLU(), norm)


INTERVALS = [
    ((ONES, None), ValueError, "neither"),
    ((None, ONES), ValueError, "neither"),
    ((1.0, 2.0), TypeError, "lower must be a torch.Tensor"),
    ((ONES.int(), ONES), TypeError, "lower must have a real floating dtype"),
    ((ONES * math.nan, ONES), ValueError, "lower has an entry that is NaN"),
    ((ONES, ONES * math.inf), ValueError, "upper has an entry that is NaN or infinite"),
    ((ONES, ONES[:2]), ValueError, "one shape"),
    ((ONES, ONES - 1e-3), ValueError, "lower must be at most upper"),
]


@pytest.mark.parametrize("ends, error, message", INTERVALS)
def test_an_interval_is_two_finite_tensors_of_one_shape_in_order(ends, error, message):
    with pytest.raises(error, match=message):
        slopes(nn.Tanh(), *ends)


def registered(contract, function):
    class Own(nn.Module):
        def forward(self, x):
            return x

    contract.register(Own)(function)
    return Own()


@pytest.mark.parametrize("returned", [1.0, Bound(1, "lower"), Bound(1, "upper", norm=math.inf)], ids=repr)
def test_a_lipschitz_contract_must_return_an_upper_bound_in_the_norm_asked_for(returned):
    layer = registered(lipschitz, lambda layer, norm, shape: returned)
    with pytest.raises(TypeError, match="contract of .*Own must return an upper Bound in norm 2"):
        lipschitz(layer)


@pytest.mark.parametrize(
    "weight, bias",
    [
        (torch.eye(2), torch.zeros(2)),
        (torch.eye(3).double(), torch.zeros(3).double()),
        (torch.eye(2).double(), torch.zeros(2)),
    ],
)
def test_an_affine_contract_must_return_float64_of_the_right_shape(weight, bias):
    layer = registered(affine, lambda layer, shape: (weight, bias))
    with pytest.raises(TypeError, match="must return a finite float64 weight"):
        affine(layer, (2,))


@pytest.mark.parametrize("a, b, dtype", [(0.0, 1.0, torch.float32), (1.0, 0.0, torch.float64)])
def test_a_slopes_contract_must_return_float64_in_order(a, b, dtype):
    ends = torch.tensor(a, dtype=dtype), torch.tensor(b, dtype=dtype)
    layer = registered(slopes, lambda layer, lower, upper: ends)
    with pytest.raises(TypeError, match="must return float64 tensors a <= b"):
        slopes(layer)


@pytest.mark.parametrize("structure", [Sorting(3, dim=2), Reflection(torch.eye(2))], ids=repr)
def test_a_slopes_contract_may_return_a_structure_with_or_without_an_interval(structure):
    layer = registered(slopes, lambda layer, lower, upper: structure)
    assert slopes(layer) is structure and slopes(layer, -ONES, ONES) is structure


@pytest.mark.parametrize("answer", ["sorting", (3, 1), Sorting, (Sorting(2), Sorting(2))], ids=repr)
def test_only_the_two_structures_are_answers_of_slopes(answer):
    layer = registered(slopes, lambda layer, lower, upper: answer)
    with pytest.raises(TypeError, match="a Sorting or a Reflection"):
        slopes(layer)


def test_reflections_compare_by_their_numbers_and_keep_a_copy_of_them():
    vectors = torch.eye(2, dtype=torch.float32, requires_grad=True)
    structure = Reflection(vectors)
    assert structure == Reflection(torch.eye(2)) and hash(structure) == hash(Reflection(torch.eye(2)))
    assert structure != Reflection(torch.eye(2), dim=2) and structure != Reflection(-torch.eye(2))
    with torch.no_grad():
        vectors[0, 0] = 7
    assert structure.vectors.dtype == torch.float64 and structure == Reflection(torch.eye(2))
    assert not structure.vectors.requires_grad and "2x2" in repr(structure)


def test_register_works_as_a_decorator_and_returns_the_function():
    class Own(nn.Module):
        pass

    @output_shape.register(Own)
    def shape(layer, input_shape):
        return (7,)

    assert output_shape(Own(), (3,)) == (7,) and shape(None, None) == (7,)


def test_a_bound_on_one_logit_is_not_a_bound_on_the_layer():
    layer = registered(lipschitz, lambda layer, norm, shape: Bound(0.1, "upper", norm=norm, output=0))
    with pytest.raises(TypeError, match="must return an upper Bound"):
        lipschitz(nn.Sequential(nn.Linear(2, 2), layer))


@pytest.mark.parametrize(
    ("contract", "answer", "arguments"),
    [
        (affine, (torch.full((2, 2), math.nan).double(), torch.zeros(2).double()), ((2,),)),
        (affine, [[1.0, 0.0], [0.0, 1.0]], ((2,),)),
        (slopes, (0.0, 1.0), ()),
        (output_shape, 2, ((2,),)),
        (expand, None, ()),
        (expand, nn.ReLU(), ()),
        (residual, torch.relu, ()),
        (residual, None, ()),
    ],
)
def test_an_answer_of_another_kind_is_refused_with_what_was_expected(contract, answer, arguments):
    layer = registered(contract, lambda *_: answer)
    with pytest.raises(TypeError, match="must return"):
        contract(layer, *arguments)


def test_a_batch_norm_whose_scale_overflows_is_refused():
    layer = nn.BatchNorm1d(2, eps=1e308).double().eval()
    layer.running_var.fill_(1.7e308)
    with pytest.raises(UnsupportedLayerError, match="running_var"):
        lipschitz(layer)
