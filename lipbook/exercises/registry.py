"""The register of exercises: a key, "part/chapter/n", and the function that reads an answer to it."""

from collections.abc import Callable

CHECKS: dict[str, Callable] = {}


def exercise(key: str):
    """Register a function that takes an answer and returns None when it is right, else a sentence of advice.

    Raises:
        ValueError: the key is not of this module, where `check` looks for it, or is another function's.
    """

    def register(function):
        home = "lipbook.exercises." + key.rpartition("/")[0].replace("/", ".").replace("-", "_")
        if function.__module__ != home:
            raise ValueError(f"the exercise {key!r} belongs in {home}, not in {function.__module__}.")
        if key in CHECKS and CHECKS[key].__qualname__ != function.__qualname__:  # a reload registers it again
            raise ValueError(f"the exercise {key!r} is registered twice.")
        CHECKS[key] = function
        return function

    return register
