"""Bad input to every public function: a ValueError or TypeError that names what was wrong.

Each row is a call of the function and a word that the message must contain, the offending value or type. A
public function without rows, or without a row for an argument, fails the test.
"""

import dataclasses
import importlib
import inspect
import math
import pkgutil
import re

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

import lipbook

ONE = torch.ones(3)
EYE = torch.eye(3)
KERNEL = torch.ones(4, 3, 3, 3)
NAN = torch.tensor([[1.0, math.nan]])
INF = torch.tensor([[1.0, math.inf]])
UPPER = lipbook.Bound(2.0, "upper", method="svd")
SET = (EYE, torch.tensor([0, 1, 1]))  # inputs and labels
IMAGES = (torch.ones(3, 1, 2, 2), torch.tensor([0, 1, 1]))
LOSS = nn.CrossEntropyLoss()
CHAIN = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
ALT = "Two bounds, the upper one twice the lower one."


class Unknown(nn.Module):
    def forward(self, x):
        return x


def layers(f, whole=False):
    """Rows for what every contract refuses: `f` calls it with a layer; `whole`: it takes no nn.Sequential."""
    return [
        (lambda c: f(c, torch.relu), "relu"),
        (lambda c: f(c, nn.Linear), "nn.Linear is a class"),
        (lambda c: f(c, EYE), "Module"),
        (lambda c: f(c, None), "None"),
        (lambda c: f(c, Unknown()), "Unknown"),
        (lambda c: f(c, nn.LSTM(3, 3)), "nn.LSTM"),
        (lambda c: f(c, nn.LazyLinear(3)), "nn.LazyLinear"),
        (lambda c: f(c, nn.Sequential(nn.ReLU(), Unknown())), "nn.Sequential has no" if whole else "Unknown"),
    ]


def shapes(f):
    """Rows for bad shapes of a layer that takes three numbers."""
    return [
        (lambda c: f(c, nn.Linear(3, 2), 3), "3"),
        (lambda c: f(c, nn.Linear(3, 2), [3]), "[3]"),
        (lambda c: f(c, nn.Linear(3, 2), ()), "()"),
        (lambda c: f(c, nn.Linear(3, 2), (0,)), "(0,)"),
        (lambda c: f(c, nn.Linear(3, 2), (-3,)), "(-3,)"),
        (lambda c: f(c, nn.Linear(3, 2), (3.0,)), "(3.0,)"),
        (lambda c: f(c, nn.Linear(3, 2), (4,)), "(4,)"),
    ]


def broken_weights():
    layer = nn.Linear(3, 2)
    nn.init.constant_(layer.weight, math.nan)
    return layer


def logits(f):
    """Rows for bad logits of a model that has two."""
    return [
        (lambda c: f(c, 2), "got 2"),
        (lambda c: f(c, -1), "got -1"),
        (lambda c: f(c, True), "True"),
        (lambda c: f(c, 1.0), "1.0"),
        (lambda c: f(c, "all"), "'all'"),
        (lambda c: f(c, [0, 1]), "[0, 1]"),
        (lambda c: f(c, (0, 2)), "(0, 2)"),
        (lambda c: f(c, (1, 1)), "(1, 1)"),
        (lambda c: f(c, (0,)), "(0,)"),
        (lambda c: f(c, (0, 1, 0)), "(0, 1, 0)"),
    ]


def numbers(f, name, too_small=None):
    """Rows for a keyword of a loss that takes a finite number; `too_small`: one that is below its limit."""
    bad = [
        (math.nan, "nan"),
        (math.inf, "inf"),
        ("1", "'1'"),
        (None, "None"),
        (True, "True"),
        (ONE, "Tensor"),
    ]
    bad += [] if too_small is None else [(too_small, str(too_small))]
    return [(lambda c, value=value: f(c, **{name: value}), word) for value, word in bad]


def losses(f):
    """Rows for the radius, the temperature and the call of a loss that needs constants."""
    logits, labels, constants = torch.zeros(3, 2), torch.tensor([0, 1, 1]), torch.tensor([[0.0, 1], [1, 0]])
    return [
        *numbers(f, "radius", -0.5),
        *numbers(f, "temperature", 0),
        (lambda c: f(c, radius=1)(NAN[0], labels, constants), "(2,)"),
        (lambda c: f(c, radius=1)(EYE.long(), labels, constants), "torch.int64"),
        (lambda c: f(c, radius=1)(logits, labels.float(), constants), "torch.float32"),
        (lambda c: f(c, radius=1)(logits, labels + 1, constants), "from 1 to 2"),
        (lambda c: f(c, radius=1)(logits, labels[:2], constants), "(2,)"),
        (lambda c: f(c, radius=1)(logits, labels, None), "NoneType"),
        (lambda c: f(c, radius=1)(logits, labels, EYE), "(3, 3)"),
        (lambda c: f(c, radius=1)(logits, labels, -constants), "-1.0"),
        (lambda c: f(c, radius=1)(logits, labels, constants * math.inf), "nan"),
        (lambda c: f(c, radius=1)(logits, labels, 1 - constants), "diagonal"),
    ]


BAD = {
    "lipbook.Ball": [
        (lambda f: f(ONE, math.nan), "NaN"),
        (lambda f: f([0.0], 1), "list"),
        (lambda f: f(torch.zeros(2, dtype=torch.int64), 1), "torch.int64"),
        (lambda f: f(torch.zeros(2, dtype=torch.complex64), 1), "torch.complex64"),
        (lambda f: f(torch.zeros(0), 1), "(0,)"),
        (lambda f: f(NAN, 1), "NaN"),
        (lambda f: f(INF, 1), "infinite"),
        (lambda f: f(ONE, -1), "-1"),
        (lambda f: f(ONE, math.inf), "inf"),
        (lambda f: f(ONE, "1"), "str"),
        (lambda f: f(ONE, True), "bool"),
        (lambda f: f(ONE, None), "NoneType"),
        (lambda f: f(ONE, 1, norm=1), "1"),
        (lambda f: f(ONE, 1, norm="2"), "'2'"),
        (lambda f: f(ONE, 1, norm=-math.inf), "-inf"),
        (lambda f: f(ONE, 1, norm=math.nan), "nan"),
    ],
    "lipbook.Bound": [
        (lambda f: f(math.nan, "upper"), "NaN"),
        (lambda f: f(2**53 + 1, "upper"), str(2**53 + 1)),
        (lambda f: f(1.0, "upper", method=3), "int"),
        (lambda f: f(1.0, "upper", certificate="because"), "str"),
        (lambda f: f(-1.0, "upper"), "-1.0"),
        (lambda f: f(math.inf, "lower"), "inf"),
        (lambda f: f("2", "upper"), "str"),
        (lambda f: f(True, "upper"), "bool"),
        (lambda f: f(1.0, "Upper"), "'Upper'"),
        (lambda f: f(1.0, None), "None"),
        (lambda f: f(1.0, "upper", norm=3), "3"),
        (lambda f: f(1.0, "upper", norm="inf"), "'inf'"),
        (lambda f: f(1.0, "upper", region=ONE), "Tensor"),
        (lambda f: f(1.0, "upper", output=-1), "-1"),
        (lambda f: f(1.0, "upper", output=1.5), "1.5"),
        (lambda f: f(1.0, "upper", output=True), "True"),
        (lambda f: f(1.0, "upper", output=(1, 2, 3)), "(1, 2, 3)"),
        (lambda f: f(1.0, "upper", output=(1, -2)), "(1, -2)"),
        (lambda f: f(1.0, "upper", output="pairs"), "'pairs'"),
    ],
    "lipbook.bounds.spectral_norm": [
        (lambda f: f(torch.eye(2).to_sparse()), "sparse"),
        (lambda f: f([[1.0]]), "list"),
        (lambda f: f(torch.eye(3, dtype=torch.int64)), "torch.int64"),
        (lambda f: f(torch.eye(3, dtype=torch.complex128)), "torch.complex128"),
        (lambda f: f(ONE), "(3,)"),
        (lambda f: f(torch.ones(2, 3, 4)), "(2, 3, 4)"),
        (lambda f: f(torch.zeros(0, 3)), "(0, 3)"),
        (lambda f: f(NAN), "NaN"),
        (lambda f: f(INF), "infinite"),
        (lambda f: f(EYE, method="qr"), "'qr'"),
        (lambda f: f(EYE, method=None), "None"),
        (lambda f: f(EYE, steps=3), "3"),
        (lambda f: f(EYE, method="gram", steps=-1), "-1"),
        (lambda f: f(EYE, method="gram", steps=2.0), "float"),
        (lambda f: f(EYE, method="power", steps=True), "bool"),
    ],
    "lipbook.bounds.local_bound": [
        *layers(lambda f, layer: f(layer, ONE, 1.0)),
        (lambda f: f(nn.Linear(3, 2), ONE, 1.0), "nn.Linear"),
        (lambda f: f(nn.Sequential(nn.MaxPool1d(2)), torch.ones(1, 4), 1.0), "nn.MaxPool1d"),
        (lambda f: f(nn.Sequential(nn.Linear(3, 2), nn.Dropout()), ONE, 1.0), "train mode"),
        (lambda f: f(CHAIN, [1.0, 1.0, 1.0], 1.0), "list"),
        (lambda f: f(CHAIN, ONE.long(), 1.0), "torch.int64"),
        (lambda f: f(CHAIN, torch.tensor(1.0), 1.0), "single number"),
        (lambda f: f(CHAIN, torch.ones(4), 1.0), "(4,)"),
        (lambda f: f(CHAIN, torch.ones(0), 1.0), "(0,)"),
        (lambda f: f(CHAIN, NAN, 1.0), "NaN"),
        (lambda f: f(CHAIN, INF, 1.0), "infinite"),
        (lambda f: f(CHAIN, ONE, -1.0), "-1.0"),
        (lambda f: f(CHAIN, ONE, math.inf), "inf"),
        (lambda f: f(CHAIN, ONE, math.nan), "nan"),
        (lambda f: f(CHAIN, ONE, "1"), "str"),
        (lambda f: f(CHAIN, ONE, True), "bool"),
        (lambda f: f(CHAIN, ONE, None), "NoneType"),
        (lambda f: f(CHAIN, ONE, 2**53 + 1), "9007199254740993"),
        (lambda f: f(CHAIN, ONE, 10**400), "no float holds"),
        (lambda f: f(CHAIN, ONE, 1.0, norm=1), "got 1"),
        (lambda f: f(CHAIN, ONE, 1.0, norm="inf"), "'inf'"),
        (lambda f: f(CHAIN, ONE, 1.0, logits=2), "got 2"),
        (lambda f: f(CHAIN, ONE, 1.0, logits=-1), "-1"),
        (lambda f: f(CHAIN, ONE, 1.0, logits=1.0), "1.0"),
        (lambda f: f(CHAIN, ONE, 1.0, logits=(1, 1)), "(1, 1)"),
        (lambda f: f(CHAIN, ONE, 1.0, logits="all"), "'all'"),
        (lambda f: f(nn.Sequential(nn.Linear(3, 1)), ONE, 1.0, logits="pairs"), "one logit"),
        (lambda f: f(CHAIN, ONE, 1.0, method="crown"), "'crown'"),
        (lambda f: f(CHAIN, ONE, 1.0, method=None), "None"),
        (lambda f: f(CHAIN, ONE, 1.0, seconds=1.0), "seconds=1.0"),
        (lambda f: f(CHAIN, ONE, 1.0, method="interval", nodes=5), "nodes=5"),
        (lambda f: f(CHAIN, ONE, 1.0, method="branch", nodes=-1), "-1"),
        (lambda f: f(CHAIN, ONE, 1.0, method="branch", nodes=2.0), "2.0"),
        (lambda f: f(CHAIN, ONE, 1.0, method="branch", nodes=True), "True"),
        (lambda f: f(CHAIN, ONE, 1.0, method="branch", seconds=-1.0), "-1.0"),
        (lambda f: f(CHAIN, ONE, 1.0, method="branch", seconds=math.nan), "nan"),
        (lambda f: f(CHAIN, ONE, 1.0, method="branch", seconds="1"), "'1'"),
        (lambda f: f(CHAIN, ONE, 1.0, raw=1), "1"),
        (lambda f: f(CHAIN, ONE, 1.0, raw=None), "None"),
    ],
    "lipbook.bounds.preactivation_bounds": [
        *layers(lambda f, layer: f(layer, ONE, 1.0)),
        (lambda f: f(nn.ReLU(), ONE, 1.0), "nn.ReLU"),
        (lambda f: f(nn.Sequential(nn.MaxPool1d(2)), torch.ones(1, 4), 1.0), "nn.MaxPool1d"),
        (lambda f: f(CHAIN, (1.0, 1.0, 1.0), 1.0), "tuple"),
        (lambda f: f(CHAIN, torch.tensor(1.0), 1.0), "single number"),
        (lambda f: f(CHAIN, torch.ones(4), 1.0), "(4,)"),
        (lambda f: f(CHAIN, NAN, 1.0), "NaN"),
        (lambda f: f(CHAIN, ONE, -1.0), "-1.0"),
        (lambda f: f(CHAIN, ONE, math.inf), "inf"),
        (lambda f: f(CHAIN, ONE, ONE), "Tensor"),
        (lambda f: f(CHAIN, ONE, 10**400), "no float holds"),
        (lambda f: f(CHAIN, ONE, 1.0, "branch"), "'branch'"),
        (lambda f: f(CHAIN, ONE, 1.0, None), "None"),
    ],
    "lipbook.bounds.conv_norm": [
        (lambda f: f([[[[1.0]]]], 4), "list"),
        (lambda f: f(nn.Conv2d(1, 1, 3), 4), "pass its weight"),
        (lambda f: f(KERNEL.long(), 4), "torch.int64"),
        (lambda f: f(EYE, 4), "(3, 3)"),
        (lambda f: f(KERNEL[0], 4), "(3, 3, 3)"),
        (lambda f: f(KERNEL[:0], 4), "(0, 3, 3, 3)"),
        (lambda f: f(KERNEL * math.nan, 4), "NaN"),
        (lambda f: f(KERNEL * math.inf, 4), "infinite"),
        (lambda f: f(KERNEL, 0), "got 0"),
        (lambda f: f(KERNEL, -4), "got -4"),
        (lambda f: f(KERNEL, 4.0), "4.0"),
        (lambda f: f(KERNEL, True), "True"),
        (lambda f: f(KERNEL, [4, 4]), "[4, 4]"),
        (lambda f: f(KERNEL, (4, 4, 4)), "(4, 4, 4)"),
        (lambda f: f(KERNEL, "28x28"), "'28x28'"),
        (lambda f: f(KERNEL, (4, 2), padding="valid"), "size 2"),
        (lambda f: f(KERNEL, 4, padding=0, dilation=2), "span 5"),
        (lambda f: f(KERNEL, 4, stride=0), "got 0"),
        (lambda f: f(KERNEL, 4, stride=(1, -2)), "(1, -2)"),
        (lambda f: f(KERNEL, 4, stride=1.5), "1.5"),
        (lambda f: f(KERNEL, 4, padding="same"), "'same'"),
        (lambda f: f(KERNEL, 4, padding=-1), "got -1"),
        (lambda f: f(KERNEL, 4, padding=(1, True)), "(1, True)"),
        (lambda f: f(KERNEL, 4, padding=None), "None"),
        (lambda f: f(KERNEL, 4, dilation=0), "got 0"),
        (lambda f: f(KERNEL, 4, dilation="2"), "'2'"),
        (lambda f: f(KERNEL, 4, groups=3), "got 3"),
        (lambda f: f(KERNEL, 4, groups=0), "got 0"),
        (lambda f: f(KERNEL, 4, groups=2.0), "float"),
        (lambda f: f(KERNEL, 4, groups=True), "bool"),
        (lambda f: f(KERNEL, 4, method="fft"), "'fft'"),
        (lambda f: f(KERNEL, 4, method=None), "None"),
        (lambda f: f(KERNEL, 4, steps=3), "3"),
        (lambda f: f(KERNEL, 4, method="gram", steps=-1), "-1"),
        (lambda f: f(KERNEL, 4, method="gram", steps=2.0), "float"),
    ],
    "lipbook.bounds.product_bound": [
        *layers(lambda f, layer: f(layer)),
        *shapes(lambda f, layer, shape: f(nn.Sequential(layer), input_shape=shape)),
        (lambda f: f(nn.ReLU()), "nn.Sequential"),
        (lambda f: f(nn.Sequential(broken_weights())), "NaN"),
        (lambda f: f(nn.Sequential(nn.Dropout(0.5))), "train mode"),
        (lambda f: f(CHAIN, norm=1), "1"),
        (lambda f: f(CHAIN, norm="2"), "'2'"),
        *logits(lambda f, wrong: f(CHAIN, logits=wrong)),
        (lambda f: f(nn.Sequential(nn.ReLU()), logits=0), "pass input_shape"),
    ],
    "lipbook.sdp.lipsdp": [
        *layers(lambda f, layer: f(layer)),
        *shapes(lambda f, layer, shape: f(nn.Sequential(layer), input_shape=shape)),
        (lambda f: f(nn.Linear(3, 2)), "nn.Linear"),
        (lambda f: f(nn.Sequential(nn.ReLU())), "pass input_shape"),
        (lambda f: f(nn.Sequential(nn.Conv1d(1, 1, 2), nn.Flatten(), nn.Linear(3, 2))), "pass input_shape"),
        (lambda f: f(nn.Sequential(broken_weights())), "NaN"),
        (lambda f: f(nn.Sequential(nn.Linear(3, 2), nn.Dropout())), "train mode"),
        (lambda f: f(nn.Sequential(nn.MaxPool1d(2)), input_shape=(1, 4)), "nn.MaxPool1d"),
        (lambda f: f(nn.Sequential(nn.CELU(-1.0), nn.Linear(3, 2))), "CELU"),
        *logits(lambda f, wrong: f(CHAIN, logits=wrong)),
        (lambda f: f(nn.Sequential(nn.Linear(3, 1)), logits="pairs"), "one logit"),
        (lambda f: f(CHAIN, region=ONE), "Tensor"),
        (lambda f: f(CHAIN, region=0.1), "float"),
        (lambda f: f(CHAIN, region=lipbook.Ball(ONE, 1.0, norm=2)), "norm=2"),
        (lambda f: f(CHAIN, region=lipbook.Ball(torch.ones(4), 1.0)), "(4,)"),
        (lambda f: f(CHAIN, region=lipbook.Ball(torch.tensor(1.0), 1.0)), "single number"),
        (lambda f: f(CHAIN, region=lipbook.Ball(ONE, 1.0), input_shape=(4,)), "(4,)"),
        (lambda f: f(CHAIN, multipliers="network"), "'network'"),
        (lambda f: f(CHAIN, multipliers=None), "None"),
        (lambda f: f(CHAIN, multipliers=torch.ones(4)), "tensor"),
        (lambda f: f(CHAIN, solver="mosek"), "'mosek'"),
        (lambda f: f(CHAIN, solver=None), "None"),
        (lambda f: f(CHAIN, iterations=-1), "-1"),
        (lambda f: f(CHAIN, iterations=5.0), "5.0"),
        (lambda f: f(CHAIN, iterations=True), "True"),
        (lambda f: f(CHAIN, iterations="5"), "'5'"),
        (lambda f: f(CHAIN, solver="clarabel", iterations=0), "0"),
        (lambda f: f(CHAIN, solver="scs", iterations=0), "0"),
    ],
    "lipbook.sdp.eclipse_fast": [
        *layers(lambda f, layer: f(layer)),
        *shapes(lambda f, layer, shape: f(nn.Sequential(layer), input_shape=shape)),
        (lambda f: f(nn.Linear(3, 2)), "nn.Linear"),
        (lambda f: f(nn.Sequential(nn.ReLU())), "pass input_shape"),
        (lambda f: f(nn.Sequential(broken_weights())), "NaN"),
        (lambda f: f(nn.Sequential(nn.Linear(3, 2), nn.Dropout())), "train mode"),
        (lambda f: f(nn.Sequential(nn.MaxPool1d(2)), input_shape=(1, 4)), "nn.MaxPool1d"),
        *logits(lambda f, wrong: f(CHAIN, logits=wrong)),
        (lambda f: f(nn.Sequential(nn.Linear(3, 1)), logits="pairs"), "one logit"),
    ],
    "lipbook.bounds.gradient_lower_bound": [
        *layers(lambda f, layer: f(layer, EYE)),
        (lambda f: f(nn.ReLU(), EYE), "nn.Sequential"),
        (lambda f: f(nn.Sequential(broken_weights()), EYE), "NaN"),
        (lambda f: f(nn.Sequential(nn.Dropout(0.5)), EYE), "train mode"),
        (lambda f: f(CHAIN, [[1.0, 2.0, 3.0]]), "list"),
        (lambda f: f(CHAIN, None), "NoneType"),
        (lambda f: f(CHAIN, EYE.long()), "torch.int64"),
        (lambda f: f(CHAIN, EYE.cfloat()), "torch.complex64"),
        (lambda f: f(CHAIN, EYE.to_sparse()), "sparse"),
        (lambda f: f(CHAIN, torch.zeros(0, 3)), "(0, 3)"),
        (lambda f: f(CHAIN, ONE), "(3,)"),
        (lambda f: f(CHAIN, torch.ones(5, 4)), "(4,)"),
        (lambda f: f(CHAIN, torch.cat([NAN, NAN], 1)), "NaN"),
        (lambda f: f(CHAIN, torch.cat([INF, INF], 1)), "infinite"),
        (lambda f: f(CHAIN, EYE, norm=1), "1"),
        *logits(lambda f, wrong: f(CHAIN, EYE, logits=wrong)),
        (lambda f: f(CHAIN, EYE, region=ONE), "Tensor"),
        (lambda f: f(CHAIN, EYE, region=1.0), "float"),
        (lambda f: f(CHAIN, EYE, region=lipbook.Ball(torch.ones(4), 1)), "(4,)"),
        (lambda f: f(CHAIN, EYE, region=lipbook.Ball(EYE, 1)), "(3, 3)"),
        (lambda f: f(CHAIN, EYE, seed="0"), "'0'"),
        (lambda f: f(CHAIN, EYE, seed=True), "True"),
        (lambda f: f(CHAIN, EYE, seed=-1), "-1"),
        (lambda f: f(CHAIN, EYE, seed=2**64), str(2**64)),
    ],
    "lipbook.contracts.enclose": [
        *layers(lambda c, layer: c(layer, EYE.double(), EYE.double())),
        (lambda c: c(broken_weights(), EYE.double(), EYE.double()), "NaN"),
        (lambda c: c(nn.Dropout(0.5), EYE.double(), EYE.double()), "train mode"),
        (lambda c: c(nn.ReLU(), [[1.0]], EYE.double()), "list"),
        (lambda c: c(nn.ReLU(), EYE.long(), EYE.double()), "torch.int64"),
        (lambda c: c(nn.ReLU(), NAN, NAN.double()), "NaN"),
        (lambda c: c(nn.ReLU(), torch.zeros(0, 3), EYE.double()), "(0, 3)"),
        (lambda c: c(nn.ReLU(), EYE, EYE), "torch.float32"),
        (lambda c: c(nn.ReLU(), EYE, [[1.0]]), "list"),
        (lambda c: c(nn.ReLU(), EYE, None), "NoneType"),
        (lambda c: c(nn.ReLU(), EYE, torch.ones(2, 3).double()), "(2, 3)"),
        (lambda c: c(nn.ReLU(), ONE, ONE.double()), "(3,)"),
        (lambda c: c(nn.ReLU(), EYE, -EYE.double()), "negative"),
        (lambda c: c(nn.ReLU(), torch.ones(1, 2), NAN.double()), "negative or NaN"),
        (lambda c: c(nn.Linear(4, 2), EYE, EYE.double()), "(3, 3)"),
        (lambda c: c(nn.Conv1d(4, 2, 1), EYE[None], EYE.double()[None]), "(3, 3)"),
        (lambda c: c(nn.MaxPool2d(2), EYE, EYE.double()), "(3,)"),
        (lambda c: c(nn.BatchNorm1d(4).eval(), EYE, EYE.double()), "(3,)"),
        (lambda c: c.register(int), "int"),
    ],
    "lipbook.contracts.lipschitz": [
        *layers(lambda c, layer: c(layer)),
        *shapes(lambda c, layer, shape: c(layer, input_shape=shape)),
        (lambda c: c(broken_weights()), "NaN"),
        (lambda c: c(nn.ReLU(), norm=1), "1"),
        (lambda c: c(nn.Dropout(0.5)), "nn.Dropout"),
        (lambda c: c(nn.Conv2d(1, 1, 3), input_shape=(1, 2, 2)), "(1, 2, 2)"),
        (lambda c: c(nn.Conv2d(1, 1, 3, padding=2, padding_mode="circular")), "padding=(2, 2)"),
        (lambda c: c(nn.AvgPool1d(3), input_shape=(3,)), "(3,)"),
        (lambda c: c(nn.AdaptiveAvgPool2d(2)), "pass input_shape"),
        (lambda c: c(nn.MaxPool2d(2, return_indices=True)), "return_indices=True"),
        (lambda c: c(nn.ReLU(), norm="inf"), "'inf'"),
        (lambda c: c.register(int), "int"),
        (lambda c: c.register(nn.ReLU()), "ReLU"),
    ],
    "lipbook.contracts.affine": [
        *layers(lambda c, layer: c(layer, (3,)), whole=True),
        *shapes(lambda c, layer, shape: c(layer, shape)),
        (lambda c: c(broken_weights(), (3,)), "NaN"),
        (lambda c: c(nn.Conv2d(1, 64, 3), (1, 128, 128)), "1016064 x 16384"),
        (lambda c: c(nn.AvgPool2d(2), (1, 1, 2)), "(1, 1, 2)"),
        (lambda c: c(nn.ReLU(), (3,)), "nn.ReLU"),
    ],
    "lipbook.contracts.output_shape": [
        *layers(lambda c, layer: c(layer, (3,))),
        *shapes(lambda c, layer, shape: c(layer, shape)),
    ],
    "lipbook.contracts.expand": [
        *layers(lambda c, layer: c(layer)),
        (lambda c: c(nn.ReLU(), blocks="all"), "'all'"),
    ],
    "lipbook.contracts.slopes": [
        *layers(lambda c, layer: c(layer), whole=True),
        (lambda c: c(nn.Linear(3, 3)), "nn.Linear"),
        (lambda c: c(nn.ReLU(), lower=ONE), "one of them"),
        (lambda c: c(nn.ReLU(), upper=ONE), "one of them"),
        (lambda c: c(nn.ReLU(), lower=-1.0, upper=1.0), "float"),
        (lambda c: c(nn.ReLU(), lower=ONE, upper=torch.ones(4)), "(4,)"),
        (lambda c: c(nn.ReLU(), lower=2 * ONE, upper=ONE), "lower"),
        (lambda c: c(nn.ReLU(), lower=NAN, upper=INF), "NaN"),
        (lambda c: c(nn.ReLU(), lower=ONE, upper=torch.ones(3, dtype=torch.int64)), "torch.int64"),
    ],
    "lipbook.contracts.residual": [
        *layers(lambda c, layer: c(layer), whole=True),
        (lambda c: c(nn.Linear(3, 3)), "nn.Linear has no residual contract"),
        (lambda c: c(lipbook.layers.Residual(Unknown())), "Unknown"),
        (lambda c: c(lipbook.layers.Residual(nn.Dropout())), "nn.Dropout is in train mode"),
        (lambda c: c.register(int), "int"),
    ],
    "lipbook.contracts.Sorting": [
        (lambda f: f(2.0), "2.0"),
        (lambda f: f(True), "True"),
        (lambda f: f(1), "got 1"),
        (lambda f: f(2, dim=0), "got 0"),
        (lambda f: f(2, dim=-1), "got -1"),
        (lambda f: f(2, dim="1"), "'1'"),
    ],
    "lipbook.contracts.Reflection": [
        (lambda f: f([[1.0, 0.0]]), "list"),
        (lambda f: f(torch.ones(2, 2, dtype=torch.int64)), "torch.int64"),
        (lambda f: f(ONE), "(3,)"),
        (lambda f: f(EYE), "(3, 3)"),
        (lambda f: f(NAN), "NaN"),
        (lambda f: f(torch.ones(1, 2), dim=0), "got 0"),
        (lambda f: f(torch.ones(1, 2), dim=None), "None"),
    ],
    "lipbook.layers.MaxMin": [
        (lambda f: f(0), "got 0"),
        (lambda f: f(-1), "got -1"),
        (lambda f: f(1.0), "1.0"),
        (lambda f: f(True), "True"),
        (lambda f: f()(torch.ones(2, 3)), "(3,)"),
        (lambda f: f(2)(torch.ones(2, 4)), "(4,)"),
    ],
    "lipbook.layers.GroupSort": [
        (lambda f: f(1), "got 1"),
        (lambda f: f("2"), "'2'"),
        (lambda f: f(2, 0), "got 0"),
        (lambda f: f(2, dim=None), "None"),
        (lambda f: f(3)(torch.ones(2, 4)), "(4,)"),
    ],
    "lipbook.layers.Householder": [
        (lambda f: f(3), "got 3"),
        (lambda f: f(0), "got 0"),
        (lambda f: f(4.0), "4.0"),
        (lambda f: f(4)(torch.ones(2, 6)), "(6,)"),
    ],
    "lipbook.layers.LipschitzResidual": [
        (lambda f: f(0, 2, 2), "got 0"),
        (lambda f: f(2, 2.0, 2), "2.0"),
        (lambda f: f(2, 2, True), "True"),
        (lambda f: f(2, 2, 2, 0.0), "got 0.0"),
        (lambda f: f(2, 2, 2, lipschitz=-1.0), "got -1.0"),
        (lambda f: f(2, 2, 2, math.nan), "got nan"),
        (lambda f: f(2, 2, 2, math.inf), "got inf"),
        (lambda f: f(2, 2, 2, "1"), "str"),
    ],
    "lipbook.layers.SandwichLinear": [
        (lambda f: f(0, 2), "got 0"),
        (lambda f: f(2, None), "None"),
        (lambda f: f(2, 2, "gelu"), "'gelu'"),
        (lambda f: f(2, 2, nn.ReLU()), "ReLU()"),
        (lambda f: f(2, 2, bias=1), "got 1"),
    ],
    "lipbook.layers.SLLLinear": [
        (lambda f: f(0), "got 0"),
        (lambda f: f(2.0), "2.0"),
        (lambda f: f(2, 0), "got 0"),
        (lambda f: f(2, hidden="2"), "'2'"),
    ],
    "lipbook.layers.SLLConv2d": [
        (lambda f: f(0, 3), "got 0"),
        (lambda f: f(2, 4), "got 4"),
        (lambda f: f(2, (3, 3)), "(3, 3)"),
        (lambda f: f(2, 3, 0), "got 0"),
        (lambda f: f(2, 3, hidden=1.5), "1.5"),
        (lambda f: f(2, 3, padding_mode="reflect"), "'reflect'"),
    ],
    "lipbook.layers.OrthogonalLinear": [
        (lambda f: f(0, 2), "got 0"),
        (lambda f: f(2, -1), "got -1"),
        (lambda f: f(2, 2.0), "2.0"),
        (lambda f: f(True, 2), "True"),
        (lambda f: f(2, 2, "no"), "'no'"),
        (lambda f: f(2, 2, method="exp"), "'exp'"),
        (lambda f: f(2, 2, method=None), "None"),
        (lambda f: f(2, 2, method=["qr"]), "['qr']"),
    ],
    "lipbook.layers.OrthogonalConv2d": [
        (lambda f: f(0, 2, 3), "got 0"),
        (lambda f: f(2, None, 3), "None"),
        (lambda f: f(2, 2, (3, 3)), "(3, 3)"),
        (lambda f: f(2, 2, 4), "got 4"),
        (lambda f: f(2, 2, 3, 4), "got 4"),
        (lambda f: f(2, 2, 3, stride=1.0), "1.0"),
        (lambda f: f(2, 2, 3, padding_mode="reflect"), "'reflect'"),
        (lambda f: f(2, 2, 3, padding_mode=1), "got 1"),
        (lambda f: f(2, 2, 3, bias=None), "None"),
        (lambda f: f(2, 2, 3, method="rko"), "'rko'"),
        (lambda f: f(2, 3, 3, method="soc"), "2 and 3"),
        (lambda f: f(2, 2, 3, padding_mode="zeros", method="cayley"), "circular"),
        (lambda f: f(2, 2, 3, method="patch"), "stride=1"),
        (lambda f: f(2, 2, 3)(torch.ones(1, 3, 4, 4)), "(3, 4, 4)"),
        (lambda f: f(2, 2, 3)(torch.ones(2, 4, 4)), "(4, 4)"),
        (lambda f: f(2, 2, 3)(torch.ones(1, 2, 0, 4)), "(2, 0, 4)"),
        (lambda f: f(2, 2, 2, 2)(torch.ones(1, 2, 5, 4)), "(2, 5, 4)"),
        (lambda f: f(2, 2, 3, method="bro")(torch.ones(1, 2, 4, 4).half()), "torch.float16"),
    ],
    "lipbook.layers.AOLLinear": [
        (lambda f: f(0, 2), "got 0"),
        (lambda f: f(2, 2.5), "2.5"),
        (lambda f: f(2, "2"), "'2'"),
        (lambda f: f(2, 2, bias=1), "got 1"),
    ],
    "lipbook.layers.AOLConv2d": [
        (lambda f: f(0, 2, 3), "got 0"),
        (lambda f: f(2, -2, 3), "got -2"),
        (lambda f: f(2, 2, 2), "got 2"),
        (lambda f: f(2, 2, (3, 3)), "(3, 3)"),
        (lambda f: f(2, 2, 3, "reflect"), "'reflect'"),
        (lambda f: f(2, 2, 3, bias="yes"), "'yes'"),
        (lambda f: f(2, 2, 3)(torch.ones(1, 3, 4, 4)), "(3, 4, 4)"),
        (lambda f: f(2, 2, 9)(torch.ones(1, 2, 3, 3)), "(2, 3, 3)"),
    ],
    "lipbook.layers.export": [
        *layers(lambda c, layer: c(layer))[:4],
        (lambda f: f(nn.Linear(2, 2)), "nn.Linear"),
        (lambda f: f(lipbook.layers.OrthogonalLinear(2, 2)), "OrthogonalLinear"),
        (lambda f: f(CHAIN, 3), "3"),
        (lambda f: f(CHAIN, [3]), "[3]"),
        (lambda f: f(CHAIN, (0,)), "(0,)"),
        (lambda f: f(CHAIN, (4,)), "(4,)"),
        (
            lambda f: f(nn.Sequential(lipbook.layers.OrthogonalConv2d(2, 2, 3, method="cayley"))),
            "input_shape",
        ),
    ],
    "lipbook.layers.Residual": [
        (lambda f: f(torch.relu), "relu"),
        (lambda f: f(nn.ReLU), "nn.ReLU is a class"),
        (lambda f: f(nn.Linear(3, 2))(torch.ones(2, 3)), "(2,)"),
        (lambda f: f(nn.Linear(3, 1))(torch.ones(2, 3)), "(1,)"),
    ],
    "lipbook.layers.Normalize": [
        (lambda f: f("0.5", 1.0), "str"),
        (lambda f: f(None, 1.0), "NoneType"),
        (lambda f: f(0.0, [[1.0], 2.0]), "list"),
        (lambda f: f(EYE, 1.0), "(3, 3)"),
        (lambda f: f(0.5, torch.ones(3, dtype=torch.int64)), "torch.int64"),
        (lambda f: f([], 1.0), "(0,)"),
        (lambda f: f(math.nan, 1.0), "NaN"),
        (lambda f: f(0.0, math.inf), "infinite"),
        (lambda f: f(1e300, 1.0), "torch.float32"),
        (lambda f: f(0.0, 0.0), "got 0.0"),
        (lambda f: f(0.0, [1.0, -2.0]), "got -2.0"),
        (lambda f: f(0.0, 1e-300), "got 0.0"),
        (lambda f: f([1.0, 2.0], [1.0, 2.0, 3.0]), "2 and 3"),
        (lambda f: f([1.0, 2.0], 1.0)(torch.ones(4, 3)), "(3,)"),
        (lambda f: f(0.0, 1.0)(ONE), "()"),
    ],
    "lipbook.contracts.check": [
        *layers(lambda c, layer: c(layer, (3,))),
        *shapes(lambda c, layer, shape: c(layer, shape)),
        (lambda c: c(nn.ReLU(), (3,), seed="0"), "'0'"),
        (lambda c: c(nn.ReLU(), (3,), seed=1.5), "1.5"),
        (lambda c: c(nn.ReLU(), (3,), seed=True), "True"),
    ],
    "lipbook.data.network": [
        (lambda f: f("cifar"), "'cifar'"),
        (lambda f: f("Digits"), "'Digits'"),
        (lambda f: f(""), "''"),
        (lambda f: f(None), "None"),
        (lambda f: f(["digits"]), "['digits']"),
        (lambda f: f(3), "3"),
    ],
    "lipbook.training.attack": [
        *layers(lambda f, layer: f(layer, EYE, SET[1], 0.1))[:4],
        (lambda f: f(nn.LazyLinear(2), EYE, SET[1], 0.1), "nn.LazyLinear"),
        (lambda f: f(nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5)), EYE, SET[1], 0.1), "eval()"),
        (lambda f: f(nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)), EYE, SET[1], 0.1), "eval()"),
        (lambda f: f(nn.Linear(4, 2), EYE, SET[1], 0.1), "(3,)"),
        (lambda f: f(nn.Linear(3, 1), EYE, SET[1], 0.1), "(1, 1)"),
        (lambda f: f(nn.LSTM(3, 2), EYE, SET[1], 0.1), "tuple"),
        (lambda f: f(broken_weights(), EYE, SET[1], 0.1), "nan"),
        (lambda f: f(CHAIN, [[1.0, 0.0, 0.0]], SET[1], 0.1), "list"),
        (lambda f: f(CHAIN, EYE.long(), SET[1], 0.1), "torch.int64"),
        (lambda f: f(CHAIN, EYE.to_sparse(), SET[1], 0.1), "torch.sparse_coo"),
        (lambda f: f(CHAIN, ONE, SET[1], 0.1), "(3,)"),
        (lambda f: f(CHAIN, torch.zeros(0, 3), torch.zeros(0).long(), 0.1), "(0, 3)"),
        (lambda f: f(nn.Linear(2, 2), NAN, torch.tensor([1]), 0.1), "sample 0"),
        (lambda f: f(nn.Linear(2, 2), INF, torch.tensor([1]), 0.1), "sample 0"),
        (lambda f: f(CHAIN, 2 * EYE, SET[1], 0.1), "from 0 to 2"),
        (lambda f: f(CHAIN, EYE - 1, SET[1], 0.1), "from -1 to 0"),
        (lambda f: f(CHAIN, EYE, [0, 1, 1], 0.1), "list"),
        (lambda f: f(CHAIN, EYE, ONE, 0.1), "torch.float32"),
        (lambda f: f(CHAIN, EYE, ONE > 0, 0.1), "torch.bool"),
        (lambda f: f(CHAIN, EYE, torch.tensor([0, 1]), 0.1), "(2,)"),
        (lambda f: f(CHAIN, EYE, EYE.long(), 0.1), "(3, 3)"),
        (lambda f: f(CHAIN, EYE, torch.tensor([0, 1, 2]), 0.1), "0 to 2"),
        (lambda f: f(CHAIN, EYE, torch.tensor([0, -1, 1]), 0.1), "-1 to 1"),
        (lambda f: f(CHAIN, EYE, SET[1], -0.1), "-0.1"),
        (lambda f: f(CHAIN, EYE, SET[1], math.nan), "nan"),
        (lambda f: f(CHAIN, EYE, SET[1], math.inf), "inf"),
        (lambda f: f(CHAIN, EYE, SET[1], "0.1"), "'0.1'"),
        (lambda f: f(CHAIN, EYE, SET[1], 0.1, clamp=1), "1"),
        (lambda f: f(CHAIN, EYE, SET[1], 0.1, clamp=(0, 1, 2)), "(0, 1, 2)"),
        (lambda f: f(CHAIN, EYE, SET[1], 0.1, clamp=("0", 1)), "'0'"),
        (lambda f: f(CHAIN, EYE, SET[1], 0.1, clamp=(1, 0)), "(1, 0)"),
        (lambda f: f(CHAIN, EYE, SET[1], 0.1, clamp=(0, math.nan)), "nan"),
        (lambda f: f(CHAIN, EYE, SET[1], 0.1, steps=0), "0"),
        (lambda f: f(CHAIN, EYE, SET[1], 0.1, steps=5.0), "5.0"),
        (lambda f: f(CHAIN, EYE, SET[1], 0.1, restarts=0), "0"),
        (lambda f: f(CHAIN, EYE, SET[1], 0.1, restarts=True), "True"),
        (lambda f: f(CHAIN, EYE, SET[1], 0.1, seed=-1), "-1"),
        (lambda f: f(CHAIN, EYE, SET[1], 0.1, seed="0"), "'0'"),
        (lambda f: f(CHAIN, EYE, SET[1], 0.1, targets=[1, 0, 0]), "list"),
        (lambda f: f(CHAIN, EYE, SET[1], 0.1, targets=torch.tensor([1, 0])), "(2,)"),
        (lambda f: f(CHAIN, EYE, SET[1], 0.1, targets=torch.tensor([1, 0, 2])), "0 to 2"),
        (lambda f: f(CHAIN, EYE, SET[1], 0.1, targets=torch.tensor([1, 1, 0])), "sample 1"),
    ],
    "lipbook.training.fit": [
        *layers(lambda f, layer: f(layer, SET, None, LOSS, 3))[:4],
        (lambda f: f(nn.ReLU(), SET, None, LOSS, 3), "nn.ReLU"),
        (lambda f: f(nn.Linear(3, 2, device="meta"), SET, None, LOSS, 3), "meta"),
        (lambda f: f(nn.Linear(4, 2), SET, None, LOSS, 3), "(3,)"),
        (lambda f: f(nn.Linear(3, 2).double(), SET, None, LOSS, 3), "torch.float32"),
        (lambda f: f(nn.LSTM(3, 2), SET, None, LOSS, 3), "tuple"),
        (lambda f: f(nn.Linear(3, 2), EYE, None, LOSS, 3), "Tensor"),
        (lambda f: f(nn.Linear(3, 2), (*SET, *SET), None, LOSS, 3), "4"),
        (lambda f: f(nn.Linear(3, 2), None, None, LOSS, 3), "NoneType"),
        (lambda f: f(nn.Linear(3, 2), ([[1.0]], SET[1]), None, LOSS, 3), "list"),
        (lambda f: f(nn.Linear(3, 2), (EYE.to("meta"), SET[1]), None, LOSS, 3), "meta"),
        (lambda f: f(nn.Linear(3, 2), (EYE, [0, 1, 1]), None, LOSS, 3), "list"),
        (lambda f: f(nn.Linear(3, 2), (EYE.long(), SET[1]), None, LOSS, 3), "torch.int64"),
        (lambda f: f(nn.Linear(3, 2), (torch.zeros(0, 3), torch.zeros(0).long()), None, LOSS, 3), "(0, 3)"),
        (lambda f: f(nn.Linear(2, 2), (NAN, torch.tensor([1])), None, LOSS, 3), "sample 0"),
        (lambda f: f(nn.Linear(2, 2), (INF, torch.tensor([1])), None, LOSS, 3), "sample 0"),
        (lambda f: f(nn.Linear(3, 2), (EYE, ONE), None, LOSS, 3), "torch.float32"),
        (lambda f: f(nn.Linear(3, 2), (EYE, ONE > 0), None, LOSS, 3), "torch.bool"),
        (lambda f: f(nn.Linear(3, 2), (EYE, torch.tensor([0, 1])), None, LOSS, 3), "(2,)"),
        (lambda f: f(nn.Linear(3, 2), (EYE, EYE.long()), None, LOSS, 3), "(3, 3)"),
        (lambda f: f(nn.Linear(3, 2), (EYE, torch.tensor([0, 1, 2])), None, LOSS, 3), "from 0 to 2"),
        (lambda f: f(nn.Linear(3, 2), (EYE, torch.tensor([0, -1, 1])), None, LOSS, 3), "from -1 to 1"),
        (lambda f: f(nn.Linear(3, 2), SET, (EYE, torch.tensor([0, 1, 2])), LOSS, 3), "validation labels"),
        (lambda f: f(nn.Linear(3, 2), SET, (torch.eye(4), torch.zeros(4).long()), LOSS, 3), "(4,)"),
        (lambda f: f(nn.Linear(3, 2), SET, (), LOSS, 3), "validation"),
        (lambda f: f(nn.Linear(3, 2), SET, None, nn.CrossEntropyLoss, 3), "CrossEntropyLoss"),
        (lambda f: f(nn.Linear(3, 2), SET, None, None, 3), "None"),
        (lambda f: f(nn.Linear(3, 2), SET, None, nn.CrossEntropyLoss(reduction="none"), 3), "(3,)"),
        (lambda f: f(nn.Linear(3, 2), SET, None, lambda z, y: 1.0, 3), "float"),
        (lambda f: f(nn.Linear(3, 2), SET, None, lambda z, y: z.sum().detach(), 3), "gradient"),
        (lambda f: f(nn.Linear(3, 2), SET, None, LOSS, 0), "0"),
        (lambda f: f(nn.Linear(3, 2), SET, None, LOSS, 3.0), "3.0"),
        (lambda f: f(nn.Linear(3, 2), SET, None, LOSS, True), "bool"),
        (lambda f: f(nn.Linear(3, 2), SET, None, LOSS, 3, seed=-1), "-1"),
        (lambda f: f(nn.Linear(3, 2), SET, None, LOSS, 3, seed="0"), "'0'"),
        (lambda f: f(nn.Linear(3, 2), SET, None, LOSS, 3, batch_size=0), "0"),
        (lambda f: f(nn.Linear(3, 2), SET, None, LOSS, 3, batch_size=1.5), "1.5"),
        (lambda f: f(nn.Linear(3, 2), SET, None, LOSS, 3, lr=0), "0"),
        (lambda f: f(nn.Linear(3, 2), SET, None, LOSS, 3, lr=-0.1), "-0.1"),
        (lambda f: f(nn.Linear(3, 2), SET, None, LOSS, 3, lr=math.nan), "nan"),
        (lambda f: f(nn.Linear(3, 2), SET, None, LOSS, 3, lr="0.1"), "'0.1'"),
        (lambda f: f(nn.Linear(3, 2), SET, None, LOSS, 3, schedule="step"), "'step'"),
        (lambda f: f(nn.Linear(3, 2), SET, None, LOSS, 3, schedule=None), "None"),
        (lambda f: f(nn.Linear(3, 2), SET, None, LOSS, 3, schedule=["cosine"]), "['cosine']"),
        (lambda f: f(nn.Linear(3, 2), SET, None, LOSS, 3, shift=-1), "-1"),
        (lambda f: f(nn.Linear(3, 2), SET, None, LOSS, 3, shift=1.0), "1.0"),
        (lambda f: f(nn.Linear(3, 2), SET, None, LOSS, 3, shift=True), "bool"),
        (lambda f: f(nn.Linear(3, 2), SET, None, LOSS, 3, shift=1), "(3, 3)"),
        (lambda f: f(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), IMAGES, None, LOSS, 3, shift=2), "2 x 2"),
        (lambda f: f(nn.Linear(3, 2), SET, None, LOSS, 3, checkpoint=3), "int"),
        (lambda f: f(nn.Linear(3, 2), SET, None, LOSS, 3, checkpoint=b"run.pt"), "bytes"),
        (lambda f: f(nn.Linear(3, 2), SET, None, LOSS, 3, checkpoint=""), "'.'"),
        (lambda f: f(nn.Linear(3, 2), SET, None, LOSS, 3, checkpoint="no-folder/run.pt"), "no-folder"),
        (lambda f: f(nn.Linear(3, 2), SET, None, LOSS, 3, checkpoint=__file__), "test_bad_input.py"),
        (lambda f: f(nn.Linear(3, 2), SET, None, LOSS, 3, device="meta"), "meta"),
        (lambda f: f(nn.Linear(3, 2), SET, None, LOSS, 3, device="gpu"), "'gpu'"),
        (lambda f: f(nn.Linear(3, 2), SET, None, LOSS, 3, device="cuda:99"), "cuda:99"),
        (lambda f: f(nn.Linear(3, 2), SET, None, LOSS, 3, device=0), "0"),
    ],
    "lipbook.training.OffsetCrossEntropy": [
        *numbers(lambda c, offset: c(offset), "offset"),
        *numbers(lambda c, temperature: c(1.0, temperature), "temperature", -1),
        (lambda c: c(1.0)(EYE.tolist(), SET[1]), "list"),
        (lambda c: c(1.0)(ONE, SET[1]), "(3,)"),
        (lambda c: c(1.0)(EYE, ONE), "torch.float32"),
        (lambda c: c(1.0)(EYE, torch.tensor([0, 1, -100])), "-100"),
        (lambda c: c(1.0)(EYE, torch.tensor([0, 1, 3])), "from 0 to 3"),
    ],
    "lipbook.training.EMMALoss": losses(lambda c, radius=1.0, **others: c(radius, **others)),
    "lipbook.training.GloRoLoss": losses(lambda c, radius=1.0, **others: c(radius, **others)),
    "lipbook.training.LogitAnnealingLoss": [
        *losses(lambda c, radius=1.0, **others: c(radius, **others)),
        *numbers(lambda c, offset: c(1.0, offset=offset), "offset"),
        *numbers(lambda c, power: c(1.0, power=power), "power", -1),
    ],
    "lipbook.training.RadiusRamp": [
        (lambda c: c(LOSS), "CrossEntropyLoss"),
        (lambda c: c(lipbook.training.OffsetCrossEntropy(1.0)), "OffsetCrossEntropy"),
        (lambda c: c(lipbook.training.EMMALoss), "the class EMMALoss"),
        (lambda c: c(None), "None"),
        (lambda c: c(c(lipbook.training.EMMALoss(1.0))), "RadiusRamp"),
        *numbers(lambda c, start: c(lipbook.training.EMMALoss(1.0), start=start), "start", -0.1),
        *numbers(lambda c, until: c(lipbook.training.EMMALoss(1.0), until=until), "until", 0),
        (lambda c: c(lipbook.training.EMMALoss(1.0), start=1.5), "1.5"),
        (lambda c: c(lipbook.training.EMMALoss(1.0), until=1.5), "1.5"),
        (lambda c: c(lipbook.training.EMMALoss(1.0)).at(2), "got 2"),
        (lambda c: c(lipbook.training.EMMALoss(1.0))(EYE, SET[1], EYE), "schedule"),
    ],
    "lipbook.plot.ladder": [
        (lambda f: f([]), "empty"),
        (lambda f: f([1.0]), "float"),
        (lambda f: f(3), "int"),
        (lambda f: f(UPPER), "Bound"),
        (lambda f: f([UPPER], labels=[]), "0"),
        (lambda f: f([UPPER, dataclasses.replace(UPPER, norm=math.inf)]), "norm"),
        (lambda f: f([UPPER, dataclasses.replace(UPPER, output=3)]), "output"),
        (lambda f: f([UPPER, dataclasses.replace(UPPER, region=lipbook.Ball(ONE, 1))]), "region"),
    ],
    "lipbook.plot.show": [
        (lambda f: f(Figure(), ""), "''"),
        (lambda f: f(Figure(), " "), "''"),
        (lambda f: f(Figure(), None), "NoneType"),
        (lambda f: f(Figure(), 3), "int"),
        (lambda f: f("figure", ALT), "str"),
        (lambda f: f(None, ALT), "NoneType"),
    ],
    "lipbook.plot.slider": [
        (lambda f: f({}, "steps", []), "0"),
        (lambda f: f({1: Figure()}, "steps", [ALT]), "1"),
        (lambda f: f({1: Figure(), 2: Figure()}, "steps", [ALT]), "1"),
        (lambda f: f({1: Figure(), 2: Figure()}, "steps", [ALT, ""]), "''"),
        (lambda f: f({1: Figure(), 2: Figure()}, "steps", None), "NoneType"),
        (lambda f: f({1: Figure(), 2: None}, "steps", [ALT, ALT]), "NoneType"),
        (lambda f: f([Figure(), Figure()], "steps", [ALT, ALT]), "Figure"),
        (lambda f: f(3, "steps", [ALT]), "int"),
    ],
    "lipbook.claims.claim": [
        (lambda f: f("spectral norms", "It is small.", 1, True), "'spectral norms'"),
        (lambda f: f("Bounds/a/b", "It is small.", 1, True), "'Bounds/a/b'"),
        (lambda f: f(None, "It is small.", 1, True), "None"),
        (lambda f: f("bounds/a/b", "", 1, True), "''"),
        (lambda f: f("bounds/a/b", 3, 1, True), "3"),
        (lambda f: f("bounds/a/b", "It is small.", math.nan, True), "NaN"),
        (lambda f: f("bounds/a/b", "It is small.", object(), True), "object"),
        (lambda f: f("bounds/a/b", "It is small.", EYE, True), "Tensor"),
        (lambda f: f("bounds/a/b", "It is small.", (2, 1), True), "2 and 1"),
        (lambda f: f("bounds/a/b", "On two\nlines.", 1, True), "two\\nlines"),
        (lambda f: f("bounds/a/b", "It is small.", 1, "yes"), "'yes'"),
        (lambda f: f("bounds/a/b", "It is small.", 1, 1), "1"),
        (lambda f: f("bounds/a/b", "It is small.", 1, None), "None"),
        (lambda f: f("bounds/a/b", "It is small.", 1, torch.ones(2) > 0), "True, True"),
        (lambda f: f("bounds/a/b", "It is small.", 1, True, source=3), "int"),
        (lambda f: f("bounds/a/b", "It is small.", 1.0, True, digits=0), "0"),
        (lambda f: f("bounds/a/b", "It is small.", 1.0, True, digits=2.5), "2.5"),
    ],
    "lipbook.claims.results": [
        (lambda f: f("gram_rounding"), "'gram_rounding'"),
        (lambda f: f("experiments/bounds/gram.json"), "'experiments/bounds/gram.json'"),
        (lambda f: f("experiments/../pyproject"), "'experiments/../pyproject'"),
        (lambda f: f(None), "None"),
    ],
    "lipbook.exercises.check": [
        (lambda f: f("bounds/spectral-norms", 1), "'bounds/spectral-norms'"),
        (lambda f: f("bounds/spectral-norms/99", 1), "'bounds/spectral-norms/99'"),
        (lambda f: f("bounds/no-such-chapter/1", 1), "bounds/no-such-chapter"),
        (lambda f: f("../registry/1", 1), "'../registry/1'"),
        (lambda f: f(None, 1), "None"),
    ],
}


WITHOUT_ALL = ["lipbook.claims"]  # its functions are public without a list


def defined(module):
    """The names of the functions that a module defines itself, without the private ones."""
    functions = inspect.getmembers(module, inspect.isfunction)
    return [name for name, function in functions if function.__module__ == module.__name__ and name[0] != "_"]


def public_functions():
    """`{dotted name: function}` of what is public and takes arguments; errors and tuples are left out."""
    found = {}
    submodules = [module.name for module in pkgutil.walk_packages(lipbook.__path__, "lipbook.")]
    for module in map(importlib.import_module, ["lipbook", *submodules]):
        otherwise = defined(module) if module.__name__ in WITHOUT_ALL else []
        for name in getattr(module, "__all__", otherwise):
            public = getattr(module, name)
            exempt = isinstance(public, type) and issubclass(public, (Exception, tuple))
            if callable(public) and not exempt and inspect.signature(public).parameters:
                found[f"{module.__name__}.{name}"] = public
    return found


PUBLIC = public_functions()
ROWS = [(name, call, word) for name, rows in BAD.items() for call, word in rows]


def test_every_public_function_has_rows():
    assert set(BAD) == set(PUBLIC)


@pytest.mark.parametrize(("name", "call", "word"), ROWS, ids=[f"{name}-{word}" for name, _, word in ROWS])
def test_bad_input_is_named(name, call, word):
    with pytest.raises((ValueError, TypeError), match=re.escape(word)) as caught:
        call(PUBLIC[name])
    assert len(str(caught.value).split()) >= 5, "too short to say what to do"
    assert f"{PUBLIC[name].__name__}()" not in str(caught.value), "Python's own complaint about a call"
