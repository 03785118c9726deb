"""Dense layers of norm at most 1: seconds forward and backward, the norm, and whether the gradient is exact.

Ours against those of torch and of three packages, all in one process on one thread, in float32 and train
mode. `seconds` are the smallest and the median over rounds that take every layer once, so that what disturbs
one disturbs all, and `processor_seconds` those of the processor; divide by those of nn.Linear.
`singular_values` are the largest and the smallest of the Jacobian, in float64, of the layer as it trains and
as it evaluates; for a block with an activation (SLL, Sandwich, residual) at one random input. With `steps`,
Adam has first fitted three times a random rotation; `fit` is the mean squared error on fresh inputs, 4 at
best for a map of norm 1. `gradient_error` is the relative distance of the gradient from central differences
in float64, at perturbed parameters of a smaller layer; None where the layer does not run in float64, and
after steps.

The peers, for the record only (`pip install --no-deps`, and einops): deel-torchlip 1.0.5, orthogonium 0.0.4,
and the package lipnn of the repository berndprach/1LipschitzLayersCompared, commit 01e3f2a, on the path.
Chapter: layers/orthogonal-layers.
"""

import copy
import importlib
import importlib.metadata
import statistics
import time

import torch
from torch import nn
from torch.nn.utils.parametrizations import orthogonal

from lipbook.layers import AOLLinear, LipschitzResidual, OrthogonalLinear, SandwichLinear, SLLLinear

SEEDS = [0, 1, 2]
SETTINGS = [
    {"features": 256, "batch": 128, "steps": steps, "rounds": 40, "peers": True} for steps in (0, 200)
]
SMOKE = [{"features": 8, "batch": 4, "steps": 2, "rounds": 2, "peers": False}]
PACKAGES = ("deel-torchlip", "orthogonium", "einops")


def ours():
    methods = ("cayley", "qr", "bjorck", "cholesky", "bro")
    return {
        **{f"lipbook {m}": lambda n, m=m: OrthogonalLinear(n, n, method=m) for m in methods},
        "lipbook AOL": lambda n: AOLLinear(n, n),
        "lipbook SLL": lambda n: SLLLinear(n),
        "lipbook Sandwich": lambda n: SandwichLinear(n, n),
        "lipbook residual": lambda n: LipschitzResidual(n, n, n),
    }


def of_torch():
    maps = ("cayley", "householder", "matrix_exp")
    return {f"torch {m}": lambda n, m=m: orthogonal(nn.Linear(n, n), orthogonal_map=m) for m in maps}


def of_peers():
    torchlip = importlib.import_module("deel.torchlip")
    linear = importlib.import_module("orthogonium.layers.linear").OrthoLinear
    maps = importlib.import_module("orthogonium.reparametrizers")
    sll = importlib.import_module("orthogonium.layers.conv.SLL.sll_layer").SDPBasedLipschitzDense
    compared = {
        name: importlib.import_module(f"lipnn.layers.lipschitz.{name}")
        for name in ("cayley", "aol", "sll", "bjorck")
    }
    return {
        "torchlip SpectralLinear": lambda n: torchlip.SpectralLinear(n, n),
        "orthogonium default": lambda n: linear(n, n),
        "orthogonium QR": lambda n: linear(n, n, ortho_params=maps.QR_ORTHO_PARAMS),
        "orthogonium Cholesky": lambda n: linear(n, n, ortho_params=maps.CHOLESKY_ORTHO_PARAMS),
        "orthogonium SLL": lambda n: sll(n, n, n),
        "1LLC Cayley": lambda n: compared["cayley"].CayleyLinear(n, n),
        "1LLC AOL": lambda n: nn.Sequential(
            nn.Unflatten(1, (n, 1, 1)), compared["aol"].AOLConv2dOrth(n, n, 1), nn.Flatten()
        ),
        "1LLC SLL": lambda n: compared["sll"].SLLLinear(None, n, n),
        "1LLC Bjorck": lambda n: compared["bjorck"].BjorckLinear(n, n),
    }


def gradients(layer, inputs, cotangent):
    """One forward and backward pass, from no gradients to all."""
    layer.zero_grad()
    inputs.grad = None
    layer(inputs).backward(cotangent)


def timed(layers, shape, rounds):
    """{name: {"seconds": [smallest, median], "processor_seconds": the same}}, the layers taken in turns."""
    inputs, cotangent = torch.randn(shape).requires_grad_(), torch.randn(shape)
    for layer in layers.values():
        gradients(layer, inputs, cotangent)
    clock, processor = {name: [] for name in layers}, {name: [] for name in layers}
    for _ in range(rounds):
        for name, layer in layers.items():
            start = time.perf_counter(), time.process_time()
            gradients(layer, inputs, cotangent)
            clock[name].append(time.perf_counter() - start[0])
            processor[name].append(time.process_time() - start[1])
    return {
        name: {"seconds": summary(clock[name]), "processor_seconds": summary(processor[name])}
        for name in layers
    }


def summary(seconds):
    return [min(seconds), statistics.median(seconds)]


def random_rotation(n, generator):
    """An orthogonal matrix of determinant 1."""
    matrix = torch.linalg.qr(torch.randn(n, n, generator=generator)).Q
    matrix[:, 0] *= torch.linalg.det(matrix).sign()
    return matrix


def train(layer, features, batch, steps, generator):
    """Fit 3 Rx, R a random rotation; the mean squared error on 1,024 inputs drawn afterwards."""
    rotation = random_rotation(features, generator)
    trained = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-2)
    for _ in range(steps):
        inputs = torch.randn(batch, features, generator=generator)
        optimizer.zero_grad()
        (layer(inputs) - 3 * inputs @ rotation).square().mean().backward()
        optimizer.step()
    inputs = torch.randn(1024, features, generator=generator)
    with torch.no_grad():
        return (layer(inputs) - 3 * inputs @ rotation).square().mean().item()


def singular_values(layer, inputs):
    """The largest and smallest singular value of the Jacobian at one input, in float64; of a copy."""
    layer = copy.deepcopy(layer)
    repeated = inputs[:1].detach().repeat(inputs.shape[1], 1).requires_grad_()
    layer(repeated).backward(torch.eye(len(repeated)))
    values = torch.linalg.svdvals(repeated.grad.double())
    return [values[0].item(), values[-1].item()]


def both_modes(layer, inputs):
    evaluating = copy.deepcopy(layer).eval()
    return {"train": singular_values(layer, inputs), "eval": singular_values(evaluating, inputs)}


def gradient_error(build, seed, features=12, h=1e-5):
    """||differences - slopes|| / ||differences|| along 8 random directions in the parameters' space."""
    torch.manual_seed(seed)
    layer = build(features).double()
    layer = nudged(layer, 0.3, directions(layer))
    inputs, cotangent = torch.randn(2, 3, features)

    def value(layer):
        torch.manual_seed(seed)  # some layers begin a power iteration at random
        return (layer(inputs) * cotangent).sum()

    at, names = copy.deepcopy(layer), list(directions(layer))
    trained = [at.get_parameter(name) for name in names]
    gradient = torch.autograd.grad(value(at), trained, materialize_grads=True)
    differences, slopes = [], []
    for toward in [directions(layer) for _ in range(8)]:
        ahead, behind = (value(nudged(layer, step, toward)).item() for step in (h, -h))
        differences.append((ahead - behind) / (2 * h))
        slopes.append(sum((g * toward[name]).sum().item() for name, g in zip(names, gradient)))
    differences, slopes = torch.tensor([differences, slopes], dtype=torch.float64)
    return ((differences - slopes).norm() / differences.norm()).item()


def directions(layer):
    """Random changes of the trained parameters, each of the size of its parameter."""
    trained = {name: p.detach() for name, p in layer.named_parameters() if p.requires_grad}
    return {name: p.abs().mean() * torch.randn_like(p) for name, p in trained.items()}


def nudged(layer, step, toward):
    """A copy of the layer, with whatever state it keeps, at other parameters."""
    layer = copy.deepcopy(layer)
    for name, direction in toward.items():
        layer.get_parameter(name).data += step * direction
    return layer


def measured_error(build, seed):
    torch.set_default_dtype(torch.float64)
    try:
        return gradient_error(build, seed)
    except (RuntimeError, TypeError):  # no float64
        return None
    finally:
        torch.set_default_dtype(torch.float32)


def run(setting, seed):
    features, batch = setting["features"], setting["batch"]
    builders = {"nn.Linear": lambda n: nn.Linear(n, n), **of_torch(), **ours()}
    if setting["peers"]:
        builders |= of_peers()
    torch.manual_seed(seed)
    layers = {name: build(features) for name, build in builders.items()}
    inputs, fits = torch.randn(batch, features), {}
    for name, layer in layers.items():
        fits[name] = train(layer, features, batch, setting["steps"], torch.Generator().manual_seed(seed))
    times = timed(layers, inputs.shape, setting["rounds"])
    return {
        "packages": {p: importlib.metadata.version(p) for p in PACKAGES} if setting["peers"] else {},
        "layers": {
            name: {
                **times[name],
                "singular_values": both_modes(layer, inputs),
                "fit": fits[name],
                "gradient_error": measured_error(builders[name], seed) if setting["steps"] == 0 else None,
            }
            for name, layer in layers.items()
        },
    }
