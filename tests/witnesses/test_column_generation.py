from dataclasses import replace

import pytest
import torch
from networks import FEATURES, STEPS, ConvNet, Net, images
from spikingjelly.activation_based import layer
from torch.utils.flop_counter import FlopCounterMode

from lightning_cvxsnn.network import TimeReduction
from lightning_cvxsnn.network.network import Network
from lightning_cvxsnn.network.programme import CapturedProgramme, Penalty
from lightning_cvxsnn.network.rows import rows_of
from lightning_cvxsnn.patterns import SpikeDictionary
from lightning_cvxsnn.runtime.work import counting
from lightning_cvxsnn.witnesses.column_generation import ColumnGeneration
from lightning_cvxsnn.witnesses.layer import WitnessLayer
from lightning_cvxsnn.witnesses.layer_search import LayerProposer, LayerSearchSettings
from lightning_cvxsnn.witnesses.restricted import RestrictedMaster
from lightning_cvxsnn.witnesses.units import UnitSampler

N, WIDTH, RATE = 200, 16, 0.1


def planted(kind="mean", loss="cross_entropy", outputs=3, bias=True, samples=N):
    """A layer, a programme whose targets are the spikes of units that it does not have, and those units' columns."""
    generator = torch.Generator().manual_seed(0)
    net = Net(kind, width=WIDTH)
    if not bias:
        net.hidden[0] = layer.Linear(FEATURES, WIDTH, bias=False, step_mode="m")
    x = torch.rand(samples, FEATURES, generator=generator) * 2 - 1
    found = WitnessLayer(
        "hidden.0", "hidden.1", net.hidden[0], net.hidden[1], TimeReduction(kind, "steps", STEPS), net.steps(x)
    )
    teacher = torch.randn(outputs, FEATURES, generator=generator)
    columns = found.columns(found.inputs, *found.calibrated(found.inputs, teacher, torch.zeros(outputs), RATE))
    values = columns.to_dense()
    if loss == "squared":
        targets = values * torch.tensor([3.0, -2.0, 1.0])[:outputs]
    else:
        targets = (values[:, 0] > 0).long() if outputs == 1 else values.argmax(1)
    return found, programme(targets, samples, loss, outputs, bias), columns


def programme(targets, samples, loss="cross_entropy", outputs=3, bias=True):
    rows = len(targets)
    return CapturedProgramme(
        dictionary=SpikeDictionary(torch.zeros(rows, 1, dtype=torch.uint8)),
        targets=targets,
        weights=torch.ones(rows, dtype=torch.float64),
        outputs=torch.zeros(rows, outputs),
        held_out=(torch.arange(samples) % 5 == 0).repeat_interleave(rows // samples),
        loss=loss,
        num_outputs=outputs,
        fit_intercept=bias,
    )


def planted_maps(pool=None, channels=8, samples=150):
    """A convolution, and a programme about which of two kernels that it does not have fires more."""
    generator = torch.Generator().manual_seed(0)
    net = ConvNet(channels=channels, pool=pool)
    x = images(samples)[0]
    pools = () if pool is None else (pool,)
    found = WitnessLayer(
        "hidden.0", "hidden.1", net.hidden[0], net.hidden[1], TimeReduction("mean", "steps", STEPS), net.steps(x), 36,
        net.readout.in_features // channels, pools,
    )  # fmt: skip
    teacher = torch.randn(2, 18, generator=generator)
    columns = found.columns(found.inputs, *found.calibrated(found.inputs, teacher, torch.zeros(2), RATE))
    fired = columns.to_dense().unflatten(1, (2, -1)).sum(2)
    return found, programme((fired[:, 0] > fired[:, 1]).long(), samples, outputs=2)


def sampler(found, problem, seed=0):
    return UnitSampler(found, RestrictedMaster(problem), RATE, seed)


def price(found, problem, width=WIDTH, rho=None, seed=0, **settings):
    proposer = LayerProposer(found, problem, RATE, seed, LayerSearchSettings(**settings), width)
    return ColumnGeneration(proposer).search(rho)


def penalty(priced):
    return Penalty(priced.rho * priced.chosen.columns.shape[1] ** 0.5, 1.0)


def correlations(first, second):
    both = torch.cat([first.to_dense(), second.to_dense()], 1).T
    return torch.corrcoef(both)[: first.shape[1], first.shape[1] :].abs()


@pytest.mark.parametrize(("loss", "outputs"), [("squared", 3), ("cross_entropy", 1), ("hinge", 1)])
def test_planted_witnesses_are_found(loss, outputs):
    found, problem, columns = planted(loss=loss, outputs=outputs)
    drawn = correlations(columns, found.columns(found.inputs, *sampler(found, problem).draw(WIDTH))).amax(1)
    priced = price(found, problem)
    assert drawn.min() < 0.75
    assert correlations(columns, priced.chosen.columns).amax(1).min() > 0.85
    assert replace(problem, dictionary=priced.chosen.columns).held_out_loss(
        priced.chosen.columns.rows(problem.held_out) @ priced.solution.coef + priced.solution.intercept
    ) < 0.5 * problem.held_out_loss(problem.outputs[problem.held_out])


@pytest.mark.parametrize("pool", [None, layer.MaxPool2d(2, step_mode="m"), layer.AvgPool2d(3, step_mode="m")])
def test_channels_found_by_the_programme_serve_it_better_than_those_drawn(pool):
    found, problem = planted_maps(pool, samples=600)
    priced = price(found, problem, 8)
    drawn = found.columns(found.inputs, *sampler(found, problem, 1).draw(8))
    objectives = [
        replace(problem, dictionary=columns).solve(penalty(priced), 1e-3, None, ~problem.held_out).primal
        for columns in (priced.chosen.columns, drawn)
    ]
    assert objectives[0] < 0.85 * objectives[1]


@pytest.mark.parametrize(("options", "rho"), [({}, None), ({}, 0.01), ({"pool": 40}, None)])
def test_what_is_found_of_maps_is_what_the_convolution_would_do(options, rho):
    found, problem = planted_maps()
    priced = price(found, problem, 8, rho, **options)
    units = priced.chosen
    assert units.weight.shape == (8, 18)
    assert priced.solution.coef.shape == (8 * 36, 2)
    again = found.columns(found.inputs, units.weight, units.bias).to_dense()
    assert (again == units.columns.to_dense()).double().mean() > 0.999
    assert priced.objectives[-1] < priced.objectives[0]
    rates = found.spikes(found.inputs, units.weight, units.bias).mean((0, 1, 3, 4))
    assert rates.median() == pytest.approx(RATE, abs=0.04)
    programme = replace(problem, dictionary=units.columns)
    gap = programme.gap_at(
        priced.solution.coef, priced.solution.intercept, priced.solution, penalty(priced), ~problem.held_out
    )
    assert gap < 0.15 * problem.held_out_loss(problem.outputs[problem.held_out])


def test_candidates_are_counted_as_multiply_adds_half_those_of_float64():
    drawing = sampler(*planted()[:2])
    with FlopCounterMode(display=False) as flops, counting() as work:
        drawing.draw(10)
    assert drawing.passes == 10 * 128
    assert work.multiply_adds * 2 == drawing.passes * STEPS * FEATURES == flops.get_total_flops() / 2
    drawing = sampler(*planted_maps())
    with FlopCounterMode(display=False) as flops, counting() as work:
        drawing.draw(10)
    assert work.multiply_adds * 2 == drawing.passes * STEPS * 36 * 18
    assert flops.get_total_flops() / 2 == pytest.approx(work.multiply_adds * 2, rel=0.1)  # patches of pairs besides
    with counting() as work:
        priced = price(*planted_maps())
    assert 2 * work.multiply_adds > priced.candidate_passes * STEPS * FEATURES  # the rest are solves


@pytest.mark.parametrize("rho", [None, 0.01])
@pytest.mark.parametrize("pool", [None, 100])
def test_the_objective_falls_from_round_to_round(rho, pool):
    priced = price(*planted()[:2], rho=rho, pool=pool)
    assert len(priced.objectives) > 3
    assert all(
        later <= earlier + 1e-9 for earlier, later in zip(priced.objectives, priced.objectives[1:], strict=False)
    )
    assert priced.objectives[-1] < 0.8 * priced.objectives[0]
    assert rho in (None, pytest.approx(priced.rho))


@pytest.mark.parametrize(
    ("kind", "loss", "outputs", "bias"),
    [
        ("last", "cross_entropy", 3, True),
        ("sum", "hinge", 1, True),
        ("all", "cross_entropy", 3, True),
        ("mean", "squared", 3, False),
        ("mean", "cross_entropy", 1, False),
    ],
)
def test_the_result_is_what_the_layer_would_do(kind, loss, outputs, bias):
    found, problem, _ = planted(kind, loss, outputs, bias)
    priced = price(found, problem)
    units = priced.chosen
    assert units.weight.shape == (WIDTH, FEATURES)
    assert bool(units.bias.any()) == bias
    again = found.columns(found.inputs, units.weight, units.bias).to_dense()
    assert (again == units.columns.to_dense()).double().mean() > 0.999
    assert priced.solution.coef.shape == (WIDTH, outputs)
    programme = replace(problem, dictionary=units.columns)
    gap = programme.gap_at(
        priced.solution.coef,
        priced.solution.intercept if bias else None,
        priced.solution,
        penalty(priced),
        ~problem.held_out,
    )
    assert gap < 0.15 * problem.held_out_loss(problem.outputs[problem.held_out])


@pytest.mark.parametrize("pool", [None, 4 * WIDTH])
def test_units_that_somebody_has_trained_compete(pool):
    """With three of the layer's units those that the targets are made of, there is nothing better to find."""
    found, problem, columns = planted(loss="squared")
    generator = torch.Generator().manual_seed(0)
    torch.rand(N, FEATURES, generator=generator)  # as in `planted`
    teacher = found.calibrated(found.inputs, torch.randn(3, FEATURES, generator=generator), torch.zeros(3), RATE)
    bare = Network(found.affine, rows_of(found.affine, [(torch.zeros(1, FEATURES), torch.zeros(1))]))  # no batch norm
    found.write(bare, torch.tensor([2, 5, 11]), *teacher)
    kept, other = (price(found, problem, rho=0.01, keep_current=own, pool=pool) for own in (True, False))
    assert (correlations(columns, kept.chosen.columns).amax(1) > 0.9999).all()
    assert len(kept.chosen) == len(other.chosen) == WIDTH
    assert kept.objectives[-1] < other.objectives[-1]
    assert torch.equal(
        kept.chosen.columns.to_dense(), found.columns(found.inputs, kept.chosen.weight, kept.chosen.bias).to_dense()
    )


def test_a_layer_that_never_fires_does_not_compete():
    found, problem, _ = planted()
    with torch.no_grad():
        found.affine.weight.zero_()
        found.affine.bias.zero_()
    priced = price(found, problem, keep_current=True)
    assert torch.equal(priced.chosen.weight, price(found, problem, keep_current=False).chosen.weight)


def test_units_are_distinct_and_at_the_rate():
    found, problem, _ = planted(samples=400)
    units = price(found, problem).chosen
    assert units.columns.distinct == WIDTH
    alike = correlations(units.columns, units.columns).fill_diagonal_(0)
    assert (alike.amax(1) > 0.95).sum() <= 2
    rates = found.spikes(found.inputs, units.weight, units.bias).mean((0, 1))
    assert rates.median() == pytest.approx(RATE, abs=0.04)


def test_runs_repeat_and_leave_random_generators_modes_and_gradients_alone():
    found, problem, _ = planted()
    found.neuron.eval()
    state = torch.get_rng_state()
    first, second, other = (price(found, problem, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.chosen.weight, second.chosen.weight)
    assert torch.equal(first.solution.coef, second.solution.coef)
    assert first.candidate_passes == second.candidate_passes
    assert not torch.equal(first.chosen.weight, other.chosen.weight)
    assert not found.neuron.training
    assert found.affine.weight.grad is None


def test_held_out_rows_fit_nothing():
    found, problem, _ = planted()
    targets = torch.where(problem.held_out, (problem.targets + 1) % 3, problem.targets)
    first, second = price(found, problem, rho=0.01), price(found, replace(problem, targets=targets), rho=0.01)
    assert torch.equal(first.chosen.weight, second.chosen.weight)


def test_ascent_and_new_candidates_are_worth_their_work():
    """Against a pool of at least the work, and without its parts, at one rho; mean of three seeds."""
    found, problem, _ = planted(loss="squared")
    ways = {
        "priced": {},
        "no ascent": {"ascent_steps": 0},
    }
    end = {name: [] for name in (*ways, "pool")}
    for seed in range(3):
        for name, options in ways.items():
            priced = price(found, problem, rho=1e-3, seed=seed, **options)
            end[name].append(priced.objectives[-1])
            if name == "priced":
                work = priced.candidate_passes
        pool = price(found, problem, rho=1e-3, seed=seed, pool=-(-work // N))
        assert pool.candidate_passes >= work
        end["pool"].append(pool.objectives[-1])
    mean = {name: sum(values) / 3 for name, values in end.items()}
    assert mean["priced"] < min(mean["no ascent"], mean["pool"])


@pytest.mark.parametrize(("width", "rho"), [(1, None), (2, None), (5, None), (8, 100.0)])
def test_few_units_and_a_penalty_at_which_none_is_used(width, rho):
    priced = price(*planted()[:2], width, rho)
    assert len(priced.chosen) == len(priced.solution.coef) == width
    assert bool(priced.solution.coef.any()) == (rho is None)


def test_inputs_that_tell_nothing_are_refused():
    found, problem, _ = planted()
    silent = replace(found, inputs=torch.zeros_like(found.inputs))
    with pytest.raises(ValueError, match="make its units fire alike on every training row"):
        price(silent, problem)


@pytest.mark.parametrize("rho", [None, 0.01])
def test_no_round_begins_when_the_work_is_done(rho):
    found, problem, _ = planted()
    full, short = (price(found, problem, rho=rho, budget=budget) for budget in (50, 5))
    assert len(short.objectives) < len(full.objectives)
    assert short.candidate_passes < full.candidate_passes
    assert short.statistics.candidates < full.statistics.candidates
    assert len(short.chosen) == WIDTH
    assert rho in (None, short.rho)


def test_the_search_ends_where_no_candidate_violates():
    found, problem, _ = planted()
    unused, full = price(found, problem, rho=100.0), price(found, problem, rho=0.003)
    assert len(unused.objectives) == 1
    assert unused.statistics.violation < 1 < full.statistics.violation
    assert unused.statistics.candidates < full.statistics.candidates
