import random

import numpy as np
import pytest
import torch

from lightning_cvxsnn.runtime.rng import isolate_rng


def draw():
    return torch.rand(()).item(), random.random(), np.random.rand()


@pytest.mark.parametrize("raised", [None, ValueError, KeyboardInterrupt])
def test_generators_are_put_back_also_after_an_exception(raised):
    torch.manual_seed(1)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    expected = draw()
    torch.set_rng_state(states[0])
    random.setstate(states[1])
    np.random.set_state(states[2])
    try:
        with isolate_rng():
            draw()
            if raised:
                raise raised
    except (ValueError, KeyboardInterrupt):
        pass
    assert draw() == expected
