from dataclasses import replace

import pytest
import torch
from networks import Net, loader
from torch.nn import functional as F

from lightning_cvxsnn import reconstruct
from lightning_cvxsnn.convex import Solution, solve
from lightning_cvxsnn.network.programme import CapturedProgramme
from lightning_cvxsnn.patterns import SpikeDictionary
from lightning_cvxsnn.reconstruction.guard import is_clear, judge_linear

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


def fitted(problem: CapturedProgramme) -> Solution:
    rows = ~problem.held_out
    dictionary, options = problem.dictionary.rows(rows), {"loss": "cross_entropy", "rho": 0.01, "fit_intercept": True}
    return solve(dictionary, problem.targets[rows], num_outputs=C, **options)


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_a_solution_is_judged_by_the_held_out_rows_alone(problem, scale):
    solution, rows = fitted(problem), problem.held_out
    outputs = scale * (problem.dictionary.to_dense()[rows].double() @ solution.coef + solution.intercept)
    judgement = judge_linear(problem, None, solution, scale)
    assert judgement.before == pytest.approx(float(F.cross_entropy(problem.outputs[rows], problem.targets[rows])))
    assert judgement.after == pytest.approx(float(F.cross_entropy(outputs, problem.targets[rows])))
    assert judgement.accuracy_after == pytest.approx(
        float((outputs.argmax(1) == problem.targets[rows]).double().mean())
    )
    assert judgement.accepted
    better = replace(problem, outputs=100.0 * F.one_hot(problem.targets, C))
    assert not judge_linear(better, None, solution, scale).accepted


def test_a_rough_solution_is_enough_only_if_it_wins_by_more_than_it_is_rough(problem):
    judgement = judge_linear(problem, None, fitted(problem), 1.0)
    margin = 0.1 * torch.tensor(float(C)).log().item()  # a tenth of the loss of a readout of zeros
    assert is_clear(replace(judgement, before=judgement.after + 1.01 * margin), problem)
    assert not is_clear(replace(judgement, before=judgement.after + 0.99 * margin), problem)
    assert not is_clear(replace(judgement, accepted=False), problem)


@pytest.mark.parametrize(("beta", "solves"), [("auto", 1), (0.02, 2)])
def test_a_clear_winner_is_certified_once_on_all_rows(beta, solves, monkeypatch):
    found, own = [], CapturedProgramme.solve

    def noted(problem, rho, tolerance, *others):
        found.append((own(problem, rho, tolerance, *others), others[1:]))
        return found[-1][0]

    monkeypatch.setattr(CapturedProgramme, "solve", noted)
    torch.manual_seed(0)
    report = reconstruct(Net(), loader(), beta=beta)
    assert report.accepted
    assert len(found) == solves
    assert report.gap == found[-1][0].gap <= 1e-6
    assert report.rows == len(found[-1][0].dual_point)
