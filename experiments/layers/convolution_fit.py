"""How near each orthogonal convolution comes to others: gradient steps on the distance of two layers.

The target is an orthogonal convolution of 4 channels on 8 x 8 pixels, drawn from one of six families: a
rotation of the channels alone, a product of projector factors of 3 x 3 taps, the exponential of a skew 3 x 3
kernel of norm 2, the Cayley transform of a 3 x 3 kernel at each frequency, a reflector of rank 2 at each
frequency, and the shift by one pixel. A fit is |A - T|^2 / |T|^2 in the Frobenius norm of the two large
matrices: 0 is the target itself, 2 what two orthogonal matrices without relation have. Every fit is run at
each of RATES, and all are recorded; nothing is held out, as what is asked is how small the distance can get.

Chapter: layers/orthogonal-convolutions.
"""

import math

import torch

from lipbook.layers import OrthogonalConv2d

METHODS = ("bcop", "soc", "cayley", "bro")
TARGETS = ("rotation", "bcop", "soc", "cayley", "bro", "shift")
SETTINGS = [{"method": method, "target": target} for target in TARGETS for method in METHODS]
SMOKE = [{"method": "bcop", "target": "shift", "steps": 2}]
SEEDS = [0, 1, 2, 3]
CHANNELS, SIDE, TAPS = 4, 8, 3
RATES, STEPS = (0.02, 0.1), 300


def symbols(kernel):
    """sum_t K_t e^{i<w, t>} at the frequencies of the ring, the kernel centred, (side, side, c_out, c_in)."""
    angles = 2 * math.pi * torch.arange(SIDE, dtype=torch.float64) / SIDE
    waves = [torch.outer(angles, torch.arange(k) - (k - 1) // 2.0) for k in kernel.shape[2:]]
    waves = [torch.polar(torch.ones_like(wave), wave) for wave in waves]
    return torch.einsum("ar,oirc,bc->aboi", waves[0], kernel + 0j, waves[1])


def rotation(generator):
    """An orthogonal matrix of determinant 1, uniform."""
    Q, R = torch.linalg.qr(torch.randn(CHANNELS, CHANNELS, generator=generator, dtype=torch.float64))
    Q = Q * R.diagonal().sign()
    Q[:, 0] *= torch.linalg.det(Q).sign()
    return Q


def target_symbols(name, generator):
    """The matrices of the target at each frequency, (side, side, c, c)."""
    identity = torch.eye(CHANNELS, dtype=torch.complex128)
    angles = 2 * math.pi * torch.arange(SIDE, dtype=torch.float64) / SIDE
    turns = torch.polar(torch.ones_like(angles), angles)
    if name == "rotation":
        return rotation(generator).to(identity.dtype).expand(SIDE, SIDE, -1, -1)
    if name == "shift":
        return (turns[:, None, None, None] * identity).expand(-1, SIDE, -1, -1)
    if name == "bcop":
        blocks = rotation(generator).to(identity.dtype).expand(SIDE, SIDE, -1, -1)
        for k in range(2 * (TAPS - 1)):
            V = rotation(generator)[:, : CHANNELS // 2].to(identity.dtype)
            turn = turns[:, None, None, None] if k % 2 else turns[None, :, None, None]
            blocks = (V @ V.mH + turn * (identity - V @ V.mH)) @ blocks
        return blocks * (turns[:, None] * turns[None]).conj()[..., None, None]
    columns = CHANNELS // 2 if name == "bro" else CHANNELS
    free = torch.randn(CHANNELS, columns, TAPS, TAPS, generator=generator, dtype=torch.float64) / TAPS
    blocks = symbols(free)
    if name == "bro":
        return identity - 2 * blocks @ torch.linalg.solve(blocks.mH @ blocks, blocks.mH)
    skew = (blocks - blocks.mH).contiguous()
    if name == "cayley":
        return torch.linalg.solve(identity + skew, identity - skew)
    return torch.linalg.matrix_exp(2 * skew / torch.linalg.matrix_norm(skew, 2).max())


def fit(method, blocks, rate, steps, seed):
    """|A - T|^2 / |T|^2 after Adam, for the layer and the target as seen by impulses in every channel."""
    torch.manual_seed(seed)
    layer = OrthogonalConv2d(CHANNELS, CHANNELS, TAPS, bias=False, method=method).double()
    impulses = torch.zeros(CHANNELS, CHANNELS, SIDE, SIDE, dtype=torch.float64)
    impulses[:, :, 0, 0] = torch.eye(CHANNELS, dtype=torch.float64)
    images = torch.fft.ifft2(blocks, dim=(0, 1)).real.permute(3, 2, 0, 1)  # (channel in, channel out, h, w)
    optimizer = torch.optim.Adam(layer.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        distance = (layer(impulses) - images).square().sum() / CHANNELS
        distance.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return ((layer(impulses) - images).square().sum() / CHANNELS).item()


def run(setting, seed):
    torch.set_num_threads(1)
    steps = setting.get("steps", STEPS)
    blocks = target_symbols(setting["target"], torch.Generator().manual_seed(seed))
    return {str(rate): fit(setting["method"], blocks, rate, steps, seed) for rate in RATES}
