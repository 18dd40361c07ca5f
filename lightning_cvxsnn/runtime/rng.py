"""The global random number generators."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from lightning.pytorch.utilities import seed

__all__ = ["isolate_rng", "seed_generators"]


@contextmanager
def isolate_rng() -> Iterator[None]:
    """Put the global generators back on exit: Lightning's context manager does not after an exception."""
    isolated = seed.isolate_rng()
    isolated.__enter__()
    try:
        yield
    finally:
        isolated.__exit__(None, None, None)


def seed_generators(seed: int) -> None:
    """Seed the global generators that `isolate_rng` puts back: of torch on the CPU and CUDA, Python and numpy."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    random.seed(seed)
    np.random.seed(seed)
