"""`check` against layers with one planted fault each, and against the same layers without it."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from lipbook import Bound, CertificateError, UnsupportedLayerError
from lipbook.contracts import (
    Reflection,
    Sorting,
    affine,
    check,
    enclose,
    expand,
    lipschitz,
    output_shape,
    residual,
    slopes,
)

PLANTED = {}


def planted(name, shape=(5,)):
    """Register a builder: `build(True)` has the fault, `build(False)` is the same layer put right."""

    def add(build):
        PLANTED[name] = (build, shape)
        return build

    return add


def upper(value, norm, certificate=None):
    value = value.item() if isinstance(value, torch.Tensor) else float(value)
    return Bound(value * (1 + 1e-12), "upper", norm=norm, method="planted", certificate=certificate)


def operator_norm(weight, norm):
    weight = weight.detach().double()
    return torch.linalg.matrix_norm(weight, 2) if norm == 2 else weight.abs().sum(1).max()


def linear_with(contract, forward=None):
    """A 5 -> 4 subclass of Linear with its own Lipschitz contract, and its own forward pass if given."""

    class Planted(nn.Linear):
        pass

    if forward is not None:
        Planted.forward = forward
    lipschitz.register(Planted, contract)
    torch.manual_seed(1)
    return Planted(5, 4)


def certified_by(certificate):
    return lambda layer, norm, shape: upper(operator_norm(layer.weight, norm), norm, certificate)


@planted("lipschitz: a factor is missing")
def _(wrong):
    return linear_with(
        lambda layer, norm, shape: upper((1 if wrong else 2) * operator_norm(layer.weight, norm), norm),
        lambda self, x: 2 * nn.functional.linear(x, self.weight, self.bias),
    )


@planted("lipschitz: row and column sums swapped")
def _(wrong):
    def contract(layer, norm, shape):
        weight = layer.weight.T if wrong and norm == math.inf else layer.weight
        return upper(operator_norm(weight, norm), norm)

    return linear_with(contract)


@planted("lipschitz: the sum of a row without absolute values")
def _(wrong):
    def contract(layer, norm, shape):
        if norm == math.inf and wrong:
            return upper(layer.weight.double().sum(1).abs().max(), norm)
        return upper(operator_norm(layer.weight, norm), norm)

    return linear_with(contract)


@planted("lipschitz: the norm of the weight in float16")
def _(wrong):
    def contract(layer, norm, shape):
        return upper(operator_norm(layer.weight.half() if wrong else layer.weight, norm), norm)

    return linear_with(contract)


@planted("lipschitz: five steps of power iteration")
def _(wrong):
    def contract(layer, norm, shape):
        if norm == math.inf or not wrong:
            return upper(operator_norm(layer.weight, norm), norm)
        weight, v = layer.weight.detach().double(), torch.ones(5, dtype=torch.float64)
        for _ in range(5):
            v = weight.T @ (weight @ v)
            v = v / v.norm()
        return upper((weight @ v).norm(), norm)

    return linear_with(contract)


@planted("lipschitz: a stale cache")
def _(wrong):
    def contract(layer, norm, shape):
        if not wrong:
            return upper(operator_norm(layer.weight, norm), norm)
        known = vars(layer).setdefault("_known_norms", {})
        return upper(known.setdefault(norm, operator_norm(layer.weight, norm).item()), norm)

    return linear_with(contract)


@planted("lipschitz: a certificate that proves everything")
def _(wrong):
    class Certificate:
        def verify(self, bound, subject):
            if not wrong and bound.value < operator_norm(subject.weight, bound.norm):
                raise CertificateError("too small")

    return linear_with(certified_by(Certificate()))


@planted("lipschitz: a certificate that does not look at the layer")
def _(wrong):
    @dataclasses.dataclass
    class Certificate:
        least: float

        def verify(self, bound, subject):
            if bound.value < (self.least if wrong else operator_norm(subject.weight, bound.norm)):
                raise CertificateError("too small")

    def contract(layer, norm, shape):
        value = operator_norm(layer.weight, norm).item()
        return upper(value, norm, Certificate(value))

    return linear_with(contract)


@planted("lipschitz: a certificate that does not prove its own bound")
def _(wrong):
    class Certificate:
        def verify(self, bound, subject):
            if bound.value < (1.1 if wrong else 1) * operator_norm(subject.weight, bound.norm):
                raise CertificateError("too small")

    return linear_with(certified_by(Certificate()))


@planted("lipschitz: reading it changes the weight")
def _(wrong):
    def contract(layer, norm, shape):
        if wrong:
            with torch.no_grad():
                layer.weight.div_(layer.weight.norm())
        return upper(operator_norm(layer.weight, norm), norm)

    return linear_with(contract)


@planted("lipschitz: reading it changes the mode")
def _(wrong):
    def contract(layer, norm, shape):
        if wrong:
            layer.eval()
        return upper(operator_norm(layer.weight, norm), norm)

    return linear_with(contract)


@planted("lipschitz: reading it draws random numbers")
def _(wrong):
    def contract(layer, norm, shape):
        if wrong:
            torch.rand(1)
        return upper(operator_norm(layer.weight, norm), norm)

    return linear_with(contract)


@planted("lipschitz: another function in train mode")
def _(wrong):
    def contract(layer, norm, shape):
        factor = 2 if layer.training and not wrong else 1
        return upper(factor * operator_norm(layer.weight, norm), norm)

    def forward(self, x):
        return nn.functional.linear(x, self.weight, self.bias) * (2 if self.training else 1)

    return linear_with(contract, forward).eval()


@planted("lipschitz: the weight is lost on save and load")
def _(wrong):
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            weight = torch.linspace(-1, 1, 20).reshape(4, 5)
            if wrong:
                self.weight = weight
            else:
                self.register_buffer("weight", weight)

        def forward(self, x):
            return x @ self.weight.T

    lipschitz.register(Fixed, lambda layer, norm, shape: upper(operator_norm(layer.weight, norm), norm))
    return Fixed()


@planted("lipschitz: a forward pass bound to the original's weight")
def _(wrong):
    class Closed(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.linspace(-1, 1, 20).reshape(4, 5))
            self.product = lambda x: x @ self.weight.T.to(x)

        def forward(self, x):
            return self.product(x) if wrong else x @ self.weight.T

    lipschitz.register(Closed, lambda layer, norm, shape: upper(operator_norm(layer.weight, norm), norm))
    return Closed()


@planted("lipschitz: the output depends on the batch")
def _(wrong):
    class Centred(nn.Module):
        def forward(self, x):
            return x - x.mean(0) if wrong else x - 1

    lipschitz.register(Centred, lambda layer, norm, shape: upper(math.inf, norm))  # only the batch can tell
    return Centred()


@planted("lipschitz: a residual without its shortcut")
def _(wrong):
    class Shortcut(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(5, 5)

        def forward(self, x):
            return x + self.inner(x)

    def contract(layer, norm, shape):
        return upper(operator_norm(layer.inner.weight, norm) + (0 if wrong else 1), norm)

    lipschitz.register(Shortcut, contract)
    return Shortcut()


@planted("lipschitz: a layer applied twice is counted once")
def _(wrong):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(5, 5, bias=False)
            nn.init.constant_(self.inner.weight, 1.0)

        def forward(self, x):
            return self.inner(self.inner(x))

    def contract(layer, norm, shape):
        return upper(operator_norm(layer.inner.weight, norm) ** (1 if wrong else 2), norm)

    lipschitz.register(Twice, contract)
    return Twice()


@planted("lipschitz: without a shape, a bound for size 1 only")
def _(wrong):
    class Total(nn.Module):
        def forward(self, x):
            return x.sum(1, keepdim=True)

    @lipschitz.register(Total)
    def _(layer, norm, shape):
        if shape is None and not wrong:
            raise ValueError("the bound depends on the size: give input_shape.")
        size = 1 if shape is None else shape[0]
        return upper(math.sqrt(size) if norm == 2 else size, norm)

    return Total()


@planted("lipschitz: an ignored attribute")
def _(wrong):
    class Leaky(nn.Module):
        def __init__(self, slope):
            super().__init__()
            self.slope = slope

        def forward(self, x):
            return torch.where(x > 0, x, self.slope * x)

    def contract(layer, norm, shape):
        return upper(1 if wrong else max(1, abs(layer.slope)), norm)

    lipschitz.register(Leaky, contract)
    return Leaky(-3.0)


def activation_with(forward, contract):
    class Planted(nn.Module):
        pass

    Planted.forward = lambda self, x: forward(x)
    slopes.register(Planted, lambda layer, lower, upper: contract(lower, upper))
    return Planted()


def constant_slopes(a, b):
    def contract(lower, upper):
        like = torch.zeros(()) if lower is None else lower
        return torch.full_like(like, a, dtype=torch.float64), torch.full_like(like, b, dtype=torch.float64)

    return contract


@planted("slopes: GELU as [0, 1]")
def _(wrong):
    return activation_with(nn.functional.gelu, constant_slopes(*((0, 1) if wrong else (-0.12891, 1.12891))))


@planted("slopes: the constants of GELU for its tanh form")
def _(wrong):
    erf, tanh = (-0.1289041452, 1.1289041452), (-0.1289930687, 1.1289930687)
    return activation_with(nn.GELU("tanh"), constant_slopes(*(erf if wrong else tanh)))


@planted("slopes: a range that holds for x > 0 only")
def _(wrong):
    return activation_with(lambda x: nn.functional.elu(x, 2.0), constant_slopes(0, 1 if wrong else 2))


@planted("slopes: on an interval, the ends without the extreme between them")
def _(wrong):
    def contract(lower, upper):
        if lower is None:
            return torch.tensor(-0.1, dtype=torch.float64), torch.tensor(1.1, dtype=torch.float64)
        ends = []
        for x in (lower, upper):
            s = torch.sigmoid(x)
            ends.append(s + x * s * (1 - s))
        a, b = torch.minimum(*ends) - 1e-12, torch.maximum(*ends) + 1e-12
        for root, extreme in () if wrong else ((-2.3993572805, -0.0998393202), (2.3993572805, 1.0998393202)):
            inside = (lower <= root + 1e-9) & (upper >= root - 1e-9)
            a = torch.where(inside, a.clamp(max=extreme), a)
            b = torch.where(inside, b.clamp(min=extreme), b)
        return a.clamp(min=-0.1), b.clamp(max=1.1)

    return activation_with(nn.functional.silu, contract)


@planted("slopes: on an interval, the middle alone")
def _(wrong):
    def contract(lower, upper):
        if lower is None:
            return constant_slopes(0, 1)(lower, upper)
        if wrong:
            value = 1 - torch.tanh((lower + upper) / 2) ** 2
            return value, value
        far, near = torch.maximum(lower.abs(), upper.abs()), torch.minimum(lower.abs(), upper.abs())
        low = (1 - torch.tanh(far) ** 2 - 1e-12).clamp(min=0)
        return low, torch.where(lower * upper <= 0, 1.0, (1 - torch.tanh(near) ** 2 + 1e-12).clamp(max=1))

    return activation_with(torch.tanh, contract)


@planted("slopes: a kink looked for in the wrong place")
def _(wrong):
    def contract(lower, upper):
        if lower is None:
            return constant_slopes(0, 1)(lower, upper)
        kink = -1 if wrong else 0
        return (lower > kink).double(), (upper > kink).double()

    return activation_with(torch.relu, contract)


@planted("slopes: a local range outside the global one")
def _(wrong):
    def contract(lower, upper):
        a, b = constant_slopes(0, 1)(lower, upper)
        return a, b + (0.5 if wrong and lower is not None else 0)

    return activation_with(torch.relu, contract)


@planted("slopes: a layer that mixes its entries")
def _(wrong):
    def forward(x):
        return x + x.roll(1, 1) if wrong else 2 * x

    return activation_with(forward, constant_slopes(-1e12, 1e12))  # no range is too narrow


def sorted_groups(x, size, dim=1):
    return x.unflatten(dim, (-1, size)).sort(dim + 1, descending=True).values.flatten(dim, dim + 1)


def reflected(x, vectors):
    z = x.unflatten(1, (-1, 2))
    along = (z * vectors).sum(2, keepdim=True)
    return torch.where(along > 0, z, z - 2 * vectors * along).flatten(1)


def named(forward, structure):
    return activation_with(forward, lambda lower, upper: structure)


@planted("slopes: a Sorting with groups of another size", shape=(8,))
def _(wrong):
    return named(lambda x: sorted_groups(x, 2), Sorting(4 if wrong else 2))


@planted("slopes: a Sorting with groups that do not fit", shape=(8,))
def _(wrong):
    return named(lambda x: sorted_groups(x, 4), Sorting(3 if wrong else 4))


@planted("slopes: a Sorting along another dimension", shape=(4, 4))
def _(wrong):
    return named(lambda x: sorted_groups(x, 2, dim=2), Sorting(2, dim=1 if wrong else 2))


@planted("slopes: a Sorting along a dimension that is not there", shape=(4,))
def _(wrong):
    return named(lambda x: sorted_groups(x, 2), Sorting(2, dim=2 if wrong else 1))


@planted("slopes: a Sorting of what is sorted upwards", shape=(6,))
def _(wrong):
    return named(lambda x: -sorted_groups(-x, 3) if wrong else sorted_groups(x, 3), Sorting(3))


@planted("slopes: a Sorting of pairs taken half the width apart", shape=(8,))
def _(wrong):
    def halves(x):
        first, second = x.chunk(2, dim=1)
        return torch.cat([torch.maximum(first, second), torch.minimum(first, second)], dim=1)

    return named(halves if wrong else lambda x: sorted_groups(x, 2), Sorting(2))


ANGLES = torch.tensor([0.3, 1.9, -2.5], dtype=torch.float64)
VECTORS = torch.stack([torch.cos(ANGLES), torch.sin(ANGLES)], dim=1)


@planted("slopes: a Reflection by another vector", shape=(6,))
def _(wrong):
    other = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1e-4, 0.0]], dtype=torch.float64)
    return named(lambda x: reflected(x, VECTORS), Reflection(VECTORS + other if wrong else VECTORS))


@planted("slopes: a Reflection on the wrong side", shape=(6,))
def _(wrong):
    return named(lambda x: reflected(x, VECTORS), Reflection(-VECTORS if wrong else VECTORS))


@planted("slopes: a Reflection of another number of pairs", shape=(6,))
def _(wrong):
    return named(lambda x: reflected(x, VECTORS), Reflection(VECTORS[:2] if wrong else VECTORS))


@planted("slopes: on an interval, another structure", shape=(4,))
def _(wrong):
    def contract(lower, upper):
        return Sorting(2 if lower is None or not wrong else 4)

    return activation_with(lambda x: sorted_groups(x, 2), contract)


def linear_affine(contract):
    class Planted(nn.Linear):
        pass

    affine.register(Planted, contract)
    torch.manual_seed(1)
    return Planted(5, 5)


def block(forward, contract):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 5))

        def forward(self, x):
            return forward(x, self.inner)

    residual.register(Block, contract)
    torch.manual_seed(1)
    return Block()


@planted("residual: what is added is subtracted")
def _(wrong):
    return block(lambda x, f: x - f(x) if wrong else x + f(x), lambda layer: (nn.Identity(), layer.inner))


@planted("residual: the input is not added")
def _(wrong):
    return block(lambda x, f: f(x) if wrong else x + f(x), lambda layer: (nn.Identity(), layer.inner))


@planted("residual: a layer is missing")
def _(wrong):
    return block(
        lambda x, f: x + f(x), lambda layer: (nn.Identity(), layer.inner[::2] if wrong else layer.inner)
    )


@planted("residual: one number for all entries")
def _(wrong):
    return block(
        lambda x, f: x + f(x)[:, :1] if wrong else x + f(x),
        lambda layer: (
            nn.Identity(),
            nn.Sequential(layer.inner[0], nn.Linear(3, 1)) if wrong else layer.inner,
        ),
    )


@planted("residual: the skip is forgotten")
def _(wrong):
    skip = nn.LeakyReLU(0.5) if wrong else nn.Linear(5, 5, dtype=torch.float64)
    return block(lambda x, f: skip(x) + f(x), lambda layer: (nn.Identity() if wrong else skip, layer.inner))


@planted("residual: the skip is transposed")
def _(wrong):
    torch.manual_seed(2)
    skip, turned = nn.Linear(5, 5, dtype=torch.float64), nn.Linear(5, 5, dtype=torch.float64)
    with torch.no_grad():
        turned.weight.copy_(skip.weight.T if wrong else skip.weight)
        turned.bias.copy_(skip.bias)
    return block(lambda x, f: skip(x) + f(x), lambda layer: (turned, layer.inner))


@planted("affine: the weight transposed")
def _(wrong):
    def contract(layer, shape):
        weight = layer.weight.detach().double()
        return weight.T if wrong else weight, layer.bias.detach().double()

    return linear_affine(contract)


@planted("affine: the bias missing")
def _(wrong):
    def contract(layer, shape):
        bias = layer.bias.detach().double()
        return layer.weight.detach().double(), torch.zeros_like(bias) if wrong else bias

    return linear_affine(contract)


@planted("affine: a layer that is not linear")
def _(wrong):
    class Bent(nn.Module):
        def forward(self, x):
            return torch.where(x > -50, x, 0 * x) if wrong else x

    def contract(layer, shape):
        return torch.eye(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)

    affine.register(Bent, contract)
    return Bent()


@planted("output_shape: one too many", shape=(6,))
def _(wrong):
    class Every(nn.Module):
        def forward(self, x):
            return x[:, ::2]

    output_shape.register(Every, lambda layer, shape: ((shape[0] + (2 if wrong else 1)) // 2,))
    return Every()


def block_of(parts):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(5, 5), nn.Linear(5, 5)

        def forward(self, x):
            return self.two(torch.relu(self.one(x)))

    expand.register(Block, parts)
    return Block()


@planted("expand: a layer dropped")
def _(wrong):
    return block_of(lambda layer: (layer.one, layer.two) if wrong else (layer.one, nn.ReLU(), layer.two))


@planted("expand: the order reversed")
def _(wrong):
    return block_of(lambda layer: (layer.one, nn.ReLU(), layer.two)[:: -1 if wrong else 1])


def linear_enclosing(contract):
    """A 5 -> 4 subclass of Linear; `contract(weight, bias, values, errors)` says what `enclose` gives."""

    class Planted(nn.Linear):
        pass

    @enclose.register(Planted)
    def _(layer, values, errors):
        weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
        images, error = contract(weight, bias, values, errors)
        return images, error + 1e-14 * (values.abs() @ weight.abs().T + bias.abs())

    torch.manual_seed(1)
    return Planted(5, 4)


@planted("enclose: the errors of the input forgotten")
def _(wrong):
    def contract(weight, bias, values, errors):
        return values @ weight.T + bias, (0 if wrong else 1) * errors @ weight.abs().T

    return linear_enclosing(contract)


@planted("enclose: the weight without its absolute values")
def _(wrong):
    def contract(weight, bias, values, errors):
        spread = errors @ (weight if wrong else weight.abs()).T
        return values @ weight.T + bias, spread.abs()

    return linear_enclosing(contract)


@planted("enclose: half the errors")
def _(wrong):
    def contract(weight, bias, values, errors):
        return values @ weight.T + bias, errors @ weight.abs().T / (2 if wrong else 1)

    return linear_enclosing(contract)


@planted("enclose: a root of squares in place of a sum")
def _(wrong):
    def contract(weight, bias, values, errors):
        spread = (errors.square() @ weight.square().T).sqrt() if wrong else errors @ weight.abs().T
        return values @ weight.T + bias, spread

    return linear_enclosing(contract)


@planted("enclose: values of a rounded weight")
def _(wrong):
    def contract(weight, bias, values, errors):
        used = weight.half().double() if wrong else weight
        return values @ used.T + bias, errors @ weight.abs().T

    return linear_enclosing(contract)


@planted("enclose: the bias missing")
def _(wrong):
    def contract(weight, bias, values, errors):
        return values @ weight.T + (0 if wrong else bias), errors @ weight.abs().T

    return linear_enclosing(contract)


@planted("enclose: the errors of another sample")
def _(wrong):
    def contract(weight, bias, values, errors):
        return values @ weight.T + bias, (errors.flip(0) if wrong else errors) @ weight.abs().T

    return linear_enclosing(contract)


@planted("enclose: nothing known at a point, and everything in a box")
def _(wrong):
    def contract(weight, bias, values, errors):
        spread = errors @ weight.abs().T
        unsure = torch.where(errors.sum(1, keepdim=True) == 0, math.inf, 0 * spread)
        return values @ weight.T + bias, unsure if wrong else spread

    return linear_enclosing(contract)


@planted("enclose: the slopes at the center for the whole interval")
def _(wrong):
    class Curved(nn.Module):
        def forward(self, x):
            return torch.tanh(x)

    @enclose.register(Curved)
    def _(layer, values, errors):
        images = torch.tanh(values)
        steepest = 1 - images**2 if wrong else 1
        return images, steepest * errors + 1e-14

    return Curved()


@planted("enclose: images of another shape", shape=(4,))
def _(wrong):
    class Flat(nn.Module):
        def forward(self, x):
            return x.unflatten(1, (2, 2))

    def contract(layer, values, errors):
        return (values, errors) if wrong else (values.unflatten(1, (2, 2)), errors.unflatten(1, (2, 2)))

    enclose.register(Flat, contract)
    return Flat()


@pytest.mark.parametrize("name", PLANTED)
def test_check_catches_the_planted_fault(name):
    build, shape = PLANTED[name]
    contract = name.partition(":")[0]
    with pytest.raises(CertificateError, match=f"{contract}.* contract of .* is wrong"):
        check(build(True), shape)


FIRST = {name.partition(":")[0]: name for name in reversed(PLANTED)}
SLOW = {"lipschitz", "affine", "enclose"}  # one control of each; the others in the full count


def control(name):
    contract = name.partition(":")[0]
    slow = contract in SLOW and name != FIRST[contract]
    return pytest.param(name, marks=pytest.mark.thorough) if slow else name


@pytest.mark.parametrize("name", map(control, PLANTED))
def test_check_passes_the_layer_without_the_fault(name):
    build, shape = PLANTED[name]
    slack = check(build(False), shape)
    assert slack and all(value >= -1e-9 for value in slack.values())


def test_an_overflow_is_no_fault():
    layer = nn.Sequential(*[nn.Linear(3, 3, bias=False) for _ in range(12)])  # 1e30 to the power 12
    assert check(layer, (3,))["enclose"] >= 0


def test_saving_and_loading_a_plain_tensor_is_found_out():
    layer = nn.Linear(3, 3)
    weight = layer.weight.detach()
    del layer.weight
    layer.weight = weight
    with pytest.raises(CertificateError, match="a copy after saving and loading"):
        check(layer, (3,))


def test_at_least_twenty_faults_are_planted():
    assert len(PLANTED) >= 20


def test_a_failure_names_the_contract_the_input_and_both_numbers():
    build, shape = PLANTED["lipschitz: a factor is missing"]
    layer = build(True)
    with pytest.raises(CertificateError) as caught:
        check(layer, shape)
    bound = lipschitz(layer, 2).value
    message = str(caught.value)
    assert message.startswith("the lipschitz contract of ") and "x = [" in message and "y = [" in message
    assert f"above the bound {bound:.9g}" in message and f"is {2 * bound:.3g}"[:6] in message


@pytest.mark.parametrize("shape", [(16,), (3, 4)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_linear_layers_are_reached_within_one_percent(shape, dtype):
    torch.manual_seed(3)
    slack = check(nn.Linear(shape[-1], 9).to(dtype), shape)
    assert 0 <= slack["lipschitz_2"] < 0.01 and 0 <= slack["lipschitz_inf"] < 0.01
    assert slack["affine"] < 1e-9 and slack["expand"] == 0 and slack["output_shape"] == 0


def test_check_leaves_the_layer_and_the_random_state_alone():
    torch.manual_seed(4)
    layer = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Softplus(), nn.Dropout()).eval()
    layer[0].weight.grad = torch.ones(4, 4)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    random_state = torch.get_rng_state()
    check(layer, (4,))
    assert torch.equal(random_state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    assert not any(module.training for module in layer.modules())
    assert torch.equal(layer[0].weight.grad, torch.ones(4, 4)) and layer[0].weight.requires_grad
    assert layer[0].weight.dtype == torch.float32 and layer[2].threshold == 20


def test_check_gives_the_same_slack_twice():
    torch.manual_seed(5)
    layer = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    assert check(layer, (3,), seed=7) == check(layer, (3,), seed=7)


def test_check_works_without_gradients_and_in_inference_mode():
    layer = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    with torch.no_grad():
        without = check(layer, (3,))
    with torch.inference_mode():
        assert check(layer, (3,)) == without


def test_check_refuses_a_layer_without_contracts():
    with pytest.raises(UnsupportedLayerError, match="nn.LSTM has no contract"):
        check(nn.LSTM(3, 3), (3,))


NOT_SHAPES = [([3], TypeError), (3, TypeError), ((0,), ValueError), ((), ValueError), ((2.0,), ValueError)]


@pytest.mark.parametrize("shape, error", NOT_SHAPES)
def test_check_refuses_what_is_not_a_shape(shape, error):
    with pytest.raises(error, match="tuple of positive integers"):
        check(nn.ReLU(), shape)


def test_check_refuses_a_seed_that_is_not_an_int():
    with pytest.raises(TypeError, match="seed must be an int"):
        check(nn.ReLU(), (3,), seed=0.5)


class Tripled(nn.Linear):
    def forward(self, x):
        return 3 * super().forward(x)


@lipschitz.register(Tripled)
def _tripled(layer, norm, input_shape):
    return Bound(0.01, "upper", norm=norm)


class Unshaped(nn.Module):
    def forward(self, x):
        return 3 * x


@lipschitz.register(Unshaped)
def _unshaped(layer, norm, input_shape):
    return Bound(0.01, "upper", norm=norm)


@pytest.mark.parametrize("layer", [Tripled(4, 4), Unshaped()], ids=lambda layer: type(layer).__name__)
def test_a_false_contract_inside_a_sequential_is_attacked_too(layer):
    """Without an `output_shape` the product is known for every shape, and has to be attacked as such."""
    for attacked in (layer, nn.Sequential(nn.Linear(4, 4), layer, nn.ReLU())):
        with pytest.raises(CertificateError, match="lipschitz"):
            check(attacked, (4,))


def test_a_shape_that_the_layer_does_not_take_is_a_value_error():
    with pytest.raises(ValueError, match="does not take"):
        check(OnesMatrix(), (5,))


class OnesMatrix(nn.Module):
    def forward(self, x):
        return x @ torch.ones(4, 4, dtype=x.dtype)


@lipschitz.register(OnesMatrix)
def _matrix(layer, norm, input_shape):
    return Bound(4.0, "upper", norm=norm)
