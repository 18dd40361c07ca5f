"""What code reaches beside the objects that it is given: closures, globals, random generators; saved and put back."""

import copy
import dis
import enum
import functools
import logging
import random
import threading
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import SemLock
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

#: Elements from which what a container holds is not looked at.
LONG = 10_000
_LIBRARIES = (
    *("torch", "lightning", "numpy", "spikingjelly", "torchvision", "torchmetrics", "matplotlib"),
    *("builtins", "collections", "typing", "abc"),
)
#: What holds no state of the user's, or is shared between copies.
SHARED = (
    *(type, types.ModuleType, types.BuiltinFunctionType, types.CodeType, types.CellType, property),
    *(type(threading.Lock()), type(threading.RLock()), SemLock, weakref.ref, np.memmap, enum.Enum, logging.Logger),
    *(pl.Trainer, pl.LightningModule, bool, int, float, complex, str, bytes, range, slice, type(None), type(...)),
)
#: Random generators.
RANDOM = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)

Save = Callable[[], Callable[[], Any]]


def surroundings(functions: list[types.FunctionType], classes: set[type]) -> Iterator[Save]:
    """How to save, and then put back, the state that code reaches beside the objects that are copied."""
    seen: set[int] = set()
    for function in functions:
        for cell in function.__closure__ or ():
            yield from _cell(cell)
        yield functools.partial(_save_names, function)
        yield from _generators(function, seen)
    for kind in {base for c in classes for base in c.__mro__ if base.__module__.split(".")[0] not in _LIBRARIES}:
        for value in vars(kind).values():
            code = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
            yield from _generators(code, seen)


def _cell(cell: types.CellType) -> Iterator[Save]:
    try:
        held = cell.cell_contents
    except ValueError:  # empty
        return
    if isinstance(held, (bool, int, float, complex, str, bytes, tuple, type(None))):

        def save_value() -> Callable[[], None]:
            value = cell.cell_contents
            return lambda: setattr(cell, "cell_contents", value)

        yield save_value
    elif type(held) in (list, dict, set, deque) and len(held) < LONG:

        def save_contents(held: Any = held) -> Callable[[], None]:
            contents = copy.copy(held)

            def restore() -> None:
                held.clear()
                (held.extend if isinstance(held, (list, deque)) else held.update)(contents)

            return restore

        yield save_contents


def _save_names(function: types.FunctionType) -> Callable[[], None]:
    """The attributes of a function, and the globals that it assigns."""
    names = _assigned_globals(function.__code__)
    attributes = dict(vars(function))
    assigned = {name: function.__globals__[name] for name in names if name in function.__globals__}

    def restore() -> None:
        vars(function).clear()
        vars(function).update(attributes)
        function.__globals__.update(assigned)

    return restore


@functools.lru_cache(maxsize=4096)
def _assigned_globals(code: types.CodeType) -> frozenset[str]:
    return frozenset(i.argval for i in dis.get_instructions(code) if i.opname == "STORE_GLOBAL")


def _generators(thing: Any, seen: set[int]) -> Iterator[Save]:
    """The random generators that ``thing`` reaches."""
    waiting = [thing]
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, RANDOM):
            yield functools.partial(save_random, thing)
        elif isinstance(thing, types.FunctionType):
            if thing.__module__ is None or thing.__module__.split(".")[0] not in _LIBRARIES:
                waiting += _reached(thing)
        elif isinstance(thing, types.MethodType):
            waiting += thing.__func__, thing.__self__
        elif isinstance(thing, (list, tuple, set, dict, deque)):
            if len(thing) < LONG:
                waiting += thing.values() if isinstance(thing, dict) else thing
        elif not isinstance(thing, (*SHARED, Tensor, np.ndarray)):
            waiting += getattr(thing, "__dict__", {}).values()


def _reached(function: types.FunctionType) -> Iterator[Any]:
    """What a function's closure, defaults and the globals that it names hold."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # empty
            continue
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    codes = [function.__code__]
    for code in codes:
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
        yield from (function.__globals__[name] for name in code.co_names if name in function.__globals__)


def save_random(generator: Any) -> Callable[[], Any]:
    """Save the state of a random generator; what is returned puts it back."""
    if isinstance(generator, torch.Generator):
        return functools.partial(generator.set_state, generator.get_state())
    if isinstance(generator, np.random.Generator):
        state = copy.deepcopy(generator.bit_generator.state)
        return lambda: setattr(generator.bit_generator, "state", state)
    if isinstance(generator, np.random.RandomState):
        return functools.partial(generator.set_state, generator.get_state(legacy=False))
    if isinstance(generator, random.SystemRandom):
        return lambda: None
    return functools.partial(generator.setstate, generator.getstate())
