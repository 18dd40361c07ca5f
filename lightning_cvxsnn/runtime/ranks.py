"""Collectives of a process group in which no rank waits for one that has failed.

Plain values are gathered on all ranks; tensors are sent in their own type and compared by checksum.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Ranks", "checksum"]


class Ranks:
    """All processes. Before every collective they exchange whether one of them has failed.

    Use it as a context manager. An exception inside it is sent to the other ranks at their next collective and raised
    there too, so none waits for a rank that has left. Between two collectives ranks may do different work.

    Args:
        alone: Act as a single rank, whatever process group there is.

    Attributes:
        in_step: Whether the last transfer ended on this rank; after an error in it others may have left.
    """

    def __init__(self, *, alone: bool = False) -> None:
        self.rank, self.size, self.device = 0, 1, torch.device("cpu")
        if not alone and dist.is_available() and dist.is_initialized():
            self.rank, self.size = dist.get_rank(), dist.get_world_size()
            if dist.get_backend() == "nccl":
                self.device = torch.device("cuda", torch.cuda.current_device())
        self._together = True
        self.in_step = True

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is not None and self._together:
            self.exchange(error=error)

    def exchange(self, value: Any = None, error: BaseException | None = None) -> list[Any]:
        """The plain values of all ranks, in rank order; raises on this rank if another one has failed."""
        if self.size == 1:
            return [value]
        told: list[Any] = [None] * self.size
        self._together = self.in_step = False
        dist.all_gather_object(told, (value, error and (type(error).__name__, str(error))))
        self.in_step = True
        for rank, (_, failure) in enumerate(told):
            if failure is not None and error is None:
                name, message = failure
                known: dict[str, type[Exception]] = {e.__name__: e for e in (ValueError, TypeError, ImportError)}
                raise known.get(name, RuntimeError)(f"Rank {rank} failed with {name}: {message}")
        self._together = True
        return [value for value, _ in told]

    def broadcast(self, tensor: Tensor) -> Tensor:
        """The tensor of rank 0, on the device of ``tensor``; the other ranks pass one of its shape and type."""
        if self.size == 1:
            return tensor
        buffer = tensor.detach().to(self.device, copy=True).contiguous()
        self.exchange()
        if buffer.numel():
            with self._transferring():
                dist.broadcast(_raw(buffer), src=0)
        return buffer.to(tensor.device)

    def collect(self, value: Any, device: torch.device) -> list[Any] | None:
        """On rank 0 the values of all ranks, in rank order; elsewhere ``None``.

        Tensors are sent as raw bytes in their own type and put on ``device``; the rest of a value is pickled.
        """
        if self.size == 1:
            return [value]
        frame = io.BytesIO()
        pickler = _TensorlessPickler(frame)
        pickler.dump(value)
        told = self.exchange((frame.getvalue(), [(tensor.dtype, tuple(tensor.shape)) for tensor in pickler.tensors]))
        if self.rank > 0:
            mine = [tensor.to(self.device).contiguous() for tensor in pickler.tensors]
            self.exchange()
            with self._transferring():
                for tensor in mine:
                    self._send(tensor, 0)
            return None
        theirs = [
            [torch.empty(shape, dtype=dtype, device=self.device) for dtype, shape in layout] for _, layout in told[1:]
        ]
        self.exchange()
        with self._transferring():
            for rank, buffers in enumerate(theirs, 1):
                for buffer in buffers:
                    self._receive(buffer, rank)
        frames = [io.BytesIO(frame) for frame, _ in told[1:]]
        return [value] + [
            _TensorRestorer(frame, [buffer.to(device) for buffer in buffers]).load()
            for frame, buffers in zip(frames, theirs, strict=True)
        ]

    @contextmanager
    def _transferring(self) -> Iterator[None]:
        self.in_step = False
        yield
        self.in_step = True

    def _send(self, tensor: Tensor, rank: int) -> None:
        if tensor.numel():
            dist.send(_raw(tensor), dst=rank)

    def _receive(self, buffer: Tensor, rank: int) -> None:
        if buffer.numel():
            dist.recv(_raw(buffer), src=rank)


def checksum(*tensors: Tensor) -> str:
    """A digest of the bits, types and shapes of tensors."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_raw(tensor.detach().cpu().contiguous()).numpy().data)
    return digest.hexdigest()


def _raw(tensor: Tensor) -> Tensor:
    return tensor.view(-1).view(torch.uint8)


class _TensorlessPickler(pickle.Pickler):
    """Pickles an object with its tensors replaced by positions in ``tensors``."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.tensors: list[Tensor] = []

    def persistent_id(self, obj: Any) -> int | None:
        """The position of a tensor in ``tensors``; None for other objects."""
        if not isinstance(obj, Tensor):
            return None
        self.tensors.append(obj.detach())
        return len(self.tensors) - 1


class _TensorRestorer(pickle.Unpickler):
    """Unpickles what `_TensorlessPickler` pickled, with these tensors."""

    def __init__(self, file: io.BytesIO, tensors: list[Tensor]) -> None:
        super().__init__(file)
        self.tensors = tensors

    def persistent_load(self, pid: int) -> Tensor:
        """The tensor at position ``pid``."""
        return self.tensors[pid]
