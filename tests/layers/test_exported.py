"""`export` against the models it is given: the same outputs, weights that are stored, nothing changed."""

import copy
import math

import pytest
import torch
from torch import nn

from lipbook import UnsupportedLayerError
from lipbook.bounds import product_bound
from lipbook.contracts import lipschitz
from lipbook.layers import (
    AOLConv2d,
    AOLLinear,
    MaxMin,
    Normalize,
    OrthogonalConv2d,
    OrthogonalLinear,
    Residual,
    export,
)
from lipbook.layers.parametrised import Parametrised

DENSE = ["cayley", "bjorck", "qr", "cholesky", "bro"]
MODELS = {
    **{method: (lambda m=method: nn.Sequential(OrthogonalLinear(5, 4, method=m)), (5,)) for method in DENSE},
    "dense network": (
        lambda: nn.Sequential(OrthogonalLinear(5, 6), MaxMin(), nn.Dropout(), AOLLinear(6, 3, bias=False)),
        (5,),
    ),
    "nested": (
        lambda: nn.Sequential(
            nn.Sequential(Normalize(0.5, 0.25), nn.Flatten()),
            nn.Sequential(nn.Sequential(OrthogonalLinear(8, 8, bias=False)), nn.ReLU(), nn.Linear(8, 4)),
        ),
        (2, 2, 2),
    ),
    "residual": (
        lambda: nn.Sequential(
            Residual(OrthogonalLinear(4, 4)), nn.ReLU(), Residual(nn.Sequential(AOLLinear(4, 4)))
        ),
        (4,),
    ),
    "bcop": (lambda: nn.Sequential(OrthogonalConv2d(2, 3, 3)), (2, 4, 5)),
    "bcop, zeros, stride": (lambda: nn.Sequential(OrthogonalConv2d(2, 6, 4, 2, "zeros")), (2, 4, 6)),
    "bcop, circular, stride": (lambda: nn.Sequential(OrthogonalConv2d(2, 6, 4, 2)), (2, 4, 6)),
    "patch": (lambda: nn.Sequential(OrthogonalConv2d(1, 5, 2, 2, method="patch")), (1, 4, 6)),
    "AOL": (lambda: nn.Sequential(AOLConv2d(2, 3, 3)), (2, 4, 4)),
    "AOL, zeros": (lambda: nn.Sequential(AOLConv2d(2, 3, 5, "zeros", bias=False)), (2, 4, 4)),
}
SIZED = {
    **{
        f"{method}, {h} x {w}": (
            lambda m=method: nn.Sequential(OrthogonalConv2d(2, 2, 3, method=m)),
            (2, h, w),
        )
        for method in ("soc", "cayley", "bro")
        for h, w in [(4, 5), (5, 4), (3, 3), (6, 6)]
    },
    "cayley, fewer channels": (lambda: nn.Sequential(OrthogonalConv2d(3, 2, 3, method="cayley")), (3, 4, 4)),
    "bro, more channels": (lambda: nn.Sequential(OrthogonalConv2d(2, 3, 3, method="bro")), (2, 4, 4)),
    "soc, zeros": (lambda: nn.Sequential(OrthogonalConv2d(2, 2, 3, 1, "zeros", method="soc")), (2, 4, 5)),
    "image network": (
        lambda: nn.Sequential(
            OrthogonalConv2d(1, 4, 2, 2, method="patch"),
            MaxMin(),
            Residual(nn.Sequential(OrthogonalConv2d(4, 4, 3, method="cayley"), MaxMin())),
            nn.Sequential(OrthogonalConv2d(4, 4, 3, padding_mode="zeros", method="soc"), MaxMin()),
            nn.Flatten(),
            OrthogonalLinear(36, 5),
        ),
        (1, 6, 6),
    ),
}
BOTH = {**MODELS, **SIZED}


def built(name, dtype=torch.float64):
    torch.manual_seed(0)
    model = BOTH[name][0]().to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", BOTH)
def test_the_outputs_are_those_of_the_model(name, dtype):
    model, shape = built(name, dtype), BOTH[name][1]
    plain = export(model, shape)
    x = torch.randn(3, *shape, dtype=dtype)
    found, expected = plain(x), model(x)
    assert found.shape == expected.shape and found.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(found, expected, rtol=0, atol=200 * eps * expected.abs().max().item())


@pytest.mark.parametrize("name", BOTH)
def test_no_layer_of_the_copy_computes_its_weights_and_none_is_shared(name):
    model = built(name)
    plain = export(model, BOTH[name][1])
    assert type(plain) is nn.Sequential and len(plain) == len(model)
    assert not any(isinstance(module, Parametrised) for module in plain.modules())
    own = {type(m) for m in plain.modules() if type(m).__module__.startswith("lipbook")}
    assert own <= {MaxMin, Normalize, Residual}
    storages = [{t.untyped_storage().data_ptr() for t in m.state_dict().values()} for m in (model, plain)]
    assert not storages[0] & storages[1]


@pytest.mark.parametrize("name", BOTH)
def test_the_model_is_left_as_it_is(name):
    model, shape = (
        built(name),
        SIZED[name][1] if name in SIZED else None,
    )  # in train mode Dropout has no shape
    for training in (True, False):
        model.train(training)
        before = copy.deepcopy(model.state_dict())
        random_state = torch.get_rng_state()
        plain = export(model, shape)
        assert plain.training is training and all(m.training is training for m in plain.modules())
        assert all(m.training is training for m in model.modules())
        after = model.state_dict()
        assert before.keys() == after.keys() and all(torch.equal(after[key], before[key]) for key in before)
        assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
        assert torch.equal(torch.get_rng_state(), random_state)
        with torch.no_grad():
            for parameter in plain.parameters():
                parameter.zero_()
        assert all(torch.equal(model.state_dict()[key], before[key]) for key in before)


@pytest.mark.parametrize("name", [name for name in BOTH if name != "image network"])
def test_the_bound_of_the_copy_is_that_of_the_model(name):
    model, shape = built(name), BOTH[name][1]
    plain = export(model, shape)
    bound = product_bound(plain, input_shape=shape)
    assert bound.verify(plain) is bound
    expected = product_bound(model, input_shape=shape).value
    loose = 1e-6 if name != "soc, zeros" else None  # 1 at every size, and the matrix has the norm that it has
    if loose:
        assert bound.value == pytest.approx(expected, rel=loose)
    else:
        assert bound.value <= expected * (1 + 1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_without_a_shape_the_layers_that_do_not_need_one_are_written(name):
    model, shape = built(name), BOTH[name][1]
    x = torch.randn(2, *shape, dtype=torch.float64)
    torch.testing.assert_close(export(model)(x), model(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SIZED)
def test_a_layer_that_depends_on_the_size_asks_for_it(name):
    with pytest.raises(ValueError, match="pass input_shape"):
        export(built(name))


def test_a_shape_that_a_layer_does_not_take_is_refused():
    with pytest.raises(ValueError, match="channels"):
        export(built("cayley, 4 x 5"), (3, 4, 5))
    with pytest.raises(ValueError):
        export(built("nested"), (3,))


def test_the_names_of_the_layers_are_kept():
    model = nn.Sequential()
    model.add_module("first", OrthogonalLinear(3, 4))
    model.add_module("activation", MaxMin())
    model.add_module("last", OrthogonalLinear(4, 2, bias=False))
    plain = export(model)
    assert [name for name, _ in plain.named_children()] == ["first", "activation", "last"]
    assert type(plain.first) is nn.Linear and plain.last.bias is None
    assert torch.equal(plain.first.weight, model.first.weight)
    assert torch.equal(plain.first.bias, model.first.bias)


def test_half_precision_is_kept_with_the_very_weights():
    model = nn.Sequential(OrthogonalLinear(4, 4), AOLLinear(4, 3)).bfloat16()
    plain = export(model)
    for layer, copied in zip(model, plain, strict=True):
        assert copied.weight.dtype == torch.bfloat16 and torch.equal(copied.weight, layer.weight)
        for norm in (2, math.inf):
            assert lipschitz(copied, norm).value == lipschitz(layer, norm).value


def test_a_copy_trains_and_its_weights_are_free():
    plain = export(nn.Sequential(OrthogonalLinear(4, 4), MaxMin(), OrthogonalLinear(4, 2)))
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in plain.parameters())
    plain(torch.randn(3, 4)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in plain.parameters())


def test_one_layer_alone_is_told_how_to_be_wrapped():
    with pytest.raises(UnsupportedLayerError, match=r"nn.Sequential\(layer\)"):
        export(OrthogonalLinear(3, 3))


def test_under_inference_mode_and_autocast_the_copy_is_the_same():
    model = built("dense network", torch.float32)
    expected = export(model).state_dict()
    with torch.inference_mode():
        first = export(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        second = export(model)
    for other in (first, second):
        for key, value in other.state_dict().items():
            assert value.dtype == expected[key].dtype and torch.equal(value, expected[key])
