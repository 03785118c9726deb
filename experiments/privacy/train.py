"""The book's private networks on all 60,000 training images, with the settings that choose.py found.

Each value counts the test images that the network of one seed classifies rightly (`right` of `of`,
`accuracy` in percent), and for "private and certified" those that it also certifies at each radius of
choose.RADII, in pixels. `seconds` is the wall time of `fit` on one thread, beside other work, without that of
the features. The record of the training is verified before anything is counted: `spent` is what its releases
cost, an epsilon at delta = 1e-5, and `rdp` the second opinion on it. `sensitivity` holds the first and the
last, `setting_used` what choose.py chose. With and without clipping are compared on one network, that of the
raw images; on features a linear head may have been chosen. The networks that are private and certified use
the setting chosen for epsilon 3 at every epsilon.
"""

import importlib.util
import json
import time
from pathlib import Path

_spec = importlib.util.spec_from_file_location("choose", Path(__file__).with_name("choose.py"))
choose = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(choose)

SEEDS = [0, 1, 2]
GOALS = ("epsilon", "features", "method")


def _goals():
    for features in ("raw", "gradients", "scattering"):
        for method in (choose.WITHOUT, choose.CLIPPING)[: 2 if features == "raw" else 1]:
            for epsilon in (1, 3):
                yield {"epsilon": epsilon, "features": features, "method": method}
    yield {"epsilon": 3, "features": "raw", "method": choose.NOWHERE}
    for epsilon in (1, 3, 8):
        yield {"epsilon": epsilon, "features": "raw", "method": choose.BOTH}


SETTINGS = list(_goals())
SMOKE = [{"epsilon": 3, "features": "raw", "method": choose.WITHOUT, "steps": 1}]


def chosen(epsilon, features, method):
    """The setting with the most right, certified ones counted too, on the images that were held out."""
    values = json.loads(Path(__file__).with_name("choose.json").read_text(encoding="utf-8"))["values"]
    goal = {"epsilon": 3 if method == choose.BOTH else epsilon, "features": features, "method": method}
    able = [value for value in values if {name: value["setting"][name] for name in GOALS} == goal]
    best = max(able, key=lambda value: value["right"] + sum(value.get("certified", [])))
    return best["setting"] | {"epsilon": epsilon}


def run(setting, seed):
    goal = {name: setting[name] for name in GOALS}
    used = chosen(**goal) | setting
    choose.prepared(setting["features"], "all")
    start = time.perf_counter()
    model, record = choose.trained("all", **used, seed=seed)
    seconds = time.perf_counter() - start
    record.verify(model)
    row = choose.counts(model, "test", setting["features"], setting["method"])
    first, last = (release.sensitivities[0] for release in (record.releases[0], record.releases[-1]))
    return {
        **row,
        "accuracy": 100 * row["right"] / row["of"],
        "seconds": round(seconds, 1),
        "spent": record.recompute(),
        "rdp": record.recompute("rdp"),
        "noise_multiplier": record.noise_multiplier,
        "sampling_rate": record.sampling_rate,
        "steps": record.steps,
        "sensitivity": [first, last],
        "setting_used": used,
    }
