"""`python -m lipbook`: is this installation able to run the book, and if not, what is missing?"""

import importlib
import json
import os
import platform
import sys
import textwrap
import time
from importlib import metadata
from pathlib import Path

import torch

import lipbook
from lipbook.data import fashion_mnist

TIMES = Path(lipbook.__file__).resolve().parents[1] / "book/reference/times.json"
OLDEST_PYTHON = (3, 11)
INSTALL = "install the book's packages: `make book`, or `pip install -e '.[book]'` in the book's folder"
WIDTH = 100


class Problem(Exception):
    """Something that keeps the book from running: what is wrong, and how to mend it."""


def python():
    if sys.version_info < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        raise Problem(f"{platform.python_version()} is too old: install Python {oldest} or newer.")
    return f"{platform.python_version()} ({sys.executable})"


def torch_works():
    matrix = torch.tensor([[4.0, 2.0], [2.0, 10.0]], dtype=torch.float64)
    expected = torch.tensor([[2.0, 0.0], [1.0, 3.0]], dtype=torch.float64)
    try:
        right = torch.equal(torch.linalg.cholesky(matrix), expected)
    except RuntimeError as error:
        raise Problem(f"{torch.__version__} cannot factorise: {error}. Install torch again.") from error
    if not right:
        raise Problem(f"{torch.__version__} gives a wrong Cholesky factorisation. Install torch again.")
    return f"{torch.__version__}, and a float64 Cholesky factorisation is right"


def packages(*names):
    """The versions of packages that can be imported, in words."""
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise Problem(f"{name} cannot be imported ({error}): {INSTALL}.") from error
    return ", ".join(f"{name} {metadata.version(name)}" for name in names)


def kernel():
    packages("ipykernel", "jupyter_client")
    from jupyter_client.kernelspec import KernelSpecManager

    program = KernelSpecManager().get_kernel_spec("python3").argv[0]
    by_name = {"python", "python3", f"python3.{sys.version_info.minor}"}  # Jupyter runs these as itself
    if program not in by_name and Path(program).parent != Path(sys.executable).parent:
        raise Problem(
            f"the Jupyter kernel python3 runs {program}, not this Python, and would not find lipbook: "
            "run `python -m ipykernel install --sys-prefix --name python3`."
        )
    return "python3 runs this Python"


def data():
    try:
        images = fashion_mnist()
    except Exception as error:  # whatever is wrong with the files, the error says how to mend it
        raise Problem(str(error)) from error
    return f"Fashion-MNIST, {len(images.train_inputs):,} images, checksums right"


def cores():
    return f"{os.cpu_count()}; the book needs one"


def running_time():
    """How long the chapters take here: their recorded times, scaled by a workload timed there and here."""
    if not TIMES.exists():
        return "not known: this is not the book's folder"
    recorded = json.loads(TIMES.read_text(encoding="utf-8"))
    if not recorded:
        return "not known: no chapter has been timed"
    here = workload_seconds()
    seconds = {path: time["seconds"] * here / time["workload_seconds"] for path, time in recorded.items()}
    longest = max(seconds, key=seconds.get)
    total = sum(seconds.values())
    return f"about {total:.0f} s for all, {seconds[longest]:.0f} s for the longest ({longest})"


def workload_seconds():
    """Wall time of a fixed piece of linear algebra, about a second on one core of a laptop-class machine."""
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


CHECKS = {
    "Python": python,
    "torch": torch_works,
    "figures": lambda: packages("numpy", "matplotlib"),
    "notebooks": lambda: packages("jupyterlab", "ipywidgets"),
    "kernel": kernel,
    "book": lambda: packages("jupyter_book"),
    "data": data,
    "cores": cores,
    "chapters": running_time,
}


def main():
    """Print one line a check, and return 0 if the book can run, else 1."""
    print(f"lipbook {lipbook.__version__}")
    problems = 0
    for name, check in CHECKS.items():
        try:
            mark, said = "ok", check()
        except Problem as problem:
            mark, said, problems = "WRONG", str(problem), problems + 1
        head = f"{mark:<7}{name:<11}"
        print(textwrap.fill(said, WIDTH, initial_indent=head, subsequent_indent=" " * len(head)))
    if problems:
        print(f"{problems} of {len(CHECKS)} are wrong.")
        return 1
    print("Everything that the book needs is here.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
