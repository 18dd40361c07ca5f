"""What objects hold beside parameters and buffers, saved and put back."""

import functools
import sys
import sysconfig
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_cvxsnn.network.outside import LONG, RANDOM, SHARED, save_random, surroundings

_HELD = 2**24  # entries of a tensor that is saved: states of metrics, not a dataset somebody keeps there
_INSTALLED = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))


@contextmanager
def put_back(things: Iterable[Any], known: Iterable[Any] = ()) -> Iterator[None]:
    """Find ``things`` after this context as they were, in what they hold and in what that holds.

    These are the attributes of objects, the contents of containers, tensors and arrays, which code may change in place,
    and the states of random generators, also of those that their methods reach. Objects of installed libraries are left
    alone, unless they are modules; so are the Trainer, datasets and loaders, which are read through copies, and what
    containers of 10,000 elements or more hold.

    Args:
        things: Objects, of any class.
        known: What is left alone, such as parameters that are meant to change.
    """
    contents = _Contents(things, known)
    try:
        yield
    finally:
        contents.restore()


class _Contents:
    def __init__(self, things: Iterable[Any], known: Iterable[Any]) -> None:
        self._seen = {id(thing): thing for thing in known}
        self._restore: list[Callable[[], Any]] = []
        self._functions: list[types.FunctionType] = []
        self._classes: set[type] = set()
        things = list(things)
        self._seen.update((id(thing), thing) for thing in things)
        self._waiting: list[Any] = []
        for thing in things:
            self._attributes(thing)
        while self._waiting:
            self._visit(self._waiting.pop())
        self._restore += [save() for save in surroundings(self._functions, self._classes)]

    def restore(self) -> None:
        with torch.no_grad():
            for restore in self._restore:
                restore()

    def _attributes(self, thing: Any) -> None:
        self._classes.add(type(thing))
        saved = dict(vars(thing))

        def restore() -> None:
            vars(thing).clear()
            vars(thing).update(saved)

        self._restore.append(restore)
        self._waiting += saved.values()

    def _visit(self, value: Any) -> None:
        if isinstance(value, (*SHARED, Dataset, DataLoader)) or id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if isinstance(value, RANDOM):
            self._restore.append(save_random(value))
        elif isinstance(value, Tensor):
            self._tensor(value)
        elif isinstance(value, np.ndarray):
            if value.size <= _HELD and value.flags.writeable:
                self._restore.append(functools.partial(np.copyto, value, value.copy()))
        elif isinstance(value, (list, deque, set, dict, tuple)):
            self._container(value)
        elif isinstance(value, types.FunctionType):
            self._functions.append(value)
        elif isinstance(value, types.MethodType):
            self._waiting.append(value.__self__)
        elif hasattr(value, "__dict__") and (isinstance(value, nn.Module) or not _is_installed(type(value))):
            self._attributes(value)

    def _tensor(self, tensor: Tensor) -> None:
        if tensor.is_inference() or tensor.numel() > _HELD:
            return
        version, value = tensor._version, tensor.detach().clone()

        def restore() -> None:
            # Writing what is there already would break graphs that hold it; batch norms count no version.
            if tensor._version != version or not torch.equal(tensor, value):
                tensor.copy_(value)

        self._restore.append(restore)

    def _container(self, container: Any) -> None:
        if not isinstance(container, tuple):
            contents: Any = dict(container) if isinstance(container, dict) else list(container)

            def restore() -> None:
                container.clear()
                (container.update if isinstance(container, (dict, set)) else container.extend)(contents)

            self._restore.append(restore)
        if len(container) < LONG:
            self._waiting += container.values() if isinstance(container, dict) else container


def _is_installed(kind: type) -> bool:
    file = getattr(sys.modules.get(kind.__module__), "__file__", None) or ""
    return file.startswith(_INSTALLED)
