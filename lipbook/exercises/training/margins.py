"""Checks of the exercises of training/margins."""

import math

import torch

from lipbook.exercises.registry import exercise


def _heads():
    """(constant of the body, head): random ones, two equal rows, a common shift, two classes."""
    generator = torch.Generator().manual_seed(0)
    for constant, rows, columns, shift in ((1.0, 2, 3, 0.0), (2.5, 10, 6, 0.0), (0.3, 4, 4, 5.0)):
        W = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
        W[-1] = W[0] if rows > 2 else W[-1]
        yield constant, W + shift * torch.randn(columns, generator=generator, dtype=torch.float64)


@exercise("training/margins/1")
def by_hand(pair):
    pairs, vector = (float(number) for number in pair)
    if not math.isclose(pairs, 0.3, rel_tol=1e-6):
        return "pair by pair: the first row is at distance 5 and 6 from the others; take the least quotient."
    if not math.isclose(vector, 0.25, rel_tol=1e-6):
        return "the vector rule: W'W is diagonal here, so what is its largest entry, and |W|?"
    return None


@exercise("training/margins/2")
def all_or_nothing(count):
    if float(count) != 368:
        return "the lower end p has p^n = 0.025: at which whole n does it reach 0.99?"
    return None


@exercise("training/margins/3")
def largest_coordinate(constants):
    for constant, W in _heads():
        found = constants(constant, W)
        signs = torch.sign(W[:, None] - W)
        attained = constant * ((W[:, None] - W) * signs).sum(dim=-1)
        if found.shape != attained.shape:
            return f"{len(W)} classes need a matrix of that size, got the shape {tuple(found.shape)}."
        if (found < attained - 1e-9).any():
            return "too small: let h move by the signs of w_i - w_j, a step of length 1 in this norm."
        if (found > attained + 1e-9).any():
            return "valid, and not the best: which norm of w_i - w_j is dual to the largest coordinate?"
    return None


@exercise("training/margins/4")
def common_row(vector_constant):
    for constant, W in _heads():
        found = float(vector_constant(constant, W))
        if found > math.sqrt(2) * constant * torch.linalg.matrix_norm(W, 2).item() * (1 + 1e-9):
            return "that is above sqrt(2) L |W|."
        if found < constant * torch.cdist(W, W).max().item() * (1 - 1e-9):
            return "too small: a margin of some pair changes faster."
        moved = float(vector_constant(constant, W + torch.arange(W.shape[1], dtype=W.dtype)))
        if not math.isclose(found, moved, rel_tol=1e-9):
            return "adding a vector to all rows changes your number: which part of W do margins not see?"
        if math.isclose(found, constant * torch.cdist(W, W).max().item(), rel_tol=1e-9) and len(W) > 2:
            return "that is the largest pair constant; asked for is sqrt(2) L times a norm of a matrix."
    return None


@exercise("training/margins/5")
def every_case(radius_of):
    inf, nan = math.inf, math.nan
    D = torch.tensor([[0, 1, 0], [1, 0, 2], [0, 2, 0]], dtype=torch.float64)
    cases = (
        ([4, 1, 0], 3.0, "an ordinary row, with an equal row behind"),
        ([4, 1, 4], 0.0, "a tie of two equal rows"),
        ([1, 1, 0], 0.0, "a tie"),
        ([0, 3, 1], 1.0, "an ordinary row"),
        ([0, 0, 0], 0.0, "a tie of all"),
        ([nan, 1, 0], 0.0, "a NaN"),
        ([inf, 1, 0], 0.0, "an infinite logit"),
        ([4, -inf, 0], 0.0, "a logit of minus infinity"),
    )
    found = radius_of(torch.tensor([row for row, _, _ in cases], dtype=torch.float64), D)
    if tuple(found.shape) != (len(cases),):
        return f"one radius a row: {len(cases)} rows gave the shape {tuple(found.shape)}."
    for (row, radius, name), value in zip(cases, found.tolist()):
        if not value == radius:
            return f"{name}, logits {row}: the radius is {radius:g}, not {value:g}."
    same = radius_of(torch.tensor([[2.0, 1.0]], dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64))
    if same.item() != inf:
        return "where all constants are 0 and one logit leads, no input has another class: infinity."
    return None


@exercise("training/margins/6")
def where_exact(nearest_tie):
    generator = torch.Generator().manual_seed(1)
    for classes, size in ((2, 2), (3, 5), *[(10, 3)] * 10):
        W, b, x = (
            torch.randn(shape, generator=generator, dtype=torch.float64)
            for shape in ((classes, size), (classes,), (size,))
        )
        point = nearest_tie(W, b, x)
        if point.shape != x.shape:
            return f"the point has the shape {tuple(x.shape)}, not {tuple(point.shape)}."
        z, at_point = W @ x + b, W @ point + b
        y = z.argmax()
        others = torch.arange(classes) != y
        radius = ((z[y] - z) / (W[y] - W).norm(dim=1))[others].min()
        if not math.isclose((point - x).norm().item(), radius.item(), rel_tol=1e-6):
            return f"the distance is {(point - x).norm():.4f}, and the radius {radius:.4f}."
        if not math.isclose(at_point[others].max().item(), at_point[y].item(), abs_tol=1e-8):
            return "at your point no other logit equals that of the class: go along w_y - w_j."
    return None


@exercise("training/margins/7")
def the_box(triple):
    W, b, x = (part.detach().double() for part in triple)
    if W.shape != (2, 2) or b.shape != (2,) or x.shape != (2,):
        return (
            f"W is 2 x 2, b and x have two entries; got {tuple(W.shape)}, {tuple(b.shape)}, {tuple(x.shape)}."
        )
    if not ((x >= 0) & (x <= 1)).all():
        return "x must lie in the square."
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 2)
    z = W @ x + b
    y = int(z.argmax())
    lead = (corners @ W.T + b) @ torch.tensor([1.0, -1.0], dtype=torch.float64) * (1 - 2 * y)
    if not lead.min().item() >= 0.01 - 1e-6:
        return f"at a corner the lead is {lead.min():.4f}: a linear lead is least at a corner."
    radius = (z[y] - z[1 - y]) / (W[0] - W[1]).norm()
    if not radius.item() <= 0.1 + 1e-6:
        return f"the certified radius is {radius:.4f}: put x nearer to the line where the logits tie."
    return None
