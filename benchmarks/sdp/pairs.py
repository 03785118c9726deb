"""All differences of two logits at once, `logits="pairs"`, against a call for each: seconds and values.

The network is the book's digits network, whose ten logits have 45 pairs. Seconds are those of the clock
(`seconds`) and of the processor, on one thread, after a call for warming up. Values, dual values, gaps and
iterations are lists in the order of the pairs; of the single calls there is a list of all that is measured.
Chapter: sdp/scaling.
"""

import time
from itertools import combinations

import torch
from torch import nn

from lipbook.data import network
from lipbook.sdp import lipsdp

SEEDS = [0]  # nothing is drawn but the weights of the smoke run
SETTINGS = [{"network": "digits", "logits": 10}]
SMOKE = [{"network": "random", "logits": 3}]


def the_network(setting, seed):
    if setting["network"] == "digits":
        return network("digits")
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, setting["logits"]))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return model


def timed(function):
    """What the function returns, with its seconds by the clock and of the processor."""
    start = time.perf_counter(), time.process_time()
    found = function()
    return found, time.perf_counter() - start[0], time.process_time() - start[1]


def proved(bounds):
    return {
        "values": [bound.value for bound in bounds],
        "dual_values": [bound.certificate.dual_value for bound in bounds],
        "gaps": [bound.certificate.gap for bound in bounds],
        "iterations": [bound.certificate.iterations for bound in bounds],
    }


def run(setting, seed):
    model = the_network(setting, seed)
    shape = (1, 8, 8) if setting["network"] == "digits" else None
    pairs = list(combinations(range(setting["logits"]), 2))
    lipsdp(model, logits=pairs[0], input_shape=shape)
    together, seconds, processor = timed(lambda: lipsdp(model, logits="pairs", input_shape=shape))
    single = [timed(lambda: lipsdp(model, logits=pair, input_shape=shape)) for pair in pairs]
    bounds, single_seconds, single_processor = zip(*single)
    return {
        "pairs": pairs,
        "together": {
            "seconds": seconds,
            "processor_seconds": processor,
            **proved([together[pair] for pair in pairs]),
        },
        "single": {
            "seconds": single_seconds,
            "processor_seconds": single_processor,
            **proved(bounds),
        },
    }
