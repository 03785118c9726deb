"""The unified block, SLL and Sandwich: constants against enumerated slope patterns, the identities of the
derivation, reconstruction of certified blocks from their weights, and what torch does with a layer."""

import copy
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacrev, vmap

from lipbook import CertificateError, UnsupportedLayerError
from lipbook.contracts import affine, check, enclose, expand, lipschitz, output_shape, residual
from lipbook.layers.block import LipschitzResidual
from lipbook.layers.maps import cayley
from lipbook.layers.sandwich import SandwichLinear
from lipbook.layers.sll import SLLConv2d, SLLLinear

DOUBLE = torch.float64
BLOCKS = {
    "SLL": (lambda: SLLLinear(4), (4,)),
    "SLL, wide": (lambda: SLLLinear(3, 7), (3,)),
    "SLL, narrow": (lambda: SLLLinear(6, 2), (6,)),
    "SLL, circular": (lambda: SLLConv2d(2, 3, 1), (2, 2, 4)),
    "SLL, zeros": (lambda: SLLConv2d(1, 3, 2, "zeros"), (1, 2, 2)),
    "Sandwich": (lambda: SandwichLinear(4, 4), (4,)),
    "Sandwich, wide": (lambda: SandwichLinear(2, 7), (2,)),
    "Sandwich, narrow": (lambda: SandwichLinear(6, 3, bias=False), (6,)),
    "Sandwich, tanh": (lambda: SandwichLinear(3, 4, "tanh"), (3,)),
    "block": (lambda: LipschitzResidual(4, 5, 4), (4,)),
    "block, tall": (lambda: LipschitzResidual(2, 3, 6, 2.5), (2,)),
    "block, flat": (lambda: LipschitzResidual(9, 3, 2, 0.25), (9,)),
}
ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-9, torch.bfloat16: 0.1}


def drawn(name, seed, dtype=torch.float32, size=1.0):
    """A block whose parameters are normal, and where they are weights, as large as makes a norm of `size`."""
    torch.manual_seed(seed)
    layer = BLOCKS[name][0]().to(dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            inputs = parameter[0].numel() if parameter.ndim > 1 else 1
            parameter.copy_(size * torch.randn_like(parameter) / math.sqrt(inputs))
    return layer


def parts(layer, shape):
    """H, G and W in float64, from the weights that the layer materialises, by formulas and by probing."""
    with torch.no_grad():
        weights = [weight.to(DOUBLE) for weight in layer.materialise()]
    if isinstance(layer, LipschitzResidual):
        H, G, W = weights
    elif isinstance(layer, SandwichLinear):
        H, (G, W) = torch.zeros(1, 1, dtype=DOUBLE), weights
    else:
        W = weights[0]
        if isinstance(layer, SLLConv2d):
            padding = {"circular": "circular", "zeros": "constant"}[layer.padding_mode]
            probes = torch.eye(math.prod(shape), dtype=DOUBLE).reshape(-1, *shape)
            half = layer.kernel_size // 2
            images = nn.functional.conv2d(nn.functional.pad(probes, (half,) * 4, mode=padding), W)
            W = images.flatten(1).T
        H, G = torch.eye(W.shape[1], dtype=DOUBLE), -2 * W.T
    return H, G, W


def sup(H, G, W):
    """The largest norm of H + G D W over diagonal D in [0, I]: a convex function is largest at corners."""
    patterns = torch.tensor(list(itertools.product((0.0, 1.0), repeat=len(W))), dtype=DOUBLE)
    return torch.linalg.matrix_norm(H + (G * patterns[:, None]) @ W, ord=2).max().item()


def test_the_sup_over_patterns_is_that_of_a_network_known_by_hand():
    H, G, W = torch.zeros(1, 2, dtype=DOUBLE), torch.tensor([[1.0, -1.0]]).double(), torch.eye(2).double()
    assert sup(H, G, W) == pytest.approx(math.sqrt(2))  # relu(x) - relu(y), where both are positive


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("name", BLOCKS)
def test_no_pattern_of_slopes_stretches_more_than_the_bound_and_that_is_close_to_what_was_asked(name, dtype):
    for seed, size in enumerate((0.1, 1.0, 1.0, 10.0)):
        layer, shape = drawn(name, seed, dtype, size), BLOCKS[name][1]
        bound = lipschitz(layer).verify(layer)
        assert bound.value == lipschitz(layer, 2, shape).value
        assert sup(*parts(layer, shape)) <= bound.value * (1 + 1e-13)
        assert bound.value <= getattr(layer, "lipschitz", 1.0) * (1 + ROUNDING[dtype])


class Stored(NamedTuple):
    """What stands for the layer whose weights a copy computes with."""

    materialise: Callable


def spoil(layer, factor):
    """Let a layer compute with its weights times a factor, whatever its parameters are."""
    with torch.no_grad():
        weights = tuple(weight * factor(weight) for weight in layer.materialise())
    layer._fixed = (Stored(lambda: weights),)


@pytest.mark.parametrize("name", [name for name in BLOCKS if "SLL" not in name])
def test_weights_far_from_the_formula_are_bounded_as_they_are(name):
    for seed in range(6):
        layer = drawn(name, seed, DOUBLE)
        doubt = torch.Generator().manual_seed(seed)
        spoil(layer, lambda weight: 1.3 + 0.3 * torch.randn(weight.shape, generator=doubt, dtype=DOUBLE))
        bound, truth = lipschitz(layer).verify(layer).value, sup(*parts(layer, BLOCKS[name][1]))
        assert truth <= bound * (1 + 1e-13)
        assert bound <= 8 * max(truth, 1)


@pytest.mark.parametrize("name", [name for name in BLOCKS if "SLL" in name])
@pytest.mark.parametrize("factor", [1.0, 1.2, 2.0, 10.0])
def test_weights_that_are_too_large_are_bounded_as_they_are(name, factor):
    for seed in range(6):
        layer = drawn(name, seed, DOUBLE)
        spoil(layer, lambda weight: factor)
        bound, truth = lipschitz(layer).verify(layer).value, sup(*parts(layer, BLOCKS[name][1]))
        assert truth <= bound * (1 + 1e-13)
        assert bound <= max(1, 2 * factor**2 - 1) * (1 + 1e-9)


@pytest.mark.parametrize("name", ["Sandwich", "Sandwich, narrow", "Sandwich, wide"])
def test_the_bound_of_a_sandwich_is_reached_by_some_weights_in_its_class(name):
    layer, shape = drawn(name, 0, DOUBLE), BLOCKS[name][1]
    with torch.no_grad():
        layer.reset_parameters()
    assert sup(*parts(layer, shape)) == pytest.approx(lipschitz(layer).value, rel=1e-9)


@pytest.mark.parametrize("name", BLOCKS)
def test_a_lowered_value_is_not_proved(name):
    layer = drawn(name, 0)
    bound = lipschitz(layer)
    for value in (0.99 * bound.value, bound.value * (1 - 1e-6)):
        lowered = type(bound)(value, "upper", method=bound.method, certificate=bound.certificate)
        with pytest.raises(CertificateError, match="not proved"):
            lowered.verify(layer)


def test_a_certificate_follows_the_constant_and_speaks_of_no_other_layer():
    layer = LipschitzResidual(3, 4, 3)
    bound = lipschitz(layer)
    layer.lipschitz = 1.1
    with pytest.raises(CertificateError, match="not proved"):
        bound.verify(layer)
    with pytest.raises(CertificateError):
        bound.verify(nn.Linear(3, 3))


# The derivation, in float64.


def slopes_of(generator, count, hidden):
    return torch.rand(count, 1, hidden, generator=generator, dtype=DOUBLE)


@pytest.mark.parametrize("name", [name for name in BLOCKS if name.startswith("block")])
def test_the_jacobian_is_a_partial_reflection_of_the_lifted_input(name):
    layer, generator = drawn(name, 1, DOUBLE), torch.Generator().manual_seed(0)
    with torch.no_grad():
        (P, Q, H, R), (_, G, W) = layer.factors(), layer.materialise()
    S, lifted = torch.cat([P, -Q]), torch.cat([H, R])
    for D in slopes_of(generator, 20, len(W)):
        reflected = (torch.eye(len(S), dtype=DOUBLE) - 2 * (S * D) @ S.T) @ lifted
        torch.testing.assert_close(H + (G * D) @ W, reflected[: len(H)], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in BLOCKS if name.startswith("block")])
def test_the_matrix_of_the_multiplier_is_positive_semidefinite(name):
    for seed in range(5):
        layer = drawn(name, seed, DOUBLE)
        with torch.no_grad():
            H, G, W = layer.materialise()
            multiplier = torch.diag((2 * layer.psi).exp())
        corner = H.T @ G + W.T @ multiplier
        square = layer.lipschitz**2 * torch.eye(H.shape[1], dtype=DOUBLE) - H.T @ H
        M = torch.cat(
            [
                torch.cat([square, -corner], dim=1),
                torch.cat([-corner.T, 2 * multiplier - G.T @ G], dim=1),
            ]
        )
        assert torch.linalg.eigvalsh(M)[0] >= -1e-10 * M.norm()


def free_of(orthogonal):
    """The free matrix whose Cayley map is this tall matrix with orthonormal columns: the inverse map."""
    columns = orthogonal.shape[1]
    top, rest = orthogonal[:columns], orthogonal[columns:]
    shifted = 2 * torch.linalg.inv(torch.eye(columns, dtype=DOUBLE) + top)
    bottom = -rest @ shifted / 2
    skew = shifted - torch.eye(columns, dtype=DOUBLE) - bottom.T @ bottom
    return torch.cat([skew / 2, bottom])


def root_of(symmetric):
    values, vectors = torch.linalg.eigh(symmetric)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def represented(H, G, W, psi, constant):
    """A block with these weights, from H, G, W and its multiplier alone (the completeness theorem)."""
    scale = psi.exp()
    P = G / (math.sqrt(2) * scale)
    Q = root_of(torch.eye(len(W), dtype=DOUBLE) - P.T @ P)
    corner = H.T @ G + W.T * scale**2
    R = torch.linalg.solve(Q, (corner / scale / math.sqrt(2)).T)
    layer = LipschitzResidual(H.shape[1], len(W), len(H), constant).double()
    with torch.no_grad():
        layer.stack.copy_(free_of(torch.cat([Q, P])))
        layer.passing.copy_(free_of(torch.cat([H, R]) / constant))
        layer.psi.copy_(psi)
    return layer


def test_the_inverse_of_the_cayley_map_is_one():
    for shape in ((5, 3), (4, 4)):
        orthogonal = cayley(torch.randn(shape, dtype=DOUBLE))
        torch.testing.assert_close(cayley(free_of(orthogonal)), orthogonal, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_every_block_that_a_multiplier_certifies_with_nothing_to_spare_is_one_of_these(seed):
    generator = torch.Generator().manual_seed(seed)
    n, m, o, constant = 4, 3, 2, 1.5

    def orthonormal(rows, columns):
        return torch.linalg.qr(torch.randn(rows, columns, generator=generator, dtype=DOUBLE))[0]

    stack, lifted = orthonormal(o + m, m), constant * orthonormal(o + m, n)
    P, Q, H, R = stack[:o], stack[o:], lifted[:o], lifted[o:]
    psi = torch.randn(m, generator=generator, dtype=DOUBLE)
    G = math.sqrt(2) * P * psi.exp()
    W = math.sqrt(2) * (Q.T @ R - P.T @ H) / psi.exp()[:, None]
    layer = represented(H, G, W, psi, constant)
    for found, told in zip(layer.materialise(), (H, G, W)):
        torch.testing.assert_close(found.detach(), told, rtol=0, atol=1e-9)
    assert lipschitz(layer).value <= constant * (1 + 1e-9)


def test_a_sandwich_layer_is_the_block_without_a_skip():
    layer = drawn("Sandwich", 3, DOUBLE)
    with torch.no_grad():
        G, W = layer.materialise()
        block = represented(torch.zeros(4, 4, dtype=DOUBLE), G, W, layer.psi, 1.0)
        block.bias.copy_(layer.bias)
        x = torch.randn(20, 4, dtype=DOUBLE)
        torch.testing.assert_close(block(x), layer(x), rtol=0, atol=1e-9)


def test_a_gradient_step_is_the_block_whose_skip_is_the_identity():
    """SLL, and CPL where T = I / |U|^2: the skip takes the whole budget, R = 0, and T^-1 - UU' >= 0."""
    layer = LipschitzResidual(4, 3, 4).double()
    with torch.no_grad():
        for parameter in (layer.stack, layer.psi, layer.bias):
            parameter.normal_()
        layer.passing.zero_()
        H, G, W = layer.materialise()
    torch.testing.assert_close(H, torch.eye(4, dtype=DOUBLE), rtol=0, atol=1e-12)
    T = (2 * layer.psi.detach()).exp() / 2
    torch.testing.assert_close(G, -2 * W.T * T, rtol=0, atol=1e-12)
    assert torch.linalg.eigvalsh(torch.diag(1 / T) - W @ W.T)[0] >= -1e-10


@pytest.mark.parametrize("name", ["SLL", "SLL, narrow"])
def test_an_sll_layer_is_a_block_whose_skip_is_the_identity(name):
    layer = drawn(name, 4, DOUBLE)
    with torch.no_grad():
        T, U = layer.diagonal(), layer.weight
        features, hidden = U.shape[1], U.shape[0]
        P = -(U * T.sqrt()[:, None]).T
        Q = root_of(torch.eye(hidden, dtype=DOUBLE) - P.T @ P)
        block = LipschitzResidual(features, hidden, features).double()
        block.stack.copy_(free_of(torch.cat([Q, P])))
        block.passing.zero_()
        block.psi.copy_((2 * T).log() / 2)
        block.bias.copy_(layer.bias)
        x = torch.randn(20, features, dtype=DOUBLE)
        torch.testing.assert_close(block(x), layer(x), rtol=0, atol=1e-8)


# What the contracts of every block say, attacked.


@pytest.mark.parametrize("name", ["SLL, zeros", "Sandwich, tanh", "block, tall"])
def test_the_contracts_survive_attacks(name):
    layer, shape = BLOCKS[name][0](), BLOCKS[name][1]
    assert {"lipschitz_2", "output_shape", "enclose", "expand"} <= set(check(layer, shape))


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("name", BLOCKS)
def test_the_contracts_survive_attacks_in_every_dtype(name, dtype):
    for seed in range(3):
        check(drawn(name, seed, dtype), BLOCKS[name][1], seed)


@pytest.mark.parametrize("name", BLOCKS)
def test_the_parts_of_a_block_compute_the_block(name):
    layer, shape = drawn(name, 2, DOUBLE), BLOCKS[name][1]
    x = torch.randn(9, *shape, dtype=DOUBLE)
    with torch.no_grad():
        expected = layer(x)
        if isinstance(layer, SandwichLinear):
            found = nn.Sequential(*expand(layer))(x)
        else:
            skip, inside = residual(layer)
            weight, bias = affine(skip, shape)
            images = inside(x)
            found = (x.flatten(1) @ weight.T + bias).reshape(images.shape) + images
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert output_shape(layer, shape) == tuple(expected.shape[1:])


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
@pytest.mark.parametrize("name", BLOCKS)
def test_plain_layers_compute_the_block(name, dtype):
    layer, shape = drawn(name, 2, dtype), BLOCKS[name][1]
    plain, x = layer.plain(shape), torch.randn(9, *shape, dtype=dtype)
    assert {type(part) for part in plain} <= {nn.Linear, nn.Conv2d, nn.ReLU, nn.Tanh}
    assert all(parameter.dtype == dtype for parameter in plain.parameters())
    with torch.no_grad():
        expected = layer(x)
        torch.testing.assert_close(plain(x), expected, rtol=0, atol=200 * torch.finfo(dtype).eps)
    for parameter in plain.parameters():
        assert all(parameter.data_ptr() != own.data_ptr() for own in layer.parameters())


@pytest.mark.parametrize("name", BLOCKS)
def test_the_enclosure_of_a_float32_layer_holds_its_own_float32_output(name):
    layer, shape = drawn(name, 5), BLOCKS[name][1]
    x = torch.randn(9, *shape)
    values, errors = enclose(layer, x.double(), torch.zeros_like(x).double())
    with torch.no_grad():
        own, exact = layer(x), parts(layer, shape)
    torch.testing.assert_close(values.float(), own, rtol=1e-5, atol=1e-5)
    if not isinstance(layer, SandwichLinear) and x.ndim == 2:
        H, G, W = exact
        bias = layer.bias if isinstance(layer, LipschitzResidual) else layer.materialise()[1]
        told = x.double() @ H.T + torch.relu(x.double() @ W.T + bias.detach().double()) @ G.T
        assert ((values - told).abs() <= 2 * errors + 1e-14).all()
    assert (errors <= 1e-10).all()


# Parameters at the ends of what they may be.


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-8, 1e8, 1e30])
@pytest.mark.parametrize("name", BLOCKS)
def test_parameters_of_any_size_keep_the_constant_and_give_finite_outputs_and_gradients(name, size, dtype):
    layer, shape = drawn(name, 0, dtype, size), BLOCKS[name][1]
    x = torch.randn(4, *shape, dtype=dtype)
    output = layer(x)
    assert torch.isfinite(output).all()
    # The Cayley map of entries this large is ill-conditioned: orthogonal to half of the digits.
    rounding = 8 * max(torch.finfo(dtype).eps, 1e-7 if dtype != DOUBLE else 0) ** 0.5
    assert lipschitz(layer).value <= getattr(layer, "lipschitz", 1.0) * (1 + rounding)
    with torch.no_grad():
        layer.bias.zero_() if layer.bias is not None else None
    layer(x).square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", BLOCKS)
def test_parameters_of_rank_one_keep_the_constant(name):
    layer, shape = drawn(name, 0, DOUBLE), BLOCKS[name][1]
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(parameter[:1].expand_as(parameter))
    bound = lipschitz(layer).verify(layer).value
    assert sup(*parts(layer, shape)) <= bound * (1 + 1e-13)
    assert bound <= getattr(layer, "lipschitz", 1.0) * (1 + 1e-9)


# What torch does with a layer.


@pytest.mark.parametrize("name", BLOCKS)
def test_eval_mode_and_a_loaded_state_compute_what_train_mode_does(name):
    layer, other = drawn(name, 0), drawn(name, 1)
    x = torch.randn(5, *BLOCKS[name][1])
    with torch.no_grad():
        expected = layer.train()(x)
        assert torch.equal(layer.eval()(x), expected) and torch.equal(layer(x), expected)
        assert not torch.allclose(other.eval()(x), expected)
        other.load_state_dict(layer.state_dict())
        assert torch.equal(other(x), expected)
        twin = copy.deepcopy(other)
        for parameter in twin.parameters():
            parameter.mul_(-0.5)
        assert not torch.allclose(twin(x), expected)
        assert torch.equal(other(x), expected)


@pytest.mark.parametrize("name", BLOCKS)
def test_gradients_by_every_road_agree(name):
    layer, shape = drawn(name, 0, DOUBLE), BLOCKS[name][1]
    x = torch.randn(3, *shape, dtype=DOUBLE)
    names, values = zip(*((key, value.detach()) for key, value in layer.named_parameters()))

    def growth(values, sample):
        return functional_call(layer, dict(zip(names, values)), (sample[None],)).square().sum()

    each = vmap(grad(growth), (None, 0))(values, x)
    expected = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    for found, told in zip(each, expected):
        torch.testing.assert_close(found.sum(0), told, rtol=1e-9, atol=1e-11)
    jacobian = jacrev(lambda sample: layer(sample[None])[0])(x[0])
    one_by_one = torch.autograd.functional.jacobian(lambda sample: layer(sample[None])[0], x[0])
    torch.testing.assert_close(jacobian, one_by_one, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["SLL, wide", "SLL, circular", "Sandwich, tanh", "block"])
def test_gradients_of_the_parameters_are_those_of_differences(name):
    layer, shape = drawn(name, 0, DOUBLE), BLOCKS[name][1]
    x = torch.randn(2, *shape, dtype=DOUBLE)
    names, values = zip(*((key, value.detach().requires_grad_()) for key, value in layer.named_parameters()))

    def output(*values):
        return functional_call(layer, dict(zip(names, values)), (x,))

    assert torch.autograd.gradcheck(output, values)


@pytest.mark.parametrize("name", ["SLL", "SLL, zeros", "Sandwich", "block"])
def test_a_compiled_layer_computes_the_same(name):
    layer, x = drawn(name, 0), torch.randn(3, *BLOCKS[name][1])
    compiled = torch.compile(layer, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x), rtol=1e-6, atol=1e-6)


# What is refused.


@pytest.mark.parametrize("name", BLOCKS)
def test_norm_inf_is_refused(name):
    with pytest.raises(UnsupportedLayerError, match="no constant in norm inf"):
        lipschitz(BLOCKS[name][0](), math.inf)


@pytest.mark.parametrize("name", BLOCKS)
def test_another_sample_shape_is_refused(name):
    layer, shape = BLOCKS[name][0](), BLOCKS[name][1]
    wrong = (shape[0] + 1, *shape[1:]) if len(shape) > 1 else (shape[0] + 1,)
    for reader in (lambda: output_shape(layer, wrong), lambda: lipschitz(layer, 2, wrong)):
        with pytest.raises(ValueError, match=r"takes \d+ .*got the sample shape"):
            reader()


@pytest.mark.parametrize("name", BLOCKS)
def test_a_parameter_of_another_shape_is_refused(name):
    layer = BLOCKS[name][0]()
    vector = "psi" if hasattr(layer, "psi") else "log_q"
    setattr(layer, vector, nn.Parameter(torch.zeros(1 + len(getattr(layer, vector)))))
    with pytest.raises(UnsupportedLayerError, match=f"has {vector} of shape"):
        lipschitz(layer)


@pytest.mark.parametrize("value", [0.0, -1.0, "1", None, True])
def test_an_attribute_that_is_no_constant_is_refused(value):
    layer = LipschitzResidual(3, 3, 3)
    layer.lipschitz = value
    with pytest.raises(UnsupportedLayerError, match=f"lipschitz={value!r}"):
        lipschitz(layer)
    layer.lipschitz = math.nan
    with pytest.raises(ValueError, match="nan"):
        lipschitz(layer)


@pytest.mark.parametrize("arguments", [(0, 2, 2), (2, 2.0, 2), (2, 2, True)])
def test_sizes_that_are_no_counts_are_refused(arguments):
    with pytest.raises((ValueError, TypeError)):
        LipschitzResidual(*arguments)
