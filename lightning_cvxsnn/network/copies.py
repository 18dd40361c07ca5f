"""Copies of a user's data loader that can be read without moving the loader itself."""

import copy
import dis
import enum
import functools
import io
import logging
import random
import threading
import types
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import SemLock
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

_DATA = 2**20  # entries from which a tensor or an array is data, which is shared, and not state
_LONG = 10_000  # elements from which a container is copied without what it holds
_LIBRARIES = ("torch", "lightning", "numpy", "spikingjelly", "torchvision", "builtins", "collections", "typing", "abc")
_SHARED = (
    *(type, types.ModuleType, types.BuiltinFunctionType, types.CodeType, types.CellType, property),
    *(type(threading.Lock()), type(threading.RLock()), SemLock, weakref.ref, np.memmap, enum.Enum, logging.Logger),
    *(pl.Trainer, pl.LightningModule, bool, int, float, complex, str, bytes, range, slice, type(None), type(...)),
)
_RUNNING = (types.GeneratorType, types.CoroutineType, threading.Thread, map, filter, zip, enumerate)
_RANDOM = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)


class Original:
    """A loader or sampler of the user's, read through copies that begin where it stood.

    A copy has generators, counters and containers of its own; large arrays are shared. Functions and classes are not
    copied: random generators that they reach (in closures, globals, class attributes), and what a function keeps in its
    closure, are put back after each reading.

    Args:
        thing: What is copied.
        what: What the training data is, for the message.

    Raises:
        MisconfigurationException: If it holds what cannot be copied, such as a running generator.
    """

    def __init__(self, thing: Any, what: str) -> None:
        copier = _Copier()
        try:
            self._kept = copier.copy(thing)
        except _UncopyableError as error:
            raise MisconfigurationException(
                f"The training data is {what} that cannot be copied ({error}), so it cannot be read without disturbing "
                "training. Open files, connections and generators in its `__iter__`, not in its constructor."
            ) from error
        self._outside = list(_outside(copier.functions, copier.classes))

    def copy(self) -> Any:
        """A fresh copy, in the state at construction."""
        return _Copier().copy(self._kept)

    @contextmanager
    def reading(self) -> Iterator[Any]:
        """A fresh copy to read in this context."""
        put_back = [save() for save in self._outside]
        try:
            yield self.copy()
        finally:
            for restore in put_back:
                restore()


class _UncopyableError(Exception):
    """Why something cannot be copied."""


class _Copier:
    """A deep copy that shares large arrays, code, the Trainer and its module, and refuses what runs."""

    def __init__(self) -> None:
        self.functions: list[types.FunctionType] = []
        self.classes: set[type] = set()
        self._memo: dict[int, Any] = {}
        self._alive: list[Any] = []  # ids in the memo stay theirs
        self._lenient = False

    def copy(self, thing: Any) -> Any:
        """The copy of ``thing``; within one copier an object has one copy."""
        if isinstance(thing, _SHARED):
            return thing
        if id(thing) not in self._memo:
            self._alive.append(thing)
            self._memo[id(thing)] = copied = self._made(thing)
            return copied
        return self._memo[id(thing)]

    def _made(self, thing: Any) -> Any:
        if isinstance(thing, _RUNNING):
            raise _UncopyableError(f"it holds a {type(thing).__name__} that has begun")
        if isinstance(thing, types.FunctionType):
            self.functions.append(thing)
            return thing
        if isinstance(thing, types.MethodType):
            self.classes.add(type(thing.__self__))
            return types.MethodType(thing.__func__, self.copy(thing.__self__))
        if isinstance(thing, functools.partial):
            return functools.partial(self.copy(thing.func), *self.copy(thing.args), **self.copy(thing.keywords))
        if isinstance(thing, torch.Generator):
            return thing.clone_state()
        if isinstance(thing, Tensor):
            plain = type(thing) is Tensor and thing.grad_fn is None and thing.numel() < _DATA
            return thing.detach().clone().requires_grad_(thing.requires_grad) if plain else thing
        if isinstance(thing, np.ndarray):
            return thing if thing.size >= _DATA else thing.copy()
        if type(thing) in (list, set, dict, OrderedDict, defaultdict, deque, tuple, frozenset):
            return self._container(thing)
        return self._object(thing)

    def _container(self, thing: Any) -> Any:
        if len(thing) >= _LONG:
            return copy.copy(thing)
        if isinstance(thing, (tuple, frozenset)):
            elements = [self.copy(element) for element in thing]
            same = all(a is b for a, b in zip(elements, thing, strict=True))
            return thing if same else type(thing)(elements)
        self._memo[id(thing)] = copied = copy.copy(thing)  # what it holds may hold it
        if isinstance(thing, dict):
            copied.clear()
            copied.update((self.copy(key), self.copy(value)) for key, value in thing.items())
        elif isinstance(thing, set):
            copied.clear()
            copied.update(self.copy(element) for element in thing)
        else:
            for index, element in enumerate(thing):
                copied[index] = self.copy(element)
        return copied

    def _object(self, thing: Any) -> Any:
        kind, lenient = type(thing), self._lenient
        self.classes.add(kind)
        self._lenient |= isinstance(thing, Dataset) and not isinstance(thing, IterableDataset)
        try:
            if hasattr(kind, "__deepcopy__") or not kind.__flags__ & 1 << 9:  # not a class written in Python
                return copy.deepcopy(thing, self._memo)
            try:
                copied = object.__new__(kind)
            except TypeError:  # of a built-in type
                return copy.deepcopy(thing, self._memo)
            self._memo[id(thing)] = copied
            for name, value in _slots(thing):
                object.__setattr__(copied, name, self.copy(value))
            for name, value in getattr(thing, "__dict__", {}).items():
                copied.__dict__[name] = self._attribute(thing, name, value)
            return copied
        except _UncopyableError:
            raise
        except Exception as error:  # whatever the user's class does
            if self._lenient and (isinstance(thing, io.IOBase) or not hasattr(kind, "__next__")):
                return thing  # a file that is read by position, a connection
            raise _UncopyableError(str(error)) from error
        finally:
            self._lenient = lenient

    def _attribute(self, thing: Any, name: str, value: Any) -> Any:
        if isinstance(thing, DataLoader):
            if name == "_iterator":
                return None  # that of the run, with its workers
            if name == "persistent_workers":
                return False
            if name == "in_order":
                return True
            if name == "dataset" and not isinstance(value, IterableDataset):
                lenient, self._lenient = self._lenient, True
                try:
                    return self.copy(value)
                finally:
                    self._lenient = lenient
        return self.copy(value)


def _slots(thing: Any) -> Iterator[tuple[str, Any]]:
    for kind in type(thing).__mro__:
        names = vars(kind).get("__slots__", ())
        for name in [names] if isinstance(names, str) else names:
            if name not in ("__dict__", "__weakref__") and hasattr(thing, name):
                yield name, getattr(thing, name)


Save = Callable[[], Callable[[], Any]]


def _outside(functions: list[types.FunctionType], classes: set[type]) -> Iterator[Save]:
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
    elif type(held) in (list, dict, set, deque) and len(held) < _LONG:

        def save_contents(held: Any = held) -> Callable[[], None]:
            contents = copy.copy(held)

            def restore() -> None:
                held.clear()
                (held.extend if isinstance(held, (list, deque)) else held.update)(contents)

            return restore

        yield save_contents


def _save_names(function: types.FunctionType) -> Callable[[], None]:
    """The attributes of a function, and the globals that it assigns."""
    names = {i.argval for i in dis.get_instructions(function) if i.opname == "STORE_GLOBAL"}
    attributes = dict(vars(function))
    assigned = {name: function.__globals__[name] for name in names if name in function.__globals__}

    def restore() -> None:
        vars(function).clear()
        vars(function).update(attributes)
        function.__globals__.update(assigned)

    return restore


def _generators(thing: Any, seen: set[int]) -> Iterator[Save]:
    """The random generators that ``thing`` reaches."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, _RANDOM):
        yield functools.partial(_save_random, thing)
    elif isinstance(thing, types.FunctionType):
        if thing.__module__ is None or thing.__module__.split(".")[0] not in _LIBRARIES:
            for value in _reached(thing):
                yield from _generators(value, seen)
    elif isinstance(thing, types.MethodType):
        yield from _generators(thing.__func__, seen)
        yield from _generators(thing.__self__, seen)
    elif isinstance(thing, (list, tuple, set, dict, deque)):
        if len(thing) < _LONG:
            for value in thing.values() if isinstance(thing, dict) else thing:
                yield from _generators(value, seen)
    elif not isinstance(thing, (*_SHARED, Tensor, np.ndarray)):
        for value in getattr(thing, "__dict__", {}).values():
            yield from _generators(value, seen)


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


def _save_random(generator: Any) -> Callable[[], Any]:
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
