"""What the loader gives is what is solved, and a dry run is the run without, whatever the loader."""

import json
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from networks import Net, assert_same_state, rows, state, trainer
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    TensorDataset,
    get_worker_info,
)

from lightning_cvxsnn import ConvexReconstruction

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

ROOT = Path(__file__).parents[2]
ROWS, BATCH = 60, 10


def data():
    return TensorDataset(*rows(ROWS))


def fitted(dataloader, callback=None, **kwargs):
    torch.manual_seed(1)
    net = Net(width=8)
    trainer(*([callback] if callback else []), **{"max_epochs": 1} | kwargs).fit(net, dataloader)
    return net


def warm_start(**kwargs):
    return ConvexReconstruction(beta=0.02, every_n_epochs=0, final_solve=False, **kwargs)


class Relabelled(DataLoader):
    """Turns inputs over and names the classes otherwise: what comes out is learnt by another readout."""

    def __iter__(self):
        for x, y in super().__iter__():
            yield 1 - x, 2 - y


def test_what_a_subclass_gives_is_what_is_solved():
    """The warm start is that of a dataset whose rows are so already."""
    x, y = rows(ROWS)
    plain = DataLoader(TensorDataset(1 - x, 2 - y), BATCH)
    ends = [fitted(loader, callback := warm_start(), max_steps=1) for loader in (Relabelled(data(), BATCH), plain)]
    assert callback.reports[0].accepted
    assert_same_state(ends[0], state(ends[1]))


class Endless(Sampler):
    drawn = 0

    def __iter__(self):
        while True:
            for index in torch.randperm(ROWS).tolist():
                Endless.drawn += 1
                if Endless.drawn > 10 * ROWS:
                    raise TimeoutError("the sampler is asked for ever more")
                yield index


@pytest.mark.parametrize("max_samples", [None, 30])
def test_an_endless_sampler_is_followed_for_an_epoch(max_samples):
    Endless.drawn, callback = 0, warm_start(max_samples=max_samples)
    fitted(DataLoader(data(), BATCH, sampler=Endless()), callback, limit_train_batches=4)
    rows_solved = max_samples or 40
    assert callback.reports[0].rows in (rows_solved, rows_solved - rows_solved // 5)


class Shuffled(Sampler):
    def __init__(self):
        self.rng = np.random.default_rng(0)

    def __iter__(self):
        return iter(self.rng.permutation(ROWS).tolist())

    def __len__(self):
        return ROWS


class Pairs(Sampler):
    def __init__(self):
        self.inner = RandomSampler(range(ROWS), generator=torch.Generator().manual_seed(1))

    def __iter__(self):
        yield from BatchSampler(self.inner, BATCH, True)

    def __len__(self):
        return ROWS // BATCH


@pytest.mark.parametrize(
    "make",
    [lambda: DataLoader(data(), BATCH, sampler=Shuffled()), lambda: DataLoader(data(), batch_sampler=Pairs())],
    ids=["numpy generator", "nested sampler"],
)
def test_generators_inside_samplers_are_not_advanced(make):
    callback = ConvexReconstruction(beta=0.02, dry_run=True, max_overhead=None)
    without, found = fitted(make(), max_epochs=2), fitted(make(), callback, max_epochs=2)
    assert len(callback.reports) == 3
    assert_same_state(found, state(without))


class Stream(IterableDataset):
    first = None

    def __iter__(self):
        worker = get_worker_info()
        x, y = rows(ROWS)
        for index in range(self.first + worker.id, ROWS, worker.num_workers):
            yield x[index], y[index]


class Rows(IterableDataset):
    def __iter__(self):
        return zip(*rows(ROWS), strict=True)

    def __len__(self):
        return ROWS


def begin(worker):
    get_worker_info().dataset.first = 10


def test_a_stream_is_solved_over_as_its_workers_read_it():
    callback = warm_start(max_samples=1000)
    fitted(DataLoader(Stream(), BATCH, num_workers=2, worker_init_fn=begin), callback)
    assert callback.reports[0].rows in (50, 40)


@pytest.mark.parametrize(("bound", "batches"), [({"limit_train_batches": 2}, 2), ({"overfit_batches": 0.5}, 3)])
def test_limits_of_the_trainer_are_followed(bound, batches):
    class Marked(Dataset):
        read: ClassVar = set()

        def __getitem__(self, index):
            Marked.read.add(index)
            return tuple(tensor[index] for tensor in rows(ROWS))

        def __len__(self):
            return ROWS

    callback = warm_start()
    fitted(DataLoader(Marked(), BATCH, shuffle=True), callback, **bound)
    assert callback.reports[0].rows in (10 * batches, 8 * batches)
    assert len(Marked.read) == 10 * batches  # the epoch trains on the rows that were solved over


def test_a_network_of_one_batch_size_is_solved_with_drop_last():
    class Fixed(Net):
        def forward(self, x):
            assert len(x) == 7, "the network is made for batches of 7"
            return super().forward(x)

    torch.manual_seed(1)
    for max_samples in (None, 30):
        callback = warm_start(max_samples=max_samples)
        trainer(callback, max_epochs=1).fit(Fixed(), DataLoader(data(), 7, shuffle=True, drop_last=True))
        assert callback.reports[0].rows in ((28, 23) if max_samples else (56, 45))


class Augmenting:
    """Hooks with state of their own, of a LightningModule or of a LightningDataModule."""

    def on_before_batch_transfer(self, batch, dataloader_idx):
        if not hasattr(self, "rng"):
            self.rng, self._seen, self.counts = torch.Generator().manual_seed(0), [], {"all": [0]}
        return batch

    def on_after_batch_transfer(self, batch, dataloader_idx):
        self._seen.append(len(batch[1]))
        self.counts["all"][0] += 1
        return batch[0] + 0.1 * torch.rand(batch[0].shape, generator=self.rng), batch[1]


class AugmentingNet(Augmenting, Net): ...


class AugmentingData(Augmenting, pl.LightningDataModule):
    def train_dataloader(self):
        return DataLoader(data(), BATCH, shuffle=True)


@pytest.mark.parametrize("max_samples", [None, 30])
@pytest.mark.parametrize("where", ["module", "data module", "stream"])
def test_hooks_around_the_transfer_are_as_before(where, max_samples):
    ends = []
    for callbacks in ([], [ConvexReconstruction(beta=0.02, dry_run=True, max_samples=max_samples)]):
        torch.manual_seed(1)
        source = AugmentingData() if where == "data module" else DataLoader(data(), BATCH, shuffle=True)
        net = Net(width=8) if where == "data module" else AugmentingNet(width=8)
        if where == "stream":
            source = DataLoader(Rows(), BATCH)
        trainer(*callbacks, max_epochs=2).fit(net, source)
        hooked = source if where == "data module" else net
        ends.append((net, hooked._seen, hooked.counts))
    assert ends[0][1:] == ends[1][1:]
    assert_same_state(ends[1][0], state(ends[0][0]))


def test_a_loader_that_cannot_be_copied_is_refused_before_anything_is_written():
    class Prefetching(DataLoader):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.ahead = super().__iter__()

        def __iter__(self):
            yield from self.ahead

    torch.manual_seed(1)
    net = Net()
    before = state(net)
    with pytest.raises(MisconfigurationException, match="a Prefetching that cannot be copied"):
        trainer(warm_start(), max_epochs=1).fit(net, Prefetching(data(), BATCH))
    assert_same_state(net, before)


def test_the_fuzz_of_loaders_finds_no_difference(tmp_path):
    command = [sys.executable, ROOT / "benchmarks/loaders.py", "--count", "12", "--seed", "1", "--output", tmp_path]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads((tmp_path / "loaders.json").read_text())["results"]
    assert found["same"] >= 9
    assert found["same"] + found.get("refused", 0) == 12
