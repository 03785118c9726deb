"""Three wrong answers to each exercise, of the kind that a reader may give: `check` must refuse them all."""

import math

import numpy as np
import torch
from torch import nn

from lipbook.layers import Normalize


def _second_form(z, y, D, ε, λ, label=False, ties=False, sign=1.0):
    best = y if label else z.argmax(dim=1)
    gains = z + ε * D[best]
    masked = z == z.amax(dim=1, keepdim=True) if ties else nn.functional.one_hot(best, z.shape[1]).bool()
    bottom = gains.masked_fill(masked, -math.inf).amax(dim=1, keepdim=True)
    penalty = torch.cat([z, bottom], dim=1).logsumexp(dim=1) - z.logsumexp(dim=1)
    return (nn.functional.cross_entropy(z, y, reduction="none") + sign * λ * penalty).mean()


def _shifted_cross_entropy(z, y, shift):
    return nn.functional.cross_entropy(z + shift, y, reduction="none")


def _clipped_gains(z, y, D, ε):
    margins = z.gather(1, y[:, None]) - z
    return torch.minimum(margins.clamp(min=0), ε * D[y])


def _schatten(A, k):
    p = 2 ** (k + 1)
    return torch.linalg.svdvals(A).pow(p).sum().pow(1 / p)


def _unscaled(A, k):
    G = A
    for _ in range(k):
        G = G.T @ G
    return G.norm() ** (1 / 2**k)


def _gradient(A, k, power):
    U, σ, Vt = torch.linalg.svd(A, full_matrices=False)
    return U @ torch.diag((σ / _schatten(A, k)) ** power) @ Vt


def _product(model, p, leaky=None, sigmoid=0.25):
    value = 1.0
    for layer in model:
        if isinstance(layer, nn.Linear):
            value *= torch.linalg.matrix_norm(layer.weight.detach().double(), p).item()
        if isinstance(layer, nn.LeakyReLU):
            value *= max(1.0, abs(layer.negative_slope)) if leaky is None else leaky
        if isinstance(layer, nn.Sigmoid):
            value *= sigmoid
    return value


def _margin(model, i, j, p, length):
    last = model[-1].weight.detach().double()
    return _product(model[:-1], p) * length(last[i] - last[j])


def _steep(kinks, slopes):
    network = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 1)).double()
    network[0].weight.data.fill_(1.0)
    network[0].bias.data = -torch.tensor(kinks, dtype=torch.float64)
    network[2].weight.data = torch.tensor([slopes], dtype=torch.float64)
    network[2].bias.data.zero_()
    return network


def _slope(W1, b1, W2, x, y):
    fx, fy = (W2 @ (W1 @ point + b1).relu() for point in (x, y))
    return ((fx - fy).norm() / (x - y).norm()).item()


def _joint(first, second, bias=True):
    joint = nn.Linear(first.in_features, second.out_features).double()
    joint.weight.data = (second.weight @ first.weight).detach()
    joint.bias.data = (second.weight @ first.bias).detach() + (second.bias.detach() if bias else 0)
    return joint


def _merged_in_place(model):
    model[1].weight.data, model[1].bias.data = _joint(model[0], model[1]).state_dict().values()
    return nn.Sequential(model[1], model[2], _joint(_joint(model[3], model[4]), model[5]))


def _convolved(K, n, s1, s2, scale=None):
    ω = 2 * torch.pi * torch.arange(n, dtype=torch.float64) / n
    t1, t2 = (torch.exp(1j * ω.outer(torch.arange(k, dtype=torch.float64))) for k in K.shape[2:])
    F = torch.einsum("ar,oirc,bc->aboi", t1, K + 0j, t2)
    m1, m2 = n // s1, n // s2
    aliases = [F[a : a + m1, b : b + m2] for a in range(0, n, m1) for b in range(0, n, m2)]
    scale = (s1 * s2) ** 0.5 if scale is None else scale
    return torch.linalg.svdvals(torch.cat(aliases, dim=-1)).max().item() / scale


def _unit(g, p):
    v = g.sign() if p == 1 else g
    return v / torch.linalg.vector_norm(v, p)


def _until(T, z, factor, tolerance):
    after = T(z)
    while factor * (after - z).norm() > tolerance:
        z, after = after, T(after)
    return after


def _by_the_a_priori_bound(T, z, q, tolerance):
    after = T(z)
    bound = q / (1 - q) * (after - z).norm()
    while bound > tolerance:
        after, bound = T(after), q * bound
    return after


def _allowed(X, Y, L, x, p, refuse=True, stretch=1.0):
    if refuse and ((Y[:, None] - Y).abs() > L * torch.cdist(X, X, p=p) + 1e-12).any():
        return None
    reach = stretch * L * torch.linalg.vector_norm(X - x, p, dim=1)
    return (Y - reach).max().item(), (Y + reach).min().item()


def _leaky(left, right, slope, zero):
    first, last = (torch.where(end > 0, end, slope * end) for end in (left, right))
    low, high = torch.minimum(first, last), torch.maximum(first, last)
    return (torch.where((left < 0) & (right > 0), low.clamp(max=0), low) if zero else low), high


def _product_lines(gl, gu, a, b, ends):
    found = []
    for end in ends:
        left, right = end(a * gl, b * gl), end(a * gu, b * gu)
        slope = (right - left) / (gu - gl)
        found += [slope, left - slope * gl]
    return tuple(found)


def _slope_of_pieces(a, b, w, low, high):
    kinks = sorted(-t / s for s, t in zip(a.tolist(), b.tolist()) if s != 0)
    ends = [low, *[k for k in kinks if low < k < high], high]
    middles = torch.tensor([(p + q) / 2 for p, q in zip(ends, ends[1:])]).to(a)
    return ((middles[:, None] * a + b > 0) * (w * a)).sum(dim=1)


def _slopes_on_a_grid(a, b, w, low, high):
    points = torch.linspace(low, high, 2001, dtype=torch.float64)
    return ((points[:, None] * a + b > 0) * (w * a)).sum(dim=1)


def _by_splitting(prove, x, radius, depth, judge):
    if prove(x, radius) or depth == 0:
        return prove(x, radius)
    moves = torch.cartesian_prod(*len(x) * [torch.tensor([-radius / 2, radius / 2]).double()])
    return judge(_by_splitting(prove, x + move, radius / 2, depth - 1, judge) for move in moves)


def _leading_minors(M):
    return all(round(np.linalg.det(M[:k, :k])) >= 0 for k in range(1, len(M) + 1))


def _closest_to_zero(A, B, norm):
    return np.linalg.norm(A - (A * B).sum() / (B * B).sum() * B, norm)


def _pooled(V, fresh, low=-1.0, high=1.0):
    total, difference = (V[0::2] + V[1::2]) / 2**0.5, (V[0::2] - V[1::2]) / 2**0.5
    return fresh - low * difference, high * difference - fresh, (total + fresh) / 2**0.5


def _kept_half(T, V, width):
    return 1 / (width**2 * torch.linalg.matrix_norm(V @ torch.linalg.solve(T, V.T), 2))


def _entries(P, Q, S, Z):
    PSQ, PZQ = P @ S @ Q.T, P @ Z @ Q.T
    return (P @ S @ P.T) * (Q @ Z @ Q.T) + (Q @ S @ Q.T) * (P @ Z @ P.T) + PSQ * PZQ.T + PSQ.T * PZQ


def _summed(H, groups):
    members = nn.functional.one_hot(groups).to(H.dtype)
    return members.T @ H @ members


def _least_proved(proved, ratios, factors):
    values = []
    for factor in factors:
        try:
            values.append(float(proved(factor * ratios)))
        except torch.linalg.LinAlgError:
            continue
    return min(values)


def _inequality(ρ, λ, W1, W2, a, b, product=1.0):
    corner = ρ * torch.eye(W1.shape[1]) + product * 2 * a * b * W1.T @ (λ[:, None] * W1)
    side = -(a + b) * W1.T * λ
    return torch.cat([torch.cat([corner, side], dim=1), torch.cat([side.T, 2 * λ.diag() - W2.T @ W2], dim=1)])


def _least_of(λ, weights, root=True, refuse=True):
    sizes = [W.shape[1] for W in weights]
    z = torch.eye(sum(sizes), dtype=torch.float64).split(sizes)
    e, before = torch.cat(z[1:]), torch.cat([W @ x for W, x in zip(weights, z[:-1])])
    S = e.T @ (λ[:, None] * (before - e))
    A = -S - S.T - (weights[-1] @ z[-1]).T @ (weights[-1] @ z[-1])
    n = sizes[0]
    if refuse and torch.linalg.eigvalsh(A[n:, n:])[0] <= 0:
        return math.inf
    square = torch.linalg.eigvalsh(A[:n, n:] @ torch.linalg.solve(A[n:, n:], A[n:, :n]) - A[:n, :n])[-1]
    return square.abs().sqrt().item() if root else square.item()


def _reads_of_images(k, n, mode):
    x = torch.zeros(1, 1, n, n, requires_grad=True)
    pad = nn.functional.pad(x, 4 * [(k - 1) // 2], mode=mode)
    nn.functional.unfold(pad, k).sum().backward()
    return x.grad


def _one_after_the_other(first, second, s=1, flip=True):
    """Block convolution, the taps of `second` s pixels apart."""
    spread = second.new_zeros(*second.shape[:2], *(s * (k - 1) + 1 for k in second.shape[2:]))
    spread[:, :, ::s, ::s] = second.flip(2, 3) if flip else second
    border = [k - 1 for k in spread.shape[2:]]
    return nn.functional.conv2d(first.transpose(0, 1), spread, padding=border).transpose(0, 1)


def _shifted(c, turns):
    kernel = torch.zeros(c, c, 3, 3, dtype=torch.float64)
    kernel[range(c), range(c), [2 if i < turns else 1 for i in range(c)], 1] = 1.0
    return kernel


def _per_frequency(V, n, unitary, centre=True):
    F = torch.fft.fft2(V, s=(n, n)).permute(2, 3, 0, 1).conj()
    taps = torch.fft.fft2(unitary(F), dim=(0, 1)).real.permute(2, 3, 0, 1) / n**2
    shift = (n - 1) // 2 - (V.shape[2] - 1) // 2 if centre else 0
    return taps.roll((shift, shift), (2, 3))


def _polar(F):
    U, _, Wh = torch.linalg.svd(F)
    return U @ Wh


def _sll_steps(U):
    return 1 / (U @ U.T).abs().sum(dim=1)


def _square_norm(U):
    return torch.linalg.matrix_norm(U, 2) ** 2


def _maxmin(swap, sign, λ):
    H = torch.eye(2).flip(0) if swap else torch.eye(2)
    W = torch.tensor([[1.0, -1.0]])
    return H, sign * W.T, W, torch.tensor([λ])


def _pivots(H, G, W, λ, L, first=1.0, second=1.0):
    K, D2 = H.T @ G + W.T * λ, 2 * λ.diag() - G.T @ G
    corner = L**2 * torch.eye(H.shape[1], dtype=H.dtype) - first * H.T @ H
    return corner - second * K @ torch.linalg.solve(D2, K.T), D2


def _taylor(A, degree):
    terms = [torch.eye(len(A), dtype=A.dtype)]
    for k in range(1, degree + 1):
        terms.append(terms[-1] @ A / k)
    return sum(terms)


def _no_care(z, D):
    y = z.argmax(dim=1, keepdim=True)
    ratios = (z.gather(1, y) - z) / D[y[:, 0]]
    return ratios.scatter(1, y, math.inf).amin(dim=1)


def _infinite_where_no_constant(z, D):
    y = z.argmax(dim=1, keepdim=True)
    ratios = torch.where(D[y[:, 0]] > 0, (z.gather(1, y) - z) / D[y[:, 0]], math.inf)
    return ratios.amin(dim=1)


def _masked_ties(z, D):
    z = z.nan_to_num(0.0, 0.0, 0.0)
    y = z.argmax(dim=1)
    margins = (z.amax(dim=1, keepdim=True) - z) / D[y].clamp(min=1e-300)
    return margins.masked_fill(z == z.amax(dim=1, keepdim=True), math.inf).amin(dim=1)


def _step_to(W, b, x, runner_up, length):
    z = W @ x + b
    y = z.argmax()
    ratios = (z[y] - z) / (W[y] - W).norm(dim=1)
    j = (z if runner_up else -ratios).masked_fill(torch.arange(len(z)) == y, -math.inf).argmax()
    v = W[y] - W[j]
    return x - length * (z[y] - z[j]) * v / v.square().sum()


def _line(rows, bias, x):
    return tuple(torch.tensor(part, dtype=torch.float64) for part in (rows, bias, x))


def _chain(body, head, *last, scaled=True, slope=0.1):
    first = [Normalize(0.5, 0.25)] if scaled else []
    return nn.Sequential(*first, nn.Flatten(), body, nn.LeakyReLU(slope), head, *last).eval()


def _ghost_norms(inputs, cotangents, bias=1, scale=None):
    n = scale or len(inputs[0])
    pairs = zip(inputs, cotangents, strict=True)
    return sum((n * G).square().sum(1) * (X.square().sum(1) + bias) for X, G in pairs).sqrt()


def _ghost_factors(inputs, cotangents, C, **options):
    return (C / _ghost_norms(inputs, cotangents, **options)).clamp(max=1)


def _spread(b, P):
    """A unit tensor (c, P) along the bias, constant in space."""
    return (b / b.norm())[:, None].expand(-1, P) / math.sqrt(P)


def _signs(P):
    return torch.tensor([(-1.0) ** k for k in range(P)], dtype=torch.float64)


WRONG = {
    "bounds/lipschitz-functions/1": [(3, 3), (5**0.5, 3), (5, 3)],
    "bounds/lipschitz-functions/2": [
        lambda g, p: g / g.norm(),
        lambda g, p: g.sign() if p == math.inf else g / torch.linalg.vector_norm(g, p),
        _unit,
    ],
    "bounds/lipschitz-functions/3": [
        lambda beta: 1.0998 * beta,
        lambda beta: 1.0,
        lambda beta: 1.128904145185155,
    ],
    "bounds/lipschitz-functions/4": [
        lambda T, z, q, tolerance: _until(T, z, 1.0, tolerance),
        lambda T, z, q, tolerance: _until(T, z, q / (1 - q), tolerance / 1000),
        _by_the_a_priori_bound,
    ],
    "bounds/lipschitz-functions/5": [
        lambda X, Y, L, x, p: _allowed(X, Y, L, x, 2),
        lambda X, Y, L, x, p: _allowed(X, Y, L, x, p, refuse=False),
        lambda X, Y, L, x, p: _allowed(X, Y, L, x, p, stretch=0.5),
    ],
    "bounds/lipschitz-functions/6": [(2, 2), (1, 1), (2**0.5, 2**0.5)],
    "bounds/spectral-norms/1": [10, 8, 558],
    "bounds/spectral-norms/2": [9, 1, 9**0.25],
    "bounds/spectral-norms/3": [
        lambda A, k: (0.0, _schatten(A, k).item()),
        lambda A, k: (_schatten(A, k).item() * max(A.shape) ** -(2.0 ** -(k + 1)), _schatten(A, k).item()),
        lambda A, k: (_schatten(A, k).item() * min(A.shape) ** -(2.0**-k), _schatten(A, k).item()),
    ],
    "bounds/spectral-norms/4": [
        _unscaled,
        _schatten,
        lambda A, k: A.abs().max() * _unscaled(A / A.abs().max(), k),
    ],
    "bounds/spectral-norms/5": [
        lambda A, v: ((A @ v).norm() / v.norm()).item(),
        lambda A, v: 0.99 * ((A @ v).norm() / v.norm()).item(),
        lambda A, v: torch.linalg.svdvals(A)[0].item() * (1 + 1e-15),
    ],
    "bounds/spectral-norms/6": [
        lambda A, k: _gradient(A, k, 2 ** (k + 1)),
        lambda A, k: _gradient(A, k, 2 ** (k + 1) - 1).T,
        lambda A, k: _gradient(A, k, 2**k - 1),
    ],
    "bounds/whole-networks/1": [(6, 6), (3, 3), (6, 2)],
    "bounds/whole-networks/2": [
        lambda model, p: _product(model, 2),
        lambda model, p: _product(model, p, leaky=1.0),
        lambda model, p: _product(model, p, sigmoid=1.0),
    ],
    "bounds/whole-networks/3": [
        lambda model, i, j, p: _margin(model, i, j, p, lambda row: row.norm().item()),
        lambda model, i, j, p: _margin(model, i, j, p, lambda row: torch.linalg.vector_norm(row, p).item()),
        lambda model, i, j, p: 2 * _product(model, p),
    ],
    "bounds/whole-networks/4": [
        _steep([0.5, 0.6, 0.7], [1.0, -2.0, 1.0]),
        _steep([0.0, 5.5, 5.5], [-2e3, 0.0, 0.0]),
        _steep([2.9, 3.0, 3.1], [1e5, -2e5, 1e5]),
    ],
    "bounds/whole-networks/5": [
        _slope,
        lambda *given: 0.99 * _slope(*given),
        lambda *given: _slope(*given) * (1 - 1e-7),
    ],
    "bounds/whole-networks/6": [
        _merged_in_place,
        lambda model: nn.Sequential(_joint(model[0], model[1]), model[2], _joint(model[3], model[5])),
        lambda model: nn.Sequential(
            _joint(model[0], model[1]), model[2], _joint(_joint(model[3], model[4]), model[5], bias=False)
        ),
    ],
    "bounds/convolutions/1": [(1 / 3, 1), (1, 1 / 9), (9, 1)],
    "bounds/convolutions/2": [32, 30, 64],
    "bounds/convolutions/3": [
        lambda K, n, s1, s2: _convolved(K, n, s1, s2, scale=1),
        lambda K, n, s1, s2: _convolved(K, n, s2, s1),
        lambda K, n, s1, s2: _convolved(K, n, 1, 1),
    ],
    "bounds/convolutions/4": [(1, 12), (2, 6), (1, 3)],
    "bounds/convolutions/5": [
        lambda W, m, s: _convolved(W, m, 1, 1),
        lambda W, m, s: _convolved(W, s * m, 1, 1),
        lambda W, m, s: _convolved(W, s * m, s, s) / s,
    ],
    "bounds/convolutions/6": [
        (lambda k, s: 1 / k, lambda k, s: k / s),
        (lambda k, s: 1.0, lambda k, s: 1.0),
        (lambda k, s: 1.0, lambda k, s: (k / s) ** 2),
    ],
    "bounds/local-bounds/1": [(2, 1, 1), (2, 2, 2), (1, 1, 1)],
    "bounds/local-bounds/2": [
        lambda *ends_slope: tuple(torch.where(v > 0, v, ends_slope[2] * v) for v in ends_slope[:2]),
        lambda left, right, slope: _leaky(left, right, slope, zero=False),
        lambda left, right, slope: _leaky(left, right, abs(slope), zero=True),
    ],
    "bounds/local-bounds/3": [
        lambda gl, gu, a, b: _product_lines(gl, gu, a, b, (min, max)),
        lambda gl, gu, a, b: _product_lines(gl, gu, 0.0, 1.0, (max, min)),
        lambda gl, gu, a, b: (0, max(a * gl, b * gl, a * gu, b * gu), 0, min(a * gl, b * gl, a * gu, b * gu)),
    ],
    "bounds/local-bounds/4": [
        lambda margin, constant, radii: max(margin / max(constant(r), 1e-9) for r in radii),
        lambda margin, constant, radii: min(max(radii), margin / max(constant(max(radii)), 1e-9)),
        lambda margin, constant, radii: min(min(r, margin / max(constant(r), 1e-9)) for r in radii),
    ],
    "bounds/local-bounds/5": [
        lambda a, b, w, low, high: _slope_of_pieces(a, b, w, -1e3, 1e3).abs().max(),
        lambda a, b, w, low, high: _slope_of_pieces(a, b, w, low, high).max(),
        lambda a, b, w, low, high: _slopes_on_a_grid(a, b, w, low, high).abs().max(),
    ],
    "bounds/local-bounds/6": [
        lambda prove, x, radius, depth: _by_splitting(prove, x, radius, depth, any),
        lambda prove, x, radius, depth: prove(x, radius),
        lambda prove, x, radius, depth: prove(x, radius / 2**depth),
    ],
    "privacy/dp-sgd/1": [(0.6, 0.6), (0.0012, 0.0012), (0.00144, 0.00072)],
    "privacy/dp-sgd/2": [
        lambda x, C: x.mean().item(),
        lambda x, C: x.median().item(),
        lambda x, C: x.clamp(-C, C).mean().item(),
    ],
    "privacy/dp-sgd/3": [(0.01, 1e-7), (math.log(1 + 0.01 * (math.e - 1)), 1e-5), (1.0, 1e-5)],
    "privacy/dp-sgd/4": [
        lambda σ, T, δ: T / (2 * σ**2) + math.log(1 / δ),
        lambda σ, T, δ: T / (2 * σ**2) + math.sqrt(T * math.log(1 / δ)) / σ,
        lambda σ, T, δ: T / σ**2 + math.sqrt(2 * T * math.log(1 / δ)) / σ,
    ],
    "privacy/dp-sgd/5": [
        lambda X, G, C: _ghost_factors(X, G, C, scale=1),
        lambda X, G, C: _ghost_factors(X, G, C, bias=0),
        lambda X, G, C: C / _ghost_norms(X, G),
    ],
    "privacy/dp-sgd/6": [(1000, 1000), (1, 1), (100_000, 100_000)],
    "privacy/dp-sgd/7": [
        lambda Δ, d, σ: σ * len(Δ) ** 0.5 * Δ,
        lambda Δ, d, σ: σ * Δ,
        lambda Δ, d, σ: σ * Δ.norm() * torch.ones_like(Δ),
    ],
    "privacy/primer/1": [0.01 * math.e, math.e / (1 + math.e), 0.02],
    "privacy/primer/2": [
        [(1, 2), (1, 2), (2, 4), (0.5, 1)],
        [(1, 1), (1, math.sqrt(2)), (2, 4), (0.5, 1)],
        [(1, 1), (math.sqrt(10), math.sqrt(10)), (2, 4), (0.5, 0.5)],
    ],
    "privacy/primer/3": [
        lambda ε, b: 1 - math.exp((ε - 1 / b) / 2),
        lambda ε, b: max(0.0, 1 - math.exp(ε - 1 / b)),
        lambda ε, b: 0.0 if ε >= 1 / b else 0.5 * math.exp(-ε / b),
    ],
    "privacy/primer/4": [
        lambda ε, δ, k: (k * ε, k * δ),
        lambda ε, δ, k: (k * ε, k * math.exp(k * ε) * δ),
        lambda ε, δ, k: (math.sqrt(k) * ε, δ * sum(math.exp(i * ε) for i in range(k))),
    ],
    "privacy/primer/5": [0.0, 0.288, 0.1],
    "privacy/primer/6": [
        ([0.5], [0.5, 1.0], 2.0),
        ([0.01], [1.0], 1.0),
        ([0.01], [0.01, 2.0], 1.0),
    ],
    "privacy/primer/7": [[2, 5, 8, 10], [2, 5, 6, 8, 10], [3, 5, 7, 8, 10]],
    "privacy/without-clipping/1": [
        (2.828, 1.414, 0.707, 3.240),
        (0.707, 1.414, 2.828, 4.950),
        (1.414, 1.414, 1.414, 2.449),
    ],
    "privacy/without-clipping/2": [
        lambda x, g: x.flatten(1).norm(dim=1) * g.flatten(1).norm(dim=1),
        lambda x, g: (x.square().sum(dim=2) * g.square().sum(dim=2)).sum(dim=1).sqrt(),
        lambda x, g: ((x @ x.mT) * (g @ g.mT)).sum(dim=(1, 2)),
    ],
    "privacy/without-clipping/3": [
        lambda k, s, d: k,
        lambda k, s, d: math.ceil(k / s),
        lambda k, s, d: math.ceil(k * d / s),
    ],
    "privacy/without-clipping/4": [(2.0, 2.0), (2.0, 1.414), (2.828, 2.828)],
    "privacy/without-clipping/5": [[1, 2, 4, 6, 9], [1, 2, 4, 6, 7, 8, 9], [2, 4, 5, 6, 8, 9]],
    "privacy/without-clipping/6": [(1.414, 0.25), (2.828, 0.5), (1.414, 1.0)],
    "sdp/primer/1": [1, 1 / 10, 1 / 2],
    "sdp/primer/2": [
        _leading_minors,
        lambda M: _leading_minors(M) and _leading_minors(M[::-1, ::-1]),
        lambda M: np.linalg.eigvalsh(M)[0] > 1e-9,
    ],
    "sdp/primer/3": [
        lambda a, c: (2 * a**2 * c**2, c**2, np.array([[1, a], [a, a**2]])),
        lambda a, c: (a**2 * c**2, c**2 / 2, np.array([[1, a], [a, a**2]])),
        lambda a, c: (a**2 * c**2, c**2, np.array([[1, -a], [-a, a**2]])),
    ],
    "sdp/primer/4": [
        lambda A, B: np.linalg.norm(A, 2),
        lambda A, B: _closest_to_zero(A, B, 2),
        lambda A, B: _closest_to_zero(A, B, "fro"),
    ],
    "sdp/primer/5": [(0, 0), (math.nan, -1), (0, 1)],
    "sdp/beyond-slope-restriction/1": [(10**0.5, 3, 1), (10**0.5, 1, 2), (5**0.5, 1, 1)],
    "sdp/beyond-slope-restriction/2": [
        lambda α, μ: ((α - μ, μ, 0), (α - μ, μ, 0)),
        lambda α, μ: ((α + μ, μ, 0), (α - μ, 0, μ)),
        lambda α, μ: ((α, 0, 0), (α, 0, 0)),
    ],
    "sdp/beyond-slope-restriction/4": [
        lambda W1, W2: torch.linalg.matrix_norm(W2 @ W1, 2).item(),
        lambda W1, W2: math.prod(torch.linalg.matrix_norm(W, 2).item() for W in (W1, W2)),
        lambda W1, W2: max(
            torch.linalg.matrix_norm(W2 @ W, 2).item()
            for W in (W1, W1.unflatten(0, (-1, 2)).flip(1).flatten(0, 1))
        ),
    ],
    "sdp/beyond-slope-restriction/5": [
        lambda V, fresh: _pooled(V, fresh, low=0.0),
        lambda V, fresh: _pooled(V, fresh, high=2.0),
        lambda V, fresh: (0 * V[0::2], 0 * V[0::2], (V[0::2] + V[1::2] + fresh) / 2),
    ],
    "sdp/beyond-slope-restriction/6": [
        lambda length: 1.0,
        lambda length: abs(1 - 2 * length**2),
        lambda length: max(1.0, abs(1 - 2 * length)),
    ],
    "sdp/beyond-slope-restriction/7": [[1.0] * 4, [1.01] * 8, [0.1, 1.0, 1.0, 1.0]],
    "sdp/scaling/1": [(340, 115600), (350, 56208), (340, 38544)],
    "sdp/scaling/2": [(2, 2), (4, 2), (2, 1)],
    "sdp/scaling/3": [
        lambda T, V, a, b: _kept_half(T, V, 1.0),
        lambda T, V, a, b: _kept_half(T, V, b - a) / 2,
        lambda T, V, a, b: _kept_half(torch.eye(len(T), dtype=T.dtype), V, b - a),
    ],
    "sdp/scaling/4": [
        lambda P, Q, S, Z, groups: _entries(P, Q, S, Z),
        lambda P, Q, S, Z, groups: _summed(_entries(P, Q, S, Z).diagonal().diag(), groups),
        lambda P, Q, S, Z, groups: _summed(2 * (P @ S @ P.T) * (Q @ Z @ Q.T), groups),
    ],
    "sdp/scaling/5": [
        lambda proved, ratios: _least_proved(proved, ratios, [1e-4, 1.0]),
        lambda proved, ratios: _least_proved(proved, ratios, [10.0**k for k in range(-3, 4)]),
        lambda proved, ratios: (
            0.5 * _least_proved(proved, ratios, [10 ** (k / 100) for k in range(-300, 301)])
        ),
    ],
    "sdp/lipsdp/1": [(2, 1, 1), (2, 2, 2), (math.nan, math.nan, 1)],
    "sdp/lipsdp/2": [
        lambda w, a, b: w**2,
        lambda w, a, b: w**2 * max(abs(a), abs(b)) ** 2,
        lambda w, a, b: math.inf,
    ],
    "sdp/lipsdp/3": [
        lambda ρ, λ, W1, W2, a, b: _inequality(ρ, λ, W1, W2, 0.0, b - a),
        lambda ρ, λ, W1, W2, a, b: _inequality(ρ, λ, W1, W2, a, b, product=0.0),
        lambda ρ, λ, W1, W2, a, b: _inequality(ρ, λ, W1, W2, a, b, product=-1.0),
    ],
    "sdp/lipsdp/5": [
        lambda λ, weights: math.prod(torch.linalg.matrix_norm(W, 2).item() for W in weights),
        lambda λ, weights: _least_of(λ, weights, root=False),
        lambda λ, weights: _least_of(λ, weights, refuse=False),
    ],
    "sdp/lipsdp/6": [lambda λ, δ: λ, lambda λ, δ: λ / δ, lambda λ, δ: 1.1 * λ / δ**2],
    "layers/orthogonal-layers/1": [(4096 - 64, 585, 1024), (2016, 640 - 10, 1024), (2016, 585, 64 * 32)],
    "layers/orthogonal-layers/3": [2.0, math.sqrt(5 / 3), 0.0],
    "layers/orthogonal-layers/4": [
        lambda Q: torch.linalg.solve(
            torch.eye(len(Q), dtype=Q.dtype) + Q, Q - torch.eye(len(Q), dtype=Q.dtype)
        ),
        lambda Q: (Q.T - Q) / 2,
        lambda Q: torch.linalg.solve(torch.eye(len(Q), dtype=Q.dtype) + Q, (Q.T - Q) / 2),
    ],
    "layers/orthogonal-layers/6": [
        lambda A: _taylor(A, 6),
        lambda A: _taylor(A, 6) / torch.linalg.matrix_norm(A).exp(),
        lambda A: _taylor(A, 6) / (1 + torch.linalg.matrix_norm(A) ** 6 / math.factorial(6)),
    ],
    "layers/orthogonal-layers/7": [(1, 4, 4), (2, 1, 4), (2, 4, 5)],
    "layers/orthogonal-convolutions/1": [
        ["isometry", "isometry", "co-isometry", "isometry"],
        ["isometry", "both", "isometry", "both"],
        ["co-isometry", "both", "isometry", "both"],
    ],
    "layers/orthogonal-convolutions/2": [
        lambda k, n, mode: 1.0,
        lambda k, n, mode: _reads_of_images(k, n, mode).max().item() / k**2,
        lambda k, n, mode: _reads_of_images(k, n, mode).mean().sqrt().item() / k,
    ],
    "layers/orthogonal-convolutions/3": [(3, 8), (math.sqrt(3), 2.0), (math.sqrt(2), 2 * math.sqrt(2))],
    "layers/orthogonal-convolutions/4": [
        lambda first, second, s: _one_after_the_other(first, second),
        lambda first, second, s: _one_after_the_other(first, second, s, flip=False),
        lambda first, second, s: _one_after_the_other(first, second, s) / s,
    ],
    "layers/orthogonal-convolutions/5": [
        lambda c, w: _shifted(c, 0),
        lambda c, w: _shifted(c, -w),
        lambda c, w: _shifted(c, w) / 2,
    ],
    "layers/orthogonal-convolutions/6": [
        lambda V, n: _per_frequency(V, n, lambda F: F),
        lambda V, n: _per_frequency(V, n, _polar, centre=False),
        lambda V, n: _per_frequency(V, n, lambda F: -_polar(F)),
    ],
    "layers/orthogonal-convolutions/7": [
        lambda K0, K1: (K0, K0 + K1),
        lambda K0, K1: (K1 @ (K0 + K1).T, K0 + K1),
        lambda K0, K1: (K0 @ (K0 + K1).T, (K0 + K1).T),
    ],
    "layers/direct-parameterizations/1": [(1 / 25, 1, 1), (1 / 5, -1, 1), (1 / 25, -1, 2)],
    "layers/direct-parameterizations/2": [
        lambda V, ε: (V.T @ V).abs().sum(dim=0).rsqrt(),
        lambda V, ε: ((V.T @ V).abs().amax(dim=0) + ε).rsqrt(),
        lambda V, ε: (V.T @ V + ε).sum(dim=0).abs().rsqrt(),
    ],
    "layers/direct-parameterizations/3": [
        lambda H, G, W, α, β: (H, (β - α) * G, W),
        lambda H, G, W, α, β: (H + α * G @ W, β * G, W),
        lambda H, G, W, α, β: (H + α * G @ W, (β - α) * G, (β - α) * W),
    ],
    "layers/direct-parameterizations/4": [
        _maxmin(True, 1.0, 2.0),
        _maxmin(True, 1.0, 0.5),
        _maxmin(False, -1.0, 1.0),
    ],
    "layers/direct-parameterizations/5": [
        lambda U: (1 / _square_norm(U).sqrt(), _sll_steps(U)),
        lambda U: (1 / _square_norm(U), _sll_steps(U)),
        lambda U: (1 / _square_norm(U), (1 / _square_norm(U)).expand(len(U))),
    ],
    "layers/direct-parameterizations/7": [
        lambda H, G, W, λ, L: _pivots(H, G, W, λ, L, first=0.0),
        lambda H, G, W, λ, L: _pivots(H, G, W, λ, L, second=-1.0),
        lambda H, G, W, λ, L: _pivots(H, G, W, λ, L)[::-1],
    ],
    "training/margins/1": [(0.3, 0.3), (0.25, 0.25), (1 / 3, 0.25)],
    "training/margins/2": [300, 367, 299],
    "training/margins/3": [
        lambda L, W: L * torch.cdist(W, W),
        lambda L, W: L * (W[:, None] - W).abs().amax(dim=2),
        lambda L, W: L * (W.abs().sum(dim=1)[:, None] + W.abs().sum(dim=1)),
    ],
    "training/margins/4": [
        lambda L, W: math.sqrt(2) * L * torch.linalg.matrix_norm(W, 2),
        lambda L, W: math.sqrt(2) * L,
        lambda L, W: L * torch.cdist(W, W).max(),
    ],
    "training/margins/5": [_no_care, _infinite_where_no_constant, _masked_ties],
    "training/margins/6": [
        lambda W, b, x: _step_to(W, b, x, True, 1.0),
        lambda W, b, x: _step_to(W, b, x, False, 0.5),
        lambda W, b, x: _step_to(W, b, x, False, 2.0),
    ],
    "training/margins/7": [
        _line([[1.0, 0.0], [0.0, 0.0]], [-0.05, 0.0], [0.1, 0.5]),
        _line([[1.0, 0.0], [0.0, 0.0]], [0.05, 0.0], [0.5, 0.5]),
        _line([[1.0, 0.0], [0.0, 0.0]], [0.05, 0.0], [-0.04, 0.5]),
    ],
    "training/certify-your-own-model/1": [
        lambda body, head: _chain(body, head, nn.Softmax(dim=1)),
        lambda body, head: _chain(body, head, scaled=False),
        lambda body, head: _chain(body, head).train(),
    ],
    "training/certify-your-own-model/2": [
        (0.56, 142.8, 2.24),
        (0.02, 0.56 / 255, 2.24),
        (0.02, 142.8, 0.14),
    ],
    "training/certify-your-own-model/3": [
        lambda a, b, how, norm: a + b if how == "sum" else max(a, b),
        lambda a, b, how, norm: a + b,
        lambda a, b, how, norm: a + b if how == "sum" else math.hypot(a, b),
    ],
    "training/certify-your-own-model/4": [
        lambda low, high, t: (torch.zeros_like(low), torch.ones_like(low)),
        lambda low, high, t: ((low >= t).double(), (high > t).double()),
        lambda low, high, t: ((low.abs() > t).double(), (high.abs() > t).double()),
    ],
    "training/certify-your-own-model/5": [
        lambda σ, m, n, step: σ + step / 2,
        lambda σ, m, n, step: σ + step * math.sqrt(m * n),
        lambda σ, m, n, step: σ + step / 2 * math.sqrt(max(m, n)),
    ],
    "training/certify-your-own-model/6": [
        [True, True, False, True, True],
        [True, False, True, True, True],
        [True, False, False, False, True],
    ],
    "training/losses/1": [(1.58, 2.392), (2.2345, 3.3832), (2.2345, 1.58)],
    "training/losses/2": [
        lambda z, y, D, ε, λ: _second_form(z, y, D, ε, λ, label=True),
        lambda z, y, D, ε, λ: _second_form(z, y, D, ε, λ, ties=True),
        lambda z, y, D, ε, λ: _second_form(z, y, D, ε, λ, sign=-1.0),
    ],
    "training/losses/3": [
        (0.0, 0.1, 0.0, 0.5),
        (math.log(10), 0.9, math.log(2), 0.5),
        (math.log(9), 1 / 9, math.log(2), 0.5),
    ],
    "training/losses/4": [
        lambda z, y, D, ε: _shifted_cross_entropy(z, y, _clipped_gains(z, y, D, ε)),
        lambda z, y, D, ε: _shifted_cross_entropy(z, y, 2 * ε * D[y]),
        lambda z, y, D, ε: _shifted_cross_entropy(z, y, ε * D[y]).mean(),
    ],
    "training/losses/5": [(0.0, 1.0), (0.06, 1.0), (0.5, 1.39)],
    "training/losses/6": [
        lambda v: torch.eye(len(v), dtype=v.dtype),
        lambda v: torch.eye(len(v), dtype=v.dtype) + 9 * torch.outer(v, v) / (v @ v),
        lambda v: 10 * torch.eye(len(v), dtype=v.dtype),
    ],
    "privacy/auditing/1": [(1.5, math.sqrt(2)), (8.0, math.sqrt(2)), (99.0, 196 * math.sqrt(2))],
    "privacy/auditing/2": [
        lambda b, P, X, G: (X * _spread(b, P), G * _spread(b, P) * _signs(P)),
        lambda b, P, X, G: (-X * _spread(b, P), G * _spread(b, P)),
        lambda b, P, X, G: (X * math.sqrt(P) * _spread(b, P), G * math.sqrt(P) * _spread(b, P)),
    ],
    "privacy/auditing/3": [
        lambda r, m, δ: math.log(0.05 ** (1 / r) / (1 - 0.05 ** (1 / r))),
        lambda r, m, δ: max(0.0, -math.log(1 - max(0.0, 0.05 - m * δ) ** (1 / r))),
        lambda r, m, δ: max(0.0, math.log(0.05 ** (1 / m) / (1 - 0.05 ** (1 / m)))),
    ],
    "privacy/auditing/4": [(1.0, 1.441 * math.sqrt(2)), (2.078, 1.441), (2.078, 1.441 / math.sqrt(2))],
    "privacy/auditing/5": [
        lambda g, C: g * (C / g.norm(dim=1, keepdim=True).clamp(min=C)),
        lambda g, C: g * (C / len(g)) / g.norm(dim=1, keepdim=True),
        lambda g, C: g * (C / len(g) / g.norm().clamp(min=C / len(g))),
    ],
    "privacy/auditing/6": [(0.707, 1.414), (1.581, 1.414), (0.707, 2.0)],
}
