"""Small wrong versions of the library. Each must fail a test: that is what the tests are judged by.

To add one: the file below lipbook/, a text that occurs in it exactly once, what stands there instead, and the
test files that ought to notice. `make test-thorough` applies them one at a time to a copy of the library.
"""

from typing import NamedTuple


class Mutant(NamedTuple):
    file: str
    old: str
    new: str
    tests: str


MUTANTS = [
    Mutant(
        "bound.py",
        'rounding=ROUND_CEILING if kind == "upper" else ROUND_FLOOR',
        "rounding=ROUND_FLOOR",
        "tests/test_bound.py",
    ),
    Mutant(
        "bound.py",
        "self.certificate.verify(self, subject)",
        "self.certificate",
        "tests/test_bound.py",
    ),
    Mutant(
        "bound.py",
        'center = as_float64(self.center, "center").clone()',
        'center = as_float64(self.center, "center")',
        "tests/test_bound.py",
    ),
    Mutant(
        "norms/spectral.py",
        "square - _margin(gram, rows, square)",
        "square",
        "tests/norms/test_spectral.py",
    ),
    Mutant(
        "norms/spectral.py",
        "value = _stretch(tall, vector, errors=2)",
        "value = _stretch(tall, vector, errors=0)",
        "tests/norms/test_spectral.py",
    ),
    Mutant(
        "norms/spectral.py",
        "value = math.ldexp(math.sqrt(value), exponent)",
        "value = math.sqrt(value)",
        "tests/norms/test_spectral.py",
    ),
    Mutant(
        "norms/spectral.py",
        "vector = image / length",
        "vector = image",
        "tests/norms/test_spectral.py",
    ),
    Mutant(
        "norms/spectral.py",
        "math.log2(2e10 *",
        "math.log2(2e5 *",
        "tests/norms/test_spectral.py",
    ),
    Mutant(
        "norms/spectral.py",
        'if (bound.kind, bound.norm, bound.output, bound.region) != ("upper", 2, None, None):',
        'if bound.kind != "upper":',
        "tests/norms/test_spectral.py",
    ),
    Mutant(
        "norms/spectral.py",
        "sum(block.T @ block for block in tall.split(_BLOCK_ROWS))",
        "tall[:_BLOCK_ROWS].T @ tall[:_BLOCK_ROWS]",
        "tests/norms/test_spectral.py",
    ),
    Mutant(
        "norms/rows.py",
        "matrix.abs().sum(dim=1)",
        "matrix.abs().sum(dim=0)",
        "tests/norms/test_rows.py",
    ),
    Mutant(
        "contracts/certificates.py",
        "return product if product >= exact else math.nextafter(product, math.inf)",
        "return product",
        "tests/contracts/test_certificates.py",
    ),
    Mutant(
        "contracts/derivatives.py",
        "low, high = -0.12899306865877178, 1.128993068658772",
        "low, high = -0.1289041451851548, 1.128904145185155",
        "tests/contracts/test_derivatives.py",
    ),
    Mutant(
        "contracts/stock.py",
        "torch.kron(identity, weight)",
        "torch.kron(weight, identity)",
        "tests/contracts/test_stock.py",
    ),
    Mutant(
        "contracts/guard.py",
        "        _hooks(layer),",
        "        None,",
        "tests/contracts/test_guard.py",
    ),
    Mutant(
        "norms/spectral.py",
        "vector = _normalised(vector)[0]",
        "",
        "tests/norms/test_spectral.py",
    ),
    Mutant(
        "training/loop.py",
        "accuracy > highest",
        "accuracy >= highest",
        "tests/training/test_loop.py",
    ),
    Mutant(
        "training/loop.py",
        "model = copy.deepcopy(model).eval()",
        "model = model.eval()",
        "tests/training/test_loop.py",
    ),
    Mutant(
        "training/loop.py",
        "lr * (1 - (step - 1) / steps)",
        "lr",
        "tests/training/test_loop.py",
    ),
    Mutant(
        "layers/activations.py",
        "return max(1.0, math.nextafter(above, math.inf))",
        "return 1.0",
        "tests/layers/test_activations.py",
    ),
    Mutant(
        "layers/activations.py",
        "torch.maximum(moves, mirrored)",
        "moves",
        "tests/layers/test_enclosures.py",
    ),
    Mutant(
        "layers/residual.py",
        "rows = matrix.abs() + 4 * weight.abs()",
        "rows = matrix.abs()",
        "tests/layers/test_residual.py",
    ),
    Mutant(
        "layers/residual.py",
        "self.module(inputs.clone())",
        "self.module(inputs)",
        "tests/layers/test_residual.py",
    ),
    Mutant(
        "contracts/certificates.py",
        "return math.nextafter(value / math.nextafter(1 + self.inflation, math.inf), 0.0)",
        "return value",
        "tests/contracts/test_certificates.py",
    ),
    Mutant(
        "contracts/slope_attacks.py",
        "images = [group.sort(dim=-1, descending=True).values for group in groups]",
        "images = groups",
        "tests/contracts/test_attacks.py",
    ),
]
