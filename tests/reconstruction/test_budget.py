"""What periodic solves may cost: counted in work, the same in every run."""

import math
from itertools import count

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from networks import Net, fitted, loader, occasions, trainer
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from lightning_cvxsnn import ConvexReconstruction, ParallelSNN, XORDataModule, reconstruct
from lightning_cvxsnn.convex import solve
from lightning_cvxsnn.network import undisturbed
from lightning_cvxsnn.reconstruction.budget import Budget, measure


def fit(callback, *others, epochs=12, net=None, **kwargs):
    torch.manual_seed(1)
    net = net or Net(lr=1e-3)
    run = trainer(callback, *others, max_epochs=epochs, **kwargs.pop("trainer", {}))
    torch.manual_seed(2)
    run.fit(net, loader(), **kwargs)
    return net


def periodic(callback):
    return [report for report in callback.reports if report.reason.startswith("periodic")]


#: Multiply-adds of one epoch of `Net` on 240 rows in four batches of 64, or so counted: twelve steps' worth of them.
EPOCH = 3 * 4 * 64 * 4 * (6 * 24 + 24 * 3)


def paying(epoch, planned):
    """The epochs whose work a solve after ``epoch`` may be paid by."""
    return max(epoch, planned) if epoch in (1, 2, 5) else epoch


@pytest.mark.parametrize("share", [3.0, 1.0])
def test_periodic_solves_stay_within_their_share_and_use_it(share):
    callback = ConvexReconstruction(beta=0.02, l1_ratio=1.0, max_overhead=share, final_solve=False)
    fit(callback, epochs=30)
    solves = periodic(callback)
    assert len(solves) >= 4
    assert [report.epoch for report in solves[:3]] == [1, 2, 5] if share == 1.0 else solves[0].epoch == 1
    spent = 0.0
    for before, report in zip([None, *solves], solves, strict=False):
        if before is not None:
            assert spent + before.work <= share * EPOCH * paying(report.epoch, 30)
        spent += report.work
        assert report.overhead == pytest.approx((callback.reports[0].work + spent) / (EPOCH * report.epoch))
    costliest = max(report.work for report in callback.reports)
    rejections = rejections_before([*solves, solves[-1]])[-1]
    assert (
        spent + 2 * 2**rejections * costliest > share * EPOCH * 29
    )  # nothing is left that would have paid for one more


def test_a_small_share_pays_for_no_solve_and_the_last_is_made_whatever_it_costs():
    callback = ConvexReconstruction(beta=0.02, max_overhead=1e-6)
    fit(callback)
    assert [report.reason.split(":")[0] for report in callback.reports] == ["warm start", "final solve"]
    assert all(report.work > 0 for report in callback.reports)
    work = sum(report.work for report in callback.reports)
    assert [report.overhead for report in callback.reports] == [0.0, pytest.approx(work / (EPOCH * 12))]


def test_early_solves_may_be_paid_by_epochs_to_come():
    budget = Budget(share=1.0, epoch=1.0, expected=1.0, planned=4)
    for epochs, allowed in ((1, 4), (2, 4), (3, 3), (4, 4), (5, 5)):
        at = Budget(**vars(budget) | {"spent": allowed - 1.0})
        beyond = Budget(**vars(budget) | {"spent": allowed - 0.9})
        assert at.allows(epochs)
        assert not beyond.allows(epochs)
        assert Budget(**vars(beyond) | {"free": 0.1}).allows(epochs)  # a warm start's work is not theirs
    assert Budget(**vars(budget) | {"spent": 0.0, "planned": 0}).allows(1)
    assert not Budget(**vars(budget) | {"spent": 0.1, "planned": 0}).allows(1)


@pytest.mark.parametrize("planned", [30, -1])
def test_what_is_planned_is_known_of_a_fit_that_has_a_last_epoch(planned):
    callback = ConvexReconstruction(beta=0.02, l1_ratio=1.0, max_overhead=1.0, final_solve=False)
    fit(callback, epochs=planned, trainer={"max_steps": 30 * 4})
    epochs = [report.epoch for report in periodic(callback)]
    assert epochs[:3] == [1, 2, 5] if planned == 30 else epochs[0] > 2
    assert callback._reconstructor.budget.planned == max(planned, 0)


def test_without_a_warm_start_the_first_solve_is_tried_and_paid_for_afterwards():
    callback = ConvexReconstruction(beta=0.02, l1_ratio=1.0, max_overhead=0.1, warm_start=False, final_solve=False)
    fit(callback, epochs=60)
    solves = periodic(callback)
    assert solves[0].epoch == 1
    assert solves[0].work > 0.1 * EPOCH * 2
    assert len(solves) == 1 or 2 * solves[0].work <= 0.1 * EPOCH * paying(solves[1].epoch, 60)


def test_a_second_fit_gets_periodic_solves():
    callback = ConvexReconstruction(beta=0.02, l1_ratio=1.0, max_overhead=5.0)
    net, run = fitted(callback, max_epochs=2)
    run.fit_loop.max_epochs = 5
    run.fit(net, loader())
    again = trainer(callback, max_epochs=3)
    again.fit(net, loader())
    assert occasions(callback)[-3:] == [("periodic solve", 1), ("periodic solve", 2), ("final solve", 3)]


def test_a_loader_without_a_length_gets_periodic_solves_and_its_work_is_known_then():
    class Stream(IterableDataset):
        def __iter__(self):
            yield from loader()

    callback = ConvexReconstruction(beta=0.02, l1_ratio=1.0, max_overhead=5.0, max_samples=200)
    trainer(callback, max_epochs=3).fit(Net(), DataLoader(Stream(), batch_size=None))
    assert [name for name, _ in occasions(callback)] == ["warm start", *2 * ["periodic solve"], "final solve"]
    assert callback._reconstructor.budget.epoch == EPOCH
    assert callback.reports[-1].overhead > 0


def rejections_before(solves):
    """How many of the solves before each were rejected in a row."""
    counts = [0]
    for report in solves:
        counts.append(0 if report.accepted else counts[-1] + 1)
    return counts[:-1]


@pytest.mark.parametrize("beta", [10.0, 0.02])
def test_each_rejection_in_a_row_doubles_what_the_next_solve_must_have_saved(beta):
    callback = ConvexReconstruction(beta=beta, l1_ratio=1.0, max_overhead=1.0, final_solve=False)
    fit(callback, epochs=60, net=Net(lr=0.02))
    solves = periodic(callback)
    assert max(rejections_before(solves)) >= 2
    spent, last = solves[0].work, solves[0]
    for report, rejections in list(zip(solves, rejections_before(solves), strict=True))[1:]:
        saved = spent + 2**rejections * last.work
        assert report.epoch == next(e for e in count(last.epoch + 1) if saved <= EPOCH * paying(e, 60))
        spent, last = spent + report.work, report


def test_an_accepted_solve_ends_the_wait():
    budget = Budget(share=1.0, epoch=1.0)
    for accepted, epochs in ((True, 2), (False, 4), (False, 7), (True, 5)):
        budget.charge(1.0, periodic=True, accepted=accepted)
        assert [budget.allows(e) for e in (epochs - 1, epochs)] == [False, True]
        assert Budget(share=1.0, **budget.state_dict()) == budget  # a resumed run waits as long
    budget.charge(1.0, periodic=False, accepted=False)  # a warm start says nothing about later solves
    assert budget.rejected == 0
    assert Budget(share=None, rejected=9, expected=1.0).allows(0)


def test_a_search_for_witnesses_is_counted_and_the_next_solve_is_not_expected_to_repeat_it():
    plain, priced = (
        ConvexReconstruction(beta=0.02, witnesses=kind, max_overhead=2.0, final_solve=False)
        for kind in ("keep", "priced")
    )
    for callback in (plain, priced):
        fit(callback, epochs=8)
    kept, searched = plain.reports[0], priced.reports[0]
    improved = 24 * 25 * 3 * 192 * 4 * 6  # at least the width's units, in 25 steps of three passes over the fitted rows
    assert searched.work - kept.work > improved
    assert periodic(priced)[0].epoch < searched.work / (2 * EPOCH) / 3


def test_a_search_for_branches_is_counted():
    net = ParallelSNN(2, width=256, last_width=8, depth=3, branches=2)
    data = XORDataModule(5, sizes=(100, 50, 50))
    data.setup("fit")
    report = reconstruct(net, data.train_dataloader(), witnesses="pool", beta=0.02)
    branches = 2 + 3 * 4 * 2  # the network's own, then three rounds of four times as many
    assert report.work > branches * 100 * 5 * (2 * 128 + 128 * 4)


def test_the_choice_of_beta_is_not_expected_again():
    """It is part of the warm start's work, which judges the first periodic solve."""
    arguments = {"max_overhead": 0.5, "l1_ratio": 1.0, "final_solve": False, "witnesses": "keep"}
    callbacks = [ConvexReconstruction(beta=beta, **arguments) for beta in ("auto", 0.02)]
    for callback in callbacks:
        fit(callback, epochs=-1, trainer={"max_steps": 60 * 4})
    chosen, given = (periodic(callback)[0].epoch for callback in callbacks)
    assert chosen < callbacks[0].reports[0].work / (0.5 * EPOCH)
    assert given == math.ceil(callbacks[1].reports[0].work / (0.5 * EPOCH))


def test_the_spacing_is_the_earliest():
    callback = ConvexReconstruction(beta=0.02, max_overhead=1e6, every_n_epochs=3, final_solve=False)
    fit(callback, epochs=9)
    assert [report.epoch for report in periodic(callback)] == [3, 6, 9]


def test_no_limit():
    callback = ConvexReconstruction(beta=0.02, max_overhead=None, final_solve=False)
    fit(callback, epochs=3)
    assert [report.epoch for report in periodic(callback)] == [1, 2, 3]
    assert periodic(callback)[-1].overhead > 0


def test_runs_repeat_exactly_and_go_on_after_a_resume(tmp_path):
    arguments = {"beta": 0.02, "max_overhead": 2.0}
    callbacks = [ConvexReconstruction(**arguments) for _ in range(3)]
    for callback in callbacks[:2]:
        fit(callback, epochs=20)
    saves = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    fit(callbacks[2], saves, epochs=20, trainer={"checkpoint": True})
    resumed = ConvexReconstruction(**arguments)
    fit(resumed, epochs=20, ckpt_path=tmp_path / "epoch=9.ckpt")
    figures = [[(r.epoch, r.work, r.overhead, r.accepted) for r in c.reports] for c in (*callbacks, resumed)]
    assert len(figures[0]) >= 4
    assert figures[0] == figures[1] == figures[2] == figures[3]


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_a_forward_pass_counts_its_multiply_adds_and_a_solve_twice_its_own(step_mode):
    net = Net(step_mode=step_mode)
    x = torch.rand(64, 6)
    with undisturbed(net):
        meter = measure(net, net.readout, x)
        assert meter.batch == 64 * 4 * (6 * 24 + 24 * 3)
        assert meter.epoch(4) == EPOCH
        with torch.no_grad(), meter.counting(net.readout) as work:
            net(x)
            net(x[:32])
            assert work() == 1.5 * meter.batch
            solution = solve(torch.eye(4), torch.tensor([0, 1, 0, 1]), loss="hinge", rho=0.01, fit_intercept=True)
        assert work() >= 1.5 * meter.batch + 2 * solution.work > 1.5 * meter.batch
        net(x)
        assert not net.readout._forward_pre_hooks


@pytest.mark.parametrize("loss", ["cross_entropy", "hinge", "squared"])
def test_the_work_of_a_solve_is_deterministic_and_grows_with_the_problem(loss):
    def work(rows, columns):
        generator = torch.Generator().manual_seed(0)
        dictionary = torch.randint(0, 2, (rows, columns), generator=generator)
        labels = torch.randint(0, 3, (rows,), generator=generator)
        targets = F.one_hot(labels, 3).double() if loss == "squared" else labels
        solution = solve(dictionary, targets, loss=loss, rho=0.01, fit_intercept=True)
        assert solution.work >= rows * columns * 3
        return solution.work

    assert work(200, 20) == work(200, 20)
    assert work(200, 20) < work(800, 20)
    assert work(800, 20) < work(800, 60)
