"""Convolutions of norm at most 1: seconds forward and backward, the norm, and whether the gradient is exact.

Ours against those of three packages, all in one process on one thread, in float32 and train mode, k x k on a
square image. `seconds` are the smallest and the median over rounds that take every layer once, so that what
disturbs one disturbs all, and `processor_seconds` those of the processor. Divide them by those of the
nn.Conv2d with the same `padding`. The rest is of a layer of `small` channels on an image of `small_size`, at
the start and after 200 steps of Adam that fit three times a random rotation of the channels: `fit` is the
mean squared error on fresh inputs, 4 at best for a map of norm 1; `singular_values` are the largest and the
smallest of the Jacobian, in float64, of the layer as it trains and as it evaluates; for a block with an
activation (SLL) at one random input. `gradient_error` is the relative distance of the gradient from central
differences in float64, at perturbed parameters; None where the layer does not run in float64.

The peers, for the record only (`pip install --no-deps`, and einops): deel-torchlip 1.0.5, orthogonium 0.0.4,
and the package lipnn of the repository berndprach/1LipschitzLayersCompared, commit 01e3f2a, on the path.
Chapter: layers/orthogonal-convolutions.
"""

import copy
import importlib
import importlib.metadata
import statistics
import time

import torch
from torch import nn

from lipbook.layers import AOLConv2d, OrthogonalConv2d, SLLConv2d

SEEDS = [0, 1, 2]
SETTINGS = [
    {"channels": 32, "kernel": 3, "size": 16, "batch": 64, "rounds": 20}
    | {"small": 16, "small_size": 8, "steps": 200, "peers": True}
]
SMOKE = [
    {"channels": 2, "kernel": 3, "size": 4, "batch": 2, "rounds": 2}
    | {"small": 2, "small_size": 4, "steps": 2, "peers": False}
]
PACKAGES = ("deel-torchlip", "orthogonium", "einops")
PADDINGS = ("circular", "zeros")


def of_torch():
    return {
        f"nn.Conv2d {p}": (lambda c, k, p=p: nn.Conv2d(c, c, k, padding="same", padding_mode=p), p)
        for p in PADDINGS
    }


def ours():
    methods = [("bcop", p) for p in PADDINGS] + [("soc", p) for p in PADDINGS]
    methods += [(m, "circular") for m in ("cayley", "bro")]
    built = {
        f"lipbook {m} {p}": (lambda c, k, m=m, p=p: OrthogonalConv2d(c, c, k, padding_mode=p, method=m), p)
        for m, p in methods
    }
    for p in PADDINGS:
        built[f"lipbook AOL {p}"] = lambda c, k, p=p: AOLConv2d(c, c, k, padding_mode=p), p
        built[f"lipbook SLL {p}"] = lambda c, k, p=p: SLLConv2d(c, k, padding_mode=p), p
    return built


def of_peers():
    torchlip = importlib.import_module("deel.torchlip")
    of = importlib.import_module
    aoc = of("orthogonium.layers.conv.AOC").AdaptiveOrthoConv2d
    maps = of("orthogonium.reparametrizers")
    soc = of("orthogonium.layers.conv.adaptiveSOC").AdaptiveSOCConv2d
    aol = of("orthogonium.layers.conv.AOL").AOLConv2D
    sll = of("orthogonium.layers.conv.SLL.sll_layer").SDPBasedLipschitzResBlock
    same = {"padding": "same", "padding_mode": "circular"}
    compared = "lipnn.layers.lipschitz."
    circular = {
        "torchlip SpectralConv2d": lambda c, k: torchlip.SpectralConv2d(c, c, k, **same),
        "orthogonium AOC": lambda c, k: aoc(c, c, k),
        "orthogonium AOC QR": lambda c, k: aoc(c, c, k, ortho_params=maps.QR_ORTHO_PARAMS),
        "orthogonium AOC Cholesky": lambda c, k: aoc(c, c, k, ortho_params=maps.CHOLESKY_ORTHO_PARAMS),
        "orthogonium SOC": lambda c, k: soc(c, c, k, padding=3 * (k // 2)),  # for 3k - 2 taps a side
        "orthogonium AOL": lambda c, k: aol(c, c, k, **same),
        "1LLC BCOP": lambda c, k: of(compared + "bcop").BCOP(c, c, k),
        "1LLC Cayley": lambda c, k: of(compared + "cayley").CayleyConv(c, c, k, padding="same"),
        "1LLC AOL": lambda c, k: of(compared + "aol").AOLConv2dOrth(c, c, k),
        "1LLC LOT": lambda c, k: of(compared + "lot").LOT(c, c, k),
    }
    zeros = {
        "orthogonium SLL": lambda c, k: sll(c, 1, k),
        "1LLC SOC": lambda c, k: of(compared + "soc").SOC(c, c, k),
        "1LLC SLL": lambda c, k: of(compared + "sll").SLLConv2d(c, c, k),
    }
    return {n: (b, "circular") for n, b in circular.items()} | {n: (b, "zeros") for n, b in zeros.items()}


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


def train(layer, shape, steps, generator):
    """Fit 3 Rx, R a random rotation of the channels; the mean squared error on inputs drawn afterwards."""
    rotation = random_rotation(shape[1], generator)
    trained = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-2)

    def error(layer):
        inputs = torch.randn(shape, generator=generator)
        return (layer(inputs) - 3 * torch.einsum("oi,bihw->bohw", rotation, inputs)).square().mean()

    for _ in range(steps):
        optimizer.zero_grad()
        error(layer).backward()
        optimizer.step()
    with torch.no_grad():
        return error(layer).item()


def singular_values(layer, inputs):
    """The largest and smallest singular value of the Jacobian at one input, in float64; of a copy."""
    layer = copy.deepcopy(layer)
    n = inputs[0].numel()
    repeated = inputs[:1].detach().repeat(n, 1, 1, 1).requires_grad_()
    layer(repeated).backward(torch.eye(n).reshape(repeated.shape))
    values = torch.linalg.svdvals(repeated.grad.flatten(1).double())
    return [values[0].item(), values[-1].item()]


def both_modes(layer, inputs):
    evaluating = copy.deepcopy(layer).eval()
    return {"train": singular_values(layer, inputs), "eval": singular_values(evaluating, inputs)}


def gradient_error(build, seed, channels=4, size=6, h=1e-5):
    """||differences - slopes|| / ||differences|| along 8 random directions in the parameters' space."""
    torch.manual_seed(seed)
    layer = build(channels, 3).double()
    with torch.no_grad():
        layer(torch.randn(2, channels, size, size))  # some parameters are made by the first forward pass
    layer = nudged(layer, 0.3, directions(layer))
    inputs, cotangent = torch.randn(2, 2, channels, size, size)

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


def measured(build, setting, seed):
    """What is told of a small layer."""
    torch.manual_seed(seed)
    layer = build(setting["small"], setting["kernel"])
    shape = (setting["batch"], setting["small"], *[setting["small_size"]] * 2)
    inputs = torch.randn(shape)
    with torch.no_grad():
        layer(inputs)  # some parameters are made by the first forward pass
    values = {"start": both_modes(layer, inputs)}
    fit = train(layer, shape, setting["steps"], torch.Generator().manual_seed(seed))
    values["trained"] = both_modes(layer, inputs)
    return {"singular_values": values, "fit": fit, "gradient_error": measured_error(build, seed)}


def run(setting, seed):
    builders = of_torch() | ours() | (of_peers() if setting["peers"] else {})
    torch.manual_seed(seed)
    layers = {name: build(setting["channels"], setting["kernel"]) for name, (build, _) in builders.items()}
    shape = (setting["batch"], setting["channels"], setting["size"], setting["size"])
    times = timed(layers, shape, setting["rounds"])
    return {
        "packages": {p: importlib.metadata.version(p) for p in PACKAGES} if setting["peers"] else {},
        "layers": {
            name: {"padding": padding, **times[name], **measured(build, setting, seed)}
            for name, (build, padding) in builders.items()
        },
    }
