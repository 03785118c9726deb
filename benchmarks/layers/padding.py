"""The norm of an untrained convolution whose reshaped kernel is orthogonal, for each padding.

The layer divides the orthogonal matrix by k, which bounds its norm by 1 while no pixel is read more than k^2
times. "torchlip" is SpectralConv2d of deel-torchlip 1.0.5 as it is built (`pip install --no-deps
deel-torchlip`, for the record only), "by hand" the same construction from a QR decomposition. `norm` is the
largest singular value of the whole layer, written out on `size` x `size` pixels, in float64 of the float32
outputs. Chapter: layers/orthogonal-convolutions.
"""

import importlib
import importlib.metadata

import torch
import torch.nn.functional as F
from torch import nn

SEEDS = [0, 1, 2]
PADDINGS = ("zeros", "circular", "reflect", "replicate")
SETTINGS = [
    {"layer": "torchlip", "in": c_in, "out": 16, "kernel": k, "padding": padding, "size": 8}
    for c_in, k in ((1, 3), (16, 3), (1, 5))
    for padding in PADDINGS
]
SMOKE = [{"layer": "by hand", "in": 1, "out": 16, "kernel": 3, "padding": "reflect", "size": 5}]


class Reshaped(nn.Module):
    """Pads as it is told, and convolves with an orthogonal matrix over k."""

    def __init__(self, c_in, c_out, k, padding):
        super().__init__()
        tall = torch.randn(max(c_out, c_in * k * k), min(c_out, c_in * k * k))
        matrix = torch.linalg.qr(tall).Q
        matrix = matrix if len(matrix) == c_out else matrix.T
        self.kernel = matrix.reshape(c_out, c_in, k, k) / k
        self.mode = "constant" if padding == "zeros" else padding

    def forward(self, inputs):
        return F.conv2d(F.pad(inputs, 4 * [self.kernel.shape[-1] // 2], mode=self.mode), self.kernel)


def build(setting):
    shape = setting["in"], setting["out"], setting["kernel"]
    if setting["layer"] == "by hand":
        return Reshaped(*shape, setting["padding"])
    torchlip = importlib.import_module("deel.torchlip")
    border = setting["kernel"] // 2
    return torchlip.SpectralConv2d(*shape, padding=border, padding_mode=setting["padding"], bias=False)


def run(setting, seed):
    torch.manual_seed(seed)
    layer, size = build(setting), setting["size"]
    units = torch.eye(setting["in"] * size**2).reshape(-1, setting["in"], size, size)
    with torch.no_grad():
        matrix = layer(units).flatten(1).T.double()
    packages = (
        {}
        if setting["layer"] == "by hand"
        else {"deel-torchlip": importlib.metadata.version("deel-torchlip")}
    )
    return {"packages": packages, "norm": torch.linalg.matrix_norm(matrix, 2).item()}
