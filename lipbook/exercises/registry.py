"""The register of exercises: a key, "part/chapter/n", and the function that reads an answer to it."""

from collections.abc import Callable

CHECKS: dict[str, Callable] = {}


def exercise(key: str):
    """Register a function that takes an answer and returns None when it is right, else a sentence of advice."""

    def register(function):
        if key in CHECKS:
            raise ValueError(f"the exercise {key!r} is registered twice.")
        CHECKS[key] = function
        return function

    return register
