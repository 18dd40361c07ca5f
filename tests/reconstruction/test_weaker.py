"""A penalty that few rows have chosen is weakened where validation rows like that."""

import pytest
import torch

from lightning_cvxsnn.convex import mean_loss
from lightning_cvxsnn.network.programme import CapturedProgramme
from lightning_cvxsnn.patterns import SpikeDictionary
from lightning_cvxsnn.reconstruction.choosing import choose
from lightning_cvxsnn.reconstruction.guard import Judgement
from lightning_cvxsnn.reconstruction.weaker import weakened


def _rows(count, seed):
    """Spikes of many units, and a class of twenty that depends on all of them: a thousand rows hardly tell it."""
    g = torch.Generator().manual_seed(seed)
    truth = torch.randn(200, 20, generator=torch.Generator().manual_seed(0))
    spikes = (torch.rand(count, 200, generator=g) < 0.3).float()
    return spikes, (spikes @ truth + torch.randn(count, 20, generator=g)).argmax(1)


def _programme(count):
    spikes, labels = _rows(count, 1)
    return CapturedProgramme(
        dictionary=SpikeDictionary.from_values(spikes), targets=labels, weights=torch.ones(count).double(),
        outputs=torch.zeros(count, 20), held_out=torch.arange(count) % 5 == 0, loss="cross_entropy", num_outputs=20,
        fit_intercept=True,
    )  # fmt: skip


def _judge():
    spikes, labels = _rows(3000, 2)
    heard = []

    def judged(point):
        loss = mean_loss(spikes.double() @ point.coef + point.intercept, labels, loss="cross_entropy")
        heard.append(loss)
        return Judgement(1.0, 3.0, loss, None, None, accepted=loss < 3.0)

    return judged, heard


@pytest.mark.parametrize("ratios", [[0.0], [1.0]])
def test_over_many_rows_a_weaker_ridge_penalty_is_found(ratios):
    programme, (judged, heard) = _programme(8000), _judge()
    chosen = choose(programme, ratios)
    found = weakened(programme, chosen, 1e-3, judged)
    assert found.penalty.l1_ratio == 0.0
    assert found.penalty.beta < chosen.penalty.beta
    assert heard[:-1] == sorted(heard[:-1], reverse=True)  # each better than the one before,
    assert heard[-1] >= heard[-2]  # but for the last one, which ends it
    assert judged(programme.solve(found.penalty, 1e-6, found.point).point).after < heard[0] - 0.05


def test_a_choice_by_nearly_all_rows_stays():
    programme, (judged, heard) = _programme(2000), _judge()
    chosen = choose(programme, [0.0])
    assert weakened(programme, chosen, 1e-3, judged) is chosen
    assert heard == []


def test_a_loss_that_falls_for_ever_ends_after_four_decades():
    programme, losses = _programme(3000), iter(range(100, 0, -1))
    chosen = choose(programme, [0.0])
    found = weakened(programme, chosen, 1e-1, lambda _: Judgement(1.0, 3.0, next(losses), None, None, accepted=True))
    assert found.penalty.beta == pytest.approx(1e-4 * chosen.penalty.beta)
