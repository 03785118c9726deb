"""The two networks are the ones that the records describe, and a damaged file is never read in silence."""

import hashlib
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn

from lipbook.data import DataFileError, checkpoints, digits, fashion_mnist, network

RECORDS = Path(__file__).resolve().parents[2] / "experiments/networks"
DATA = {"digits": digits, "fashion": fashion_mnist}
LAYERS = {"digits": [(32, 64), (32, 32), (10, 32)], "fashion": [(128, 784), (128, 128), (10, 128)]}
NAMES = pytest.mark.parametrize("name", LAYERS)


def values(record, name):
    content = json.loads((RECORDS / f"{record}.json").read_text(encoding="utf-8"))
    return [value for value in content["values"] if value["setting"]["network"] == name]


def shipped(name):
    return next(value for value in values("plain", name) if value["seed"] == 0)


@pytest.fixture
def copies(tmp_path, monkeypatch):
    """A folder with copies of the checkpoints, which `network` reads during the test."""
    folder = tmp_path / "files"
    shutil.copytree(checkpoints.FOLDER, folder)
    monkeypatch.setattr(checkpoints, "FOLDER", folder)
    return folder


@NAMES
def test_the_architecture_is_the_book_s(name):
    model = network(name)
    kinds = [nn.Flatten, nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    assert type(model) is nn.Sequential and [type(layer) for layer in model] == kinds
    assert [tuple(layer.weight.shape) for layer in model[1::2]] == LAYERS[name]
    for weight in model.parameters():
        assert weight.dtype == torch.float32 and weight.device.type == "cpu"
        assert weight.requires_grad and weight.is_leaf and isinstance(weight, nn.Parameter)
    assert not any(layer.training for layer in model.modules())


@NAMES
def test_the_test_accuracy_is_the_recorded_one(name):
    data, row = DATA[name](), shipped(name)
    with torch.no_grad():
        right = (network(name)(data.test_inputs).argmax(dim=1) == data.test_labels).sum().item()
    assert len(data.test_labels) == row["test_of"]
    assert abs(right - row["test_right"]) <= 3, "ties of rounding on another machine may move a few images"


@NAMES
def test_the_file_is_the_recorded_one_and_says_what_made_it(name):
    path, row = checkpoints.FOLDER / f"{name}.safetensors", shipped(name)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == row["sha256"]
    with safe_open(path, framework="pt") as file:
        made = json.loads(file.metadata()["lipbook"])
    for key in ("seed", "lr", "steps", "batch_size"):
        assert made[key] == row[key]
    assert made["command"] == "python experiments/networks/plain.py" and made["network"] == name
    assert made["test_accuracy"] == row["test_right"] / row["test_of"]


@NAMES
def test_the_setting_is_the_best_on_the_validation_images(name):
    compared = values("choose", name)
    held_out = {"digits": 288, "fashion": 10_000}[name]
    assert {value["of"] for value in compared} == {held_out}
    for value in compared:
        assert value["step"] == value["setting"]["steps"], "not judged after the last step"
    medians = {}
    for setting in (value["setting"] for value in compared):
        rights = [value["right"] for value in compared if value["setting"] == setting]
        assert len(rights) == 3
        medians[setting["steps"], setting["lr"]] = statistics.median(rights)
    best = [setting for setting, median in medians.items() if median == max(medians.values())]
    rows = values("plain", name)
    assert [row["seed"] for row in rows] == [0, 1, 2, 3, 4]
    assert {(row["steps"], row["lr"]) for row in rows} == {min(best)}


@NAMES
def test_the_seeds_differ_and_none_of_them_fails(name):
    rows = values("plain", name)
    assert len({row["sha256"] for row in rows}) == len(rows)
    assert all(row["test_right"] / row["test_of"] > {"digits": 0.95, "fashion": 0.87}[name] for row in rows)


@NAMES
def test_each_call_gives_a_new_model_and_draws_no_random_number(name):
    state = torch.get_rng_state()
    first, second = network(name), network(name)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        for weight in first.parameters():
            weight.zero_()
    for model in (second, network(name)):
        assert all(weight.any() for weight in model.parameters())


def test_the_default_dtype_does_not_matter():
    try:
        torch.set_default_dtype(torch.float64)
        assert {weight.dtype for weight in network("digits").parameters()} == {torch.float32}
    finally:
        torch.set_default_dtype(torch.float32)


@NAMES
def test_a_missing_file_is_named_with_the_remedy(copies, name):
    (copies / f"{name}.safetensors").unlink()
    with pytest.raises(DataFileError, match=f"{name}.safetensors is missing.*git checkout"):
        network(name)


@given(data=st.data())
def test_a_changed_or_truncated_file_is_an_error(data):
    good = (checkpoints.FOLDER / "digits.safetensors").read_bytes()
    position = data.draw(st.integers(0, len(good) - 1))
    changed = good[position] ^ data.draw(st.integers(1, 255))
    bad = good[:position] + data.draw(st.sampled_from([b"", bytes([changed]) + good[position + 1 :]]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda path: bad)
        with pytest.raises(DataFileError, match="digits.safetensors is damaged.*git checkout"):
            network("digits")


def test_the_other_network_s_file_is_an_error(copies):
    shutil.copy(copies / "fashion.safetensors", copies / "digits.safetensors")
    with pytest.raises(DataFileError, match="digits.safetensors is damaged"):
        network("digits")


def test_importing_data_and_training_loads_neither_safetensors_nor_the_notebook_s_bar():
    program = "import sys, lipbook.data, lipbook.training; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert not {"safetensors", "tqdm.auto", "IPython", "ipywidgets"} & loaded  # torch itself loads tqdm
