import gc
import os
import warnings

import pytest

# Before torch is imported, and for processes that tests start. These networks are so small that a second thread only
# waits: on a machine with other work, tests take up to twenty times as long. OMP_NUM_THREADS=2 asks for more.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def compiling():
    # Dynamo numbers the keys of spikingjelly's weak table of reset networks: none may die while it traces.
    gc.collect()
