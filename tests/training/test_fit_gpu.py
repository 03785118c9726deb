"""`fit` on a GPU, where there is one: the same training up to rounding, given back where the model was."""

import itertools

import pytest
import torch
from torch import nn

from lipbook.training import EMMALoss, fit

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.fixture(autouse=True)
def no_gpu():
    """In place of the fixture of this folder, which hides the GPU."""


def images(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, 4, 4, generator=generator), torch.randint(3, (count,), generator=generator)


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize(
    "loss", [nn.CrossEntropyLoss(weight=torch.ones(3)), EMMALoss(0.1)], ids=["ce", "emma"]
)
@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("device", [None, "cuda", "cuda:0"])
def test_it_learns_the_same_and_gives_the_copy_back_where_the_model_was(device, shift, loss):
    train, validation, model = images(60, 1), images(20, 2), network()
    state = torch.cuda.get_rng_state()
    found, record = fit(model, train, validation, loss, 20, shift=shift, device=device)
    expected, same = fit(model, train, validation, loss, 20, shift=shift, device="cpu")
    assert record.losses == pytest.approx(same.losses, rel=1e-3)
    assert all(
        weight.device.type == "cpu" for weight in itertools.chain(model.parameters(), found.parameters())
    )
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert all(tensor.device.type == "cpu" for tensor in loss.buffers())
    there, _ = fit(network().cuda(), train, validation, loss, 20, shift=shift, device="cpu")
    assert all(weight.is_cuda for weight in there.parameters())
    assert all(
        torch.equal(a.cpu(), b) for a, b in zip(there.parameters(), expected.parameters(), strict=True)
    )


def test_a_checkpoint_of_the_gpu_serves_the_gpu_alone(tmp_path):
    arguments = network(), images(60, 1), images(20, 2), nn.CrossEntropyLoss(), 20
    _, record = fit(*arguments, checkpoint=tmp_path / "run.pt")
    assert fit(*arguments, checkpoint=tmp_path / "run.pt")[1] == record
    with pytest.raises(ValueError, match="device was 'cuda', now it is 'cpu'"):
        fit(*arguments, checkpoint=tmp_path / "run.pt", device="cpu")
