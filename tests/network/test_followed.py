"""The loader is followed: what it, its samplers and its workers would give is read, and nothing of theirs moves."""

import random
from functools import partial

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from networks import Net
from row_sources import Around, Endless, Negative, numbered, order, training_rows
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    default_collate,
    get_worker_info,
)

from lightning_cvxsnn.network.copies import Original
from lightning_cvxsnn.network.rows import TrainingRows
from lightning_cvxsnn.runtime.rng import isolate_rng


def test_what_a_subclass_makes_of_batches_is_what_is_read():
    mine = training_rows(numbered(kind=Negative))
    assert torch.cat([batch.x for batch in mine])[:, 0].tolist() == [-k for k in range(20)]
    assert len(mine) == 4


def test_an_iterable_is_read_from_copies():
    dataloader = Around(list(numbered()))
    mine = training_rows(dataloader)
    assert order(mine) == order(mine) == list(range(20))
    assert dataloader.passes == 0
    assert len(dataloader.loader) == 4
    assert order(training_rows(CombinedLoader(numbered()))) == list(range(20))


@pytest.mark.parametrize("kind", [Sampler, SequentialSampler, RandomSampler, SubsetRandomSampler, DistributedSampler])
def test_a_sampler_that_iterates_by_itself_is_followed_whatever_it_inherits(kind):
    class Own(kind):
        def __init__(self):
            pass

        def __iter__(self):
            return iter([5, 2, 9])

        def __len__(self):
            return 3

    assert order(training_rows(numbered(sampler=Own()))) == [2, 5, 9]
    assert order(training_rows(numbered(sampler=DistributedSampler(range(20), 4, 1, shuffle=False)))) == [
        1,
        5,
        9,
        13,
        17,
    ]
    assert order(training_rows(numbered(sampler=SequentialSampler(range(5))))) == list(range(5))
    assert order(training_rows(numbered(batch_sampler=BatchSampler([5, 2, 9], 2, False)))) == [2, 5, 9]
    assert order(training_rows(numbered(batch_sampler=BatchSampler(range(3, 8), 2, True)))) == [3, 4, 5, 6]


class Forever(Sampler):
    def __iter__(self):
        while True:
            yield from reversed(range(20))


class Once(Forever):
    def __iter__(self):
        return iter(range(7))


def test_a_sampler_without_a_length():
    assert order(limited(numbered(sampler=Forever()), 2)) == list(range(8, 20))
    assert order(training_rows(numbered(sampler=Forever()), max_samples=5)) == list(range(15, 20))
    assert order(training_rows(numbered(sampler=Once()))) == list(range(7))
    with pytest.raises(MisconfigurationException, match="by a Forever without a length, which gave 200 and goes on"):
        training_rows(numbered(sampler=Forever()))


def limited(dataloader, limit, module=None, max_samples=None):
    rows = {"transfer": lambda b: b, "max_samples": max_samples, "seed": 0, "limit": limit}
    return TrainingRows(module or Net(), dataloader, **rows)


def test_an_epoch_bounds_what_is_read():
    assert order(limited(numbered(), 2)) == list(range(12))
    assert order(limited(numbered(), float("inf"))) == list(range(20))
    assert order(limited(numbered(kind=Negative), 1)) == list(range(6))
    assert order(limited(Around(list(numbered())), 3)) == list(range(18))
    assert order(limited(numbered(batch_sampler=[[3, 1], [0], [2, 4]]), 2)) == [3, 1, 0]
    assert len(order(limited(numbered(), 2, max_samples=7))) == 7

    class Short(DataLoader):
        def __len__(self):
            return 2

    assert order(training_rows(numbered(kind=Short))) == list(range(12))


def test_the_rows_of_a_shortened_epoch_are_those_that_the_next_epoch_draws():
    dataloader = numbered(shuffle=True)
    net, epoch = Net(), iter(dataloader)  # which Lightning has made when training starts
    with isolate_rng():
        mine = order(limited(dataloader, 2, module=net))
    assert sorted(torch.cat([y for _, y in epoch])[:12].tolist()) == mine


def test_with_drop_last_every_batch_is_whole():
    dataloader = numbered(20, shuffle=True, drop_last=True)
    mine = training_rows(dataloader)
    samples = torch.zeros(18, dtype=torch.bool)
    samples[[1, 4, 7, 9, 10, 12, 17]] = True
    few, own = mine.subset(samples)
    for batches in (mine, few, mine.sample(7), training_rows(dataloader, max_samples=13)):
        assert {len(batch.y) for batch in batches} == {6}
    assert len(order(mine)) == len(set(order(mine))) == 18
    assert [y for y, one in zip(order(few), own, strict=True) if one] == [
        order(mine)[k] for k in (1, 4, 7, 9, 10, 12, 17)
    ]
    assert len(mine.sample(7)) == 2
    assert order(training_rows(numbered(18, shuffle=True, drop_last=True))) == list(range(18))


@pytest.mark.parametrize("item", [lambda k: (k, "wide"), lambda k: {"row": k}, lambda k: (k, torch.ones(2))])
def test_items_of_a_sampler_need_no_order(item):
    class Rows(Dataset):
        def __getitem__(self, item):
            return torch.zeros(1), torch.tensor(item["row"] if isinstance(item, dict) else item[0])

        def __len__(self):
            return 20

    sampler = [item(k) for k in (3, 7, 3, 0)]
    mine = training_rows(DataLoader(Rows(), batch_size=2, sampler=sampler))
    assert sorted(order(mine)) == [0, 3, 3, 7]
    ids = dict.fromkeys(zip(order(mine), mine.sample_ids(4).tolist(), strict=True))
    assert len(ids) == 3


SHARED = np.random.default_rng(0)


class Held(Sampler):
    """Permutes by generators held in a list, nested, in a class attribute, in a closure and as a global."""

    old = np.random.RandomState(0)

    def __init__(self):
        self.some = [np.random.default_rng(1), random.Random(2)]
        self.inner = RandomSampler(range(20), generator=torch.Generator().manual_seed(3))
        self.passes = {"count": 0}

    def __iter__(self):
        self.passes["count"] += 1
        order = [list(self.inner)[k] for k in SHARED.permutation(20)]
        order = [order[k] for k in self.old.permutation(20)]
        self.some[1].shuffle(order)
        return iter(self.some[0].permutation(order)[self.passes["count"] :].tolist())

    def __len__(self):
        return 20


def collating():
    generator, calls, sizes = torch.Generator().manual_seed(4), 0, []

    def collate(items):
        nonlocal calls
        calls += 1
        sizes.append(len(items))
        x, y = default_collate(items)
        return x + torch.rand(1, generator=generator) + calls + sum(sizes), y

    return collate


class Collating:
    calls = 0

    def __call__(self, items):
        self.calls += 1
        x, y = default_collate(items)
        return x + self.calls, y


class Remembering(Dataset):
    """Gives other rows the more often it was asked, by counts in an array and in a list."""

    def __init__(self):
        self.reads, self.log = np.zeros(20, int), []

    def __getitem__(self, index):
        self.reads[index] += 1
        self.log.append(index)
        return torch.tensor([float(len(self.log) + 100 * self.reads[index])]), torch.tensor(index)

    def __len__(self):
        return 20


class RememberingBatches(Remembering):
    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return x[None], y[None]


@pytest.mark.parametrize("max_samples", [None, 7])
@pytest.mark.parametrize("kind", [DataLoader, Negative])
@pytest.mark.parametrize(
    "make",
    [
        lambda: {"sampler": Held()},
        lambda: {"batch_sampler": BatchSampler(Held(), 6, True)},
        lambda: {"collate_fn": collating(), "shuffle": True, "generator": torch.Generator().manual_seed(5)},
        lambda: {"collate_fn": Collating()},
        lambda: {"collate_fn": partial(Collating.__call__, Collating())},
        lambda: {"collate_fn": Collating().__call__, "sampler": Held()},
        lambda: {"dataset": Remembering(), "shuffle": True},
        lambda: {"dataset": Subset(RememberingBatches(), range(20)), "batch_size": None},
    ],
)
def test_reading_leaves_no_trace_in_the_loader(make, kind, max_samples):
    def given(read):
        torch.manual_seed(0)
        SHARED.bit_generator.state = np.random.default_rng(0).bit_generator.state
        Held.old.seed(0)
        dataloader = numbered(kind=kind, **make())
        if read:
            with isolate_rng():
                mine = training_rows(dataloader, max_samples=max_samples)
                passes = [[batch.x.tolist() for batch in mine] for _ in range(2)]
                mine.sample(3)
            assert passes[0] == passes[1]
        return [[x.tolist(), y.tolist()] for _ in range(2) for x, y in dataloader]

    assert given(True) == given(False)


class Sharded(IterableDataset):
    """Each worker has its part, from where its ``worker_init_fn`` says."""

    first = 0

    def __iter__(self):
        worker = get_worker_info()
        for index in range(worker.id, 20, worker.num_workers):
            yield torch.zeros(1), torch.tensor(self.first + index)


def begin_at_100(worker):
    get_worker_info().dataset.first = 100


def test_a_stream_is_read_as_its_workers_read_it():
    dataloader = DataLoader(Sharded(), 4, num_workers=2, worker_init_fn=begin_at_100, persistent_workers=True)
    expected = torch.cat([y for _, y in dataloader]).tolist()
    mine = training_rows(dataloader, max_samples=1000)
    assert order(mine) == order(mine) == expected
    assert min(expected) == 100
    assert order(limited(dataloader, 3)) == expected[:12]


class Sized(Endless):
    def __iter__(self):
        return ((torch.zeros(1), torch.tensor(k)) for k in range(10))

    def __len__(self):
        return 10


def test_a_stream_with_a_length_needs_no_bound():
    assert order(training_rows(DataLoader(Sized(), 4))) == list(range(10))


def test_what_is_held_in_memory_must_fit(monkeypatch):
    monkeypatch.setattr("lightning_cvxsnn.network.loader.available_memory", lambda: 300)
    assert len(training_rows(DataLoader(Sized(), 4))) == 3
    monkeypatch.setattr("lightning_cvxsnn.network.loader.available_memory", lambda: 200)
    with pytest.raises(
        MisconfigurationException, match=r"3 batches of 0.0 MiB, and 0.0 MiB are available. Set max_sam"
    ):
        training_rows(DataLoader(Sized(), 4))


def test_what_runs_already_cannot_be_copied():
    class Prefetching(DataLoader):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.ahead = iter(super().__iter__())

        def __iter__(self):
            return self.ahead

    class Begun(Sampler):
        def __init__(self):
            self.order = (k for k in range(20))

        def __iter__(self):
            return self.order

    for dataloader in (numbered(kind=Prefetching), numbered(sampler=Begun())):
        with pytest.raises(
            MisconfigurationException, match=r"that cannot be copied \(it holds a generator that has beg"
        ):
            training_rows(dataloader)
    with pytest.raises(MisconfigurationException, match=r"a Unsized, which may have no end. Set max_samples"):
        training_rows(Around(list(numbered()), length=False))
    with pytest.raises(MisconfigurationException, match="comes from a list of 4 loaders"):  # as Lightning reads lists
        limited(list(numbered()), 4)


def test_large_arrays_are_shared_and_open_files_of_a_dataset_stay_open(tmp_path):
    (tmp_path / "rows").write_bytes(bytes(range(20)))

    class Files(Dataset):
        def __init__(self):
            self.file = (tmp_path / "rows").open("rb")
            self.table, self.few, self.array = torch.zeros(2**20), torch.zeros(2), np.zeros(2**20)

        def __getitem__(self, index):
            self.file.seek(index)
            return self.table[:1], torch.tensor(self.file.read(1)[0])

        def __len__(self):
            return 20

    dataset = Files()
    assert order(training_rows(DataLoader(dataset, 6))) == list(range(20))
    copied = Original(dataset, "a Files").copy()
    assert copied.table is dataset.table
    assert copied.array is dataset.array
    assert copied.few is not dataset.few
    dataset.file.close()
