"""The same semidefinite program in coordinates that suit a solver.

The input is replaced by its part in the row space of what it first passes through, where that is smaller. All
coordinates, multipliers and the output are scaled by powers of two so that a typical increment has entries
near 1. Nothing here is trusted: what a solver finds is proved in the coordinates of `Constraints`.

Chapter: sdp/scaling.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lipbook.sdp.constraints import Constraints
from lipbook.sdp.start import feasible_dual


class Scales(NamedTuple):
    """How a point of the conditioned program reads in the original one.

    basis: (inputs, fewer), orthonormal columns; coordinates: (size,), multipliers: (multipliers,), and the
    factor `square` of the squared constant.
    """

    basis: Tensor | None
    coordinates: Tensor
    multipliers: Tensor
    square: float

    def inward(self, square: float, multipliers: Tensor) -> tuple[float, Tensor]:
        return square / self.square, multipliers / (self.square * self.multipliers)

    def outward(self, square: float, multipliers: Tensor, dual: Tensor) -> tuple[float, Tensor, Tensor]:
        dual = self.coordinates[:, None] * dual * self.coordinates
        if self.basis is not None:
            fewer = self.basis.shape[1]
            left = torch.cat([self.basis @ dual[:fewer], dual[fewer:]])
            dual = torch.cat([left[:, :fewer] @ self.basis.T, left[:, fewer:]], dim=1)
        return square * self.square, multipliers * (self.square * self.multipliers), dual


def conditioned(constraints: Constraints, square: float) -> tuple[Constraints, Scales]:
    """The program in better coordinates, where `square` is the size of its value."""
    problem, basis = _on_row_space(constraints)
    covariance = problem.inputs * feasible_dual(problem)
    coordinates = _power_of_two(covariance.diagonal().sqrt())
    sizes = covariance.new_zeros(len(problem.groups))
    row = 0
    for layer in problem.layers:
        part = covariance[layer.start : layer.stop, layer.start : layer.stop]
        size = sum(((form @ part) * form).sum(dim=1) for form in (layer.p, layer.q)) / 2
        sizes[row : row + len(size)] = size
        row += len(size)
    largest = sizes.new_zeros(problem.multipliers).scatter_reduce(0, problem.groups, sizes, "amax")
    rows = _power_of_two(largest.sqrt())
    scale = _power_of_two(torch.tensor(square, dtype=torch.float64, device="cpu").sqrt()).item()
    layers, row = [], 0
    for layer in problem.layers:
        by_row = rows[problem.groups[row : row + len(layer.p)], None]
        forms = [form * coordinates[layer.start : layer.stop] / by_row for form in (layer.p, layer.q)]
        layers.append(layer._replace(p=forms[0], q=forms[1]))
        row += len(layer.p)
    problem = problem._replace(C=problem.C * (coordinates / scale), layers=tuple(layers))
    return problem, Scales(basis, coordinates, rows**-2, scale**2)


def _on_row_space(constraints):
    inputs = constraints.inputs
    if constraints.funnel is None:
        return constraints, None
    basis = torch.linalg.qr(constraints.funnel.T)[0]
    fewer = basis.shape[1]
    layers = []
    for layer in constraints.layers:
        if layer.start >= inputs:
            layer = layer._replace(start=layer.start - inputs + fewer)
        else:
            seen = basis[layer.start :]
            cut = inputs - layer.start
            p, q = (torch.cat([form[:, :cut] @ seen, form[:, cut:]], dim=1) for form in (layer.p, layer.q))
            layer = layer._replace(start=0, p=p, q=q)
        layers.append(layer._replace(stop=layer.stop - inputs + fewer))
    C = torch.cat([constraints.C[:, :inputs] @ basis, constraints.C[:, inputs:]], dim=1)
    return constraints._replace(inputs=fewer, C=C, layers=tuple(layers), history=(), funnel=None), basis


def _power_of_two(numbers):
    return torch.exp2(torch.round(torch.log2(numbers)))
