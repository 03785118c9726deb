"""One step of private training against one of plain SGD: seconds and memory, of ours and of Opacus.

The network is 784-256-256-10 with MaxMin and without biases, on one thread, in float32, with cross-entropy.
A step takes its batch out of the data, and ends with new weights: "plain" is SGD; "lipschitz" ours without
clipping, with the sensitivity, the noise, the projection and the average of the iterates; "ghost" ours with
clipping, without a projection; "ghost, projected" the same with it; "opacus ghost" and "opacus hooks" those
of Opacus 1.6.0, with clipping and noise. The batch is the whole of the data (a sampling rate of 1), so that
all have as many samples; `sampling` is what a Poisson batch of 60,000 records costs on top, in seconds.

`seconds` are the smallest and the median over rounds that take every method once, so that what disturbs one
disturbs all; divide by those of "plain". `megabytes` is by how much the steps raise the largest memory of a
process of their own (Linux only); None elsewhere, and for the methods of Opacus without it.

The peer, for the record only: give it a virtual environment of its own with the same torch, install
opacus 1.6.0 and opt_einsum without their dependencies, and run this script there.
Chapter: privacy/without-clipping.
"""

import importlib.util
import json
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

import torch
from torch import nn

from lipbook.layers import MaxMin
from lipbook.privacy.clipping import dense_chain
from lipbook.privacy.projection import contracted, nearest_semiorthogonal
from lipbook.privacy.release import Plan, train_privately
from lipbook.privacy.sampling import poisson_batch

SEEDS = [0, 1, 2]
SETTINGS = [{"batch": batch, "rounds": max(20, 20480 // batch)} for batch in (64, 256, 1024, 4096)]
SMOKE = [{"batch": 8, "rounds": 2}]
MANY = 1024  # samples up to which hooks are tried: they hold every sample's gradient
CLIP, MULTIPLIER, RATE = 0.5, 1.0, 0.01
STEPS = 3  # whose memory is measured
PEER = importlib.util.find_spec("opacus") is not None


def network():
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


def plain(inputs, labels):
    model, loss = network(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    everything = torch.arange(len(inputs))
    while True:
        optimizer.zero_grad()
        loss(model(inputs[everything]), labels[everything]).backward()
        optimizer.step()
        yield


def ours(inputs, labels, clip=None, project_every=1):
    model = network()
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


def opacus(inputs, labels, mode):
    from opacus import PrivacyEngine
    from torch.utils.data import DataLoader, TensorDataset

    model, loss = network(), nn.CrossEntropyLoss()
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
    "ghost": lambda x, y: ours(x, y, CLIP, None),
    "ghost, projected": lambda x, y: ours(x, y, CLIP, 1),
    "opacus ghost": lambda x, y: opacus(x, y, "ghost"),
    "opacus hooks": lambda x, y: opacus(x, y, "hooks"),
}


def tried(batch):
    """The methods that are to be had here, at this batch."""
    names = [name for name in METHODS if PEER or not name.startswith("opacus")]
    return [name for name in names if name != "opacus hooks" or batch <= MANY]


def timed(batch, rounds, seed):
    """{method: [smallest, median]} in seconds, the methods taken in turns."""
    data = drawn(batch, seed)
    steps = {name: METHODS[name](*data) for name in tried(batch)}
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


def memory():
    """The resident memory of this process in megabytes: now, and at most since the last `forget`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    held = dict(line.split(":", 1) for line in lines)
    return [int(held[key].split()[0]) / 1024 for key in ("VmRSS", "VmHWM")]


def megabytes(name, batch, seed):
    """Run in a process of its own: by how much a few steps raise the largest memory over what was held."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    step = METHODS[name](*drawn(8, seed))
    next(step)  # what is loaded on the way is not counted
    data = drawn(batch, seed)
    step = METHODS[name](*data)
    Path("/proc/self/clear_refs").write_text("5")
    before = memory()[0]
    for _ in range(STEPS):
        next(step)
    return memory()[1] - before


def measured(name, batch, seed):
    if not Path("/proc/self/clear_refs").exists():
        return None
    code = f"import runpy; print(runpy.run_path({__file__!r})['megabytes']({name!r}, {batch}, {seed}))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(found.stdout.splitlines()[-1])


def run(setting, seed):
    batch, before = setting["batch"], torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            seconds = timed(batch, setting["rounds"], seed)
    finally:
        torch.set_num_threads(before)
    return {
        "seconds": seconds,
        "sampling": sampled(setting["rounds"]),
        "megabytes": {name: measured(name, batch, seed) for name in tried(batch)},
    }
