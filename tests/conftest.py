import gc
import warnings

import pytest
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
