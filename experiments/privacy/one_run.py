"""One training run, audited: can an adversary who sees every release refute the epsilon that it claims?

A linear softmax classifier of Fashion-MNIST images on the unit sphere, trained without clipping: the gradient
of a sample is (softmax(z) - onehot) x', at most sqrt(2) long. A thousand canaries are added or not by fair
coins, and each coin is guessed from the sum over the steps of <released gradient, canary's gradient>: the
GUESSED / 2 largest scores as +1, the smallest as -1. Design "own feature": canary i is a feature that no
other record has. Design "random": canaries are random points among the images. `shrunk` is the factor by
which the sensitivity was under-estimated. Chapter: privacy/auditing.
"""

import functools
import math

import torch
from torch.nn import functional as F

from lipbook.data import fashion_mnist
from lipbook.privacy import audit_run, noise_multiplier

SEEDS = list(range(10))
SETTINGS = [
    {"design": design, "shrunk": shrunk, "records": 20000, "steps": 100}
    for design in ("own feature", "random")
    for shrunk in (1, 8)
]
SMOKE = [{"design": "own feature", "shrunk": 8, "records": 500, "steps": 5}]
CANARIES, GUESSED, CLASSES = 1000, 200, 10
RATE, EPSILON, DELTA, LR = 0.1, 3.0, 1e-5, 10.0
noise_multiplier = functools.cache(noise_multiplier)


def cotangents(W, x, y):
    """The gradient of each sample's loss at its logits, (batch, classes)."""
    return (x @ W.T).softmax(dim=1) - F.one_hot(y, CLASSES)


def audited_run(x, y, canaries, canary_labels, coins, noise, steps, generator):
    """Train on the records and the canaries whose coin is +1; the canaries' scores and the weights."""
    records = torch.cat([x, canaries[coins == 1]])
    labels = torch.cat([y, canary_labels[coins == 1]])
    W, scores = torch.zeros(CLASSES, x.shape[1]), torch.zeros(len(canaries))
    for _ in range(steps):
        drawn = torch.nonzero(torch.rand(len(records), generator=generator) < RATE)[:, 0]
        batch = records[drawn]
        release = cotangents(W, batch, labels[drawn]).T @ batch
        release += noise * torch.randn(W.shape, generator=generator)
        scores += (cotangents(W, canaries, canary_labels) * (canaries @ release.T)).sum(dim=1)
        W -= LR / (RATE * len(x)) * release
    return scores, W


def guesses_from(scores, guessed):
    """+1 for the larger half of the scores that are farthest out, -1 for the smaller, 0 between."""
    order, half = scores.argsort(descending=True), guessed // 2
    guesses = torch.zeros(len(scores), dtype=torch.int64)
    guesses[order[:half]], guesses[order[-half:]] = 1, -1
    return guesses


def run(setting, seed):
    generator = torch.Generator().manual_seed(seed)
    data = fashion_mnist()
    drawn = torch.randperm(len(data.train_inputs), generator=generator)[: setting["records"]]
    x, y = F.normalize(data.train_inputs[drawn].flatten(1)), data.train_labels[drawn]
    test = F.normalize(data.test_inputs.flatten(1))
    if setting["design"] == "own feature":
        x, test = F.pad(x, (0, CANARIES)), F.pad(test, (0, CANARIES))
        canaries = torch.eye(CANARIES, x.shape[1]).roll(x.shape[1] - CANARIES, dims=1)
    else:
        canaries = F.normalize(torch.randn(CANARIES, x.shape[1], generator=generator))
    canary_labels = torch.randint(CLASSES, (CANARIES,), generator=generator)
    coins = 2 * torch.randint(2, (CANARIES,), generator=generator) - 1
    sigma = noise_multiplier(EPSILON, RATE, setting["steps"], DELTA)
    noise = sigma * math.sqrt(2) / setting["shrunk"]
    scores, W = audited_run(x, y, canaries, canary_labels, coins, noise, setting["steps"], generator)
    audit = audit_run(EPSILON, coins, guesses_from(scores, GUESSED), DELTA)
    outward = [order for pair in zip(range(CANARIES), range(CANARIES - 1, -1, -1)) for order in pair]
    surest = scores.argsort(descending=True)[outward[:CANARIES]]
    everywhere = guesses_from(scores, CANARIES)
    return {
        "noise_multiplier": sigma,
        "claimed": audit.claimed,
        "correct": audit.correct,
        "guessed": audit.guessed,
        "epsilon": audit.epsilon,
        "refutes": audit.refutes,
        "right_from_the_surest": "".join(str(int(r)) for r in (coins == everywhere)[surest]),
        "score_in": scores[coins == 1].mean().item(),
        "score_out": scores[coins == -1].mean().item(),
        "score_std_out": scores[coins == -1].std().item(),
        "accuracy": ((test @ W.T).argmax(dim=1) == data.test_labels).float().mean().item(),
    }
