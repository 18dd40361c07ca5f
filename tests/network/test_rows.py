import random
from functools import partial
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from networks import Net, loader, rows
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
    get_worker_info,
)

from lightning_cvxsnn.network.copies import Original
from lightning_cvxsnn.network.rows import TrainingRows, unpack
from lightning_cvxsnn.runtime.rng import isolate_rng


def training_rows(dataloader, module=None, max_samples=None, seed=0):
    return TrainingRows(module or Net(), dataloader, transfer=lambda b: b, max_samples=max_samples, seed=seed)


def numbered(n=20, kind=DataLoader, **kwargs):
    dataset = TensorDataset(torch.arange(n).float()[:, None], torch.arange(n))
    return kind(kwargs.pop("dataset", dataset), **{"batch_size": 1 if "batch_sampler" in kwargs else 6} | kwargs)


class Negative(DataLoader):
    """Changes what it gives after it was collated."""

    def __iter__(self):
        for x, y in super().__iter__():
            yield -x, y


class Around:
    """No DataLoader, but what gives batches of its own, another first one in each pass."""

    def __init__(self, loader, length=True):
        self.loader, self.passes = loader, 0
        if not length:
            self.__class__ = Unsized

    def __iter__(self):
        self.passes += 1
        yield from list(self.loader)[self.passes - 1 :]

    def __len__(self):
        return len(self.loader)


class Unsized(Around):
    __len__ = None


def order(batches):
    return torch.cat([batch.y for batch in batches]).tolist()


@pytest.mark.parametrize("options", [{}, {"shuffle": True}])
def test_all_rows_in_the_datasets_order(options):
    dataloader = numbered(**options)
    assert order(training_rows(dataloader)) == list(range(20))
    assert order(training_rows(dataloader)) == list(range(20))


def test_the_users_generator_is_not_advanced():
    for options in (
        {"shuffle": True, "generator": torch.Generator().manual_seed(3)},
        {"sampler": RandomSampler(range(20), replacement=True, generator=torch.Generator().manual_seed(3))},
    ):
        dataloader = numbered(**options)
        generator = getattr(dataloader.sampler, "generator", None) or dataloader.generator
        before = generator.get_state()
        list(training_rows(dataloader))
        assert torch.equal(before, generator.get_state())


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
@pytest.mark.parametrize("source", ["loader", "subset", "batches", "unbatched"])
def test_shares_are_whole_batches_and_together_all_of_them(processes, source):
    dataloader = numbered(22, shuffle=True)
    if source == "batches":
        dataloader = list(numbered(22))
    elif source == "unbatched":
        dataloader = DataLoader(
            [(torch.arange(k).float()[:, None], torch.arange(k)) for k in (3, 1, 2)], batch_size=None
        )
    whole = training_rows(dataloader, max_samples=17 if source == "subset" else None)
    expected, parts = [batch.y.tolist() for batch in whole], []
    for rank in range(processes):
        whole.ranks.rank, whole.ranks.size = rank, processes
        parts.append([batch.y.tolist() for batch in whole.share()])
        assert len(whole.share()) == len(parts[-1])
    assert list(chain.from_iterable(parts)) == expected
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert [batch.y.tolist() for batch in whole] == expected


def test_a_share_names_a_bad_batch_by_its_place_among_all():
    x, y = rows(20)
    x[-1] = float("nan")
    whole = training_rows(DataLoader(TensorDataset(x, y), batch_size=6))
    whole.ranks.rank, whole.ranks.size = 1, 2
    with pytest.raises(ValueError, match="training batch 3 hold"):
        list(whole.share())


def test_a_subset_sampler_means_its_rows_only():
    assert order(training_rows(numbered(sampler=SubsetRandomSampler([7, 3, 11])))) == [3, 7, 11]


def test_a_weighted_sampler_means_one_draw_of_it():
    weights = [0.0] * 10 + [1.0] * 10
    net, before = Net(), torch.get_rng_state()
    whole = training_rows(numbered(sampler=WeightedRandomSampler(weights, 20)), net)
    assert torch.equal(torch.get_rng_state(), before)
    drawn = order(whole)
    assert len(drawn) == 20
    assert min(drawn) >= 10
    assert drawn == sorted(drawn)


def test_a_batch_sampler_of_ones_own():
    class EvenFirst(BatchSampler):
        def __iter__(self):
            return iter([[0, 2, 4], [1, 3]])

    dataloader = DataLoader(numbered().dataset, batch_sampler=EvenFirst(range(5), 3, False))
    mine = training_rows(dataloader)
    assert [batch.y.tolist() for batch in mine] == [[0, 2, 4], [1, 3]]
    few, own = mine.subset(torch.tensor([False, False, False, True, False]))
    assert [batch.y.tolist() for batch in few] == [[1, 3]]
    assert own.tolist() == [True, False]


def test_a_dataset_that_batches_itself():
    class Batched(Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return torch.zeros(4, 1), torch.full((4,), index)

    assert order(training_rows(DataLoader(Batched(), batch_size=None, shuffle=True))) == [0] * 4 + [1] * 4 + [2] * 4


def test_a_list_of_batches():
    batches = list(numbered())
    assert order(training_rows(batches)) == list(range(20))
    assert len(training_rows(batches)) == 4
    assert sum(len(b.y) for b in training_rows(batches).sample(7)) == 12


def test_max_samples_is_a_fixed_random_subset():
    subset = order(training_rows(numbered(200), max_samples=50))
    assert len(set(subset)) == 50
    assert subset == sorted(subset)
    assert subset == order(training_rows(numbered(200), max_samples=50))
    assert subset != order(training_rows(numbered(200), max_samples=50, seed=1))
    assert subset != list(range(50))


def test_a_sample_is_drawn_from_everywhere():
    sample = order(training_rows(numbered(200)).sample(40))
    assert len(set(sample)) == 40
    assert max(sample) > 150


@pytest.mark.parametrize("kind", ["composed", "subset", "batches"])
def test_some_samples_are_read_without_the_others(kind):
    whole = training_rows(
        list(numbered()) if kind == "batches" else numbered(), max_samples=12 if kind == "subset" else None
    )
    everything = order(whole)
    samples = torch.zeros(len(everything), dtype=torch.bool)
    samples[[1, 4, 9]] = True
    few, own = whole.subset(samples)
    read = order(few)
    assert [read[k] for k in own.nonzero()[:, 0]] == [everything[k] for k in (1, 4, 9)]
    assert len(read) == (20 if kind == "batches" else 3)
    assert order(whole) == everything


class Augmented(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.rand(1) + np.random.rand(), torch.tensor(index)


@pytest.mark.parametrize("workers", [0, 1])
def test_augmentations_repeat(workers):
    mine = training_rows(DataLoader(Augmented(), batch_size=4, num_workers=workers))
    first, second = (torch.cat([b.x for b in mine]) for _ in range(2))
    assert torch.equal(first, second)


class Endless(IterableDataset):
    def __iter__(self):
        yield torch.zeros(1), torch.tensor(0)


@pytest.mark.parametrize(
    ("dataloader", "message"),
    [
        (DataLoader(Endless()), "IterableDataset"),
        ({"a": loader(), "b": loader()}, "a dict of 2 loaders"),
        ([loader(), loader()], "a list of 2 loaders"),
        ((b for b in loader()), "a generator"),
        ([], "a list of 0 loaders"),
    ],
)
def test_what_cannot_be_read_again_is_refused(dataloader, message):
    with pytest.raises(MisconfigurationException, match=message):
        training_rows(dataloader)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.zeros(3), "a Tensor"),
        ({"x": torch.zeros(3), "y": torch.zeros(3)}, r"a dict with keys \['x', 'y'\]"),
        ((torch.zeros(3),), r"a tuple of \['Tensor'\]"),
        ((torch.zeros(3), torch.zeros(3), torch.zeros(3)), "Expected"),
        ((torch.zeros(3), "label"), r"\['Tensor', 'str'\]"),
    ],
)
def test_a_batch_that_is_not_x_and_y(batch, message):
    with pytest.raises(MisconfigurationException, match=message) as error:
        unpack(Net(), batch)
    assert "convex_batch" in str(error.value)


def test_convex_batch():
    net = Net()
    net.convex_batch = lambda batch: (batch["x"], batch["y"], batch["w"])
    x, y = rows(5)
    found = unpack(net, {"x": x, "y": y, "w": torch.ones(5)})
    assert found.x is x
    assert torch.equal(found.weight, torch.ones(5))
    net.convex_batch = lambda batch: batch["x"]
    with pytest.raises(MisconfigurationException, match=r"Net.convex_batch is a Tensor"):
        unpack(net, {"x": x})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_in_the_input(value):
    x, y = rows(5)
    x[2, 1] = value
    with pytest.raises(ValueError, match="inputs of training batch 7 hold 1 NaN or infinite"):
        unpack(Net(), (x, y), 7)


def classes_of(dataset, indices):
    return torch.stack([dataset[i][1] for i in indices]).bincount(minlength=3).tolist()


class Labelled(Dataset):
    """As torchvision's: labels beside rows that are costly to load."""

    def __init__(self, name, labels, first=0):
        self.loads, self.first = 0, first
        setattr(self, name, labels)
        self.told = labels

    def __len__(self):
        return len(self.told)

    def __getitem__(self, index):
        self.loads += 1
        return torch.tensor([float(self.first + index)]), torch.tensor(int(self.told[index]))


LABELS = [0] * 700 + [1] * 200 + [2] * 100


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "make",
    [
        lambda: TensorDataset(torch.arange(1000.0)[:, None], torch.tensor(LABELS)),
        lambda: Labelled("targets", LABELS),
        lambda: Labelled("labels", np.array(LABELS)),
        lambda: Subset(Labelled("targets", LABELS * 2), range(1000)),
        lambda: ConcatDataset(
            [Labelled("targets", LABELS[:400]), Labelled("targets", torch.tensor(LABELS[400:]), 400)]
        ),
    ],
    ids=["tensors", "targets", "labels", "subset", "concatenation"],
)
def test_a_subset_holds_each_class_in_proportion(make, seed):
    dataset = make()
    mine = training_rows(DataLoader(dataset, batch_size=16, shuffle=True), max_samples=100, seed=seed)
    assert getattr(dataset, "loads", 0) == 0
    found = order_of_inputs(mine)
    assert len(set(found)) == 100
    assert found == sorted(found)
    assert classes_of(make(), found) == [70, 20, 10]
    assert found == order_of_inputs(training_rows(DataLoader(dataset, batch_size=16), max_samples=100, seed=seed))


def order_of_inputs(batches):
    return torch.cat([batch.x for batch in batches])[:, 0].int().tolist()


@given(st.lists(st.integers(-3, 3), min_size=6, max_size=60), st.integers(5, 50), st.integers(0, 9))
def test_any_labels_are_held_in_proportion_to_within_one_row(labels, count, seed):
    dataset = TensorDataset(torch.arange(len(labels)).float()[:, None], torch.tensor(labels))
    mine = training_rows(DataLoader(dataset, batch_size=7), max_samples=count, seed=seed)
    found, count = order_of_inputs(mine), min(count, len(labels))
    assert len(set(found)) == len(found) == count
    for label in set(labels):
        share = labels.count(label) * count / len(labels)
        assert abs(sum(labels[i] == label for i in found) - share) < 1


@pytest.mark.parametrize("labels", ["no labels", [0.5] * 1000, [1, 2], [[1, 2]] * 1000, lambda: None])
def test_what_is_no_list_of_classes_gives_a_random_subset(labels):
    dataset = Labelled("targets", labels)
    dataset.told = LABELS
    found = order_of_inputs(training_rows(DataLoader(dataset, batch_size=16), max_samples=100))
    assert len(set(found)) == 100


@pytest.mark.parametrize("source", ["batches", "unbatched", "subclass", "iterable", "batch sampler"])
def test_max_samples_counts_the_rows_of_batches_that_come_whole(source):
    batches = [(torch.full((3, 1), k), torch.full((3,), k)) for k in range(20)]
    dataloader = {
        "batches": lambda: batches,
        "unbatched": lambda: DataLoader(batches, batch_size=None),
        "subclass": lambda: Negative(batches, batch_size=None),
        "iterable": lambda: Around(batches),
        "batch sampler": lambda: numbered(60, batch_sampler=list(torch.arange(60).view(20, 3).tolist())),
    }[source]()
    mine = training_rows(dataloader, max_samples=7)
    assert len(order(mine)) == (6 if source == "batch sampler" else 9)
    assert order(mine) == order(mine)
    assert len(order(training_rows(dataloader, max_samples=1000))) == 60


def test_a_stream_is_refused_in_several_processes():
    class Two:
        size, rank = 2, 0

    with pytest.raises(MisconfigurationException, match="of which each of 2 processes reads a part"):
        TrainingRows(Net(), DataLoader(Endless()), transfer=lambda b: b, max_samples=5, seed=0, ranks=Two())


def test_repeats_of_a_sampler_have_one_id():
    repeated = training_rows(numbered(20, sampler=[3, 7, 3, 0, 7, 7]))
    assert order(repeated) == [0, 3, 3, 7, 7, 7]
    assert repeated.sample_ids(6).tolist() == [0, 1, 1, 2, 2, 2]
    assert training_rows(numbered(20, shuffle=True)).sample_ids(20).tolist() == list(range(20))
    assert training_rows(list(numbered(20))).sample_ids(20).tolist() == list(range(20))


# -- the loader is followed ---------------------------------------------------------------------------------------


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
