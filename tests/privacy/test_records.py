"""Records of private training: what they cost, and what a changed one cannot hide."""

import dataclasses
import functools

import dp_accounting
import pytest
import torch
from dp_accounting.pld import PLDAccountant
from torch import nn

from lipbook import CertificateError
from lipbook.layers import MaxMin
from lipbook.privacy import epsilon, fit
from lipbook.privacy import release as module

SIGMA = 1.2  # the multiplier in every test; finding one for an epsilon takes seconds
BUDGET = {"delta": 1e-5, "steps": 4, "sampling_rate": 0.2, "input_norm": 1.0}
BUDGET["epsilon"] = epsilon(SIGMA, BUDGET["sampling_rate"], BUDGET["steps"], BUDGET["delta"])


@functools.cache
def kept(seed):
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8, bias=False), MaxMin(), nn.Linear(8, 3, bias=False))
    data = torch.randn(60, 6, generator=generator), torch.randint(3, (60,), generator=generator)
    return fit(model, data, nn.CrossEntropyLoss(), **BUDGET, noise="per layer", seed=seed)


@pytest.fixture
def trained(monkeypatch):
    monkeypatch.setattr(module, "noise_multiplier", lambda *budget: SIGMA)
    return kept(0)


def test_a_record_costs_what_an_accountant_says_of_its_releases(trained):
    _, record = trained
    accountant = PLDAccountant(value_discretization_interval=1e-3)
    for release in record.releases:
        pairs = zip(release.sensitivities, release.standard_deviations)
        joint = sum((size / std) ** 2 for size, std in pairs) ** -0.5
        accountant.compose(dp_accounting.PoissonSampledDpEvent(0.2, dp_accounting.GaussianDpEvent(joint)))
    assert record.recompute() == pytest.approx(accountant.get_epsilon(1e-5), rel=0.01)
    assert record.recompute() == record.epsilon < record.recompute("rdp")
    assert record.verify() is record


def lowered(record, step, factor=0.999):
    release = record.releases[step]
    first, *others = release.standard_deviations
    changed = dataclasses.replace(release, standard_deviations=(first * factor, *others))
    return (*record.releases[:step], changed, *record.releases[step + 1 :])


def halved(record, sensitivity=0.5):
    """Every sensitivity times this, and the noise times the same where it is less."""
    return tuple(
        dataclasses.replace(
            release,
            sensitivities=tuple(sensitivity * size for size in release.sensitivities),
            standard_deviations=tuple(min(1, sensitivity) * std for std in release.standard_deviations),
        )
        for release in record.releases
    )


CHANGES = {
    "the noise of one group in one step": (lambda r: {"releases": lowered(r, 2)}, "step 3 has noise"),
    "that, and the multiplier": (
        lambda r: {"releases": lowered(r, 1, 0.5), "noise_multiplier": 0.1 * r.noise_multiplier},
        "cost epsilon",
    ),
    "no noise at all": (lambda r: {"releases": lowered(r, 0, 0.0)}, "step 1 has noise"),
    "a step left out": (lambda r: {"releases": r.releases[1:]}, "holds 3 releases"),
    "a step left out, and their number": (lambda r: {"releases": r.releases[1:], "steps": 3}, "changed"),
    "epsilon": (lambda r: {"epsilon": 0.99 * r.epsilon}, "cost epsilon"),
    "a larger epsilon": (lambda r: {"epsilon": 2 * r.epsilon}, "changed"),
    "delta": (lambda r: {"delta": r.delta / 2}, "cost epsilon"),
    "a higher rate": (lambda r: {"sampling_rate": 0.21}, "cost epsilon"),
    "a lower rate": (lambda r: {"sampling_rate": 0.19}, "changed"),
    "the adjacency": (lambda r: {"adjacency": "replace"}, "'replace'"),
    "the accountant": (lambda r: {"accountant": "rdp"}, "cost epsilon"),
    "an accountant of no name": (lambda r: {"accountant": "moments"}, "'moments'"),
    "the weights": (lambda r: {"weights": "0"}, "changed"),
    "sensitivities and noise, both halved": (lambda r: {"releases": halved(r)}, "changed"),
    "higher sensitivities": (lambda r: {"releases": halved(r, sensitivity=2)}, "step 1 has noise"),
    "more noise in one step": (lambda r: {"releases": lowered(r, 0, 1.5)}, "changed"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_record_that_was_changed_is_caught(trained, change):
    changes, word = CHANGES[change]
    with pytest.raises(CertificateError, match=word):
        dataclasses.replace(trained[1], **changes(trained[1])).verify()


def test_a_record_knows_its_model(trained):
    model, record = trained
    record.verify(model)
    other, _ = kept(1)
    with pytest.raises(CertificateError, match="other weights"):
        record.verify(other)
