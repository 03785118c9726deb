"""What every test shares: the thorough switch, fixed hypothesis profiles, one thread."""

import os
import sys
from pathlib import Path

import hypothesis
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
THOROUGH = os.environ.get("LIPBOOK_THOROUGH") == "1"

sys.path.insert(0, str(ROOT))  # for `from tools import notebook` and `from tests.mutants import MUTANTS`

hypothesis.settings.register_profile("quick", derandomize=True, max_examples=25, deadline=None)
hypothesis.settings.register_profile("thorough", max_examples=1000, deadline=None, print_blob=True)
hypothesis.settings.load_profile("thorough" if THOROUGH else "quick")

torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # for the kernels and other processes that tests start


def pytest_collection_modifyitems(items):
    if THOROUGH:
        return
    skip = pytest.mark.skip(reason="a full count: run by `make test-thorough`")
    for item in items:
        if "thorough" in item.keywords:
            item.add_marker(skip)
