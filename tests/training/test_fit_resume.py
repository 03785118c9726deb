"""A run of `fit` that resumes ends bit for bit as one that never stopped, from its own checkpoint alone."""

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from lipbook.training import fit

STEPS = 40  # judged, and kept, after every second one
START = {"seed": 3, "batch_size": 8, "lr": 0.01, "schedule": "cosine", "shift": 1}


class Interrupted(Exception):
    pass


class Interrupting(nn.Module):
    """Cross-entropy that stops working after so many calls, which its attributes do not tell."""

    calls_left = math.inf

    def __init__(self, smoothing=0.1):
        super().__init__()
        self.smoothing = smoothing

    def forward(self, logits, labels):
        if Interrupting.calls_left == 0:
            raise Interrupted
        Interrupting.calls_left -= 1
        return nn.functional.cross_entropy(logits, labels, label_smoothing=self.smoothing)


@pytest.fixture(autouse=True)
def uninterrupted():
    yield
    Interrupting.calls_left = math.inf


class Tally(nn.Module):
    """Keeps a running mean that no state dict holds, and adds it."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(5, 5), persistent=False)

    def forward(self, x):
        if self.training:
            self.mean.lerp_(x.detach().mean(dim=(0, 1)), 0.3)
        return x + self.mean


def drawing(seed=0):
    """A model that draws while it trains, keeps running statistics, and has shared and frozen weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        shared, frozen = nn.Linear(25, 25), nn.Linear(25, 25).requires_grad_(False)
        parts = [
            Tally(),
            nn.Flatten(),
            shared,
            nn.BatchNorm1d(25),
            nn.Dropout(0.3),
            shared,
            nn.ReLU(),
            frozen,
        ]
        return nn.Sequential(*parts, nn.Linear(25, 3))


def images(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 1, 5, 5, generator=generator), torch.randint(3, (count,), generator=generator)


TRAIN, VALIDATION = images(45, 1), images(30, 2)


def run(path=None, model=None, train=TRAIN, validation=VALIDATION, loss=None, steps=STEPS, **changed):
    model, loss = model or drawing(), loss or Interrupting()
    return fit(model, train, validation, loss, steps, checkpoint=path, **{**START, **changed})


def interrupted(path, after, **arguments):
    Interrupting.calls_left = after
    with pytest.raises(Interrupted):
        run(path, **arguments)
    Interrupting.calls_left = math.inf


def assert_same(one, other):
    (model, record), (again, same) = one, other
    for tensors in ("parameters", "buffers"):
        pairs = zip(getattr(model, tensors)(), getattr(again, tensors)(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert record == same


def kept_step(path):
    return torch.load(path, weights_only=True)["state"]["step"]


@pytest.mark.parametrize("validation", [VALIDATION, None], ids=["judged", "not judged"])
@pytest.mark.parametrize("after", [1, 2, 3, 17, 39])
def test_a_run_that_resumes_ends_as_one_that_was_not_interrupted(tmp_path, after, validation):
    whole = run(validation=validation)
    path = tmp_path / "run.pt"
    interrupted(path, after, validation=validation)
    assert path.exists() == (after >= 2) and (after < 2 or kept_step(path) == after // 2 * 2)
    torch.manual_seed(after)  # what the resuming process drew before is of no consequence
    assert_same(run(path, validation=validation), whole)
    assert [file.name for file in tmp_path.iterdir()] == ["run.pt"]


def test_a_run_may_be_interrupted_often(tmp_path):
    path = tmp_path / "run.pt"
    calls = 0
    while not path.exists() or kept_step(path) < STEPS - 3:
        interrupted(path, 3)
        calls += 3
    assert calls > STEPS
    assert_same(run(path), run())


def test_the_best_copy_may_stem_from_before_the_interruption(tmp_path):
    """Labels that have nothing to do with the images: the accuracy goes up and down."""
    whole = run()
    assert 0 < whole[1].best_step < STEPS - 2, "this run improves to its end"
    interrupted(tmp_path / "run.pt", whole[1].best_step + 2)
    assert_same(run(tmp_path / "run.pt"), whole)


def test_a_checkpoint_changes_nothing_and_a_finished_run_returns_at_once(tmp_path):
    path = tmp_path / "run.pt"
    first = run(path)
    assert_same(first, run())
    written, state = path.read_bytes(), torch.get_rng_state()
    Interrupting.calls_left = 0  # not one step more
    model = drawing()
    before = copy.deepcopy(model.state_dict())
    assert_same(run(str(path), model=model), first)
    assert path.read_bytes() == written and kept_step(path) == STEPS
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_resumed_run_restores_the_random_state_and_the_gradients_of_the_model(tmp_path):
    interrupted(tmp_path / "run.pt", 9)
    state, model = torch.get_rng_state(), drawing()
    trained, _ = run(tmp_path / "run.pt", model=model)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(weight.grad is None for part in (model, trained) for weight in part.parameters())
    assert model.training and not trained.training


def test_the_bar_of_a_resumed_run_starts_where_it_goes_on(tmp_path, capsys):
    interrupted(tmp_path / "run.pt", 30)
    run(tmp_path / "run.pt", progress=True)
    shown = capsys.readouterr().err
    assert (
        "30/40" in shown
        and "40/40" in shown
        and "0/40 " not in shown.replace("30/40", "").replace("40/40", "")
    )


def wider():
    return nn.Sequential(nn.Flatten(), nn.Linear(25, 50), nn.ReLU(), nn.Linear(50, 3))


def without_dropout():
    model = drawing()
    model[4].p = 0.0
    return model


def thawed():
    return drawing().requires_grad_()


def scaled(pair):
    inputs, labels = pair[0].clone(), pair[1]
    inputs[-1, 0, -1, -1] += 1e-6
    return inputs, labels


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"seed": 4}, "seed was 3, now it is 4"),
        ({"lr": 0.02}, "lr was 0.01, now it is 0.02"),
        ({"steps": 50}, "steps was 40, now it is 50"),
        ({"batch_size": 9}, "batch_size was 8, now it is 9"),
        ({"schedule": "linear"}, "schedule was 'cosine', now it is 'linear'"),
        ({"shift": 0}, "shift was 1, now it is 0"),
        ({"shift": 0, "seed": 4}, "seed was 3, now it is 4; shift was 1, now it is 0"),
        ({"train": scaled(TRAIN)}, "train is not the same"),
        ({"train": (TRAIN[0], TRAIN[1].flip(0))}, "train is not the same"),
        ({"validation": scaled(VALIDATION)}, "validation is not the same"),
        ({"validation": None}, "validation is not the same"),
        ({"loss": Interrupting(0.2)}, "loss is not the same"),
        ({"loss": nn.CrossEntropyLoss()}, "loss is not the same"),
        ({"model": drawing(1)}, "model is not the same"),
        ({"model": wider()}, "model is not the same"),
        ({"model": without_dropout()}, "model is not the same"),
        ({"model": thawed()}, "model is not the same"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_the_checkpoint_of_another_run_is_refused_and_says_what_differs(tmp_path, changed, told):
    path = tmp_path / "run.pt"
    interrupted(path, 5)
    written = path.read_bytes()
    with pytest.raises(ValueError, match=f"run.pt is the checkpoint of another run: {told}. Give the same"):
        run(path, **changed)
    assert path.read_bytes() == written
    run(path)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_file_that_was_cut_short_is_refused(tmp_path, share):
    path = tmp_path / "run.pt"
    interrupted(path, 5)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match="run.pt is no checkpoint of fit, or a damaged one .*: delete it"):
        run(path)


def test_a_byte_changed_anywhere_is_noticed_or_of_no_consequence(tmp_path):
    path = tmp_path / "run.pt"
    interrupted(path, 5)
    whole, expected, refused = path.read_bytes(), run(), 0
    places = torch.randint(len(whole), (25,), generator=torch.Generator().manual_seed(0)).tolist()
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            found = run(path)
        except ValueError as error:
            assert "damaged" in str(error)
            refused += 1
        else:
            assert_same(found, expected)
    assert refused > 5


@pytest.mark.parametrize(
    "content", [{"weight": torch.ones(2)}, [1, 2], {"run": 1, "state": 2, "digest": "3"}]
)
def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "run.pt"
    torch.save(content, path)
    written = path.read_bytes()
    with pytest.raises(ValueError, match="no checkpoint of fit"):
        run(path)
    assert path.read_bytes() == written


def test_a_write_that_fails_leaves_the_last_checkpoint_whole(tmp_path, monkeypatch):
    path = tmp_path / "run.pt"
    interrupted(path, 5)
    written, save = path.read_bytes(), torch.save

    def full(content, file):
        save(content, file)
        Path(file).write_bytes(Path(file).read_bytes()[:100])
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="no space"):
        run(path)
    assert path.read_bytes() == written
    monkeypatch.undo()
    assert_same(run(path), run())
