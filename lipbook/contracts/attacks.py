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
from lipbook.contracts.definitions import (
    affine,
    checked_shape,
    contracts_of,
    expand,
    lipschitz,
    output_shape,
    residual,
    slopes,
)
from lipbook.contracts.enclosure_attacks import attack_enclosures
from lipbook.contracts.gradient_attacks import attack_gradients, attack_loss, attack_output_norm
from lipbook.contracts.gradients import output_norm, parameter_gradient_norm
from lipbook.contracts.guard import name_of, require_copyable, require_layer
from lipbook.contracts.losses import has_loss_contract
from lipbook.contracts.pairs import lengths, shown, slopes_of_pairs, start_points, steepest_pair
from lipbook.contracts.rounding import enclose
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
        layer: a layer with contracts, of the library or your own; or a loss with one.
        input_shape: the shape of one sample, for a loss (classes,); small shapes are attacked with full
            Jacobians.
        seed: of the random points and weights.

    Returns:
        For "lipschitz_2", "lipschitz_inf" and "slopes": bound / steepest slope found - 1, for the weights as
        they are; for "enclose" the same of the errors that it allows, and for "output_norm",
        "parameter_gradient_norm" and "loss_gradient_norm" of the norms. For "affine", "expand",
        "output_shape", and "slopes" that name a structure: the largest relative difference to the forward
        pass. Contracts that the layer does not have are left out.

    Raises:
        CertificateError: a contract is wrong; the message names it, the input found, and the two numbers.
        UnsupportedLayerError: the layer has no contract, or none that speaks of it in any mode.
        ValueError, TypeError: not a shape, or one that the layer does not take.
    """
    require_layer(layer)
    checked_shape(input_shape)
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise TypeError(f"seed must be an int, got {seed!r}.")
    if has_loss_contract(layer):
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
            return {"loss_gradient_norm": attack_loss(layer, input_shape, seed)}
    if not contracts_of(layer):
        expand(layer)  # raises, and says what to do
    require_copyable(layer)
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        torch.default_generator.manual_seed(seed)
        _require_shape(layer, input_shape)
        modes = _accepted_modes(layer, input_shape)
        slack = {}
        for training in modes:
            found = _attack_mode(layer, input_shape, training, seed)
            slack = slack or found
    return slack


def _require_shape(layer, shape):
    try:
        with torch.no_grad():
            double_copy(layer).eval()(torch.zeros(2, *shape, dtype=torch.float64))
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{name_of(layer)} does not take samples of shape {shape}: {reason}") from error


class _Attacked:
    """One copy of the layer: the contracts are read from `layer`, and `forward` runs its float64 twin."""

    def __init__(self, layer, twin, shape, label, tolerance, seed):
        self.layer, self.twin, self.shape, self.tolerance = layer, twin, shape, tolerance
        self.generator = torch.Generator().manual_seed(seed)
        self.where = f"weights {label}, {'train' if layer.training else 'eval'} mode"

    def forward(self, batch):
        return self.twin(batch.clone())

    def fail(self, contract, sentence):
        name = name_of(self.layer)
        raise CertificateError(f"the {contract} contract of {name} is wrong ({self.where}): {sentence}")


def _bound(layer, norm, shape):
    """What `lipschitz` says of this shape, or of every shape where a layer inside has no `output_shape`."""
    try:
        return lipschitz(layer, norm, shape)
    except UnsupportedLayerError:
        return lipschitz(layer, norm)


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
        "lipschitz": lambda: _bound(layer, 2, shape),
        "affine": lambda: affine(layer, shape),
        "output_shape": lambda: output_shape(layer, shape),
        "expand": lambda: expand(layer),
        "slopes": lambda: slopes(layer),
        "residual": lambda: residual(layer),
        "enclose": lambda: enclose(layer, *[torch.zeros(1, *shape, dtype=torch.float64)] * 2),
        "output_norm": lambda: output_norm(layer, 1.0, shape),
        "parameter_gradient_norm": lambda: parameter_gradient_norm(
            copy.deepcopy(layer).requires_grad_(True), 1.0, 1.0, shape
        ),
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
        earlier = _bounds(changed, shape)  # a contract that keeps what it once read is caught by the change
        if change(changed, shape, torch.Generator().manual_seed(seed + k)) and _is_finite(changed, shape):
            target = _Attacked(changed, changed, shape, label, _TOLERANCE, seed + k)
            _attack(target, earlier)
    _attack_copies(double_copy(layer).train(training), shape, seed)
    return slack


def _is_finite(layer, shape):
    """False where the new weights have no meaning for the layer, such as an orthogonal weight made from 0."""
    with torch.no_grad():
        return bool(torch.isfinite(layer(torch.zeros(2, *shape, dtype=torch.float64))).all())


def _attack(target, earlier=None):
    """Attack each contract of one copy; `earlier` holds its bounds from before its weights were changed."""
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
        "residual": _attack_residual,
        "lipschitz": lambda target: _attack_lipschitz(target, earlier or {}),
        "slopes": lambda target: {"slopes": attack_slopes(target)},
        "enclose": lambda target: {"enclose": attack_enclosures(target)},
        "output_norm": lambda target: {"output_norm": attack_output_norm(target)},
        "parameter_gradient_norm": attack_gradients,
    }
    registered = (*contracts_of(target.layer), "expand", "enclose", "output_norm", "parameter_gradient_norm")
    for name, attack in attacks.items():
        if name in registered and _refused(name, target.layer, target.shape) is None:
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
            f"the output of a sample depends on its batch: beside {len(batch) - 1} others and alone it "
            f"differs by up to {gap:.6g}, from x = {shown(batch[0])} on.",
        )


def _attack_output_shape(target):
    told = output_shape(target.layer, target.shape)
    with torch.no_grad():
        found = tuple(target.forward(torch.zeros(2, *target.shape, dtype=torch.float64)).shape[1:])
    if told != found:
        target.fail("output_shape", f"zeros of shape {target.shape} give the shape {found}, not {told}.")
    return {"output_shape": 0.0}


def _attack_affine(target):
    weight, bias = affine(target.layer, target.shape)
    x = start_points(target.shape, target.generator)
    with torch.no_grad():
        found = target.forward(x).flatten(1)
    if found.shape[1] != len(weight):
        outputs = found.shape[1]
        target.fail("affine", f"its weight has {len(weight)} rows, and the forward pass {outputs} outputs.")
    flat = x.flatten(1)
    told = flat @ weight.T + bias
    size = flat.abs() @ weight.T.abs() + bias.abs() + found.abs()
    excess = (told - found).abs() / size.clamp(min=1e-300)
    worst = excess.max(dim=1).values.argmax()
    if not excess[worst].max() <= target.tolerance:
        k = excess[worst].argmax()
        target.fail(
            "affine",
            f"at x = {shown(x[worst])}, in output {k.item()}, it gives {told[worst, k]:.9g}, "
            f"and the forward pass {found[worst, k]:.9g}.",
        )
    return {"affine": excess.max().item()}


def _attack_expand(target):
    primitives = expand(target.twin)
    for primitive in primitives:
        if expand(primitive) != (primitive,):
            target.fail("expand", f"it gives {name_of(primitive)}, which is not a primitive.")
    x = start_points(target.shape, target.generator)
    told = x
    with torch.no_grad():
        for primitive in primitives:
            told = primitive(told.clone())
    return _attack_images(target, "expand", "its primitives give", x, told)


def _attack_residual(target):
    skip, inside = residual(target.twin)
    x = start_points(target.shape, target.generator)
    weight, bias = affine(skip, target.shape)
    kept = x.flatten(1) @ weight.T + bias
    with torch.no_grad():
        images = inside(x.clone())
    if images[0].numel() != kept.shape[1]:
        shapes = tuple(x.shape[1:]), tuple(images.shape[1:])
        target.fail(
            "residual", f"its f turns the shape {shapes[0]} into {shapes[1]}, and skip gives {kept.shape[1]}."
        )
    return _attack_images(target, "residual", "skip(x) + f(x) is", x, kept.reshape(images.shape) + images)


def _attack_images(target, contract, what, x, told):
    """The images of x that a contract tells, against the forward pass."""
    with torch.no_grad():
        found = target.forward(x)
    if told.shape != found.shape:
        shapes = tuple(told.shape[1:]), tuple(found.shape[1:])
        target.fail(contract, f"{what} of the shape {shapes[0]}, not {shapes[1]}.")
    gap, size = _gap(told, found)
    if gap > target.tolerance * size:
        worst = lengths(told - found, math.inf).argmax()
        target.fail(
            contract,
            f"at x = {shown(x[worst])} {what} {shown(told[worst])}, and the layer gives "
            f"{shown(found[worst])}.",
        )
    return {contract: gap / size if size > 0 else 0.0}


def _bounds(layer, shape):
    """The Lipschitz bounds that a layer has, by norm."""
    bounds = {}
    for norm in (2, math.inf) if "lipschitz" in contracts_of(layer) else ():
        try:
            bounds[norm] = _bound(layer, norm, shape)
        except UnsupportedLayerError:
            continue
    return bounds


def _attack_lipschitz(target, earlier):
    slack = {}
    for norm, bound in _bounds(target.layer, target.shape).items():
        pair = steepest_pair(target.forward, target.shape, norm, bound.value, target.generator)
        for told in [bound, *_unshaped(target.layer, norm)]:
            if pair.slope > told.value * (1 + target.tolerance):
                target.fail(
                    "lipschitz",
                    f"between x = {shown(pair.x)} and y = {shown(pair.y)} the slope in norm {norm} is "
                    f"{pair.slope:.9g}, above the bound {told.value:.9g}.",
                )
        _attack_certificates(target, bound, earlier.get(norm), pair)
        ratio = bound.value / pair.slope if pair.slope > 0 else (math.inf if bound.value > 0 else 1.0)
        slack[f"lipschitz_{norm}"] = ratio - 1
    return slack


def _unshaped(layer, norm):
    try:
        return [lipschitz(layer, norm)]
    except (ValueError, UnsupportedLayerError):
        return []


def _attack_certificates(target, bound, earlier, pair):
    """A certificate proves its own bound, and no value below a slope that was found, of whatever weights."""
    if bound.certificate is not None:
        try:
            bound.verify(target.layer)
        except CertificateError as error:
            target.fail("lipschitz", f"its certificate does not prove {bound.value!r}: {error}")
    false = [dataclasses.replace(bound, value=pair.slope * 0.99)] if pair.slope > 0 else []
    false += [earlier] if earlier is not None and earlier.value < pair.slope * 0.99 else []
    for claimed in false:
        if _is_proved(claimed, target.layer):
            target.fail(
                "lipschitz",
                f"its certificate proves {claimed.value:.9g}, and the slope between x = {shown(pair.x)} and "
                f"y = {shown(pair.y)} is {pair.slope:.9g}.",
            )


def _is_proved(bound, layer):
    try:
        bound.verify(layer)
    except CertificateError:
        return False
    return True


def _attack_copies(layer, shape, seed):
    """A deep copy and a loaded copy compute the same function, have the same bound, and share no weight."""
    generator = torch.Generator().manual_seed(seed)
    draw_anew(layer, shape, generator)
    target = _Attacked(layer, layer, shape, "drawn anew", _TOLERANCE, seed)
    x = start_points(shape, generator)
    with torch.no_grad():
        expected = target.forward(x)
        deep = copy.deepcopy(layer)
        loaded = loaded_copy(layer, shape, generator)
        for how, other in (("a deep copy", deep), ("a copy after saving and loading", loaded)):
            _compare(target, how, expected, other(x.clone()), x)
            _compare_bounds(target, how, other, x)
        draw_anew(deep, shape, generator)
        _compare(target, "the layer after its deep copy was changed", expected, target.forward(x), x)


def _compare(target, how, expected, found, x):
    gap, size = _gap(expected, found)
    if gap > target.tolerance * size:
        worst = lengths(expected - found, math.inf).argmax()
        target.fail(
            " or ".join(contracts_of(target.layer)),
            f"at x = {shown(x[worst])} {how} gives {shown(found[worst])}, where the layer gave "
            f"{shown(expected[worst])}.",
        )


def _compare_bounds(target, how, other, x):
    if "lipschitz" not in contracts_of(target.layer) or _refused("lipschitz", other, target.shape):
        return
    told, expected = _bound(other, 2, target.shape), _bound(target.layer, 2, target.shape)
    steepest = slopes_of_pairs(target.forward, x[:-1], x[1:], 2, expected.value).max().item()
    if told.value < steepest or not math.isclose(told.value, expected.value, rel_tol=1e-6):
        values = f"{told.value:.9g}, where the layer had {expected.value:.9g}"
        target.fail("lipschitz", f"{how} has the bound {values}.")


def _gap(one, other):
    if one.shape != other.shape:
        return math.inf, 0.0
    finite = torch.isfinite(one) & torch.isfinite(other)
    one, other = torch.where(finite, one, 0.0), torch.where(finite, other, 0.0)
    return (one - other).abs().max().item(), max(one.abs().max().item(), other.abs().max().item())
