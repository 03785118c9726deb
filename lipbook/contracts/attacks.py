"""`check`: attacks on every contract of a layer.

The layer is copied in float64, its weights are drawn anew, trained to grow, shrunk, blown up and made rank
one; every contract is read again each time and compared with what the forward pass does. A contract that
survives is not proved; one that fails is wrong, and the failure shows the numbers.

Chapter: how-to-read-a-certificate.
"""

import copy
import dataclasses
import math

import torch
from torch import nn

from lipbook.bound import CertificateError, UnsupportedLayerError
from lipbook.contracts.definitions import affine, checked_shape, contracts_of, expand, lipschitz, output_shape
from lipbook.contracts.guard import name_of, require_layer
from lipbook.contracts.pairs import lengths, slopes_of_pairs, start_points, steepest_pair
from lipbook.contracts.slope_attacks import attack_slopes
from lipbook.contracts.variants import (
    VARIANTS,
    changed_between,
    double_copy,
    draw_anew,
    faithful_copy,
    loaded_copy,
    snapshot,
)

_TOLERANCE = 1e-9


def check(layer: nn.Module, input_shape: tuple[int, ...], seed: int = 0) -> dict[str, float]:
    """The slack that attacks leave to each contract of a layer; raises if one of them is broken.

    The layer itself is not touched: its copies are attacked, in float64, in eval and in train mode where its
    contracts accept both, with its weights and with others, after a copy and after saving and loading.
    Softplus is attacked as the mathematical function, without torch's jump.

    Args:
        layer: a layer with contracts, of the library or your own.
        input_shape: the shape of one sample; small shapes are attacked with full Jacobians.
        seed: of the random points and weights.

    Returns:
        For "lipschitz_2", "lipschitz_inf" and "slopes": bound / steepest slope found - 1, for the weights as
        they are. For "affine", "expand" and "output_shape": the largest relative difference to the forward pass.
        Contracts that the layer does not have are left out.

    Raises:
        CertificateError: a contract is wrong; the message names it, the input found, and the two numbers.
        UnsupportedLayerError: the layer has no contract, or none that speaks of it in any mode.
        ValueError, TypeError: not a shape, or one that the layer does not take.

    Chapter: how-to-read-a-certificate.
    """
    require_layer(layer)
    checked_shape(input_shape)
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise TypeError(f"seed must be an int, got {seed!r}.")
    if not contracts_of(layer):
        expand(layer)  # raises, and says what to do
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        torch.default_generator.manual_seed(seed)
        modes = _accepted_modes(layer, input_shape)
        slack = {}
        for training in modes:
            found = _attack_mode(layer, input_shape, training, seed)
            slack = slack or found
    return slack


class _Attacked:
    """One copy of the layer: the contracts are read from `layer`, and `forward` runs its float64 twin."""

    def __init__(self, layer, twin, shape, label, tolerance, seed):
        self.layer, self.twin, self.shape, self.tolerance = layer, twin, shape, tolerance
        self.generator = torch.Generator().manual_seed(seed)
        self.where = f"weights {label}, {'train' if layer.training else 'eval'} mode"

    def forward(self, batch):
        return self.twin(batch.clone())

    def fail(self, contract, sentence):
        raise CertificateError(f"the {contract} contract of {name_of(self.layer)} is wrong ({self.where}): {sentence}")


def _accepted_modes(layer, shape):
    """The values of `training` in which at least one contract speaks, the layer's own first."""
    accepted, refusals = [], {}
    for training in (layer.training, not layer.training):
        probe = double_copy(layer).train(training)
        names = [name for name in contracts_of(probe) if not (refusal := _refused(name, probe, shape))]
        if names:
            accepted.append(training)
        else:
            refusals[training] = refusal
    if not accepted:
        raise refusals[False]
    return accepted


def _refused(name, layer, shape):
    readers = {
        "lipschitz": lambda: lipschitz(layer, 2, shape),
        "affine": lambda: affine(layer, shape),
        "output_shape": lambda: output_shape(layer, shape),
        "expand": lambda: expand(layer),
        "slopes": lambda: expand(layer),
    }
    try:
        readers[name]()
    except UnsupportedLayerError as error:
        return error
    return None


def _attack_mode(layer, shape, training, seed):
    as_given = copy.deepcopy(layer).train(training)
    twin, tolerance = faithful_copy(as_given)
    slack = _attack(_Attacked(as_given, twin, shape, "as they are", tolerance, seed))
    for k, (label, change) in enumerate(VARIANTS.items()):
        changed = double_copy(layer).train(training)
        _read_all(changed, shape)  # a contract that keeps what it once read is caught by the change
        if change(changed, shape, torch.Generator().manual_seed(seed + k)):
            _attack(_Attacked(changed, changed, shape, label, _TOLERANCE, seed + k))
    _attack_copies(double_copy(layer).train(training), shape, seed)
    return slack


def _attack(target):
    before = snapshot(target.layer)
    _read_all(target.layer, target.shape)
    difference = changed_between(before, snapshot(target.layer))
    if difference:
        target.fail(" or ".join(contracts_of(target.layer)), f"reading it changes {difference}.")
    _attack_batch(target)
    slack = {}
    attacks = {
        "output_shape": _attack_output_shape,
        "affine": _attack_affine,
        "expand": _attack_expand,
        "lipschitz": _attack_lipschitz,
        "slopes": lambda target: {"slopes": attack_slopes(target)},
    }
    for name, attack in attacks.items():
        if name in (*contracts_of(target.layer), "expand") and _refused(name, target.layer, target.shape) is None:
            slack.update(attack(target))
    return slack


def _read_all(layer, shape):
    for name in contracts_of(layer):
        _refused(name, layer, shape)


def _attack_batch(target):
    """A contract is about one sample: its output must not depend on the samples beside it."""
    batch = start_points(target.shape, target.generator)[8:24]
    with torch.no_grad():
        together, alone = target.forward(batch), torch.cat([target.forward(sample[None]) for sample in batch])
    gap, size = _gap(together, alone)
    if gap > target.tolerance * size:
        target.fail(
            " or ".join(contracts_of(target.layer)),
            f"the output of a sample depends on its batch: in a batch of {len(batch)} and alone it differs by {gap:.6g}.",
        )


def _attack_output_shape(target):
    told = output_shape(target.layer, target.shape)
    with torch.no_grad():
        found = tuple(target.forward(torch.zeros(2, *target.shape, dtype=torch.float64)).shape[1:])
    if told != found:
        target.fail("output_shape", f"a zero input of shape {target.shape} gives the shape {found}, not {told}.")
    return {"output_shape": 0.0}


def _attack_affine(target):
    weight, bias = affine(target.layer, target.shape)
    x = start_points(target.shape, target.generator)
    with torch.no_grad():
        found = target.forward(x).flatten(1)
    if found.shape[1] != len(weight):
        target.fail("affine", f"its weight has {len(weight)} rows, and the forward pass {found.shape[1]} outputs.")
    flat = x.flatten(1)
    told = flat @ weight.T + bias
    size = flat.abs() @ weight.T.abs() + bias.abs() + found.abs()
    excess = (told - found).abs() / size.clamp(min=1e-300)
    worst = excess.max(dim=1).values.argmax()
    if not excess[worst].max() <= target.tolerance:
        k = excess[worst].argmax()
        target.fail(
            "affine",
            f"at x = {shown(x[worst])} it gives {told[worst, k]:.9g}, and the forward pass {found[worst, k]:.9g}, "
            f"in output {k.item()}.",
        )
    return {"affine": excess.max().item()}


def _attack_expand(target):
    primitives = expand(target.twin)
    for primitive in primitives:
        if expand(primitive) != (primitive,):
            target.fail("expand", f"it gives {name_of(primitive)}, which is not a primitive.")
    x = start_points(target.shape, target.generator)
    with torch.no_grad():
        told = x
        for primitive in primitives:
            told = primitive(told.clone())
        found = target.forward(x)
    if told.shape != found.shape:
        target.fail("expand", f"its primitives give the shape {tuple(told.shape[1:])}, not {tuple(found.shape[1:])}.")
    gap, size = _gap(told, found)
    if gap > target.tolerance * size:
        worst = lengths(told - found, math.inf).argmax()
        target.fail(
            "expand",
            f"at x = {shown(x[worst])} its primitives give {shown(told[worst])}, and the layer {shown(found[worst])}.",
        )
    return {"expand": gap / size if size > 0 else 0.0}


def _attack_lipschitz(target):
    slack = {}
    for norm in (2, math.inf):
        try:
            bound = lipschitz(target.layer, norm, target.shape)
        except UnsupportedLayerError:
            continue
        pair = steepest_pair(target.forward, target.shape, norm, bound.value, target.generator)
        for told in [bound, *_unshaped(target.layer, norm)]:
            if pair.slope > told.value * (1 + target.tolerance):
                target.fail(
                    "lipschitz",
                    f"between x = {shown(pair.x)} and y = {shown(pair.y)} the slope in norm {norm} is "
                    f"{pair.slope:.9g}, above the bound {told.value:.9g}.",
                )
        _attack_certificate(target, bound, pair)
        ratio = bound.value / pair.slope if pair.slope > 0 else (math.inf if bound.value > 0 else 1.0)
        slack[f"lipschitz_{norm}"] = ratio - 1
    return slack


def _unshaped(layer, norm):
    try:
        return [lipschitz(layer, norm)]
    except (ValueError, UnsupportedLayerError):
        return []


def _attack_certificate(target, bound, pair):
    """A certificate proves its own bound, and proves no value below a slope that was found."""
    if bound.certificate is None:
        return
    try:
        bound.verify(target.layer)
    except CertificateError as error:
        target.fail("lipschitz", f"its certificate does not prove {bound.value!r}: {error}")
    if pair.slope > 0:
        low = dataclasses.replace(bound, value=pair.slope * 0.99)
        try:
            low.verify(target.layer)
        except CertificateError:
            return
        target.fail(
            "lipschitz",
            f"its certificate proves {low.value:.9g}, and the slope between x = {shown(pair.x)} and "
            f"y = {shown(pair.y)} is {pair.slope:.9g}.",
        )


def _attack_copies(layer, shape, seed):
    """A deep copy and a loaded copy compute the same function, have the same bound, and share no weight."""
    generator = torch.Generator().manual_seed(seed)
    draw_anew(layer, shape, generator)
    target = _Attacked(layer, layer, shape, "drawn anew", _TOLERANCE, seed)
    x = start_points(shape, generator)
    with torch.no_grad():
        expected = target.forward(x)
        others = {"a deep copy": copy.deepcopy(layer), "a copy after saving and loading": loaded_copy(layer, shape, generator)}
        for how, other in others.items():
            _compare(target, how, expected, other(x.clone()), x)
            _compare_bounds(target, how, other, x)
        draw_anew(others["a deep copy"], shape, generator)
        _compare(target, "the layer after its deep copy was changed", expected, target.forward(x), x)


def _compare(target, how, expected, found, x):
    gap, size = _gap(expected, found)
    if gap > target.tolerance * size:
        worst = lengths(expected - found, math.inf).argmax()
        target.fail(
            " or ".join(contracts_of(target.layer)),
            f"{how} gives {shown(found[worst])} at x = {shown(x[worst])}, where the layer gave {shown(expected[worst])}.",
        )


def _compare_bounds(target, how, other, x):
    if "lipschitz" not in contracts_of(target.layer) or _refused("lipschitz", other, target.shape):
        return
    told, expected = lipschitz(other, 2, target.shape), lipschitz(target.layer, 2, target.shape)
    steepest = slopes_of_pairs(target.forward, x[:-1], x[1:], 2, expected.value).max().item()
    if told.value < steepest or not math.isclose(told.value, expected.value, rel_tol=1e-6):
        target.fail("lipschitz", f"{how} has the bound {told.value:.9g}, where the layer had {expected.value:.9g}.")


def _gap(one, other):
    if one.shape != other.shape:
        return math.inf, 0.0
    finite = torch.isfinite(one) & torch.isfinite(other)
    one, other = torch.where(finite, one, 0.0), torch.where(finite, other, 0.0)
    return (one - other).abs().max().item(), max(one.abs().max().item(), other.abs().max().item())


def shown(tensor: torch.Tensor) -> str:
    """The first entries of a tensor, for a message."""
    entries = tensor.flatten()
    more = ", ..." if len(entries) > 4 else ""
    return "[" + ", ".join(f"{entry:.6g}" for entry in entries[:4].tolist()) + more + "]"
