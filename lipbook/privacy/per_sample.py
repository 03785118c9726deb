"""The norms of the gradients of single samples, and a search for the longest.

Everything is in float64, with the weights that the model has, and each sample is read as a batch of one would
be: a model or a loss that mixes samples is refused.

Chapter: privacy/auditing.
"""

import copy
import math
from collections import Counter

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from lipbook.contracts.variants import double_copy
from lipbook.training.checks import require_fit

_CHUNK = 1000  # samples whose gradients are computed at once
_ENTRIES = 20_000_000  # of gradients that are held at once
_DRAWN = 32  # random points from which the search begins, besides the samples


class SampleGradients:
    """The norms of the gradients of one sample's loss, for a float64 copy of a model.

    For a dense layer on vectors it is the norm of the cotangent at its output times that of its input, and no
    gradient is formed. Every other parameter's gradient is formed, sample by sample.
    """

    def __init__(self, model, loss, names, inputs, labels):
        self.twin, self.names = double_copy(model), names
        self.loss = copy.deepcopy(loss).double() if isinstance(loss, nn.Module) else loss
        x, y = inputs[:4].cpu().double(), labels[:4].cpu()
        require_fit(self.twin, x, labels, "audited")
        self.classes = self.twin(x[:1].clone()).shape[1]
        self.is_mean, self.is_smooth = True, True
        self.is_mean, self.is_smooth = self._reads_a_mean(), self._has_second_derivatives()
        self.require_independence(x, y)
        first = {id(p): name for name, p in self.twin.named_parameters()}
        self.places = {
            f"{path}.{name}".removeprefix("."): first[id(p)]
            for path, layer in self.twin.named_modules()
            for name, p in layer._parameters.items()
            if p is not None
        }
        self.dense = self._dense_layers(x)
        one_by_one = self._one_by_one(x[:2], y[:2])
        if not _same(self.norms(x[:2], y[:2]), one_by_one):
            self.dense = set()  # one of their weights is read elsewhere too
        formed = [p.numel() for name, p in self.twin.named_parameters() if self._is_formed(name)]
        self.chunk = max(1, min(_CHUNK, _ENTRIES // max(1, sum(formed))))

    def norms(self, x, y, differentiable=False):
        """(batch, parameters), in the order of the names."""
        with torch.enable_grad():
            x = x if x.requires_grad else x.clone().requires_grad_()
            calls, handles = {}, []
            for path in self.dense:
                handles.append(self.twin.get_submodule(path).register_forward_hook(_keep(calls, path)))
            try:
                logits = self.twin(x.clone())
            finally:
                for handle in handles:
                    handle.remove()
            g = self.cotangents(logits, y, differentiable)
            columns = {}
            if calls:
                outputs = [output for _, output in calls.values()]
                at_outputs = torch.autograd.grad(
                    logits, outputs, g, create_graph=differentiable, retain_graph=True, materialize_grads=True
                )
                for (path, (before, _)), at_output in zip(calls.items(), at_outputs):
                    cotangent = torch.linalg.vector_norm(at_output, dim=1)
                    columns[f"{path}.weight".removeprefix(".")] = cotangent * torch.linalg.vector_norm(
                        before, dim=1
                    )
                    columns[f"{path}.bias".removeprefix(".")] = cotangent
            columns |= self._formed(x, g)
            norms = torch.stack([columns[name] for name in self.names], dim=1)
            return norms if differentiable else norms.detach()

    def cotangents(self, logits, y, differentiable=False):
        """The gradient of each sample's own loss at its logits, (batch, classes)."""
        z = logits if differentiable else logits.detach().requires_grad_()
        with torch.enable_grad():
            value = self.loss(z, y)
        if not isinstance(value, Tensor) or value.ndim != 0 or not value.requires_grad:
            raise ValueError(
                "the loss must give one number that depends on the logits, the mean or the sum over the "
                f"batch, got {value!r}: use reduction='mean'."
            )
        gradient = torch.autograd.grad(value, z, create_graph=differentiable and self.is_smooth)[0]
        return gradient * len(y) if self.is_mean else gradient

    def require_independence(self, x, y):
        """Raise unless these samples have the logits and the cotangents that they have in other company."""
        with torch.no_grad():
            together = self.twin(torch.cat([x, x / 2]))[: len(x)]
            alone = torch.cat([self.twin(row[None].clone()) for row in x])
        if not _same(together, alone):
            raise ValueError(
                "a sample's logits depend on the other samples of its batch, or on chance, so that it has no "
                "gradient of its own: take out what averages over the batch, and call model.eval()."
            )
        self._require_own_losses(
            torch.cat([alone, alone.flip(0) / 2]), torch.cat([y, (y + 1) % self.classes])
        )

    def _reads_a_mean(self):
        """Whether the loss is the mean of one for each sample, rather than the sum."""
        generator = torch.Generator("cpu").manual_seed(0)
        logits = torch.randn(16, self.classes, generator=generator, dtype=torch.float64)
        logits *= torch.logspace(-1, 4, 16, dtype=torch.float64)[:, None]  # a hinge is flat at small ones
        y = torch.arange(16) % self.classes
        once, twice = (self.cotangents(logits.repeat(k, 1), y.repeat(k)) / (16 * k) for k in (1, 2))
        return bool(twice[:16].norm() < 0.75 * once.norm())

    def _has_second_derivatives(self):
        """Whether torch has those of the loss: it has none of nn.MultiMarginLoss, where they are 0."""
        z = torch.zeros(1, self.classes, dtype=torch.float64, requires_grad=True)
        g = self.cotangents(z, torch.zeros(1, dtype=torch.int64), differentiable=True)
        try:
            torch.autograd.grad(g.sum(), z, materialize_grads=True, allow_unused=True)
        except RuntimeError:
            return False
        return True

    def _require_own_losses(self, logits, y):
        together = self.cotangents(logits, y)
        alone = torch.cat([self.cotangents(logits[i : i + 1], y[i : i + 1]) for i in range(len(y))])
        if not _same(together, alone):
            raise ValueError(
                "the loss of a sample depends on the other samples of its batch, so that it has no gradient "
                "of its own: use one that is the mean or the sum of a loss of each sample."
            )

    def _dense_layers(self, x):
        """The paths of the dense layers that are called once, on vectors, with weights of their own."""
        owners = Counter(id(p) for _, p in self.twin.named_parameters(remove_duplicate=False))
        linear = {
            path: layer
            for path, layer in self.twin.named_modules()
            if type(layer) is nn.Linear and all(owners[id(p)] == 1 for p in layer.parameters())
        }
        calls = Counter()

        def count(layer, arguments, output):
            calls[layer] += 1 if arguments[0].ndim == 2 else 2

        handles = [layer.register_forward_hook(count) for layer in linear.values()]
        with torch.no_grad():
            self.twin(x.clone())
        for handle in handles:
            handle.remove()
        return {path for path, layer in linear.items() if calls[layer] == 1}

    def _one_by_one(self, x, y):
        """The norms again, by one backward pass a sample."""
        parameters = dict(self.twin.named_parameters())
        copies = {name: parameters[name].detach().clone().requires_grad_() for name in self.names}
        rows = []
        with torch.enable_grad():
            for row, g in zip(x, self.cotangents(self.twin(x.clone()), y)):
                logits = self._called(copies, row)
                gradients = torch.autograd.grad(logits, [*copies.values()], g[None], materialize_grads=True)
                rows.append(torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients]))
        return torch.stack(rows)

    def _is_formed(self, name):
        return name in self.names and name.rpartition(".")[0] not in self.dense

    def _called(self, chosen, row):
        """The logits (1, classes) of one sample, with these parameters wherever they are used."""
        used = {place: chosen[name] for place, name in self.places.items() if name in chosen}
        # torch's own tying would leave them in a layer that the model holds twice.
        return functional_call(self.twin, used, (row[None].clone(),), tie_weights=False)

    def _formed(self, x, g):
        parameters = dict(self.twin.named_parameters())
        formed = {name: p for name, p in parameters.items() if self._is_formed(name)}
        if not formed:
            return {}

        def output(chosen, row, cotangent):
            return (self._called(chosen, row)[0] * cotangent).sum()

        gradients = vmap(grad(output), in_dims=(None, 0, 0))(formed, x, g)
        return {name: torch.linalg.vector_norm(g.flatten(1), dim=1) for name, g in gradients.items()}


def _same(one, other):
    return torch.allclose(one, other, rtol=1e-6, atol=1e-9 * other.abs().max().item())


def _keep(calls, path):
    def hook(layer, arguments, output):
        calls[path] = arguments[0].clone(), output
        return output.clone()  # what follows may act in place

    return hook


def longest_gradients(
    gradients: SampleGradients, starts: Tensor, labels: Tensor, input_norm: float, steps: int, seed: int
) -> tuple[Tensor, float]:
    """The longest gradient of each parameter, and of all together, that ascent finds in the ball."""
    generator = torch.Generator("cpu").manual_seed(seed)
    lengths = torch.linalg.vector_norm(starts.flatten(1), dim=1)
    radius = input_norm if math.isfinite(input_norm) else lengths.amax().item() or 1.0
    drawn = torch.randn(_DRAWN, *starts.shape[1:], generator=generator, dtype=torch.float64)
    x = torch.cat([scaled(drawn, radius, exactly=True), starts])
    y = torch.cat([torch.randint(gradients.classes, (_DRAWN,), generator=generator), labels])
    goals = torch.cat([torch.eye(len(gradients.names)), torch.ones(1, len(gradients.names))])
    goals = goals[torch.arange(len(x)) % len(goals)].double()
    # Adam moves each entry by its rate: in a few steps from anywhere in the ball to anywhere else.
    rate = 0.2 * radius / math.sqrt(x[0].numel())
    x = x.requires_grad_()
    optimiser = torch.optim.Adam([x], lr=rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.02, total_iters=steps)
    longest, largest = torch.zeros(len(gradients.names), dtype=torch.float64), 0.0
    for step in range(steps + 1):
        if step % 10 == 0:
            y = _worst_labels(gradients, x.detach(), y, goals, generator)
        norms = gradients.norms(x, y, differentiable=True)
        reached = norms.detach()
        if not torch.isfinite(reached).all():
            raise ValueError("a gradient that the search met is NaN or infinite: mend the model or the loss.")
        longest = torch.maximum(longest, reached.amax(dim=0))
        largest = max(largest, torch.linalg.vector_norm(reached, dim=1).amax().item())
        if step == steps or not norms.requires_grad:
            return longest, largest
        height = torch.log((norms.square() * goals).sum(dim=1) + 1e-100).sum()
        x.grad = -torch.autograd.grad(height, x, materialize_grads=True)[0].nan_to_num(0.0)
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            x.copy_(scaled(x, input_norm))


def _worst_labels(gradients, x, y, goals, generator):
    """For each point the label, of the present one and ten others, with the longest gradient."""
    others = torch.randperm(gradients.classes, generator=generator)[:10]
    best, height = y, (gradients.norms(x, y).square() * goals).sum(dim=1)
    for label in others:
        tried = (gradients.norms(x, label.expand(len(x))).square() * goals).sum(dim=1)
        best = torch.where(tried > height, label, best)
        height = torch.maximum(height, tried)
    return best


def scaled(x, radius, exactly=False):
    """Points brought into the ball; exactly: onto its sphere."""
    norms = torch.linalg.vector_norm(x.flatten(1), dim=1)
    factors = radius / norms
    factors = factors if exactly else factors.clamp(max=1)
    return x * factors.view(-1, *[1] * (x.ndim - 1))
