"""The book's two certified networks, refitted on all training images with the settings that choose.py found.

Each value counts the test images that the network of one seed classifies rightly, and those that it also
certifies at each radius of choose.RADII, and gives the SHA-256 of its checkpoint. The networks that ship with
the package are those of seed 0, which was fixed before any was trained. Once the record beside this script is
made, write them into lipbook/data with

    python experiments/training/certified.py

which trains seed 0 again, and refuses to write what is not in the record. The SHA-256 sums that it prints
belong in lipbook/data/checkpoints.py.
"""

import hashlib
import importlib.util
import json
from pathlib import Path

import torch
from safetensors.torch import save

from lipbook.data import checkpoints, fashion_mnist

_spec = importlib.util.spec_from_file_location("choose", Path(__file__).with_name("choose.py"))
choose = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(choose)

SEEDS = [0, 1, 2]
SHIPPED = 0
SETTINGS = [{"network": name} for name in choose.LENGTHS]
SMOKE = [{"network": "fashion-certified", "steps": 2}]
LEAST_RIGHT = 0.87


def chosen(name):
    """The setting with the most certificates at 0.5, 1.0 and 1.58 among those that are right often enough."""
    values = json.loads(Path(__file__).with_name("choose.json").read_text(encoding="utf-8"))["values"]
    values = [value for value in values if value["setting"]["network"] == name]
    able = [value for value in values if value["right"] >= LEAST_RIGHT * value["of"]]
    return max(able, key=lambda value: sum(value["certified"][1:]))["setting"]


def trained(network, seed, **changed):
    """A row of the record, and the checkpoint as bytes."""
    data, setting = fashion_mnist(), chosen(network) | changed
    model = choose.trained((data.train_inputs, data.train_labels), **setting, seed=seed)
    row = {**setting, **choose.counts(model, data.test_inputs, data.test_labels)}
    made = {"command": "python experiments/training/certified.py", "seed": seed, **row}
    # One key: safetensors writes several in no fixed order.
    checkpoint = save(model.state_dict(), metadata={"lipbook": json.dumps(made)})
    return row | {"sha256": hashlib.sha256(checkpoint).hexdigest()}, checkpoint


def run(setting, seed):
    return trained(**setting, seed=seed)[0]


def write():
    torch.set_num_threads(1)
    recorded = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))["values"]
    for name in choose.LENGTHS:
        row, checkpoint = trained(name, SHIPPED)
        if {"setting": {"network": name}, "seed": SHIPPED, **row} not in recorded:
            raise SystemExit(
                f"{name} differs from the record. Run: python tools/record.py --afresh {__file__}"
            )
        (checkpoints.FOLDER / f"{name}.safetensors").write_bytes(checkpoint)
        print(name, row)


if __name__ == "__main__":
    write()
