"""The reader's own check of an exercise. Chapter: every one."""

import importlib
import re

from lipbook.exercises.registry import CHECKS

__all__ = ["check"]


def check(key: str, answer) -> bool:
    """Say in one line whether `answer` solves the exercise, and return it.

    Args:
        key: "part/chapter/n", as the exercise names it.
        answer: a value or a function, as the exercise asks; None is "not answered yet".

    Raises:
        ValueError: no exercise has this key.
    """
    function = _check_of(key)
    if answer is None:
        print(f"{key}: not answered yet.")
        return False
    try:
        advice = function(answer)
    except Exception as error:  # a reader's function may raise anything
        advice = f"raised {type(error).__name__}: {' '.join(str(error).split())}"
        if "object is not callable" in advice and not callable(answer):
            advice = f"the answer is a function, not {type(answer).__name__}."
    print(f"{key}: right." if advice is None else f"{key}: not yet: {advice}")
    return advice is None


def _check_of(key):
    if not isinstance(key, str) or not re.fullmatch(r"[a-z0-9-]+/[a-z0-9-]+/[0-9]+", key):
        raise ValueError(f'an exercise has a key such as "bounds/spectral-norms/1", got {key!r}.')
    part, chapter, _ = key.split("/")
    module = f"lipbook.exercises.{part}.{chapter.replace('-', '_')}"
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name not in (module, module.rpartition(".")[0]):
            raise  # the chapter is there, and something that it imports is not
        raise ValueError(f"{key!r}: {part}/{chapter} has no exercises that can be checked.") from error
    if key not in CHECKS:
        keys = [known for known in CHECKS if known.startswith(f"{part}/{chapter}/")]
        known = ", ".join(sorted(keys, key=lambda known: int(known.rsplit("/", 1)[1])))
        raise ValueError(f"{key!r} is not an exercise that can be checked; {part}/{chapter} has {known}.")
    return CHECKS[key]
