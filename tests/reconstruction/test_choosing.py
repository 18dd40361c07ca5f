"""Penalty and ridge or L1: chosen on rows that are not fitted."""

import dataclasses
import math

import pytest
import torch
from networks import Net, loader, rows
from torch.nn.functional import one_hot
from torch.utils.data import DataLoader, TensorDataset

from lightning_cvxsnn import reconstruct
from lightning_cvxsnn.convex import mean_loss, solve
from lightning_cvxsnn.network.programme import CapturedProgramme, Penalty
from lightning_cvxsnn.patterns import SpikeDictionary
from lightning_cvxsnn.reconstruction.choosing import choose, neighbours
from lightning_cvxsnn.reconstruction.guard import ENOUGH_ROWS

N, P = 400, 300


def programme(targets, counts, loss="cross_entropy", outputs=2):
    return CapturedProgramme(
        dictionary=SpikeDictionary(counts, 0.25),
        targets=targets,
        weights=torch.ones(N, dtype=torch.float64),
        outputs=torch.zeros(N, outputs),
        held_out=torch.arange(N) % 5 == 0,
        loss=loss,
        num_outputs=outputs,
        fit_intercept=True,
    )


def spikes(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 5, (N, P), generator=generator, dtype=torch.uint8), generator


def one_of_many(seed):
    """Labels that one unit decides."""
    counts, _ = spikes(seed)
    return programme((counts[:, seed] > 2).long(), counts)


def all_of_them(seed):
    """Values that are a sum over all units, with noise."""
    counts, generator = spikes(seed)
    weight = torch.randn(P, 1, generator=generator, dtype=torch.float64)
    values = counts.double() @ weight * 0.25
    return programme(values + 2 * torch.randn(N, 1, generator=generator).double(), counts, "squared", 1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("make", "ratio"), [(one_of_many, 1.0), (all_of_them, 0.0)])
def test_a_sparse_readout_takes_l1_and_a_dense_one_ridge(make, ratio, seed):
    problem = make(seed)
    choice = choose(problem, [1.0, 0.0])
    assert choice.penalty.l1_ratio == ratio
    assert choice.edge is None or make is one_of_many
    losses = {}
    for each in (1.0, 0.0):
        alone = choose(problem, [each])
        assert alone.penalty.l1_ratio == each
        point = alone.point
        answers = problem.dictionary.rows(problem.held_out) @ point.coef + point.intercept
        losses[each] = problem.held_out_loss(answers)
    assert (losses[1.0] <= losses[0.0]) == (ratio == 1.0)


@pytest.mark.parametrize("beta", [1e-3, 0.1])
def test_at_a_given_beta_both_are_compared_there(beta):
    for make in (one_of_many, all_of_them):
        problem = make(0)
        choice = choose(problem, [1.0, 0.0], [beta])
        assert choice.penalty.beta == pytest.approx(beta)
        losses = [choose(problem, [ratio], [beta]).point for ratio in (1.0, 0.0)]
        answers = [problem.dictionary.rows(problem.held_out) @ p.coef + p.intercept for p in losses]
        l1, ridge = (problem.held_out_loss(answer) for answer in answers)
        assert choice.penalty.l1_ratio == (1.0 if l1 <= ridge else 0.0)


def test_where_both_answer_alike_l1_is_taken():
    """Of a hinge loss nothing is left on rows that are told apart; fewer units do it as well."""
    counts = torch.zeros(N, P, dtype=torch.uint8)
    counts[:, :4] = 4 * (torch.arange(N) % 2)[:, None].to(torch.uint8)
    problem = programme(torch.arange(N) % 2, counts, "hinge", 1)
    l1, ridge = (choose(problem, [ratio], [1e-3]).point for ratio in (1.0, 0.0))
    losses = [
        problem.held_out_loss(problem.dictionary.rows(problem.held_out) @ p.coef + p.intercept) for p in (l1, ridge)
    ]
    if losses[0] == losses[1]:
        assert choose(problem, [1.0, 0.0], [1e-3]).penalty.l1_ratio == 1.0


class OfOneUnit(Net):
    """Its rows are labelled by whether one of its hidden units fires more than in the mean, one in ten wrongly."""

    def labelled(self, n=400):
        x = rows(n)[0]
        with torch.no_grad():
            rates = self.hidden(self.steps(x)).mean(0)
        self.hidden[1].reset()
        unit = int(rates.var(0).argmax())
        labels = (rates[:, unit] > rates[:, unit].median()).long()
        return DataLoader(TensorDataset(x, labels ^ (torch.arange(n) % 10 == 0)), batch_size=100)


def test_a_network_whose_labels_one_of_many_random_units_decides_gets_a_sparse_readout():
    torch.manual_seed(3)
    net = OfOneUnit(width=200, classes=2)
    report = reconstruct(net, net.labelled(), witnesses="keep")
    assert report.l1_ratio == 1.0
    assert report.accepted
    assert report.accuracy_after > 0.85
    assert report.active < 20


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0])
def test_a_ratio_that_is_given_is_kept(ratio):
    torch.manual_seed(0)
    net = Net()
    report = reconstruct(net, loader(), l1_ratio=ratio)
    assert report.l1_ratio == ratio
    assert report.accepted
    assert (report.active < 24) == (ratio > 0) or report.silent
    assert 0 <= report.gap <= 1e-5


def test_the_answer_is_that_of_the_solver_at_this_ratio():
    problem = all_of_them(1)
    choice = choose(problem, [0.4])
    found = problem.solve(choice.penalty, 1e-9, choice.point)
    rho = choice.penalty.beta / P**0.5
    expected = solve(
        problem.dictionary, problem.targets, loss="squared", rho=rho, l1_ratio=0.4, fit_intercept=True,
        num_outputs=1, gap_tolerance=1e-9,
    )  # fmt: skip
    assert found.primal == pytest.approx(expected.primal, rel=1e-6)
    penalty = 0.4 * expected.coef.abs().sum() + 0.3 * expected.coef.square().sum()
    z = problem.dictionary.to_dense().double() @ expected.coef + expected.intercept
    loss = 0.5 * (z - problem.targets).square().sum(1).mean()
    assert expected.primal == pytest.approx(float(loss + rho * penalty), rel=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_units_cancel_where_their_answers_would_vary_more_if_each_fired_on_its_own(seed):
    """Against the variances of a dictionary whose columns are permuted one by one."""
    counts, generator = spikes(seed)
    twins = counts.clone()
    twins[:, 1::2] = torch.where(torch.rand(N, P // 2, generator=generator) < 0.9, counts[:, ::2], counts[:, 1::2])
    coef = torch.randn(P, 3, generator=generator, dtype=torch.float64)
    alike, opposed = coef.clone(), coef.clone()
    alike[1::2], opposed[1::2] = coef[::2], -coef[::2]
    for weights, expected in ((alike, False), (opposed, True)):
        problem = programme((counts[:, 0] > 2).long(), twins, outputs=3)
        alone = torch.stack([twins[torch.randperm(N, generator=generator), j] for j in range(P)], 1)
        variances = [(spiked.double() @ weights).var(0).sum() for spiked in (twins, alone)]
        assert bool(variances[1] > variances[0]) == expected
        assert problem.cancels(weights) == expected


def trained_and_not(seed, outputs=3):
    """Features that know the labels of all training rows by heart, and what they say of others."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for known in (0.9, 0.0):
        counts = torch.randint(0, 5, (N, P), generator=generator, dtype=torch.uint8)
        targets = counts[:, :outputs].float().argmax(1)
        told = torch.rand(N, P // 2, generator=generator) < known
        counts[:, P // 2 :] = torch.where(
            told, (targets[:, None] + torch.arange(P // 2)) % outputs, counts[:, P // 2 :]
        )
        parts.append(programme(targets, counts, outputs=outputs))
    return parts


def answered(problem, point):
    """The loss over all rows."""
    answers = problem.dictionary @ point.coef + point.intercept
    return mean_loss(answers, problem.targets, loss=problem.loss)


@pytest.mark.parametrize("ratios", [[0.0], [1.0, 0.0]])
@pytest.mark.parametrize("seed", range(3))
def test_validation_rows_choose_for_features_that_know_the_training_rows_by_heart(seed, ratios):
    training, validation = trained_and_not(seed)
    by_training, by_validation = choose(training, ratios), choose(training, ratios, None, validation)
    assert by_validation.penalty.beta > 3 * by_training.penalty.beta
    assert answered(validation, by_validation.point) < answered(validation, by_training.point)


def test_of_given_penalties_validation_rows_take_the_best():
    """Every row is fitted, and every validation row judges, where there are few."""
    training, validation = trained_and_not(0)
    betas = [10.0 ** (2 - k / 2) for k in range(10)]
    losses = [answered(validation, training.solve(Penalty(beta, 0.0), 1e-6, None).point) for beta in betas]
    best = losses.index(min(losses))
    assert 0 < best < len(betas) - 1
    assert choose(training, [0.0], betas, validation).penalty.beta == pytest.approx(betas[best], rel=1e-6)
    for k in (best - 1, best, best + 1):
        found = neighbours(training, Penalty(betas[k] * 1.05, 0.0), validation).penalty.beta
        assert abs(math.log10(found / betas[best])) < 0.3


def test_validation_rows_may_be_stored_in_another_scale():
    training, validation = trained_and_not(0)
    rates = SpikeDictionary(validation.dictionary.to_dense(torch.float32), 1.0)
    found = choose(training, [0.0], None, dataclasses.replace(validation, dictionary=rates))
    assert found.penalty.beta == pytest.approx(choose(training, [0.0], None, validation).penalty.beta, rel=1e-6)


@pytest.mark.parametrize("judge", ["auto", "validation"])
def test_only_enough_validation_rows_choose(judge):
    """Labels of which these rows say nothing want the strongest penalty."""
    x, _ = rows(ENOUGH_ROWS, seed=1)
    guessed = torch.randint(0, 3, (ENOUGH_ROWS,), generator=torch.Generator().manual_seed(0))
    betas = []
    for count in (ENOUGH_ROWS, ENOUGH_ROWS - 1, 0):
        torch.manual_seed(0)
        validation = DataLoader(TensorDataset(x[:count], guessed[:count])) if count else None
        betas.append(reconstruct(Net(), loader(), validation, judge=judge).beta)
    assert betas[0] > 3 * betas[1]
    assert betas[1] == betas[2]


def test_rows_of_weight_0_do_not_choose():
    """One step in five hundred has a target, so a thousand rows of any kind would hold too few."""
    generator = torch.Generator().manual_seed(0)
    parts = []
    for _ in range(2):
        counts = torch.randint(0, 5, (60_000, 6), generator=generator, dtype=torch.uint8)
        weights = (torch.arange(60_000) % 500 == 0).double()
        parts.append(
            CapturedProgramme(
                dictionary=SpikeDictionary(counts, 0.25),
                targets=(counts[:, 0] > 2).long(),
                weights=weights,
                outputs=torch.zeros(60_000, 2),
                held_out=torch.arange(60_000) % 5 == 0,
                loss="cross_entropy",
                num_outputs=2,
                fit_intercept=True,
            )
        )
    weighed = [each.subset(each.weights > 0) for each in parts]
    found, expected = choose(parts[0], [0.0], None, parts[1]), choose(weighed[0], [0.0], None, weighed[1])
    assert found.edge is None
    assert found.penalty.beta == pytest.approx(expected.penalty.beta, rel=1e-6)


@pytest.mark.parametrize("mixed", ["training", "validation"])
def test_probabilities_on_one_side_and_classes_on_the_other(mixed):
    """As when only training rows are mixed up or their labels smoothed."""
    torch.manual_seed(0)
    (x, y), (vx, vy) = rows(240), rows(120, seed=1)
    soft = 0.9 * one_hot(y if mixed == "training" else vy, 3).float() + 0.1 / 3
    training = TensorDataset(x, soft if mixed == "training" else y)
    validation = TensorDataset(vx, vy if mixed == "training" else soft)
    report = reconstruct(Net(), DataLoader(training, 60), DataLoader(validation, 60))
    assert report.judge == "validation"
    assert report.accepted


@pytest.mark.parametrize("rare", [0, 8])
def test_rows_of_one_class_choose_some_penalty(rare):
    """Where the few rows that choose hold one class, any penalty is as good as another."""
    torch.manual_seed(0)
    x, y = torch.rand(6000, 6), torch.zeros(6000, dtype=torch.long)
    y[torch.randperm(6000)[:rare]] = 1
    report = reconstruct(Net(classes=2), DataLoader(TensorDataset(x, y), 500))
    assert 0 < report.beta < float("inf")
    assert report.gap < 1e-6
