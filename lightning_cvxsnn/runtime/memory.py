"""Estimates of memory: a programme or a search that does not fit is refused before its patterns are captured."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

#: Copies of the dictionary held together: all rows, the fitted rows, their distinct columns, the dictionary of the
#: network as found, and one for the allocator's losses. Estimates were 0.97 to 1.9 times a process's measured growth.
_COPIES = 5
#: Float64 numbers per row and output: targets, outputs, gradients, dual points and their trial values.
_PER_OUTPUT = 12
#: Entries that the solvers convert to float64 at a time, and the number of such blocks held together.
_BLOCK, _BLOCKS = 2**23, 5
#: Copies of the layer's inputs held together: the batches and their concatenation, later the concatenation and its
#: fitted rows. A process grew by 1.0 to 1.1 times the estimate.
_INPUTS = 2


def check_memory(rows: int, columns: int, outputs: int, captured: int, solved: int) -> None:
    """Refuse a programme that needs more memory than is available.

    Not counted: columns of working sets in float64 (hinge) and second-order models, which grow with the number of
    units in the solution.

    Args:
        rows: n.
        columns: P.
        outputs: C.
        captured: Bytes of an entry as it is captured.
        solved: Bytes of an entry of the dictionary.

    Raises:
        MisconfigurationException: With both figures, and the ``max_samples`` that would fit.
    """
    available = available_memory()
    entries = rows * columns
    patterns = entries * (captured + solved * _COPIES)
    needed = patterns + rows * outputs * 8 * _PER_OUTPUT + min(entries, _BLOCK) * 8 * _BLOCKS
    if available is not None and needed > available:
        fitting = int(rows * available / needed)
        raise MisconfigurationException(
            f"The convex programme of {rows} rows x {columns} units needs about {_size(needed)} of memory "
            f"({_size(entries * solved)} for the dictionary, the rest while solving) and {_size(available)} are "
            f"available. Use fewer rows, such as max_samples={fitting}; nothing was written."
        )


def check_witness_memory(inputs: Tensor, samples: int) -> None:
    """Refuse a search for witnesses whose inputs do not fit into the memory of their device.

    Args:
        inputs: ``[T, N, ...]``, what the layer receives of one batch.
        samples: Samples to hold.

    Raises:
        MisconfigurationException: With both figures, and the ``max_samples`` that would fit.
    """
    steps, features = len(inputs), inputs[0, 0].numel()
    available = free_memory(inputs.device)
    needed = _INPUTS * samples * steps * features * inputs.element_size()
    if available is not None and needed > available:
        raise MisconfigurationException(
            f"The search for witnesses holds what their layer receives, {samples} samples x {steps} steps x {features} "
            f"features, which takes about {_size(needed)} of memory, and {_size(available)} are available on "
            f"'{inputs.device}'. Use fewer rows, such as max_samples={int(samples * available / needed)}, or "
            "witnesses='calibrated'; nothing was written."
        )


def free_memory(device: torch.device) -> int | None:
    """Bytes that this process can still take on ``device``, or None where the system does not tell.

    On a GPU: the driver's free memory plus what torch's allocator has reserved and does not use.
    """
    if device.type != "cuda":
        return available_memory()
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process can still take, or None where the system does not tell.

    The least of: the machine's available memory, what is left of its control groups (a container's limit, version 1 or
    2), and what is left of its address-space limit (``ulimit -v``).

    Args:
        root: Where ``proc`` and ``sys`` are mounted.
    """
    return min(_limits(root), default=None)


def _limits(root: Path) -> Iterator[int]:
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield from _left(root / "sys/fs/cgroup", path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
            yield from _left(root / "sys/fs/cgroup/memory", path, *names)
    with contextlib.suppress(ImportError):  # Windows has no such limits
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        for line in _lines(root / "proc/self/statm"):
            if limit != resource.RLIM_INFINITY:
                yield max(limit - int(line.split()[0]) * os.sysconf("SC_PAGE_SIZE"), 0)


def _left(mount: Path, group: str, limit: str, usage: str, reclaimable: str) -> Iterator[int]:
    """Bytes left in a control group and in each of its ancestors; a container may see its own group as the root."""
    folder = mount / group.lstrip("/")
    for level in (folder, *folder.parents):
        if not level.is_relative_to(mount):
            return
        bound, used = ("".join(_lines(level / name)) for name in (limit, usage))
        if bound.isdigit() and used.isdigit():
            cache = [line.split()[1] for line in _lines(level / "memory.stat") if line.split()[0] == reclaimable]
            yield max(int(bound) - int(used) + sum(map(int, cache)), 0)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
