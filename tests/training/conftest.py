"""The tests of training compare bits, and so train on the CPU also where there is a GPU."""

import pytest
import torch


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
