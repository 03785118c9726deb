"""Both ends of sixty random small networks against the truth, which enumeration of their regions gives.

One network a seed, ReLU for even seeds and MaxMin for odd ones, 2 to 4 inputs, two or three hidden layers of
4, 6 or 8 units (tests/oracles.py has the enumeration). Those of the seeds 0 to 19 are the ones that the tests
judge the search by. The search starts at 64 normal points. Chapter: bounds/whole-networks.
"""

import math
import sys
from pathlib import Path

import torch

from lipbook.bounds import gradient_lower_bound, product_bound
from lipbook.layers import MaxMin

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.oracles import exact_constant, random_networks, regions  # noqa: E402

SEEDS = list(range(60))
SETTINGS = [{"norm": "2"}, {"norm": "inf"}]
SMOKE = [{"norm": "2"}]


def run(setting, seed):
    norm = 2 if setting["norm"] == "2" else math.inf
    (model,) = random_networks(MaxMin, [seed])
    inputs = torch.randn(64, model[0].in_features, generator=torch.Generator().manual_seed(seed))
    return {
        "inputs": model[0].in_features,
        "activation": "MaxMin" if seed % 2 else "ReLU",
        "regions": len(regions(model)),
        "truth": exact_constant(model, norm),
        "lower": gradient_lower_bound(model, inputs, norm).value,
        "upper": product_bound(model, norm).value,
    }
