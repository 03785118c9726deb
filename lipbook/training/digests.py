"""A digest of what a training run was given, by which a checkpoint knows its own run."""

import functools
import hashlib
import types
from collections.abc import Iterator

import torch

_PLAIN = (str, bytes, bool, int, float, complex, types.NoneType, torch.dtype, torch.device, torch.Size)


def digest(*parts) -> str:
    """The SHA-256 of values: of text, numbers, tensors, containers, functions and objects with attributes.

    A function counts with its code, its defaults and what it closes over, but not with what it reads from
    global names; an object with its class and its attributes, but not with the code of its class.
    """
    found = hashlib.sha256()
    for piece in _pieces(parts, frozenset()):
        found.update(piece)
    return found.hexdigest()


def _pieces(part, above) -> Iterator[bytes]:
    if isinstance(part, torch.Tensor):
        tensor = part.detach().cpu().to_dense().contiguous()
        yield f"tensor {tensor.dtype} {tuple(tensor.shape)} {part.requires_grad};".encode()
        yield tensor.reshape(-1).view(torch.uint8).numpy().data
    elif isinstance(part, _PLAIN):
        yield f"{type(part).__name__} {part!r};".encode()
    elif id(part) in above:  # it holds itself
        yield b"above;"
    else:
        yield f"{type(part).__module__}.{type(part).__qualname__}(".encode()
        for child in _children(part):
            yield from _pieces(child, above | {id(part)})
        yield b");"


def _children(part):
    match part:
        case dict():
            return tuple(child for item in part.items() for child in item)
        case set() | frozenset():
            return sorted(part, key=repr)
        case list() | tuple():
            return part
        case type() | types.BuiltinFunctionType():
            return part.__module__, part.__qualname__
        case types.ModuleType():
            return (part.__name__,)
        case types.FunctionType():
            cells = [cell.cell_contents for cell in part.__closure__ or () if cell != types.CellType()]
            defaults = part.__defaults__, part.__kwdefaults__
            return part.__qualname__, part.__code__, defaults, cells, vars(part)
        case types.CodeType():
            return part.co_code, part.co_consts, part.co_names
        case types.MethodType():
            return part.__func__, part.__self__
        case functools.partial():
            return part.func, part.args, part.keywords
        case _:
            return (getattr(part, "__dict__", {}),)
