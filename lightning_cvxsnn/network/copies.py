"""Copies of a user's data loader that can be read without moving the loader itself."""

import copy
import functools
import io
import threading
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lightning_cvxsnn.network.outside import LONG, SHARED, surroundings

_DATA = 2**20  # entries from which a tensor or an array is data, which is shared, and not state
_RUNNING = (types.GeneratorType, types.CoroutineType, threading.Thread, map, filter, zip, enumerate)


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
        self._outside = list(surroundings(copier.functions, copier.classes))

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
        if isinstance(thing, SHARED):
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
        if len(thing) >= LONG:
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
