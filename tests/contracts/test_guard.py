"""What the guard refuses, one by one, with the advice that it gives."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from lipbook import CertificateError, UnsupportedLayerError
from lipbook.bounds import product_bound
from lipbook.contracts import affine, check, expand, lipschitz, output_shape, slopes

EVERY = "lipschitz affine output_shape expand".split()
READERS = {
    "lipschitz": lambda layer: lipschitz(layer),
    "affine": lambda layer: affine(layer, (3,)),
    "output_shape": lambda layer: output_shape(layer, (3,)),
    "expand": expand,
    "slopes": slopes,
}


def linear():
    return nn.Linear(3, 3)


def changed(**attributes):
    return lambda: with_attributes(linear(), **attributes)


def subclass(**members):
    return lambda: type("Changed", (nn.Linear,), members)(3, 3)


def with_mixin():
    class Mixin(nn.Module):
        def __call__(self, x):
            return 2 * super().__call__(x)

    return type("Mixed", (nn.Linear, Mixin), {})(3, 3)


def hooked(register):
    def build():
        layer = linear()
        getattr(layer, register)(lambda *arguments: None)
        return layer

    return build


def parametrised(step):
    def build():
        layer = linear()
        parametrize.register_parametrization(layer, "weight", step)
        return layer

    return build


class Double(nn.Module):
    def forward(self, weight):
        return 2 * weight


def hooked_parametrisation():
    layer = parametrizations.weight_norm(linear())
    layer.parametrizations.weight[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    return layer


def with_weight(tensor):
    return changed(weight=nn.Parameter(tensor, requires_grad=False))


class Marked(torch.Tensor):
    pass


def marked():
    layer = linear()
    layer.weight = nn.Parameter(torch.ones(3, 3).as_subclass(Marked))
    return layer


def compiled():
    layer = linear()
    layer.compile(backend="eager")
    return layer


REFUSED = {
    "a forward of its own": (subclass(forward=lambda self, x: x), "defines forward.*register"),
    "a call of its own": (subclass(__call__=lambda self, x: x), "defines __call__"),
    "a getattr of its own": (subclass(__getattr__=nn.Module.__getattr__), "defines __getattr__"),
    "a mixin that calls": (with_mixin, "defines __call__"),
    "forward on the instance": (changed(forward=torch.relu), "attribute 'forward'.*del layer.forward"),
    "_call_impl on the instance": (changed(_call_impl=lambda x: x), "instance attribute '_call_impl'"),
    "compiled in place": (compiled, "compiled in place.*before layer.compile"),
    "a forward hook": (hooked("register_forward_hook"), r"forward hook.*handle.remove\(\)"),
    "a forward pre-hook": (hooked("register_forward_pre_hook"), r"forward hook.*handle.remove\(\)"),
    "old-style spectral_norm": (lambda: nn.utils.spectral_norm(linear()), "instead of the old-style"),
    "prune": (lambda: prune.l1_unstructured(linear(), "weight", 0.5), "prune.remove"),
    "an unknown parametrisation": (parametrised(Double()), "parametrisation Double.*remove_parametrizations"),
    "a hooked parametrisation": (hooked_parametrisation, "_WeightNorm on weight that has a forward hook"),
    "spectral_norm in train mode": (
        lambda: parametrizations.spectral_norm(linear()),
        r"train mode.*layer.eval\(\)",
    ),
    "a lazy layer": (lambda: nn.LazyLinear(3), "not initialised yet: run one batch"),
    "the meta device": (lambda: nn.Linear(3, 3, device="meta"), "meta device.*to_empty"),
    "a complex weight": (lambda: nn.Linear(3, 3, dtype=torch.complex64), "complex weight.*twice the size"),
    "an integer weight": (with_weight(torch.ones(3, 3, dtype=torch.int8)), "int8.*floating dtype"),
    "a quantised weight": (
        lambda: with_weight(torch.quantize_per_tensor(torch.ones(3, 3), 0.1, 0, torch.qint8))(),
        "quantised weight.*dequantised",
    ),
    "a sparse weight": (with_weight(torch.eye(3).to_sparse()), "sparse weight.*to_dense"),
    "a tensor subclass": (marked, "tensor subclass Marked.*plain tensor"),
}


@pytest.mark.parametrize("contract", EVERY)
@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.filterwarnings("ignore")
def test_every_contract_of_linear_refuses(case, contract):
    build, advice = REFUSED[case]
    with pytest.raises(UnsupportedLayerError, match=advice) as caught:
        READERS[contract](build())
    assert str(caught.value).startswith(("nn.", "Changed", "Mixed"))


def statistics_less():
    return nn.BatchNorm1d(3, track_running_stats=False).eval()


def negative_variance():
    layer = nn.BatchNorm1d(3).eval()
    layer.running_var.fill_(-1.0)
    return layer


STATES = {
    "BatchNorm in train mode": (lambda: nn.BatchNorm1d(3), r"is in train mode.*layer.eval\(\)"),
    "BatchNorm without statistics": (statistics_less, "no running statistics.*track_running_stats=True"),
    "BatchNorm with a negative variance": (negative_variance, "running_var [+] eps that is not positive"),
    "Dropout in train mode": (lambda: nn.Dropout(0.2), r"train mode with p=0.2.*layer.eval\(\)"),
    "AlphaDropout in train mode": (nn.AlphaDropout, r"layer.eval\(\)"),
    "Flatten over the batch": (lambda: nn.Flatten(0), "start_dim=0, which may join samples.*start_dim=1"),
    "Flatten from behind": (lambda: nn.Flatten(-1), "start_dim=-1"),
    "Unflatten the batch": (lambda: nn.Unflatten(0, (1, 1)), "dim=0"),
    "Unflatten by name": (lambda: with_attributes(nn.Unflatten(1, (1, 3)), dim="c"), "dim='c'"),
    "Softplus with beta 0": (lambda: nn.Softplus(beta=0), "beta=0"),
    "Softplus with a low threshold": (lambda: nn.Softplus(threshold=19), "threshold=19.*jumps.*threshold=20"),
    "CELU with a negative alpha": (lambda: nn.CELU(-1.0), "alpha=-1.0.*alpha > 0"),
    "GELU of another form": (lambda: nn.GELU("quick"), "approximate='quick'"),
    "Hardtanh turned over": (
        lambda: with_attributes(nn.Hardtanh(), min_val=1.0, max_val=-1.0),
        "min_val < max_val",
    ),
    "an attribute that is a tensor": (lambda: nn.LeakyReLU(torch.tensor(0.1)), "Python number"),
}


def with_attributes(layer, **attributes):
    for name, value in attributes.items():
        setattr(layer, name, value)
    return layer


@pytest.mark.parametrize("case", STATES)
def test_a_state_of_which_the_contract_does_not_speak_is_refused(case):
    build, advice = STATES[case]
    with pytest.raises(UnsupportedLayerError, match=advice):
        lipschitz(build())
    with pytest.raises(UnsupportedLayerError, match=advice):
        lipschitz(nn.Sequential(nn.Sequential(build())))
    with pytest.raises(UnsupportedLayerError, match=advice):
        slopes(build()) if case in OF_SLOPES else output_shape(nn.Sequential(build()), (3,))


OF_SLOPES = ("an attribute that is a tensor",)
NOT_NUMBERS = {
    "a NaN weight": lambda: with_weight(torch.full((3, 3), math.nan))(),
    "an infinite bias": lambda: changed(bias=nn.Parameter(torch.full((3,), math.inf)))(),
    "a NaN slope": lambda: nn.LeakyReLU(math.nan),
    "an infinite alpha": lambda: nn.ELU(math.inf),
    "a NaN running mean": lambda: nan_mean(nn.BatchNorm1d(3).eval()),
    "a zero direction under weight_norm": lambda: zeroed(parametrizations.weight_norm(linear())),
}


def nan_mean(layer):
    layer.running_mean.fill_(math.nan)
    return layer


def zeroed(layer):
    layer.parametrizations.weight.original1.data.zero_()
    return layer


@pytest.mark.parametrize("case", NOT_NUMBERS)
def test_numbers_that_are_not_finite_are_a_value_error(case):
    with pytest.raises(ValueError, match="NaN|nan|infinite|inf"):
        lipschitz(NOT_NUMBERS[case]())


@pytest.mark.parametrize("contract", ["lipschitz", "affine", "output_shape", "expand", "slopes"])
def test_what_is_not_a_layer_is_refused(contract):
    with pytest.raises(UnsupportedLayerError, match=r"nn.ReLU is a class.*nn.ReLU\(...\)"):
        READERS[contract](nn.ReLU)
    with pytest.raises(UnsupportedLayerError, match="not a torch.nn.Module"):
        READERS[contract](torch.relu)
    with pytest.raises(UnsupportedLayerError, match="not a torch.nn.Module"):
        READERS[contract](None)


def test_a_dict_of_weights_is_refused_without_printing_them():
    model = nn.Sequential(nn.Linear(30, 30), nn.ReLU())
    for read in (lipschitz, product_bound):
        with pytest.raises(UnsupportedLayerError, match="OrderedDict is not a torch.nn.Module") as caught:
            read(model.state_dict())
        assert "load_state_dict" in str(caught.value) and len(str(caught.value)) < 200


@pytest.mark.parametrize("layer", [nn.Softmax(1), nn.LogSoftmax(1)])
def test_a_softmax_behind_the_logits_is_refused_with_the_advice_to_leave_it_out(layer):
    for read in (lambda: lipschitz(layer), lambda: product_bound(nn.Sequential(linear(), layer))):
        with pytest.raises(UnsupportedLayerError, match=type(layer).__name__) as caught:
            read()
        assert str(caught.value).endswith(
            "As the last layer of a classifier leave it out: the class stays that of the largest logit."
        )


UNKNOWN = [
    nn.LSTM(3, 3),
    nn.Conv3d(3, 3, 1),
    nn.MaxPool3d(2),
    nn.LayerNorm(3),
    nn.PReLU(),
    nn.SyncBatchNorm(3),
]


@pytest.mark.parametrize("layer", UNKNOWN)
def test_a_layer_without_a_contract_is_refused_by_name_with_what_to_do(layer):
    name = f"nn.{type(layer).__name__}"
    with pytest.raises(UnsupportedLayerError) as caught:
        lipschitz(layer)
    assert str(caught.value) == (
        f"{name} has no Lipschitz contract: it is not among the layers that lipbook reads. Replace it, or "
        f"register one with lipbook.contracts.lipschitz.register({name}) and attack it with "
        "lipbook.contracts.check(layer, input_shape)."
    )
    with pytest.raises(UnsupportedLayerError, match=f"{name} has no contract at all"):
        expand(layer)


def test_a_layer_without_this_contract_says_which_it_has():
    only = "nn.ReLU has no affine contract: it has only lipschitz, output_shape"
    with pytest.raises(UnsupportedLayerError, match=only):
        affine(nn.ReLU(), (3,))
    with pytest.raises(UnsupportedLayerError, match="nn.Linear has no slopes contract: it has only"):
        slopes(linear())


@pytest.mark.parametrize("register", ["register_module_forward_hook", "register_module_forward_pre_hook"])
def test_global_hooks_are_refused(register):
    handle = getattr(nn.modules.module, register)(lambda *arguments: None)
    try:
        with pytest.raises(UnsupportedLayerError, match="global forward hook"):
            lipschitz(nn.ReLU())
    finally:
        handle.remove()
    assert lipschitz(nn.ReLU()).value == 1


def test_backward_hooks_do_not_change_the_function_and_are_let_through():
    layer = linear()
    layer.register_full_backward_hook(lambda *arguments: None)
    assert lipschitz(layer).value > 0


def test_a_fault_deep_in_a_sequential_is_found_and_named():
    layer = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.ReLU(), nn.Dropout(0.5)))
    for read in (lipschitz, expand, lambda layer: output_shape(layer, (3,))):
        with pytest.raises(UnsupportedLayerError, match="nn.Dropout is in train mode"):
            read(layer)
        read(layer.eval())
        layer.train()


def test_a_subclass_that_registers_its_own_contract_is_read_by_it_alone():
    class Halved(nn.Linear):
        def forward(self, x):
            return super().forward(x) / 2

    lipschitz.register(Halved, lambda layer, norm, shape: lipschitz(plain(layer), norm, shape))

    def plain(layer):
        copied = nn.Linear(3, 3)
        copied.load_state_dict(layer.state_dict())
        return copied

    layer = Halved(3, 3)
    assert lipschitz(layer).value == lipschitz(plain(layer)).value
    assert expand(layer) == (layer,)
    with pytest.raises(UnsupportedLayerError, match="Halved is a subclass of nn.Linear that defines forward"):
        affine(layer, (3,))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", [case for case in REFUSED if case != "spectral_norm in train mode"])
def test_check_passes_the_refusal_on(case):
    with pytest.raises(UnsupportedLayerError):
        check(REFUSED[case][0](), (3,))


@pytest.mark.parametrize("kind", [nn.Module, object, int, "Linear", nn.Linear(2, 2)])
def test_only_classes_of_layers_can_be_registered(kind):
    with pytest.raises(TypeError, match="lipschitz.register takes a subclass of torch.nn.Module"):
        lipschitz.register(kind, lambda *arguments: None)


def test_a_certificate_does_not_outlive_the_state_that_it_was_made_in():
    layer = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval()
    bound = lipschitz(layer)
    bound.verify(layer)
    with pytest.raises(CertificateError, match="train mode"):
        bound.verify(layer.train())
    with pytest.raises(CertificateError):
        bound.verify(nn.Sequential(layer[0]))
    with pytest.raises(CertificateError):
        bound.verify(layer[0])
    with pytest.raises(CertificateError):
        lipschitz(nn.Linear(3, 3)).verify(nn.ReLU())


def test_a_parametrised_weight_is_not_read_where_another_one_may_be_used():
    layer = parametrizations.weight_norm(nn.Linear(3, 3))
    with parametrize.cached(), pytest.raises(UnsupportedLayerError, match="cached"):
        lipschitz(layer)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(UnsupportedLayerError, match="autocast"):
        lipschitz(layer)
    lipschitz(layer).verify(layer)
