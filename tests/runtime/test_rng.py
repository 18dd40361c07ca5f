import random

import numpy as np
import pytest
import torch

from lightning_cvxsnn.runtime.rng import isolate_rng, seed_generators


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


def test_seeding_repeats_draws_and_touches_only_what_is_put_back(monkeypatch):
    for other in (torch.mps, torch.xpu):  # whose states isolate_rng does not keep
        monkeypatch.setattr(other, "manual_seed", lambda seed: pytest.fail("seeded"), raising=False)
        monkeypatch.setattr(other, "manual_seed_all", lambda seed: pytest.fail("seeded"), raising=False)
    with isolate_rng():
        seed_generators(3)
        first = draw()
        seed_generators(3)
        assert draw() == first
