"""`python -m lipbook`: is this installation able to run the book, and if not, what is missing?"""

import time

import torch


def workload_seconds():
    """Wall time of a fixed piece of linear algebra, about one second on one core of a laptop-class machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    matrix = torch.arange(512 * 512, dtype=torch.float64).reshape(512, 512).sin()
    try:
        start = time.perf_counter()
        for _ in range(40):
            torch.linalg.svdvals(matrix)
        return time.perf_counter() - start
    finally:
        torch.set_num_threads(threads)
