"""Which rows are read, in which order, and which of them a subset or a process gets."""

import random
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from networks import Net, loader, rows
from row_sources import Around, Endless, Negative, numbered, order, training_rows
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from lightning_cvxsnn.network.loader import seed_generators
from lightning_cvxsnn.network.rows import TrainingRows, rows_of, unpack
from lightning_cvxsnn.runtime.rng import isolate_rng


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


def test_seeding_repeats_draws_and_touches_only_what_is_put_back(monkeypatch):
    for other in (torch.mps, torch.xpu):  # whose states isolate_rng does not keep
        monkeypatch.setattr(other, "manual_seed", lambda seed: pytest.fail("seeded"), raising=False)
        monkeypatch.setattr(other, "manual_seed_all", lambda seed: pytest.fail("seeded"), raising=False)
    with isolate_rng():
        seed_generators(3)
        first = torch.rand(()), random.random(), np.random.rand()
        seed_generators(3)
        assert (torch.rand(()), random.random(), np.random.rand()) == first


class Shifted(Net):
    """Changes what a loader gives before it trains on it."""

    def on_before_batch_transfer(self, batch, dataloader_idx):
        return [batch[0] + 1, batch[1]]

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        self.sent_to = device
        return [part.to(device) for part in batch]

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return [2 * batch[0], batch[1]]


def test_without_a_trainer_the_hooks_of_the_module_are_followed():
    net, (x, y) = Shifted(), rows()
    found = list(rows_of(net, [[x, y]]))
    assert torch.equal(torch.cat([batch.x for batch in found]), 2 * (x + 1))
    assert net.sent_to == torch.device("cpu")


class Asking(Net):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return [0 * batch[0], batch[1]] if self.trainer.training else batch


def test_hooks_that_ask_for_a_trainer_are_left_out_without_one():
    x, y = rows()
    (found,) = rows_of(Asking(), [[x, y]])
    assert torch.equal(found.x, x)
