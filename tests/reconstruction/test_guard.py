"""Which rows judge, and what they say."""

from dataclasses import replace

import pytest
import torch
from networks import Net, loader, rows
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_cvxsnn import reconstruct
from lightning_cvxsnn.convex import Solution, solve
from lightning_cvxsnn.network import undisturbed
from lightning_cvxsnn.network.network import Network
from lightning_cvxsnn.network.programme import CapturedProgramme
from lightning_cvxsnn.network.rows import rows_of
from lightning_cvxsnn.patterns import SpikeDictionary
from lightning_cvxsnn.reconstruction.guard import ENOUGH_ROWS, Judges, Score, judge_linear

N, P, C = 60, 8, 3


@pytest.fixture
def problem() -> CapturedProgramme:
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(0, 3, (N, P), generator=generator, dtype=torch.uint8)
    return CapturedProgramme(
        dictionary=SpikeDictionary(counts, 0.5),
        targets=counts[:, :C].argmax(1),
        weights=torch.ones(N, dtype=torch.float64),
        outputs=torch.randn(N, C, generator=generator),
        held_out=torch.arange(N) % 5 == 0,
        loss="cross_entropy",
        num_outputs=C,
        fit_intercept=True,
    )


@pytest.fixture
def network() -> Network:
    net = Net()
    return Network(net, rows_of(net, loader()))


def fitted(problem: CapturedProgramme) -> Solution:
    rows = ~problem.held_out
    dictionary, options = problem.dictionary.rows(rows), {"loss": "cross_entropy", "rho": 0.01, "fit_intercept": True}
    return solve(dictionary, problem.targets[rows], num_outputs=C, **options)


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_a_solution_is_judged_by_the_held_out_rows_alone(problem, network, scale):
    solution, rows = fitted(problem), problem.held_out
    outputs = scale * (problem.dictionary.to_dense()[rows].double() @ solution.coef + solution.intercept)
    with undisturbed(network.module):
        judges = Judges.of(network, problem, None, alone=False)
    judgement = judge_linear(judges, judges.found(), solution.point, scale)
    assert judges.kind == "train"
    assert judgement.before == pytest.approx(float(F.cross_entropy(problem.outputs[rows], problem.targets[rows])))
    assert judgement.after == pytest.approx(float(F.cross_entropy(outputs, problem.targets[rows])))
    assert judgement.accuracy_after == pytest.approx(
        float((outputs.argmax(1) == problem.targets[rows]).double().mean())
    )
    assert judgement.accepted
    sure = replace(problem, outputs=100.0 * F.one_hot(problem.targets, C))
    with undisturbed(network.module):
        judges = Judges.of(network, sure, None, alone=False)
    assert not judge_linear(judges, judges.found(), solution.point, scale).accepted


@pytest.mark.parametrize(
    ("count", "alone", "kind"),
    [(ENOUGH_ROWS, False, "validation"), (ENOUGH_ROWS - 1, False, "both"), (ENOUGH_ROWS - 1, True, "validation")],
)
def test_few_validation_rows_judge_together_with_held_out_ones(problem, network, count, alone, kind):
    generator = torch.Generator().manual_seed(1)
    outputs, targets = torch.randn(count, C, generator=generator), torch.randint(0, C, (count,), generator=generator)
    weights = torch.rand(count, generator=generator).double()
    validation = replace(
        problem, outputs=outputs, targets=targets, weights=weights, held_out=torch.ones(count, dtype=torch.bool)
    )
    with undisturbed(network.module):
        judges = Judges.of(network, problem, (validation, network.rows), alone=alone)
    if kind == "both":
        outputs = torch.cat([problem.outputs[problem.held_out], outputs])
        targets = torch.cat([problem.targets[problem.held_out], targets])
        weights = torch.cat([torch.ones(N // 5).double(), weights])
    loss = F.cross_entropy(outputs.double(), targets, reduction="none") @ weights / len(weights)  # as everywhere
    right = (outputs.argmax(1) == targets).double() @ weights / weights.sum()
    assert judges.kind == kind
    assert (judges.found().loss, judges.found().accuracy) == pytest.approx((float(loss), float(right)))


@pytest.mark.parametrize(
    ("mine", "theirs", "beats"),
    [
        ((0.5, 0.9), (0.6, 0.9), True),
        ((0.6, 0.91), (0.6, 0.9), True),
        ((0.6, 0.9), (0.6, 0.9), False),
        ((0.7, 0.95), (0.6, 0.9), False),  # more right decisions, and a higher loss
        ((0.5, 0.89), (0.6, 0.9), False),  # a lower loss, and fewer right decisions
        ((0.5, None), (0.6, None), True),
        ((0.7, None), (0.6, None), False),
    ],
)
def test_of_loss_and_accuracy_one_is_better_and_none_is_worse(mine, theirs, beats):
    assert Score(*mine).beats(Score(*theirs)) == beats


def test_validation_rows_judge_a_reconstruction_without_a_trainer():
    x, y = rows(240, seed=3)
    right, wrong = (DataLoader(TensorDataset(x, targets), batch_size=64) for targets in (y, (y + 1) % 3))
    report = reconstruct(Net(), loader(), right, beta=0.02)
    assert (report.judge, report.rows, report.accepted) == ("validation", 240, True)
    refused = reconstruct(Net(), loader(), wrong, beta=0.02)  # the better it fits training, the worse it scores there
    assert (refused.judge, refused.rows, refused.accepted) == ("validation", 240, False)
    assert reconstruct(Net(), loader(), right, beta=0.02, judge="train").judge == "train"
    assert reconstruct(Net(), loader(), right, beta=0.02, max_samples=50).rows == 50


def test_a_solution_that_is_accepted_is_certified_on_all_rows(monkeypatch):
    found, own = [], CapturedProgramme.solve

    def noted(problem, *arguments):
        found.append(own(problem, *arguments))
        return found[-1]

    monkeypatch.setattr(CapturedProgramme, "solve", noted)
    torch.manual_seed(0)
    report = reconstruct(Net(), loader(), beta=0.02)
    assert report.accepted
    assert [len(solution.dual_point) for solution in found] == [192, 240]
    assert report.gap == found[-1].gap <= 1e-6
    assert report.rows == 240
