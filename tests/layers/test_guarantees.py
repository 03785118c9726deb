"""The page "What each layer guarantees": every cell of its tables, against singular values."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from lipbook import UnsupportedLayerError
from lipbook.contracts import lipschitz, output_shape
from lipbook.layers import (
    AOLConv2d,
    AOLLinear,
    LipschitzResidual,
    OrthogonalConv2d,
    OrthogonalLinear,
    SandwichLinear,
    SLLConv2d,
    SLLLinear,
    convolution,
    filters,
    orthogonal,
    sandwich,
)

PAGE = (Path(__file__).resolve().parents[2] / "book/reference/layers.md").read_text(encoding="utf-8")
DTYPES = {
    str(d).removeprefix("torch."): d for d in (torch.float64, torch.float32, torch.bfloat16, torch.float16)
}
SIZES = [(6, 6), (4, 7), (7, 4), (1, 5), (1, 1)]
IMAGES = [(4, 4), (4, 6), (2, 2)]
VALUE = 1e-9  # what a bound may be above the norm


def tables():
    found = []
    for section in PAGE.split("\n## ")[1:]:
        lines = [line for line in section.splitlines() if line.startswith("|")]
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        if cells:
            found.append([dict(zip(cells[0], row, strict=True)) for row in cells[2:]])
    return found


DENSE, CONVOLUTIONS, BLOCKS = tables()


def label(row):
    return f"{row['Layer']} {row.get('Padding', '')}"


def dense_rows(test):
    return pytest.mark.parametrize("row", DENSE, ids=label)(test)


def convolution_rows(test):
    return pytest.mark.parametrize("row", CONVOLUTIONS, ids=label)(test)


def method(row):
    names = re.findall(r"`(\w+)`", row["Layer"])
    return names[1] if len(names) > 1 else None


def test_the_tables_name_every_layer_method_and_padding_once():
    assert [method(row) for row in DENSE] == [*orthogonal.METHODS, None]
    pairs = [(method(row), row["Padding"]) for row in CONVOLUTIONS]
    assert len(pairs) == len(set(pairs))
    for name in [*convolution.METHODS, None]:
        for padding in ("circular", "zeros"):
            assert ((name, padding) in pairs) is allowed(name, padding)


def allowed(name, padding):
    try:
        make({"Layer": f"`OrthogonalConv2d`, `{name}`" if name else "`AOLConv2d`", "Padding": padding}, 2, 2)
    except ValueError:
        return False
    return True


def make(row, inputs, outputs, size=None, stride=None):
    """The layer of a row, untrained, in float64."""
    if "Padding" not in row:
        layer = (
            AOLLinear(inputs, outputs)
            if method(row) is None
            else OrthogonalLinear(inputs, outputs, method=method(row))
        )
    elif method(row) is None:
        layer = AOLConv2d(inputs, outputs, size or 3, padding_mode=row["Padding"])
    else:
        size = size or (2 if method(row) == "patch" else 3)
        stride = stride or (size if method(row) == "patch" else 1)
        layer = OrthogonalConv2d(inputs, outputs, size, stride, row["Padding"], method=method(row))
    return layer.double()


def drawn(layer, seed, scale=1.0, skewed=False):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
            if name.startswith("free"):
                parameter.mul_(scale)
                if skewed:
                    parameter.mul_(
                        torch.randn(parameter.shape[:1], generator=generator, dtype=torch.float64).reshape(
                            -1, *[1] * (parameter.ndim - 1)
                        )
                        ** 6
                    )
    return layer


def variants(row, sizes):
    """Layers of a row in float64 with parameters of every size, of low rank and zero."""
    for inputs, outputs in sizes:
        for seed, (scale, skewed) in enumerate(
            [(0, False), (1e-20, False), (0.3, False), (1, True), (1, False), (1e3, True), (1e20, False)]
        ):
            yield drawn(make(row, inputs, outputs), seed, scale, skewed)


def channel_counts(row):
    return [(3, 3), (2, 2)] if row["Channels"] == "equal" else [(3, 3), (2, 3), (3, 2), (1, 4), (4, 1)]


def matrix_of(layer, shape):
    with torch.no_grad():
        probes = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
        return (layer(probes) - layer(0 * probes)).flatten(1).T.numpy()


def singular_values(layer, shape):
    return np.linalg.svd(matrix_of(layer, shape), compute_uv=False)


def coefficients(cell, layer):
    """(a, whether under a root) of "1 + a n ε" or "1 + a n √ε", in the part that is about the layer."""
    first, *second = cell.split("; ")
    if second and max(parameter.abs().max().item() for parameter in layer.parameters()) <= 1:
        first = second[0].removesuffix(" for entries up to 1")
    factor, root = re.fullmatch(r"1 \+ (?:(\d+) )?n (√?)ε", first).groups()
    return float(factor or 1), bool(root)


def promised(cell, layer, dtype):
    """The number that a cell such as "1 + 8 n ε" is, and for parameters of entries up to 1 the second one."""
    factor, root = coefficients(cell, layer)
    channels = max(
        getattr(layer, "in_features", 0) or layer.in_channels,
        getattr(layer, "out_features", 0) or layer.out_channels,
    )
    n = channels * getattr(layer, "kernel_size", 1) ** 2
    eps = torch.finfo(dtype).eps
    half = math.sqrt(n) * eps if eps > 1e-4 else 0  # the rounding of the weight itself
    if half:
        eps = torch.finfo(torch.float32).eps
    return 1 + factor * n * (eps**0.5 if root else eps) + half


# Norm at most, and in which dtypes.


@dense_rows
def test_the_norm_of_a_dense_weight_is_at_most_what_the_table_says_in_each_dtype(row):
    assert set(row["Dtypes"].split(", ")) <= set(DTYPES)
    for layer in variants(row, SIZES):
        for dtype in map(DTYPES.get, row["Dtypes"].split(", ")):
            if dtype == torch.float16 and max(p.abs().max() for p in layer.parameters()) > 1e4:
                continue  # beyond the floats of the parameters
            other = make(row, layer.in_features, layer.out_features)
            other.load_state_dict(layer.state_dict())
            other.to(dtype)
            truth = torch.linalg.matrix_norm(other.materialise()[0].double(), 2).item()
            assert truth <= promised(row["Norm at most"], layer, dtype)
            assert truth <= lipschitz(other).value <= truth * (1 + VALUE) + 1e-300


@convolution_rows
def test_the_norm_of_a_convolution_is_at_most_what_the_table_says_in_each_dtype(row):
    for layer in variants(row, channel_counts(row)):
        shape = (layer.in_channels, *IMAGES[0])
        for name, dtype in DTYPES.items():
            if dtype == torch.float16 and max(p.abs().max() for p in layer.parameters()) > 1e4:
                continue  # beyond the floats of the parameters
            other = make(row, layer.in_channels, layer.out_channels)
            other.load_state_dict(layer.state_dict())
            other.to(dtype)
            if name not in row["Dtypes"].split(", "):
                with pytest.raises(UnsupportedLayerError):
                    lipschitz(other, 2, shape)
                with pytest.raises(TypeError):
                    other(torch.zeros(1, *shape, dtype=dtype))
                continue
            limit = promised(row["Norm at most"], layer, dtype)
            assert lipschitz(other, 2, shape).value <= limit * (1 + VALUE)
        for size in IMAGES:
            truth = singular_values(layer, (layer.in_channels, *size)).max()
            assert truth <= promised(row["Norm at most"], layer, torch.float64) + 1e-13


# Orthogonal.


def condition(cell):
    """(the relative singular value above which, or None; the distance from 1 that is left)"""
    if cell == "yes":
        return None, 1e-7
    if found := re.fullmatch(r"for singular values above ([\d.]+) of the largest", cell):
        return float(found[1]), 1e-7
    return None, float(re.fullmatch(r"within ([\d.]+)", cell)[1])


def free_values(layer, size):
    """The singular values of the free parameter, as a matrix or at each frequency."""
    free = layer.free.detach()
    return torch.linalg.svdvals(filters.symbols(free, size) if free.ndim == 4 else free)


def orthogonality(row, layers, image):
    """The smallest singular value of the layers for which the table promises something, and of the others."""
    above, _ = condition(row["Orthogonal"])
    inside, outside = [], []
    for layer in layers:
        shape = (layer.in_channels, *image) if image else (layer.in_features,)
        values = free_values(layer, image) if above else None
        holds = above is None or (values.amin(-1) > above * values.amax(-1)).all()
        (inside if holds else outside).append(singular_values(layer, shape).min())
    return inside, outside


def layers_with(row, sizes):
    for inputs, outputs in sizes:
        for seed in range(8):
            yield drawn(make(row, inputs, outputs), seed)


@dense_rows
def test_dense_weights_are_orthogonal_where_the_table_says_so(row):
    if row["Orthogonal"] == "no":
        assert (
            min(singular_values(layer, (layer.in_features,)).min() for layer in layers_with(row, SIZES[:3]))
            < 0.9
        )
        return
    inside, _ = orthogonality(row, layers_with(row, SIZES), None)
    assert len(inside) >= 8 and min(inside) >= 1 - condition(row["Orthogonal"])[1]


def test_where_the_table_makes_a_condition_it_is_needed():
    for row in DENSE:
        if row["Orthogonal"].startswith("for"):
            layer = make(row, 4, 4)
            with torch.no_grad():
                layer.free.copy_(torch.ones_like(layer.free))
                layer.free[0, 0] = 1 + 1e-9
            smallest = singular_values(layer, (4,)).min()
            assert smallest < 0.99 if "bro" not in row["Layer"] else smallest < 1 - 1e-8


@convolution_rows
def test_convolutions_are_orthogonal_where_the_table_says_so(row):
    counts = channel_counts(row)
    if row["Orthogonal"] == "no":
        size, image = (4, (4, 6)) if method(row) == "patch" else (3, (4, 4))
        if method(row) == "patch":  # pixels that do not fill a patch are not read
            values = singular_values(drawn(make(row, 1, 16, size), 0), (1, 5, 6))
            matrix = matrix_of(drawn(make(row, 1, 16, size), 0), (1, 5, 6))
            assert len(matrix) == 16 and np.linalg.matrix_rank(matrix) == 16 < 30
            assert np.linalg.svd(matrix.T @ matrix, compute_uv=False).min() < 1e-9
            return
        values = [
            singular_values(layer, (layer.in_channels, *image)).min() for layer in layers_with(row, counts)
        ]
        assert min(values) < 0.9
        return
    for image in IMAGES:
        inside, _ = orthogonality(row, layers_with(row, counts), image)
        assert inside and min(inside) >= 1 - condition(row["Orthogonal"])[1]


# What is cut off.


def test_what_is_cut_off_falls_below():
    """By the methods that cut something off, and what they cut off, in float64 where rounding is not seen."""
    told = {(method(row), row.get("Padding")): row["Cut off"] for row in DENSE + CONVOLUTIONS}
    assert {key for key, cell in told.items() if cell.startswith("steps")} == {("bjorck", None)}
    assert {key for key, cell in told.items() if cell.startswith("ridge")} == {
        ("cholesky", None),
        ("bro", None),
        ("bro", "circular"),
    }
    assert {key for key, cell in told.items() if cell.startswith("series")} == {
        ("soc", "circular"),
        ("soc", "zeros"),
    }
    assert {key for key, cell in told.items() if cell.startswith("border")} == {
        ("bcop", "zeros"),
        ("patch", "zeros"),
    }
    for row in DENSE + CONVOLUTIONS:
        if row["Cut off"] == "nothing":
            continue
        assert row["Cut off"].endswith(": below")
        dense = "Padding" not in row
        sizes = SIZES if dense else channel_counts(row)
        for layer in variants(row, sizes):
            shape = (
                (layer.in_features,)
                if dense
                else (layer.in_channels, 4, 5 if row["Padding"] == "zeros" else 4)
            )
            values = singular_values(layer, shape)
            limit = 1 if "bcop" not in row["Layer"] else promised(row["Norm at most"], layer, torch.float64)
            assert values.max() <= limit + 1e-13


# Square weights.


def random_orthogonal(size, seed, sign):
    q = torch.linalg.qr(
        torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ).Q
    if torch.linalg.det(q).sign() != sign:
        q[:, 0] *= -1
    return q


@dense_rows
def test_square_weights_are_those_of_the_table(row):
    for seed in range(10):
        weight = drawn(make(row, 5, 5), seed).weight.detach()
        values = torch.linalg.eigvals(weight)
        match row["Square weights"]:
            case "rotations without eigenvalue −1":
                assert torch.linalg.det(weight).item() == pytest.approx(1, abs=1e-9)
                assert (values + 1).abs().min() > 1e-9
                rotation = random_orthogonal(5, seed, 1)
                identity = torch.eye(5, dtype=torch.float64)
                skew = torch.linalg.solve(identity + rotation, identity - rotation)
                require_reached(row, rotation, skew / 2)
            case "all":
                for sign in (1, -1):
                    target = random_orthogonal(5, seed, sign)
                    require_reached(row, target, target)
            case "symmetric, ⌊n/2⌋ eigenvalues −1":
                torch.testing.assert_close(weight, weight.T, rtol=0, atol=1e-12)
                assert ((values.real + 1).abs() < 1e-6).sum() == 5 // 2
            case other:
                raise AssertionError(f"no test reads {other!r}")


def require_reached(row, target, free):
    layer = make(row, len(target), len(target))
    with torch.no_grad():
        layer.free.copy_(free)
    torch.testing.assert_close(layer.weight, target, rtol=0, atol=1e-6)


# Channels, strides, shapes.


def takes(row, inputs, outputs, size, stride, image):
    """Whether a layer with these options can be built, and takes this image."""
    try:
        layer = make(row, inputs, outputs, size, stride)
        output_shape(layer, (inputs, *image))
    except ValueError:
        return False
    with torch.no_grad():
        return layer(torch.zeros(1, inputs, *image, dtype=torch.float64)).shape[1] == outputs


@convolution_rows
def test_channels_and_strides_are_those_of_the_table(row):
    size = 4 if method(row) == "patch" else 3
    stride = size if method(row) == "patch" else 1
    assert takes(row, 2, 2, size, stride, (4, 4))
    for inputs, outputs in [(2, 3), (3, 2)]:
        assert (
            takes(row, inputs, outputs, size, stride, (4, 4))
            is {"any": True, "equal": False}[row["Channels"]]
        )
    if method(row) is None:
        assert row["Stride"] == "1"  # it has no such argument
        return
    told, *rest = row["Stride"].split(", ")
    allowed = {"1": {1}, "1 to k": {1, 2, 3}, "k": {3}}[told]
    assert {stride for stride in (1, 2, 3, 4) if takes(row, 2, 2, 3, stride, (12, 12))} == allowed
    largest = max(allowed)
    if largest > 1:
        assert rest in ([], ["dividing the image"])
        assert takes(row, 2, 2, 3, largest, (12, 13)) is (not rest)


@convolution_rows
def test_the_rows_that_need_the_shape_ask_for_it(row):
    layer = make(row, 2, 2)
    if row["Needs the shape"] == "yes":
        with pytest.raises(ValueError, match="input_shape"):
            lipschitz(layer)
    else:
        bound = lipschitz(layer).value
        for size in IMAGES:
            assert singular_values(layer, (2, *size)).max() <= bound * (1 + 1e-12)


def test_the_numbers_of_the_prose_are_those_of_the_floats():
    for dtype, told in [
        (torch.float32, (1.2, -7)),
        (torch.float64, (2.2, -16)),
        (torch.bfloat16, (7.8, -3)),
        (torch.float16, (9.8, -4)),
    ]:
        written = rf"{told[0]} \cdot 10^{{{told[1]}}}"
        assert written in PAGE
        assert torch.finfo(dtype).eps == pytest.approx(told[0] * 10.0 ** told[1], rel=0.03)
    assert "$2^{-36}$" in PAGE and convolution._LOST == 2.0**-36


# Blocks.

MAKE = {
    "SLLLinear": lambda inputs, outputs: SLLLinear(inputs, outputs + 1),
    "SLLConv2d": lambda inputs, outputs: SLLConv2d(inputs, 3, outputs + 1),
    "SandwichLinear": SandwichLinear,
    "LipschitzResidual": lambda inputs, outputs: LipschitzResidual(inputs, 4, outputs, lipschitz=3.0),
}


def block_rows(test):
    return pytest.mark.parametrize("row", BLOCKS, ids=lambda row: row["Block"].strip("`"))(test)


def blocks(row):
    sizes = [(3, 3), (1, 1)] if row["Sizes"] == "outputs equal inputs" else [(3, 3), (2, 5), (5, 2), (1, 1)]
    return [MAKE[row["Block"].strip("`")](*size) for size in sizes]


def constant(cell, layer, dtype):
    if cell == "1":
        return 1.0
    factor, root = coefficients(cell, layer)
    hidden = getattr(layer, "hidden", layer.out_features)
    eps = torch.finfo(dtype).eps
    size = factor * (layer.in_features + hidden + layer.out_features)
    return (1 + size * (eps**0.5 if root else eps)) * getattr(layer, "lipschitz", 1.0)


def sample_shapes(row, layer):
    if row["Images"] == "no":
        return [(getattr(layer, "in_features", None) or layer.features,)]
    return [(layer.channels, 4, 5), (layer.channels, 1, 1)]


def test_the_table_names_every_block_once():
    assert [row["Block"].strip("`") for row in BLOCKS] == list(MAKE)


@block_rows
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_block_has_the_constant_of_its_cell(row, dtype):
    for seed, scale in enumerate((0, 1e-20, 0.3, 1, 30)):
        for layer in blocks(row):
            drawn(layer, seed)
            with torch.no_grad():
                for parameter in layer.parameters():
                    parameter.mul_(scale)
            layer = layer.to(dtype)
            largest = constant(row["Constant at most"], layer, dtype)
            for shape in sample_shapes(row, layer):
                bound = lipschitz(layer, 2, shape).verify(layer)
                assert bound.value <= largest * (1 + VALUE)
                if row["Constant at most"] == "1":
                    assert bound.value == 1


@block_rows
def test_a_block_has_the_sizes_activations_and_norms_of_its_cells(row):
    for layer in blocks(row):
        for shape in sample_shapes(row, layer):
            changes = output_shape(layer, shape) != shape
            assert not (changes and row["Sizes"] == "outputs equal inputs")
            with pytest.raises(UnsupportedLayerError):
                lipschitz(layer, math.inf, shape)
    if row["Sizes"] == "any":
        assert any(
            output_shape(layer, shape) != shape
            for layer in blocks(row)
            for shape in sample_shapes(row, layer)
        )
    activations = row["Activation"].split(", ")
    assert activations == (list(sandwich.ACTIVATIONS) if row["Block"] == "`SandwichLinear`" else ["relu"])
    if row["Images"] != "no":
        for mode in ("circular", "zeros"):
            assert mode in row["Images"]
            assert lipschitz(SLLConv2d(2, 3, padding_mode=mode)).value == 1
