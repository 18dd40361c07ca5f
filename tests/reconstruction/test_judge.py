"""Validation rows that judge: read without a trace, left out where they cannot, and seen as validation."""

import logging

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from networks import Net, assert_same_state, loader, rows, state, trainer
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from lightning_cvxsnn import ConvexReconstruction, reconstruct
from lightning_cvxsnn.reconstruction.guard import ENOUGH_ROWS

ARGUMENTS = {"beta": 0.02, "max_overhead": None}
MESSAGE = "judges by held-out training rows, not validation rows"


def fit(callback, validation, kind=Net, train=None, **kwargs):
    torch.manual_seed(1)
    net = kind(lr=1e-3) if isinstance(kind, type) else kind
    kwargs = {"max_epochs": 2} | kwargs
    run = trainer(*([callback] if callback else []), **kwargs)
    run.fit(net, train or loader(), validation)
    return net, run


def judged(callback):
    return [(report.judge, report.rows) for report in callback.reports]


@pytest.mark.parametrize(
    ("judge", "count", "kind"),
    [
        ("auto", ENOUGH_ROWS, "validation"),
        ("auto", ENOUGH_ROWS - 1, "both"),
        ("auto", None, "train"),
        ("train", ENOUGH_ROWS, "train"),
        ("validation", 5, "validation"),
        ("validation", None, "train"),
    ],
)
@pytest.mark.parametrize("scale", ["auto", 1e3])
def test_who_judges(judge, count, kind, scale):
    """Validation rows leave all training rows to the solve, also to one that is rejected."""
    callback = ConvexReconstruction(**ARGUMENTS, judge=judge, scale=scale)
    fit(callback, None if count is None else loader(count, seed=1), max_epochs=1)
    assert len(callback.reports) == 2
    for report in callback.reports:
        assert report.judge == kind
        assert report.rows == (240 if kind == "validation" or report.accepted else 192)
        assert scale == "auto" or count == 5 or not report.accepted
    assert count == 5 or callback.reports[0].accepted == (scale == "auto")


def test_what_is_judged_are_the_validation_rows_as_the_trainer_limits_them():
    """Labels that only the rows beyond the limit have would be refused."""
    x, y = rows(240, seed=1)
    y = torch.where(torch.arange(240) < 128, y, 7)
    callback = ConvexReconstruction(**ARGUMENTS, judge="validation", every_n_epochs=0, final_solve=False)

    class Unscored(Net):
        def validation_step(self, batch, batch_idx):
            pass

    fit(callback, DataLoader(TensorDataset(x, y), 64), Unscored, max_epochs=1, limit_val_batches=2)
    with pytest.raises(MisconfigurationException, match=r"validation rows cannot judge: .*range from"):
        fit(callback, DataLoader(TensorDataset(x, y), 64), Unscored, max_epochs=1, limit_val_batches=3)


class Counted(Dataset):
    """Rows that are drawn anew, from a generator of their own, each time that one is asked for."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)
        self.x, self.y = rows(120, seed=1)

    def __len__(self):
        return 120

    def __getitem__(self, index):
        noise = torch.rand(6, generator=self.generator) + torch.rand(6)
        return self.x[index] + 0.01 * noise, self.y[index]


@pytest.mark.parametrize("workers", [0, 1])
def test_the_validation_loader_is_read_without_a_trace(workers):
    """Its order, its generators and its dataset's state go on as without the callback, and so do global generators."""
    seen = []

    class Watching(Net):
        def validation_step(self, batch, batch_idx):
            seen.append(batch[0].clone())

    ends = []
    for callback in (None, ConvexReconstruction(**ARGUMENTS, dry_run=True)):
        dataset = Counted()
        generator = torch.Generator().manual_seed(3)
        options = {"num_workers": workers, "persistent_workers": workers > 0}
        validation = DataLoader(dataset, batch_size=50, shuffle=True, generator=generator, **options)
        net, _ = fit(callback, validation, Watching, loader(shuffle=True))
        ends.append((state(net), generator.get_state(), torch.get_rng_state()))
        ends.append(torch.cat(seen))
        seen.clear()
    plain, batches, ours, same_batches = ends
    assert {report.judge for report in callback.reports} == {"validation"}
    assert torch.equal(batches, same_batches)
    assert all(torch.equal(plain[0][name], ours[0][name]) for name in plain[0])
    assert torch.equal(plain[1], ours[1])
    assert torch.equal(plain[2], ours[2])


class Stream(IterableDataset):
    def __iter__(self):
        return zip(*rows(120, seed=1), strict=True)


def batches_of_three():
    x, y = rows(120, seed=1)
    return DataLoader(TensorDataset(x, y, y), batch_size=60)


class Unread(Net):
    """Validates on batches that no solve could be judged on."""

    def validation_step(self, batch, batch_idx):
        pass


UNREADABLE = {
    "another batch format": (batches_of_three, r"a list of \['Tensor', 'Tensor', 'Tensor'\]"),
    "unknown labels": (lambda: DataLoader(TensorDataset(rows(120)[0], torch.full((120,), 7)), 60), "range from 7 to 7"),
    "NaN": (lambda: DataLoader(TensorDataset(rows(120)[0] * float("nan"), rows(120)[1]), 60), "NaN"),
    "a stream": (lambda: DataLoader(Stream(), batch_size=60), "which may have no end"),
    "other inputs": (lambda: DataLoader(TensorDataset(torch.rand(120, 4), rows(120)[1]), 60), "shapes"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_rows_that_cannot_judge_are_left_out_with_one_message(case, caplog):
    make, _ = UNREADABLE[case]
    callback, without = (ConvexReconstruction(**ARGUMENTS, judge=judge) for judge in ("auto", "train"))
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        fit(callback, make(), Unread, max_epochs=3)
    told = [record.message for record in caplog.records if MESSAGE in record.message]
    assert len(told) == 1
    fit(without, make(), Unread, max_epochs=3)
    assert {judge for judge, _ in judged(callback)} == {"train"}
    assert judged(callback) == judged(without)
    assert [r.primal for r in callback.reports] == [r.primal for r in without.reports]


@pytest.mark.parametrize("case", UNREADABLE)
def test_rows_that_are_to_judge_and_cannot_are_refused(case):
    make, reason = UNREADABLE[case]
    net = Unread()
    before = state(net)
    message = rf"(?s)^The validation rows cannot judge: .*{reason}.* Use judge='train' to leave them out\.$"
    with pytest.raises(MisconfigurationException, match=message):
        fit(ConvexReconstruction(**ARGUMENTS, judge="validation"), make(), net)
    assert_same_state(net, before)


def test_another_fit_asks_its_own_validation_rows():
    callback = ConvexReconstruction(**ARGUMENTS)
    net, _ = fit(callback, batches_of_three(), Unread, max_epochs=1)
    trainer(callback, max_epochs=1).fit(net, loader(), loader(seed=1))
    assert [judge for judge, _ in judged(callback)] == ["train", "train", "validation"]


@pytest.mark.parametrize("kind", [list, lambda loaders: dict(zip("ab", loaders, strict=True))])
def test_of_several_loaders_the_first_judges(kind):
    class Two(Net):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            pass

    x, y = rows(240, seed=1)
    right, wrong = (DataLoader(TensorDataset(x, labels), 64) for labels in (y, (y + 1) % 3))
    accepted = {}
    for order in ((right, wrong), (wrong, right)):
        callback = ConvexReconstruction(**ARGUMENTS, every_n_epochs=0, final_solve=False, witnesses="keep")
        fit(callback, kind(order), Two, max_epochs=1)
        accepted[order[0] is right] = callback.reports[0].accepted
        assert callback.reports[0].judge == "validation"
    assert accepted == {True: True, False: False}


def test_hooks_see_that_these_rows_are_validated():
    """``on_after_batch_transfer`` may augment in training alone, and the stage is training's again afterwards."""
    stages = []

    class Asking(Net):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            if callback_runs:
                stages.append((len(batch[0]), self.trainer.training, self.trainer.validating))
            return batch

        def on_train_batch_start(self, batch, batch_idx):
            assert self.trainer.training

    class Around(pl.Callback):
        def __init__(self, runs):
            self.runs = runs

        def on_train_start(self, trainer, pl_module):
            callback_runs[:] = [True] * self.runs

    callback_runs = []
    callback = ConvexReconstruction(**ARGUMENTS, every_n_epochs=0, final_solve=False)
    torch.manual_seed(1)
    run = trainer(Around(1), callback, Around(0), max_epochs=1)
    run.fit(Asking(), loader(240, batch_size=48), loader(120, batch_size=40, seed=1))
    assert callback.reports[0].judge == "validation"
    assert {(48, True, False), (40, False, True)} <= set(stages)
    assert {size for size, _, validating in stages if validating} == {40}  # 120 rows; samples of others are training's
    assert all(training != validating for _, training, validating in stages)


def test_a_module_may_give_validation_batches_another_way():
    class Own(Net):
        def convex_batch(self, batch):
            return batch["x"], batch["y"]

        def training_step(self, batch, batch_idx):
            return super().training_step((batch["x"], batch["y"]), batch_idx)

        def validation_step(self, batch, batch_idx):
            assert set(batch) == {"x", "y", "name"}

    class Named(Dataset):
        def __init__(self, more):
            self.rows, self.more = rows(120), more

        def __len__(self):
            return 120

        def __getitem__(self, index):
            return {"x": self.rows[0][index], "y": self.rows[1][index], **self.more}

    callback = ConvexReconstruction(**ARGUMENTS)
    fit(callback, DataLoader(Named({"name": "row"}), 40), Own, DataLoader(Named({}), 40))
    assert {judge for judge, _ in judged(callback)} == {"validation"}


def test_without_a_trainer_rows_that_cannot_judge_are_left_out_too(caplog):
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        report = reconstruct(Net(), loader(), batches_of_three(), beta=0.02)
    assert (report.judge, report.accepted, report.rows) == ("train", True, 240)
    assert caplog.text.count(MESSAGE) == 1
    with pytest.raises(MisconfigurationException, match="The validation rows cannot judge"):
        reconstruct(Net(), loader(), batches_of_three(), beta=0.02, judge="validation")
    assert reconstruct(Net(), loader(), loader(20, seed=1), beta=0.02).judge == "both"
