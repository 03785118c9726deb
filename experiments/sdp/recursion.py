"""LipSDP for plain ReLU networks by Newton steps through the recursion over the layers, beside `lipsdp`.

With multipliers l and rho scaled to 1, ``H(l) = E_0'E_0 - sum_j l_j B_j`` is block tridiagonal, one block a
layer, and ``rho(l) = lambda_max(C H(l)^-1 C')`` is convex. Elimination layer by layer gives rho, its gradient
2 (p_j . w)(q_j . w) at w = H^-1 C'u, and any product with its second derivatives, in O(sum n_i^3) once and
O(sum n_i^2) for each product: no matrix of all coordinates is formed. The largest eigenvalue is smoothed by
``rho - mu logdet(rho I - C H^-1 C')``; an extra ``e trace(G'H^-1 G)`` with random G keeps H away from the
boundary, and ``-d sum log l`` keeps l positive; mu, e and d fall together. Newton's equations are solved by
conjugate gradients. Their preconditioner is the blocks of the second derivatives within one layer, renewed
when they have aged, and the part that comes from smoothing, which has low rank.

A dual value costs O(sum n_i^2): the columns of w, weighted, are increments of which each neuron's
``(p_j . z)(q_j . z) >= 0`` fails by little; multiplying neuron after neuron by a number makes it hold. The
proof is Cholesky block by block, with the margin of `lipbook.sdp.certificate`.

Recorded: `path`, for each Newton step [processor seconds, value, dual value]; what is proved of the last
multipliers, by blocks (`proved`) and, where `lipsdp` is run too, by the library (`proved_dense`); counts of
factorisations, of preconditioners, and of products. The networks are those of benchmarks/sdp/solvers.py.
Processor seconds are those of one thread. Chapter: sdp/scaling.
"""

import math
import time
from itertools import pairwise

import torch
from torch import nn

from lipbook.norms.spectral import UNIT_ROUNDOFF, gamma
from lipbook.sdp import lipsdp
from lipbook.sdp.certificate import proved
from lipbook.sdp.constraints import Proposal, constraints_of

SEEDS = [0, 1, 2]
SETTINGS = [
    *[{"sizes": [20, *[h] * 5, 10], "gap": 1e-5, "lipsdp": True} for h in (64, 128, 256)],
    {"sizes": [20, *[64] * 10, 10], "gap": 1e-5, "lipsdp": True},
    {"sizes": [20, *[64] * 5, 1], "gap": 1e-5, "lipsdp": True},
    {"sizes": [20, *[512] * 5, 10], "gap": 1e-3, "lipsdp": False},
]
SMOKE = [
    {"sizes": [3, 5, 4, 2], "gap": 1e-4, "lipsdp": True},
    {"sizes": [3, 5, 4, 1], "gap": 1e-4, "lipsdp": True},
]
STEPS = 80
PRODUCTS = 100  # of conjugate gradients, at most, in one Newton step
RESIDUAL = 1e-2  # to which they solve it
AGED = 20  # products in one step after which the preconditioner is renewed
PROBES = 40  # columns of G: with 10 one of three networks of 512 stuck at the boundary
SMOOTHING = 0.1  # at the start, relative to rho
FASTER = 4.0  # by which it falls


def random_network(sizes, seed):
    generator, model = torch.Generator().manual_seed(seed), nn.Sequential()
    for inputs, outputs in pairwise(sizes):
        layer = nn.Linear(inputs, outputs, bias=False, dtype=torch.float64)
        weight = torch.randn(outputs, inputs, generator=generator, dtype=torch.float64)
        layer.weight.data = weight / math.sqrt(inputs)
        model.extend([layer, nn.ReLU()])
    return model[:-1]


def identity(n):
    return torch.eye(n, dtype=torch.float64)


def closed_form(weights):
    """rho and the multipliers of ECLipsE-Fast, one tensor a layer."""
    factor, ell = identity(weights[0].shape[1]), []
    for weight in weights[:-1]:
        half = lower(factor, weight.T)
        K = half.T @ half
        least = 1 / torch.linalg.eigvalsh(K)[-1]
        ell.append(least.expand(len(K)).clone())
        factor = torch.linalg.cholesky(2 * least * identity(len(K)) - least**2 * K)
    return torch.linalg.matrix_norm(lower(factor, weights[-1].T), 2).item() ** 2, ell


def lower(factor, columns):
    return torch.linalg.solve_triangular(factor, columns, upper=False).contiguous()


def upper(factor, columns):
    return torch.linalg.solve_triangular(factor.T, columns, upper=True).contiguous()


class Elimination:
    """H = LL' by blocks. factors: those on the diagonal of L, from layer 1 on; across: minus the transposes
    of those below it; forward: L^-1 times the columns C' and G, by layer; F = C H^-1 C'."""

    def __init__(self, weights, ell, G):
        self.weights, self.ell, self.G = weights, ell, G
        self.factors, self.across, self.forward = [None], [None], [None]
        self.positive = all((part > 0).all() for part in ell)
        for i, (weight, part) in enumerate(zip(weights, ell), 1):
            if not self.positive:
                return
            T = weight.T * part if i == 1 else lower(self.factors[-1], weight.T * part)
            factor, refused = torch.linalg.cholesky_ex(torch.diag(2 * part) - T.T @ T)
            self.positive = not refused
            columns = G[i - 1] if i == 1 else G[i - 1] + T.T @ self.forward[-1]
            if i == len(ell):
                columns = torch.cat([weights[-1].T, columns], dim=1)
            self.factors.append(factor)
            self.across.append(T)
            self.forward.append(lower(factor, columns))
        outputs = len(weights[-1])
        self.F = self.forward[-1][:, :outputs].T @ self.forward[-1][:, :outputs]
        self.probed = sum(columns[:, -G[0].shape[1] :].square().sum().item() for columns in self.forward[1:])

    def backward(self, columns):
        """L'^-1 times columns."""
        found = [None] * len(columns)
        found[-1] = upper(self.factors[-1], columns[-1])
        for i in range(len(columns) - 1, 0, -1):
            above = self.across[i] @ found[i]
            if columns[i - 1] is not None:
                above[:, -columns[i - 1].shape[1] :] += columns[i - 1]
            found[i - 1] = above if i == 1 else upper(self.factors[i - 1], above)
        return found

    def solve(self, columns):
        """H^-1 times columns."""
        forward = [columns[0]]
        for factor, T, part in zip(self.factors[1:], self.across[1:], columns[1:]):
            forward.append(lower(factor, part + T.T @ forward[-1]))
        return self.backward(forward)


def central(F, mu):
    """rho with mu trace (rho I - F)^-1 = 1, the smoothed eigenvalue, and (rho I - F)^-1."""
    values, vectors = torch.linalg.eigh(F)
    low, high = (values[-1] + mu).item(), (values[-1] + mu * len(values)).item()
    for _ in range(100):
        rho = (low + high) / 2
        low, high = (rho, high) if (mu / (rho - values)).sum() > 1 else (low, rho)
    smoothed = rho - mu * torch.log(rho - values).sum().item()
    return rho, smoothed, (vectors / (rho - values)) @ vectors.T


class Newton:
    """The smoothed problem at a point: gradient, and products with second derivatives.

    S: weights of the outputs' columns, (outputs, outputs), trace 1, a dual iterate; None: mu (rho I - F)^-1.
    """

    def __init__(self, point: Elimination, smoothing, S):
        self.point = point
        self.top = torch.linalg.eigvalsh(point.F)[-1].item()
        self.mu = smoothing * self.top / len(point.F)
        self.probing, self.barrier = (
            smoothing * self.top,
            0.1 * smoothing * self.top / sum(map(len, point.ell)),
        )
        self.w = point.backward(point.forward)
        self.v = [None, *[weight @ w for weight, w in zip(point.weights[:-1], self.w)]]
        self.rho, _, self.T = central(point.F, self.mu)
        self.S_central = self.mu * self.T
        self.S = self.S_central if S is None else S
        self.all_weights = torch.block_diag(self.S, self.probing * identity(PROBES))
        self.wS, self.vS = ([None, *[x @ self.all_weights for x in xs[1:]]] for xs in (self.w, self.v))
        self.ell = torch.cat(point.ell)
        self.sizes = [len(part) for part in point.ell]
        central_weights = torch.block_diag(self.S_central, self.probing * identity(PROBES))
        self.gradient = self.slopes(central_weights) - self.barrier / self.ell
        self.TS = (self.T @ self.S + self.S @ self.T) / 2

    def merit(self, point):
        logs = sum(torch.log(part).sum().item() for part in point.ell)
        return central(point.F, self.mu)[1] + self.probing * point.probed - self.barrier * logs

    def slopes(self, S):
        """2 (p_j . w) S (q_j . w) for each neuron, on the first columns if S is smaller."""
        n = len(S)
        return torch.cat(
            [2 * ((w[:, :n] @ S) * (v - w)[:, :n]).sum(dim=1) for w, v in zip(self.w[1:], self.v[1:])]
        )

    def change_of_F(self, d):
        n, F = len(self.S), 0
        for part, w, v in zip(d.split(self.sizes), self.w[1:], self.v[1:]):
            F = F + (part[:, None] * w[:, :n]).T @ (v - w)[:, :n]
        return F + F.T

    def change_of_S(self, change):
        """What a change of F does to S, with rho such that the trace stays."""
        moved = self.T @ change @ self.S
        return (moved + moved.T) / 2 - (self.TS * change).sum() / self.TS.diagonal().sum() * self.TS

    def next_S(self, d):
        n, change = len(self.S), self.change_of_F(d)
        rho = (self.TS * change).sum() + self.S_central.diagonal().sum() - self.S.diagonal().sum()
        moved = self.T @ (rho / self.TS.diagonal().sum() * identity(n) - change) @ self.S
        step = self.S_central - self.S - (moved + moved.T) / 2
        factor = torch.linalg.cholesky(self.S)
        least = torch.linalg.eigvalsh(lower(factor, lower(factor, step).T))[0].item()
        S = self.S + min(1.0, -0.95 / min(least, -1e-300)) * step
        return S / S.diagonal().sum()

    def times(self, d):
        """The second derivatives times d."""
        parts, weights = [None, *[part[:, None] for part in d.split(self.sizes)]], self.point.weights
        pulled = [None, *[part * w for part, w in zip(parts[1:], self.w[1:])]]
        columns = [-weights[0].T @ pulled[1]]
        for i in range(1, len(self.w)):
            columns.append(2 * pulled[i] - parts[i] * self.v[i])
            if i + 1 < len(self.w):
                columns[i] -= weights[i].T @ pulled[i + 1]
        solved = self.point.solve(columns)
        product = [
            2
            * (self.wS[i] * (2 * solved[i] - weights[i - 1] @ solved[i - 1]) - self.vS[i] * solved[i]).sum(
                dim=1
            )
            for i in range(1, len(self.w))
        ]
        product = torch.cat(product) + self.barrier / self.ell**2 * d
        return product + self.slopes(self.change_of_S(self.change_of_F(d)))

    def within_layers(self):
        """Cholesky factors of the second derivatives within each layer, scaled, without smoothing."""
        point, factors = self.point, []
        K = torch.cholesky_inverse(point.factors[-1])  # a block of H^-1
        for i in range(len(point.ell), 0, -1):
            weight, T, ell = point.weights[i - 1], point.across[i], point.ell[i - 1]
            back = T if i == 1 else upper(point.factors[i - 1], T)
            beside = back @ K
            read, scaled = weight @ beside, T / ell
            a, b = 2 * self.w[i] - self.v[i], self.w[i]
            aS, bS = a @ self.all_weights, b @ self.all_weights
            mixed = (aS @ b.T) * read.T
            block = (bS @ b.T) * (scaled.T @ scaled + read @ (weight @ back).T)
            block += (aS @ a.T) * K - mixed - mixed.T
            block *= 2
            block.diagonal().add_(1e-10 * block.diagonal() + self.barrier / ell**2)
            scale = block.diagonal().rsqrt()[:, None]
            factors.append((torch.linalg.cholesky(block * scale * scale.T), scale))
            if i > 1:
                K = torch.cholesky_inverse(point.factors[i - 1]) + beside @ back.T
        return factors[::-1]

    def use(self, factors):
        """Take these as preconditioner, together with the part that smoothing adds, of low rank."""
        self.factors, n = factors, len(self.S)
        units = []
        for i in range(n):
            for j in range(i + 1):
                unit = torch.zeros(n, n, dtype=torch.float64)
                unit[i, j] = unit[j, i] = 1.0
                units.append(unit)
        columns = torch.stack([self.slopes(unit) / unit.sum() for unit in units], dim=1)
        moved = [self.change_of_S(unit) for unit in units]
        form = torch.stack([torch.stack([(unit * change).sum() for unit in units]) for change in moved])
        values, vectors = torch.linalg.eigh((form + form.T) / 2)
        kept = values > 1e-12 * values[-1].clamp(min=1e-300)
        self.low = columns @ (vectors[:, kept] * values[kept].sqrt())
        self.low_solved = self.by_layers(self.low)
        self.small = torch.linalg.cholesky(identity(self.low.shape[1]) + self.low.T @ self.low_solved)

    def by_layers(self, columns):
        parts = zip(self.factors, columns.split(self.sizes))
        return torch.cat([scale * torch.cholesky_solve(scale * part, L) for (L, scale), part in parts])

    def preconditioned(self, residual):
        solved = self.by_layers(residual[:, None])
        return (solved - self.low_solved @ torch.cholesky_solve(self.low.T @ solved, self.small))[:, 0]

    def direction(self):
        """Newton's direction by conjugate gradients, and how many products it took."""
        d, residual = torch.zeros_like(self.ell), -self.gradient
        search = solved = self.preconditioned(residual)
        size = first = (residual @ solved).item()
        for taken in range(PRODUCTS):
            if size <= RESIDUAL**2 * first:
                return d, taken
            image = self.times(search)
            curvature = (search @ image).item()
            if not curvature > 0:
                return d, taken
            d, residual = d + size / curvature * search, residual - size / curvature * image
            solved = self.preconditioned(residual)
            size, before = (residual @ solved).item(), size
            search = solved + size / before * search
        return d, PRODUCTS

    def dual(self):
        """The squared value of a feasible dual matrix: the columns of w, neuron by neuron times a number."""
        S, moved = self.all_weights, self.w[0]
        for weight, w in zip(self.point.weights[:-1], self.w[1:]):
            own, across = ((w @ S) * w).sum(dim=1), ((w @ S) * (weight @ moved)).sum(dim=1)
            moved = torch.where(own > 0, across / own, 0.0).clamp(min=0)[:, None] * w
        y = self.point.weights[-1] @ moved
        return (((y @ S) * y).sum() / ((self.w[0] @ S) * self.w[0]).sum()).item()


def minimise(weights, gap):
    """(rho, ell, what happened): until value and dual value are within the relative `gap`."""
    start = time.process_time()
    _, ell = closed_form(weights)
    generator, size = torch.Generator().manual_seed(0), sum(map(len, ell)) * PROBES
    probes = [torch.randn(len(part), PROBES, dtype=torch.float64, generator=generator) for part in ell]
    point = Elimination(weights, ell, [(part / size).sqrt()[:, None] * G for part, G in zip(ell, probes)])
    smoothing, S, factors, taken = SMOOTHING, None, None, 0
    counts, path, lower, best = {"factorisations": 1, "preconditioners": 0, "products": 0}, [], 0.0, None
    for _ in range(STEPS):
        newton = Newton(point, smoothing, S)
        lower = max(lower, newton.dual())
        if best is None or newton.top < best[0]:
            best = newton.top, torch.cat(point.ell)
        path.append([time.process_time() - start, math.sqrt(best[0]), math.sqrt(lower)])
        if 1 - math.sqrt(lower / best[0]) < gap:
            break
        if factors is None or taken > AGED:
            factors = newton.within_layers()
            counts["preconditioners"] += 1
        newton.use(factors)
        d, taken = newton.direction()
        counts["products"] += taken
        decrease = -(newton.gradient @ d).item()
        falling = d < 0
        length = min(1.0, 0.95 * (newton.ell / -d)[falling].min().item()) if falling.any() else 1.0
        now = newton.merit(point)
        while length > 1e-10:
            after = Elimination(weights, (newton.ell + length * d).split(newton.sizes), point.G)
            counts["factorisations"] += 1
            if after.positive and newton.merit(after) <= now - 1e-4 * length * decrease + 1e-14 * abs(now):
                break
            length /= 2
        else:
            break
        S, point = newton.next_S(d), after
        if decrease < 0.1 * smoothing * newton.rho:
            smoothing /= FASTER
    return *best, {**counts, "path": path}


def proves(weights, value, multipliers):
    """Whether Cholesky by blocks shows M > 0, with the margin of `lipbook.sdp.certificate.proves`."""
    square, C = math.nextafter(value * value, 0.0), weights[-1]
    on = [square * identity(weights[0].shape[1]), *[torch.diag(2 * part) for part in multipliers]]
    last = torch.diag(2 * multipliers[-1]) + C.abs().T @ C.abs()
    on[-1] = on[-1] - C.T @ C
    beside = [-(weight.T * part) for weight, part in zip(weights, multipliers)]
    if not all((block.diagonal() > 0).all() for block in on):
        return False
    scales = [torch.exp2(-torch.round(torch.log2(block.diagonal()) / 2)) for block in on]
    on = [block * scale[:, None] * scale for block, scale in zip(on, scales)]
    beside = [block * left[:, None] * right for block, left, right in zip(beside, scales, scales[1:])]
    size, trace = sum(map(len, on)), sum(block.diagonal().sum().item() for block in on)
    rows = [block.abs().sum(dim=1) for block in on[:-1]]
    rows.append((last * scales[-1][:, None] * scales[-1]).sum(dim=1))
    for i, block in enumerate(beside):
        rows[i], rows[i + 1] = rows[i] + block.abs().sum(dim=1), rows[i + 1] + block.abs().sum(dim=0)
    forming = 1.001 * gamma(len(C) + 4) * torch.cat(rows).max().item()
    factorisation = 1.001 * trace * gamma(size + 3) / (1 - gamma(size + 3)) + 2 * UNIT_ROUNDOFF
    margin, T = 2 * (forming + factorisation), None
    for i, block in enumerate(on):
        block.diagonal().sub_(margin)
        factor, refused = torch.linalg.cholesky_ex(block if T is None else block - T.T @ T)
        if refused:
            return False
        if i < len(beside):
            T = lower(factor, beside[i])
    return True


def proved_value(weights, rho, ell):
    """The least value that the multipliers, moved a little towards a point inside, are shown to prove."""
    inner, inner_l = closed_form(weights)
    for blend in (0.0, *(10.0 ** (k / 2) for k in range(-28, 0)), 1.0):
        square = (1 - blend) * rho + blend * 2 * inner
        parts = zip(ell.split([len(part) for part in inner_l]), inner_l)
        multipliers = [(1 - blend) * rho * ours + blend * 2 * inner * theirs for ours, theirs in parts]
        value = math.nextafter(math.sqrt(square) * (1 + 4 * UNIT_ROUNDOFF), math.inf)
        if proves(weights, value, multipliers):
            return value
    return None


def run(setting, seed):
    model = random_network(setting["sizes"], seed)
    weights = [layer.weight.detach() for layer in model if isinstance(layer, nn.Linear)]
    inner, inner_l = closed_form(weights)
    start = time.process_time()
    rho, ell, found = minimise(weights, setting["gap"])
    value = proved_value(weights, rho, ell)
    found |= {"closed_form": math.sqrt(inner), "proved": value, "seconds": time.process_time() - start}
    if setting["lipsdp"]:
        start = time.process_time()
        bound = lipsdp(model)
        found["lipsdp_seconds"] = time.process_time() - start
        found |= {"lipsdp": bound.value, "lipsdp_dual": bound.certificate.dual_value}
        found["lipsdp_iterations"] = bound.certificate.iterations
        start = 2 * inner, 2 * inner * torch.cat(inner_l)
        found["proved_dense"] = proved(constraints_of(model), Proposal(rho, rho * ell, None, None), start)[0]
    return found
