"""Both ends of the Lipschitz constant of a one-hidden-layer network against its width, with and without wrong
labels in the training set.

The network is Flatten, Linear(64, width), ReLU, Linear(width, 10), with cross-entropy on the digits, the
whole training set in every batch. `upper` is the product of the layers' spectral norms; `lower_train` and
`lower_test` are the largest spectral norm of the Jacobian at a training and at a test input, by automatic
differentiation in float64. Training accuracy and loss are on the labels as trained on, wrong ones included;
test labels are all right. The same number of steps and the same learning rate for every width: cross-entropy
has no minimum once the training set is separated, so the norms of an interpolating network depend on both.

LEARNING_RATE had the smallest mean training loss among 0.01, 0.02 and 0.03 over the widths 8, 16, 32, 64 and
256 with 20 % wrong labels and the seed 100, which is not among SEEDS. The settings with 16,000 steps say what
more training changes.

Source: Khromov and Singh, "Some Fundamental Aspects about Lipschitz Continuity of Neural Networks", ICLR
2024, arXiv 2302.10886: their two bounds and their question. Theirs are other data and another optimiser
(MNIST1D and others; SGD). Chapter: bounds/whole-networks.
"""

import copy

import torch
from torch import nn

from lipbook.contracts import lipschitz
from lipbook.data import digits
from lipbook.training import fit

LEARNING_RATE = 0.02
WIDTHS = [2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128, 256, 512]
SEEDS = list(range(5))
SETTINGS = [{"label_noise": p, "width": w, "steps": 4000} for p in (0.0, 0.2) for w in WIDTHS]
SETTINGS += [{"label_noise": 0.2, "width": w, "steps": 16000} for w in (16, 32, 128)]
SMOKE = [{"label_noise": 0.2, "width": 8, "steps": 50}]
LIVE = {"label_noise": 0.2, "width": 32, "steps": 4000}  # with the seed 0: a few seconds on one core


def with_wrong_labels(labels, share, seed):
    """`labels` with that share of them replaced, each by another class drawn uniformly."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(labels), generator=generator)[: round(share * len(labels))]
    labels = labels.clone()
    labels[chosen] = (labels[chosen] + torch.randint(1, 10, chosen.shape, generator=generator)) % 10
    return labels


def largest_jacobian_norm(model, inputs):
    """max over the inputs of |J(x)|_2, in float64."""
    model = copy.deepcopy(model).double()
    jacobian = torch.func.vmap(torch.func.jacrev(lambda x: model(x[None])[0]), chunk_size=256)
    jacobians = jacobian(inputs.double()).flatten(2)
    return torch.linalg.matrix_norm(jacobians, 2).max().item()


def judged(model, inputs, labels):
    with torch.no_grad():
        logits = model(inputs)
    accuracy = (logits.argmax(dim=1) == labels).double().mean().item()
    return accuracy, nn.functional.cross_entropy(logits.double(), labels).item()


def run(setting, seed):
    data, width = digits(), setting["width"]
    labels = with_wrong_labels(data.train_labels, setting["label_noise"], seed)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
    train = (data.train_inputs, labels)
    loss = nn.CrossEntropyLoss()
    steps, batch_size = setting["steps"], len(labels)
    model, _ = fit(model, train, None, loss, steps, seed=seed, batch_size=batch_size, lr=LEARNING_RATE)
    train_accuracy, train_loss = judged(model, *train)
    test_accuracy, test_loss = judged(model, data.test_inputs, data.test_labels)
    return {
        "train_accuracy": train_accuracy,
        "train_loss": train_loss,
        "test_accuracy": test_accuracy,
        "test_loss": test_loss,
        "upper": lipschitz(model).value,
        "lower_train": largest_jacobian_norm(model, data.train_inputs),
        "lower_test": largest_jacobian_norm(model, data.test_inputs),
    }
