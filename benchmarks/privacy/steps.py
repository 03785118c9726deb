"""One step of private training against one of plain SGD: seconds and memory, of ours and of Opacus.

The network is 784-256-256-10 with MaxMin and without biases, on one thread, in float32, with cross-entropy.
A step takes its batch out of the data, and ends with new weights: "plain" is SGD; "lipschitz" ours without
clipping, with the sensitivity, the noise, the projection and the average of the iterates; "ghost" ours with
clipping, without a projection; "ghost, projected" the same with it; "opacus ghost" and "opacus hooks" those
of Opacus 1.6.0, with clipping and noise. The batch is the whole of the data (a sampling rate of 1), so that
all have as many samples; `sampling` is what a Poisson batch of 60,000 records costs on top, in seconds.

`seconds` are the smallest and the median over rounds that take every method once, so that what disturbs one
disturbs all; divide by those of "plain". `megabytes` is the most that tensors hold at once, in 2^20 bytes, as
torch's profiler counts them, without the data and the weights before the first step.

The peer, for the record only: give it a virtual environment of its own with the same torch, install
opacus 1.6.0 and opt_einsum without their dependencies, and run this script there.
Chapter: privacy/without-clipping.
"""

import importlib.metadata
import importlib.util
import itertools
import statistics
import time
import warnings

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from lipbook.layers import MaxMin
from lipbook.privacy.clipping import dense_chain
from lipbook.privacy.projection import contracted, nearest_semiorthogonal
from lipbook.privacy.release import Plan, train_privately
from lipbook.privacy.sampling import poisson_batch

SEEDS = [0, 1, 2]
SETTINGS = [{"batch": batch, "rounds": max(10, 10240 // batch)} for batch in (64, 256, 1024, 4096)]
SMOKE = [{"batch": 8, "rounds": 2}]
MANY = 1024  # samples up to which hooks are tried: they hold every sample's gradient
CLIP, MULTIPLIER, RATE = 0.5, 1.0, 0.01
STEPS = 3  # whose memory is measured
PEER = importlib.util.find_spec("opacus") is not None


def network():
    """Orthogonal weights, from the generator of torch itself."""
    model = nn.Sequential(
        nn.Linear(784, 256, bias=False),
        MaxMin(),
        nn.Linear(256, 256, bias=False),
        MaxMin(),
        nn.Linear(256, 10, bias=False),
    )
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(contracted(nearest_semiorthogonal(weight)))
    return model


def drawn(batch, seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(batch, 784, generator=generator)
    labels = torch.randint(10, (batch,), generator=generator)
    return inputs / inputs.norm(dim=1, keepdim=True), labels


def plain(model, inputs, labels):
    loss = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    everything = torch.arange(len(inputs))
    while True:
        optimizer.zero_grad()
        loss(model(inputs[everything]), labels[everything]).backward()
        optimizer.step()
        yield


def ours(model, inputs, labels, clip=None, project_every=1):
    chain = None if clip is None else dense_chain(model)
    plan = Plan(
        nn.CrossEntropyLoss(), MULTIPLIER, 1.0, 1.0, clip=clip, chain=chain, project_every=project_every
    )
    average = [torch.zeros_like(weight) for weight in model.parameters()]
    for _ in train_privately(model, inputs, labels, plan, [RATE] * 10**6, 0.0):
        with torch.no_grad():
            for kept, weight in zip(average, model.parameters()):
                kept.lerp_(weight, 0.05)
        yield


def opacus(model, inputs, labels, mode):
    from opacus import PrivacyEngine
    from torch.utils.data import DataLoader, TensorDataset

    loss = nn.CrossEntropyLoss()
    made = PrivacyEngine().make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=RATE),
        criterion=loss,
        data_loader=DataLoader(TensorDataset(inputs, labels), batch_size=len(inputs)),
        noise_multiplier=MULTIPLIER,
        max_grad_norm=CLIP,
        poisson_sampling=False,
        grad_sample_mode=mode,
    )
    model, optimizer, loss = made[0], made[1], made[2] if mode == "ghost" else loss
    everything = torch.arange(len(inputs))
    while True:
        optimizer.zero_grad()
        loss(model(inputs[everything]), labels[everything]).backward()
        optimizer.step()
        yield


METHODS = {
    "plain": plain,
    "lipschitz": ours,
    "ghost": lambda m, x, y: ours(m, x, y, CLIP, None),
    "ghost, projected": lambda m, x, y: ours(m, x, y, CLIP, 1),
    "opacus ghost": lambda m, x, y: opacus(m, x, y, "ghost"),
    "opacus hooks": lambda m, x, y: opacus(m, x, y, "hooks"),
}


def tried(batch):
    """The methods that are to be had here, at this batch."""
    names = [name for name in METHODS if PEER or not name.startswith("opacus")]
    return [name for name in names if name != "opacus hooks" or batch <= MANY]


def timed(batch, rounds, seed):
    """{method: [smallest, median]} in seconds, the methods taken in turns."""
    data = drawn(batch, seed)
    steps = {name: METHODS[name](network(), *data) for name in tried(batch)}
    for step in steps.values():
        next(step), next(step)
    clock = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            next(step)
            clock[name].append(time.perf_counter() - start)
    return {name: [min(seconds), statistics.median(seconds)] for name, seconds in clock.items()}


def sampled(rounds):
    generator = torch.Generator().manual_seed(0)
    clock = []
    for _ in range(rounds):
        start = time.perf_counter()
        poisson_batch(60_000, 0.068, generator)
        clock.append(time.perf_counter() - start)
    return [min(clock), statistics.median(clock)]


def megabytes(name, batch, seed):
    """The most that tensors hold in the first steps of a run, beyond the weights and the data it is given."""
    step = METHODS[name](network(), *drawn(batch, seed))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        for _ in range(STEPS):
            next(step)
    events = profiler.profiler.kineto_results.events()
    changes = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
    return (
        max(itertools.accumulate(size for _, size in sorted(changes, key=lambda change: change[0]))) / 2**20
    )


def run(setting, seed):
    batch, before = setting["batch"], torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            seconds = timed(batch, setting["rounds"], seed)
            sampling = sampled(setting["rounds"])
            held = {name: megabytes(name, batch, seed) for name in tried(batch)}
    finally:
        torch.set_num_threads(before)
    opacus_version = importlib.metadata.version("opacus") if PEER else None
    return {"opacus": opacus_version, "seconds": seconds, "sampling": sampling, "megabytes": held}
