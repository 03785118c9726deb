"""The constant of every margin of the book's two networks, by semidefinite programs and by products.

A margin is a difference of two logits, y_i - y_j; there are 45 of them. Recorded are proved upper bounds, of
the output vector and of each margin: by `lipsdp`, with the proved dual value of the program, and by
`product_bound`. Chapter: sdp/lipsdp.
"""

from lipbook.bounds import product_bound
from lipbook.data import network
from lipbook.sdp import lipsdp

SEEDS = [0]  # nothing is random here
SETTINGS = [{"network": "digits"}, {"network": "fashion"}]
SMOKE = [{"network": "digits"}]


def run(setting, seed):
    model = network(setting["network"])
    whole, pairs = lipsdp(model), lipsdp(model, logits="pairs")
    products = product_bound(model, logits="pairs")
    return {
        "lipsdp": whole.value,
        "lipsdp_dual": whole.certificate.dual_value,
        "product": product_bound(model).value,
        "pairs": [
            {
                "pair": list(pair),
                "lipsdp": bound.value,
                "lipsdp_dual": bound.certificate.dual_value,
                "product": products[pair].value,
            }
            for pair, bound in pairs.items()
        ],
    }
