"""LipSDP by the library's own method, by Clarabel, by SCS, and ECLipsE-Fast: seconds and what they prove.

Random networks with ReLU, Gaussian weights over the square root of the number of inputs, no biases. Every
value is what `lipsdp` or `eclipse_fast` certifies, and the seconds (`seconds` by the clock,
`processor_seconds` of the processor) are those of the whole call: reading the network, solving, proving. They
are the median of five calls, or those of one call that takes more than two seconds, after a call on a tiny
network for warming up. `proposed` is what Clarabel and SCS print, with cvxpy's tolerances, before anything is
proved. `product` is the product bound. Chapter: sdp/scaling.
"""

import functools
import math
import statistics
import time
from itertools import pairwise

import torch
from torch import nn

from lipbook.bounds import product_bound
from lipbook.sdp import eclipse_fast, lipsdp
from lipbook.sdp.constraints import constraints_of
from lipbook.sdp.reference import propose

SEEDS = [0, 1, 2]
SETTINGS = [
    *[{"sizes": [10, h, h, 1], "peers": ["clarabel", "scs"]} for h in (8, 16, 24, 32)],
    *[{"sizes": [10, h, h, 1], "peers": []} for h in (48, 64, 128, 256)],
    *[{"sizes": [20, *[h] * 5, 10], "peers": []} for h in (64, 128, 256)],
]
SMOKE = [{"sizes": [3, 4, 4, 1], "peers": ["clarabel", "scs"]}, {"sizes": [3, 4, 4, 2], "peers": []}]
SLOW = 2.0  # seconds from which one call is enough


def random_network(sizes, seed):
    generator, model = torch.Generator().manual_seed(seed), nn.Sequential()
    for inputs, outputs in pairwise(sizes):
        layer = nn.Linear(inputs, outputs, bias=False, dtype=torch.float64)
        weight = torch.randn(outputs, inputs, generator=generator, dtype=torch.float64)
        layer.weight.data = weight / math.sqrt(inputs)
        model.extend([layer, nn.ReLU()])
    return model[:-1]


def solve(method, model):
    return eclipse_fast(model) if method == "eclipse_fast" else lipsdp(model, solver=method)


@functools.cache
def warm_up(method):
    solve(method, random_network([3, 4, 4, 1], 0))


def timed(function):
    """What the function returns, its seconds by the clock, and its seconds of the processor."""
    clock, processor = [], []
    while len(clock) < 5 and max(clock, default=0) < SLOW:
        start = time.perf_counter(), time.process_time()
        found = function()
        clock.append(time.perf_counter() - start[0])
        processor.append(time.process_time() - start[1])
    if max(clock) >= SLOW:
        return found, clock[-1], processor[-1]
    return found, statistics.median(clock), statistics.median(processor)


def measured(method, model):
    warm_up(method)
    bound, clock, processor = timed(lambda: solve(method, model))
    certificate = bound.verify(model).certificate
    values = {"seconds": clock, "processor_seconds": processor, "value": bound.value}
    if method != "eclipse_fast":
        values |= {key: getattr(certificate, key) for key in ("dual_value", "gap", "iterations")}
    if method in ("clarabel", "scs"):
        values["proposed"] = math.sqrt(propose(constraints_of(model), method).square)
    return values


def run(setting, seed):
    model = random_network(setting["sizes"], seed)
    values = {method: measured(method, model) for method in ("structured", "eclipse_fast", *setting["peers"])}
    return {**values, "product": product_bound(model).value}
