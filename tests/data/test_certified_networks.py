"""The two certified networks are those of the records, and their certificates are what the records say."""

import hashlib
import json
import statistics
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from lipbook.bounds import product_bound
from lipbook.data import checkpoints, fashion_mnist, network
from lipbook.layers import MaxMin, OrthogonalLinear, export
from lipbook.training import certified_radius

RECORDS = Path(__file__).resolve().parents[2] / "experiments/training"
SIZES = {
    "fashion-certified": [784, 256, 256, 256, 10],
    "fashion-certified-large": [784, 512, 256, 256, 256, 256, 10],
}
RADII = torch.tensor([36 / 255, 0.5, 1.0, 1.58], dtype=torch.float64)
NAMES = pytest.mark.parametrize("name", SIZES)


def values(record, name):
    content = json.loads((RECORDS / f"{record}.json").read_text(encoding="utf-8"))
    return [value for value in content["values"] if value["setting"]["network"] == name]


@NAMES
def test_the_architecture_is_the_book_s(name):
    model = network(name)
    layers, sizes = list(model), SIZES[name]
    assert type(model) is nn.Sequential and type(layers[0]) is nn.Flatten
    assert all(type(layer) is OrthogonalLinear for layer in layers[1::2])
    assert all(type(layer) is MaxMin for layer in layers[2::2])
    shapes = [(layer.in_features, layer.out_features) for layer in layers[1::2]]
    assert shapes == list(zip(sizes[:-1], sizes[1:]))
    for weight in model.parameters():
        assert weight.dtype == torch.float32 and weight.device.type == "cpu" and weight.requires_grad
    assert not any(layer.training for layer in model.modules())


@NAMES
def test_the_constant_is_1(name):
    bound = product_bound(network(name), input_shape=(1, 28, 28))
    assert 0.999 < bound.value < 1 + 1e-4


@NAMES
def test_the_certificates_on_the_test_images_are_the_recorded_ones(name):
    """Of the plain layers of `export`, which is another way to the logits."""
    data, row = fashion_mnist(), next(value for value in values("certified", name) if value["seed"] == 0)
    model = network(name)
    radii = certified_radius(export(model).eval(), data.test_inputs)
    with torch.no_grad():
        right = model(data.test_inputs).argmax(dim=1) == data.test_labels
    assert row["of"] == len(right) == 10_000
    assert abs(right.sum().item() - row["right"]) <= 3, "ties of rounding may move a few images"
    counts = (right & (radii > RADII[:, None])).sum(dim=1).tolist()
    assert all(abs(count - recorded) <= 3 for count, recorded in zip(counts, row["certified"]))


@NAMES
def test_the_file_is_the_recorded_one_and_says_what_made_it(name):
    path = checkpoints.FOLDER / f"{name}.safetensors"
    row = next(value for value in values("certified", name) if value["seed"] == 0)
    assert path.stat().st_size < 3e6
    assert hashlib.sha256(path.read_bytes()).hexdigest() == row["sha256"]
    with safe_open(path, framework="pt") as file:
        made = json.loads(file.metadata()["lipbook"])
    assert made["command"] == "python experiments/training/certified.py" and made["seed"] == 0
    assert all(made[key] == row[key] for key in ("offset", "lr", "shift", "steps", "right", "certified"))


@NAMES
def test_the_setting_is_the_best_on_the_validation_images(name):
    compared = values("choose", name)
    assert {value["of"] for value in compared} == {10_000}
    able = [value for value in compared if value["right"] >= 8700]
    best = max(sum(value["certified"][1:]) for value in able)
    rows = values("certified", name)
    assert [row["seed"] for row in rows] == [0, 1, 2]
    for row in rows:
        setting = {key: row[key] for key in ("network", "offset", "lr", "shift", "steps")}
        chosen = next(value for value in able if value["setting"] == setting)
        assert sum(chosen["certified"][1:]) == best


@NAMES
def test_the_median_of_the_seeds_reaches_the_goals(name):
    rows = values("certified", name)
    medians = [statistics.median(row["certified"][k] for row in rows) for k in range(4)]
    goals = {"fashion-certified": (7500, 6000, 4000), "fashion-certified-large": (7650, 6000, 4300)}[name]
    assert statistics.median(row["right"] for row in rows) >= 8600
    assert all(median >= goal for median, goal in zip(medians[1:], goals))
    assert len({row["sha256"] for row in rows}) == 3
