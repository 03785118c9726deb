"""Checkpoints of a training run: the file from which it goes on as if it had never stopped."""

import copy
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from lipbook.training.digests import digest


@dataclass
class Run:
    """A run under way: all that its remaining steps depend on, and what they leave behind.

    `generators` are torch's own, from which the model may draw. `best` is None until a copy was judged.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    generators: list[torch.Generator]
    step: int = 0
    losses: list[float] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    best: nn.Module | None = None
    best_step: int = 0
    highest: float = -1.0


def fingerprint(model: nn.Module, loss, train, validation, **settings) -> dict:
    """What tells this run from another: its settings as they are, and digests of what it was given."""
    architecture = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(model))  # addresses differ from process to process
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    parts = {
        "model": (architecture, trained, _tensors(model)),
        "loss": (loss,),
        "train": train,
        "validation": (validation,),
    }
    return {
        **settings,
        "torch": str(torch.__version__),
        **{name: digest(*given) for name, given in parts.items()},
    }


def save(run: Run, path: Path, own: dict) -> None:
    """Write the state of a run with its fingerprint `own`: the whole file or none of it."""
    state = {
        "model": _tensors(run.model),
        "optimizer": run.optimizer.state_dict(),
        "generators": [generator.get_state() for generator in run.generators],
        "step": run.step,
        "losses": run.losses,
        "validation": run.validation,
        "best": None if run.best is None else _tensors(run.best),
        "best_step": run.best_step,
        "highest": run.highest,
    }
    beside = path.with_name(path.name + ".part")
    torch.save({"run": own, "state": state, "digest": digest(own, state)}, beside)
    os.replace(beside, path)


def resume(run: Run, path: Path, own: dict) -> None:
    """Bring a fresh run to the state in the file, if it is of the run with the fingerprint `own`.

    Raises:
        ValueError: the file is damaged, or is of another run; the message says what differs.
    """
    state = _read(path, own)
    if state["best"] is not None:
        run.best = copy.deepcopy(run.model)
        _restore(run.best, state["best"])
    _restore(run.model, state["model"])
    run.optimizer.load_state_dict(state["optimizer"])
    for generator, kept in zip(run.generators, state["generators"], strict=True):
        generator.set_state(kept)
    for name in ("step", "losses", "validation", "best_step", "highest"):
        setattr(run, name, state[name])


def _read(path, own):
    try:
        kept = torch.load(path, map_location="cpu", weights_only=True)
        whole = kept["digest"] == digest(kept["run"], kept["state"])
    except Exception as error:  # whatever a torn or foreign file makes a reader raise
        whole, reason = False, f" ({type(error).__name__})"
    else:
        reason = ""
    if not whole:
        raise ValueError(
            f"{path} is no checkpoint of fit, or a damaged one{reason}: delete it to train from the "
            "beginning, or name another file."
        )
    if kept["run"] != own:
        raise ValueError(
            f"{path} is the checkpoint of another run: {_differences(kept['run'], own)}. Give the same again "
            "to resume it, or name another file, or delete this one to train from the beginning."
        )
    return kept["state"]


def _differences(kept, own):
    def sentence(name):
        if name in ("model", "loss", "train", "validation"):
            return f"{name} is not the same"
        return f"{name} was {kept.get(name)!r}, now it is {own.get(name)!r}"

    names = dict.fromkeys((*own, *kept))
    return "; ".join(sentence(name) for name in names if kept.get(name) != own.get(name))


def _tensors(model):
    """The state dict, and the buffers that it leaves out."""
    return {"state": dict(model.state_dict()), "buffers": dict(model.named_buffers())}


def _restore(model, tensors):
    model.load_state_dict(tensors["state"])
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(tensors["buffers"][name])
