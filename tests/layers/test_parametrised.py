"""Weights that are computed: what is kept in eval mode is never stale, and contracts never see it."""

import copy
import io
import math
import pickle

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacrev, stack_module_state, vmap

from lipbook import CertificateError, UnsupportedLayerError
from lipbook.bounds import product_bound
from lipbook.contracts import affine, lipschitz
from lipbook.layers import AOLConv2d, AOLLinear, OrthogonalConv2d, OrthogonalLinear
from lipbook.layers.parametrised import Parametrised

LAYERS = {
    "cayley": (lambda: OrthogonalLinear(4, 3), (4,)),
    "bjorck": (lambda: OrthogonalLinear(3, 4, method="bjorck"), (3,)),
    "qr": (lambda: OrthogonalLinear(4, 4, method="qr"), (4,)),
    "cholesky": (lambda: OrthogonalLinear(4, 3, bias=False, method="cholesky"), (4,)),
    "bro": (lambda: OrthogonalLinear(4, 3, method="bro"), (4,)),
    "AOL": (lambda: AOLLinear(4, 3), (4,)),
    "AOL, images": (lambda: AOLConv2d(2, 3, 3), (2, 4, 5)),
    "AOL, zeros": (lambda: AOLConv2d(3, 2, 3, "zeros", bias=False), (3, 4, 4)),
    "bcop": (lambda: OrthogonalConv2d(2, 3, 3), (2, 4, 4)),
    "bcop, stride": (lambda: OrthogonalConv2d(2, 5, 4, stride=2, padding_mode="zeros"), (2, 4, 6)),
    "patch": (lambda: OrthogonalConv2d(2, 5, 2, stride=2, method="patch"), (2, 4, 6)),
    "soc": (lambda: OrthogonalConv2d(2, 2, 3, method="soc"), (2, 4, 5)),
    "soc, zeros": (lambda: OrthogonalConv2d(2, 2, 3, padding_mode="zeros", method="soc"), (2, 4, 4)),
    "cayley, images": (lambda: OrthogonalConv2d(2, 3, 3, method="cayley"), (2, 4, 5)),
    "bro, images": (lambda: OrthogonalConv2d(3, 2, 3, method="bro", bias=False), (3, 5, 4)),
}
HALF = [name for name in LAYERS if name not in ("soc", "cayley, images", "bro, images")]


def built(name, seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    layer = LAYERS[name][0]().to(dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    return layer


def points(name, count=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, *LAYERS[name][1], generator=generator, dtype=torch.float64).to(dtype)


def fresh(layer, x):
    """What the layer's parameters give, by a layer in train mode that never kept a weight."""
    other = type(layer).__new__(type(layer))
    nn.Module.__init__(other)
    plain = {key: value for key, value in vars(layer).items() if key not in vars(other) and key[0] != "_"}
    for key, value in plain.items():
        setattr(other, key, value)
    for key in ("free", "free_projections", "bias"):
        if hasattr(layer, key):
            value = getattr(layer, key)
            setattr(other, key, None if value is None else nn.Parameter(value.detach().clone()))
    assert other.training and other._kept is None
    with torch.no_grad():
        return other(x)


# What is kept.


@pytest.mark.parametrize("name", LAYERS)
def test_in_eval_mode_without_gradients_the_weights_are_computed_once(name, monkeypatch):
    layer, x = built(name).eval(), points(name)
    calls = []
    monkeypatch.setattr(
        layer, "compute", lambda *size: calls.append(size) or type(layer).compute(layer, *size)
    )
    with torch.no_grad():
        outputs = [layer(x) for _ in range(3)]
    assert len(calls) == 1
    assert all(torch.equal(output, outputs[0]) for output in outputs)
    weights = layer._kept[2]
    layer.requires_grad_(False)
    layer(x)
    layer(x)
    assert len(calls) == 1 and layer._kept[2] is weights


@pytest.mark.parametrize("name", LAYERS)
def test_with_gradients_wanted_the_weights_are_computed_at_every_pass(name, monkeypatch):
    layer, x = built(name), points(name)
    calls = []
    monkeypatch.setattr(
        layer, "compute", lambda *size: calls.append(size) or type(layer).compute(layer, *size)
    )
    for training in (True, False):
        layer.train(training)
        calls.clear()
        layer(x)
        layer(x)
        assert len(calls) == 2
    assert layer._kept is None


@pytest.mark.parametrize("name", LAYERS)
def test_train_and_eval_mode_give_the_same_outputs(name):
    layer, x = built(name), points(name)
    expected = fresh(layer, x)
    for training in (True, False, True, False):
        layer.train(training)
        assert torch.equal(layer(x), expected)
        with torch.no_grad():
            assert torch.equal(layer(x), expected) and torch.equal(layer(x), expected)


def step(layer, x):
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.5)
    layer(x).square().sum().backward()
    optimiser.step()


def load(layer, x):
    other = copy.deepcopy(layer)
    edit(other, x)
    layer.load_state_dict(other.state_dict())


def load_assigned(layer, x):
    other = copy.deepcopy(layer)
    edit(other, x)
    layer.load_state_dict(other.state_dict(), assign=True)


def edit(layer, x):
    for parameter in layer.parameters():
        parameter.data[(0,) * parameter.ndim] += 0.75


def edit_without_gradients(layer, x):
    with torch.no_grad():
        layer.free.mul_(-0.5).add_(
            torch.eye(*layer.free.shape[:2]).reshape(*layer.free.shape[:2], *[1] * (layer.free.ndim - 2))
        )


def swap_data(layer, x):
    layer.free.data = layer.free.data.roll(1, 0) * 2


def replace(layer, x):
    layer.free = nn.Parameter(torch.randn_like(layer.free))


def reset(layer, x):
    layer.reset_parameters()


CHANGES = [step, load, load_assigned, edit, edit_without_gradients, swap_data, replace, reset]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("name", LAYERS)
def test_after_a_change_in_eval_mode_the_outputs_are_those_of_the_new_parameters(name, change):
    layer, x = built(name).eval(), points(name)
    with torch.no_grad():
        before = layer(x)
    change(layer, x)
    assert layer.training is False
    with torch.no_grad():
        after = layer(x)
    assert torch.equal(after, fresh(layer, x))
    assert not torch.equal(after, before)


@pytest.mark.parametrize("name", LAYERS)
def test_a_change_in_inference_mode_is_seen_outside_and_the_layer_trains_afterwards(name):
    layer, x = built(name).eval(), points(name)
    with torch.inference_mode():
        first = layer(x)
        edit(layer, x)
        second = layer(x)
    assert not torch.equal(first, second)
    with torch.no_grad():
        assert torch.equal(layer(x), second)
    leaf = x.clone().requires_grad_()
    layer.requires_grad_(False)
    layer(leaf).sum().backward()  # through weights that inference mode kept
    layer.requires_grad_(True)
    layer(leaf).square().sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in layer.parameters())
    step(layer.train(), x)
    assert torch.equal(layer(x), fresh(layer, x))


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_in_eval_mode_are_those_of_train_mode_after_weights_were_kept(name):
    layer, x = built(name), points(name)

    def gradients():
        layer.zero_grad()
        layer(x).square().sum().backward()
        return [parameter.grad.clone() for parameter in layer.parameters()]

    expected = gradients()
    assert any(gradient.any() for gradient in expected)
    layer.eval()
    with torch.no_grad():
        layer(x)
    for found, right in zip(gradients(), expected, strict=True):
        assert torch.equal(found, right)
    layer.requires_grad_(False)
    layer(x)
    layer.requires_grad_(True)
    for found, right in zip(gradients(), expected, strict=True):
        assert torch.equal(found, right)


@pytest.mark.parametrize("name", LAYERS)
def test_another_dtype_has_its_own_weights(name):
    layer, x = built(name, dtype=torch.float32).eval(), points(name)
    with torch.no_grad():
        single = layer(x.float())
        double = layer.double()(x)
        assert double.dtype == torch.float64 and torch.equal(double, fresh(layer, x))
        torch.testing.assert_close(double.float(), single, rtol=1e-3, atol=1e-3)
        assert torch.equal(layer.float()(x.float()), fresh(layer, x.float()))


@pytest.mark.parametrize("name", LAYERS)
def test_copies_and_pickles_compute_alike_and_leave_what_is_kept_behind(name):
    layer, x = built(name).eval(), points(name)
    with torch.no_grad():
        expected = layer(x)
    assert layer._kept is not None
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    copies = [
        copy.deepcopy(layer),
        copy.copy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(buffer, weights_only=False),
    ]
    with torch.no_grad():
        for other in copies:
            assert other._kept is None and other.training is False
            assert torch.equal(other(x), expected)
        edit(copies[0], x)
        assert torch.equal(copies[0](x), fresh(copies[0], x)) and torch.equal(layer(x), expected)


def test_an_image_of_another_size_has_its_own_weights():
    for name in ("soc", "cayley, images", "bro, images"):
        layer = built(name).eval()
        channels = LAYERS[name][1][0]
        for size in [(4, 5), (5, 4), (3, 3), (4, 5), (7, 2)]:
            x = torch.randn(2, channels, *size, dtype=torch.float64)
            with torch.no_grad():
                assert torch.equal(layer(x), fresh(layer, x))


def test_a_weight_that_is_read_and_changed_does_not_change_the_layer():
    for name in ("cayley", "AOL", "bcop", "AOL, images"):
        layer, x = built(name).eval(), points(name)
        with torch.no_grad():
            expected = layer(x)
            layer.weight.mul_(7)
            assert torch.equal(layer(x), expected)


def test_the_state_holds_the_parameters_and_nothing_else():
    for name in LAYERS:
        layer = built(name).eval()
        with torch.no_grad():
            layer(points(name))
        assert set(layer.state_dict()) == {key for key, _ in layer.named_parameters()}
        assert not list(layer.buffers())


# Contracts compute anew.


@pytest.mark.parametrize("name", LAYERS)
def test_contracts_neither_read_nor_write_what_is_kept(name):
    layer, shape, x = built(name).eval(), LAYERS[name][1], points(name)
    honest = lipschitz(layer, 2, shape).value
    assert layer._kept is None
    with torch.no_grad():
        expected = layer(x)
    values, size, weights = layer._kept
    poisoned = layer._kept = values, size, tuple(100 * weight for weight in weights)
    with torch.no_grad():
        bound = lipschitz(layer, 2, shape)
        assert bound.value == honest and bound.verify(layer) is bound
        assert layer._kept is poisoned
        assert not torch.equal(layer(x), expected)  # the forward pass does read it


@pytest.mark.parametrize("name", ["cayley", "AOL, images", "bcop"])
def test_the_affine_contract_is_the_materialised_weight(name):
    layer, shape = built(name, dtype=torch.float32).eval(), LAYERS[name][1]
    weight, bias = affine(layer, shape)
    x = points(name)
    with torch.no_grad():
        images = layer(x.float()).double().flatten(1)
    torch.testing.assert_close(x.flatten(1) @ weight.T + bias, images, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", LAYERS)
def test_reading_a_bound_leaves_the_layer_as_it_is(name):
    layer, shape = built(name), LAYERS[name][1]
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    random_state = torch.get_rng_state()
    for training in (True, False):
        layer.train(training)
        lipschitz(layer, 2, shape).verify(layer)
        lipschitz(layer, math.inf, shape).verify(layer)
        assert layer.training is training
        assert all(parameter.requires_grad and parameter.grad is None for parameter in layer.parameters())
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("name", LAYERS)
def test_a_nan_among_the_parameters_is_named_and_not_bounded(name):
    layer = built(name)
    layer.free.data[(0,) * layer.free.ndim] = math.nan
    with pytest.raises((ValueError, UnsupportedLayerError)) as caught:
        lipschitz(layer, 2, LAYERS[name][1])
    assert "nan" in str(caught.value).lower() or "infinite" in str(caught.value)


@pytest.mark.parametrize("name", LAYERS)
def test_parameters_of_another_shape_are_refused(name):
    layer = built(name)
    layer.free = nn.Parameter(torch.randn(*layer.free.shape[:-1], layer.free.shape[-1] + 2).double())
    with pytest.raises(UnsupportedLayerError, match="has free of shape"):
        lipschitz(layer, 2, LAYERS[name][1])


class Doubled(OrthogonalLinear):
    def forward(self, inputs):
        return 2 * super().forward(inputs)


class Larger(OrthogonalLinear):
    def compute(self):
        return (3 * super().compute()[0],)


def test_a_subclass_that_computes_something_else_is_refused_or_read_as_it_is():
    with pytest.raises(UnsupportedLayerError):
        lipschitz(Doubled(3, 3))
    try:
        value = lipschitz(Larger(3, 3)).value
    except UnsupportedLayerError:
        return
    assert value >= 3


def test_a_certificate_of_another_class_proves_nothing():
    torch.manual_seed(0)
    bound = lipschitz(OrthogonalLinear(3, 3))
    for other in (AOLLinear(3, 3), nn.Linear(3, 3), nn.Sequential(OrthogonalLinear(3, 3)), nn.ReLU()):
        with pytest.raises(CertificateError):
            bound.verify(other)


# torch.func, compilation, other dtypes.


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", LAYERS)
def test_jacobians_and_batches_of_samples(name, training):
    layer, x = built(name).train(training), points(name)
    outputs = layer(x).detach()
    torch.testing.assert_close(vmap(lambda sample: layer(sample[None])[0])(x), outputs)
    jacobian = jacrev(lambda sample: layer(sample[None])[0])(x[0])
    direction = (x[1] - x[0]).reshape(-1)
    moved = jacobian.reshape(outputs[0].numel(), -1) @ direction
    torch.testing.assert_close(moved, (outputs[1] - outputs[0]).reshape(-1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", LAYERS)
def test_functional_call_uses_the_parameters_it_is_given(name, training):
    layer, other, x = built(name).train(training), built(name, seed=1), points(name)
    with torch.no_grad():
        own = layer(x)
        state = {key: value.detach() for key, value in other.named_parameters()}
        assert torch.equal(functional_call(layer, state, x), fresh(other, x))
        assert torch.equal(functional_call(layer, dict(other.named_parameters()), x), fresh(other, x))
        assert torch.equal(layer(x), own)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_stack_of_states_is_run_at_once(name, training):
    layers, x = [built(name, seed=seed).train(training) for seed in range(3)], points(name)
    state, buffers = stack_module_state(layers)
    base = copy.deepcopy(layers[0])
    with torch.no_grad():
        base(x)
        found = vmap(lambda s: functional_call(base, (s, buffers), x))(state)
        expected = torch.stack([layer(x) for layer in layers])
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_by_torch_func_are_those_of_backward_and_per_sample_gradients_add_up(name):
    layer, x = built(name).eval(), points(name)
    with torch.no_grad():
        layer(x)
    state = {key: value.detach() for key, value in layer.named_parameters()}

    def loss(state, batch):
        return functional_call(layer, state, batch).square().sum()

    layer(x).square().sum().backward()
    found = grad(loss)(state, x)
    each = vmap(grad(loss), in_dims=(None, 0))(state, x[:, None])
    for key, parameter in layer.named_parameters():
        torch.testing.assert_close(found[key], parameter.grad, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(each[key].sum(0), parameter.grad, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_every_parameter_and_of_the_input_agree_with_finite_differences(name):
    layer, x = built(name, seed=2), points(name, count=1)
    names = [key for key, _ in layer.named_parameters()]
    values = [parameter.detach().clone().requires_grad_() for parameter in layer.parameters()]

    def run(batch, *parameters):
        return functional_call(layer, dict(zip(names, parameters)), batch)

    arguments = (x.clone().requires_grad_(), *values)
    assert torch.autograd.gradcheck(run, arguments, eps=1e-7, atol=1e-5, fast_mode=True)


def test_a_compiled_layer_computes_and_differentiates_alike():
    layer, x = built("cayley"), points("cayley")
    require_alike(torch.compile(layer, backend="aot_eager"), layer, x)


@pytest.mark.thorough
@pytest.mark.parametrize("name", LAYERS)
def test_every_compiled_layer_computes_and_differentiates_alike_in_both_modes(name):
    layer, x = built(name), points(name)
    compiled = torch.compile(layer, backend="aot_eager")
    for training in (True, False):
        require_alike(compiled, layer.train(training), x)
    with torch.no_grad():
        compiled(x)
        edit(layer, x)
        torch.testing.assert_close(compiled(x), fresh(layer, x), rtol=1e-10, atol=1e-10)


def require_alike(compiled, layer, x):
    results = []
    for run in (compiled, layer):
        layer.zero_grad()
        outputs = run(x)
        outputs.square().sum().backward()
        results.append([outputs.detach(), *(parameter.grad.clone() for parameter in layer.parameters())])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", HALF)
def test_half_precision_rounds_the_weight_and_the_bound_is_about_the_rounded_one(name, dtype):
    layer, shape = built(name, dtype=dtype).eval(), LAYERS[name][1]
    single = copy.deepcopy(layer).float()
    weights = layer.materialise()
    assert all(weight.dtype == dtype for weight in weights)
    for rounded, weight in zip(weights, single.materialise(), strict=True):
        assert torch.equal(rounded, weight.to(dtype))
    assert layer(points(name, dtype=dtype)).dtype == dtype
    bound = lipschitz(layer, 2, shape).verify(layer).value
    if not name.startswith("soc"):
        truth = torch.linalg.matrix_norm(affine(layer, shape)[0], 2).item()
        assert truth <= bound <= truth * (1.01 if len(shape) > 1 else 1 + 1e-9)
        assert bound <= 1 + 8 * torch.finfo(dtype).eps * math.sqrt(math.prod(weights[0].shape[1:]))


def test_fourier_methods_refuse_half_precision():
    for name in ("soc", "cayley, images", "bro, images"):
        for dtype in (torch.bfloat16, torch.float16):
            layer = built(name, dtype=dtype)
            with pytest.raises(TypeError, match="float32"):
                layer(points(name, dtype=dtype))
            with pytest.raises(UnsupportedLayerError, match="float32"):
                lipschitz(layer, 2, LAYERS[name][1])


@pytest.mark.parametrize("name", LAYERS)
def test_autocast_does_not_change_the_weights(name):
    layer, x = built(name, dtype=torch.float32), points(name, dtype=torch.float32)
    size = layer._size(x.shape[-2:]) if hasattr(layer, "_size") else ()
    expected = layer.materialise(*size)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for found, weight in zip(layer.materialise(*size), expected, strict=True):
            assert found.dtype == weight.dtype and torch.equal(found, weight)
        layer(x).float().sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in layer.parameters())


@pytest.mark.parametrize("name", LAYERS)
def test_the_default_dtype_does_not_change_the_weights(name):
    layer, x = built(name, dtype=torch.float32).eval(), points(name, dtype=torch.float32)
    expected = fresh(layer, x)
    bound = lipschitz(layer, 2, LAYERS[name][1]).value
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(fresh(layer, x), expected)
        assert lipschitz(layer, 2, LAYERS[name][1]).value == bound
        assert next(LAYERS[name][0]().parameters()).dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_layer_of_your_own_needs_only_to_compute():
    class Clamped(Parametrised):
        def __init__(self):
            super().__init__()
            self.free = nn.Parameter(torch.tensor([[3.0, -0.25]]))

        def compute(self):
            return (self.free.clamp(-1, 1),)

        def forward(self, inputs):
            return inputs @ self.weights()[0].T

    layer = Clamped().eval()
    with pytest.raises(UnsupportedLayerError, match="Clamped"):
        lipschitz(layer)
    assert layer(torch.ones(1, 2)).item() == 0.75
    with torch.no_grad():
        assert layer(torch.ones(1, 2)).item() == 0.75
        layer.free[0, 1] = 0.5
        assert layer(torch.ones(1, 2)).item() == 1.5


def test_a_network_of_computed_weights_has_the_product_of_their_norms():
    torch.manual_seed(0)
    model = nn.Sequential(
        OrthogonalLinear(6, 8), nn.ReLU(), AOLLinear(8, 8), nn.ReLU(), OrthogonalLinear(8, 2)
    )
    bound = product_bound(model)
    assert bound.verify(model).value <= 1 + 1e-5
    with torch.no_grad():
        model[2].free += 0.3 * torch.randn_like(model[2].free)
    weights = [model[i].weight.detach().double() for i in (0, 2, 4)]
    truth = math.prod(torch.linalg.matrix_norm(weight, 2).item() for weight in weights)
    assert truth <= product_bound(model).value <= truth * (1 + 1e-8)
