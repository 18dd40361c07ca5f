"""What objects hold is put back, however it is held."""

import random
from collections import Counter, OrderedDict, defaultdict, deque

import numpy as np
import pytest
import torch
from torch import nn

from lightning_cvxsnn.network import put_back

GLOBAL = random.Random(0)


class Meter:
    def __init__(self):
        self.total, self.parts = 0, [0]


class Slow(nn.Module):
    """A module that nobody has registered."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.calls = 0


class Holder:
    def __init__(self):
        self.plain, self._private = 0, [1]
        self.window, self.kinds, self.counts = deque([1, 2], maxlen=2), {1}, Counter(a=1)
        self.nested, self.ordered = {"train": [], "by": defaultdict(list)}, OrderedDict(b=1, a=2)
        self.meter, self.pair = Meter(), (Meter(), [torch.zeros(2)])
        self.array, self.tensors = np.zeros(3), {"t": torch.zeros(2)}
        self.torch, self.numpy = torch.Generator().manual_seed(0), np.random.default_rng(0)
        self.hidden, self.itself = [Slow()], self

    def change(self):
        self.plain, self.new = 1, 1
        self._private.append(2)
        self.window.append(3)
        self.kinds.add(2)
        self.counts["a"] += 1
        self.nested["train"].append(1)
        self.nested["by"]["key"].append(1)
        self.ordered.move_to_end("b")
        self.meter.total += 1
        self.meter.parts[0] = 1
        self.pair[0].total += 1
        self.pair[1][0] += 1
        self.array += 1
        self.tensors["t"] += 1
        self.hidden[0].calls += 1
        self.hidden[0].norm(torch.rand(4, 2))

    def told(self):
        return (
            *(sorted(vars(self)), self.plain, self._private, list(self.window), self.kinds, dict(self.counts)),
            *(repr(self.nested), list(self.ordered), vars(self.meter), vars(self.pair[0]), self.pair[1][0].tolist()),
            *(self.array.tolist(), self.tensors["t"].tolist(), self.hidden[0].calls),
            self.hidden[0].norm.running_mean.tolist(),
        )

    def draw(self):
        return torch.rand((), generator=self.torch).item(), self.numpy.random(), GLOBAL.random()


@pytest.mark.parametrize("raised", [False, True])
def test_what_an_object_holds_is_as_before(raised):
    holder, fresh = Holder(), Holder()
    state = GLOBAL.getstate()
    expected = fresh.draw()
    GLOBAL.setstate(state)
    try:
        with put_back([holder]):
            holder.change()
            holder.draw()
            assert holder.told() != fresh.told()
            if raised:
                raise RuntimeError
    except RuntimeError:
        pass
    assert holder.told() == fresh.told()
    assert holder.draw() == expected


def test_what_is_known_and_datasets_are_left_alone():
    holder, known = Meter(), [0]
    holder.known, holder.data = known, torch.utils.data.TensorDataset(torch.zeros(1))
    with put_back([holder], known=[known]):
        known.append(1)
        holder.data.tensors[0].add_(1)
    assert known == [0, 1]
    assert holder.data.tensors[0].item() == 1


def test_a_long_chain_of_objects_is_followed():
    first = last = Meter()
    for _ in range(5000):
        last.next = last = Meter()
    with put_back([first]):
        last.total = 1
    assert last.total == 0
