"""From a free matrix to an orthogonal one: a function for each map, all with exact gradients.

Each takes matrices with any dimensions in front, of a real or (not bjorck, qr) complex
dtype, and each output has norm at most 1 up to rounding. With n columns and m >= n rows the columns come out
orthonormal, with m < n the rows.

Sources: Cayley: Helfrich, Willmott and Ye, ICML 2018; tall: Trockman and Kolter, ICLR 2021, section 4.
Bjorck: Bjorck and Bowie, SIAM J. Numer. Anal. 8, 1971; as a layer Anil, Lucas and Grosse, ICML 2019.
Cholesky: Hu, Leino, Wang and Fredrikson, 2024. BRO: Lai et al., 2025. AOL: Prach and Lampert, ECCV 2022.

Chapter: layers/orthogonal-layers.
"""

import torch
from torch import Tensor

BJORCK_STEPS = 25


def cayley(free: Tensor) -> Tensor:
    """(I - A)(I + A)^-1 of a skew matrix A, and its extension to tall matrices; (..., m, n) to the same.

    With free = [U; V], U square, A = U - U* + V*V has A + A* = 2V*V >= 0, so that I + A is invertible, and
    Q = [(I - A)(I + A)^-1; -2V(I + A)^-1] has orthonormal columns. Wide: the adjoint. A matrix with an entry
    beyond eps^(-1/4), 54 in float32, is scaled down to it, and a tall one where V has v entries to
    (v eps)^(-1/4): beside a larger A, I would be lost to rounding.
    """
    rows, columns = free.shape[-2:]
    if rows < columns:
        return cayley(free.mH).mH
    at_most = (torch.finfo(free.dtype).eps * max(1, (rows - columns) * columns)) ** -0.25
    free = free / (free.abs().amax((-2, -1), keepdim=True) / at_most).clamp(min=1)
    top, rest = free[..., :columns, :], free[..., columns:, :]
    skew = top - top.mH
    if rows > columns:
        skew = skew + rest.mH @ rest
    identity = torch.eye(columns, dtype=free.dtype, device=free.device)
    inverse = torch.linalg.inv_ex(identity + skew).inverse
    square = 2 * inverse - identity
    return torch.cat([square, rest @ (-2 * inverse)], dim=-2) if rows > columns else square


def bjorck(free: Tensor) -> Tensor:
    """The nearest orthogonal matrix by Newton's steps W <- W (3 I - W'W) / 2; (..., m, n) to the same.

    A step takes a singular value s to 1.5 s - 0.5 s^3, which is at most 1 for s in [0, 2]: a norm that begins
    at most at 2 is at most 1 from then on, wherever the iteration stops. It stops when another step would
    change nothing, and after `BJORCK_STEPS` where singular values near 0 are still on their way to 1. W is
    scaled at first so that the bound of Wolkowicz and Styan (1980) on the largest eigenvalue of W'W, by its
    trace and Frobenius norm, is in [1/2, 2].
    """
    rows, columns = free.shape[-2:]
    if rows < columns:
        return bjorck(free.mT).mT
    identity = torch.eye(columns, dtype=free.dtype, device=free.device)
    unit = _largest_entry(free, (-2, -1))
    # So that squares are within the floats: by 1, or by a constant that the scaling below undoes.
    weight = free / (unit / unit.clamp(2.0**-20, 2.0**20))
    gram = gram_matrix(weight)
    square = gram.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    if columns > 1:  # one column spreads by 0, where a norm has no second derivative
        spread = torch.linalg.vector_norm(gram - square * identity, dim=(-2, -1), keepdim=True)
        square = square + (1 - 1 / columns) ** 0.5 * spread
    square = _positive(square)
    square = square / square.clamp(0.5, 2)
    for k in range(BJORCK_STEPS):
        weight = weight @ ((1.5 * identity - gram * (0.5 / square)) / square.sqrt())
        if k == BJORCK_STEPS - 1 or _is_settled(gram, square * identity):
            break
        gram, square = gram_matrix(weight), torch.ones_like(square)
    return weight


def _is_settled(gram, limit):
    """Whether a step from this W'W ends within rounding of its limit: the step squares the distance."""
    error = torch.linalg.vector_norm((gram - limit).detach(), dim=(-2, -1)) / limit[..., 0, 0].detach()
    rounding = 4 * gram.shape[-1] ** 0.5 * torch.finfo(gram.dtype).eps
    try:
        return bool((0.75 * error.square() <= rounding).all())
    except RuntimeError:  # inside torch.vmap no number can be read: all the steps are taken
        return False


def qr(free: Tensor) -> Tensor:
    """The Q of a QR decomposition whose R has a positive diagonal; (..., m, n) to the same.

    Its gradient divides by R: it is not defined where the rank is not full.
    """
    rows, columns = free.shape[-2:]
    if rows < columns:
        return qr(free.mT).mT
    q, r = torch.linalg.qr(free / _largest_entry(free, (-2, -1)))
    signs = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(free.dtype)
    return q * signs[..., None, :]


def cholesky(free: Tensor) -> Tensor:
    """X L^-* with LL* = X*X + E, E the diagonal of X*X times a ridge; with complex matrices too.

    W*W = I - L^-1 E L^-* <= I: the ridge, which keeps the factorisation alive, falls on the safe side.
    (..., m, n) to the same; where m < n, on the transpose.
    """
    rows, columns = free.shape[-2:]
    if rows < columns:
        return cholesky(free.mH).mH
    tall = free / _largest_entry(free, (-2, -1))
    gram = gram_matrix(tall)
    ridge = 2 * (columns + 8) * torch.finfo(free.dtype).eps
    squares = gram.diagonal(dim1=-2, dim2=-1).real.clamp(min=torch.finfo(free.dtype).tiny ** 0.5)
    factor = torch.linalg.cholesky_ex(gram + torch.diag_embed(ridge * squares)).L
    return torch.linalg.solve_triangular(factor.mH, tall, upper=True, left=False)


def projection(free: Tensor) -> Tensor:
    """The orthogonal projection V (V*V)^-1 V* on the columns of V; (..., n, r) to (..., n, n), r <= n.

    It is WW* for W of `cholesky` after one step of `bjorck`, which squares what the ridge left, so that its
    eigenvalues are in [0, 1] whatever V is.
    """
    columns = cholesky(free)
    identity = torch.eye(columns.shape[-1], dtype=free.dtype, device=free.device)
    columns = columns @ (1.5 * identity - 0.5 * gram_matrix(columns))
    return gram_matrix(columns.mH)


def block_reflector(free: Tensor) -> Tensor:
    """I - 2 V (V*V)^-1 V*, which mirrors the columns of V; (..., n, r) to (..., n, n), symmetric."""
    image = projection(free)
    return torch.eye(image.shape[-1], dtype=free.dtype, device=free.device) - 2 * image


def aol_scale(weight: Tensor) -> Tensor:
    """d_j = (sum_i |W'W|_ij)^(-1/2), (..., m, n) to (..., n): W diag(d) has norm at most 1.

    diag(d)^-2 - W'W is diagonally dominant, so at least 0.
    """
    unit = unit_of(weight, (-2, -1))
    return inverse_root(gram_matrix(weight / unit).abs().sum(-1)) / unit[..., 0]


def unit_of(weight: Tensor, dim: tuple[int, ...]) -> Tensor:
    """The largest absolute entry along these dimensions, at least 1, as a constant: squares of W / unit are
    within the floats."""
    return weight.detach().abs().amax(dim, keepdim=True).clamp(min=1)


def inverse_root(sums: Tensor) -> Tensor:
    """(sums + tiny)^(-1/2): what is added keeps a column of zeros, and falls on the safe side."""
    return (sums + torch.finfo(sums.dtype).tiny ** 0.5).rsqrt()


class _Gram(torch.autograd.Function):
    """V*V, whose gradient takes one product instead of the two of automatic differentiation."""

    generate_vmap_rule = True

    @staticmethod
    def forward(free):
        return free.mH @ free

    @staticmethod
    def setup_context(context, inputs, output):
        context.save_for_backward(*inputs)
        context.save_for_forward(*inputs)

    @staticmethod
    def backward(context, gradient):
        (free,) = context.saved_tensors
        return free @ (gradient + gradient.mH)

    @staticmethod
    def jvp(context, tangent):
        (free,) = context.saved_tensors
        half = free.mH @ tangent
        return half + half.mH


def gram_matrix(free: Tensor) -> Tensor:
    """V*V, (..., m, n) to (..., n, n), by a gradient of one product."""
    return _Gram.apply(free)


def _largest_entry(free, dim):
    """The largest absolute entry along these dimensions, 1 where all are 0, as a constant.

    What follows does not depend on the scale, so that no gradient is lost.
    """
    return _positive(free.detach().abs().amax(dim, keepdim=True))


def _positive(numbers):
    """The numbers, with 1 in the place of 0."""
    return torch.where(numbers > 0, numbers, 1.0)
