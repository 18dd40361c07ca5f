"""The metrics, by torchmetrics' own conventions, against brute force and torchmetrics' own classes."""

import pickle
from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Net, loader, trainer
from spikingjelly.activation_based import functional
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassExactMatch

from lightning_cvxsnn import DeadUnits, DistinctPatterns, DualityGap, FiringRate, SequenceAccuracy, TokenAccuracy
from lightning_cvxsnn.convex import certificate, solve
from lightning_cvxsnn.patterns import SpikeDictionary

TIMEOUT = 200  # seconds for both processes, imports included
STEPS, UNITS, CLASSES = 3, 7, 4


def spikes(n, seed=0):
    """``[T, n, units]``: unit 0 silent, unit 1 saturated, units 2 and 3 equal."""
    generator = torch.Generator().manual_seed(seed)
    values = (torch.rand(STEPS, n, UNITS, generator=generator) < 0.3).float()
    values[..., 0], values[..., 1], values[..., 3] = 0, 1, values[..., 2]
    return values


def tokens(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    preds = torch.randint(0, CLASSES, (n, 3), generator=generator)
    target = torch.where(torch.rand(n, 3, generator=generator) < 0.7, preds, (preds + 1) % CLASSES)
    return preds, target.where(torch.rand(n, 3, generator=generator) < 0.8, -1)


def programme(n, seed=0):
    """Rows, targets and one readout, the same whatever ``n`` and ``seed``."""
    rows = spikes(n, seed).sum(0)
    generator = torch.Generator().manual_seed(9)
    coef, intercept = torch.randn(UNITS, CLASSES, generator=generator), torch.randn(CLASSES, generator=generator)
    return rows, rows[:, 2:6].argmax(1), coef, intercept


#: name -> (metric, the arguments of one update with n rows of a seed)
CASES = {
    "rate": (FiringRate, lambda n, seed: (spikes(n, seed),)),
    "dead": (DeadUnits, lambda n, seed: (spikes(n, seed),)),
    "distinct": (DistinctPatterns, lambda n, seed: (spikes(n, seed),)),
    "gap": (lambda **k: DualityGap("cross_entropy", 0.05, **k), programme),
    "token": (lambda **k: TokenAccuracy(ignore_index=-1, **k), tokens),
    "sequence": (lambda **k: SequenceAccuracy(ignore_index=-1, **k), tokens),
}
BATCHES = [(5, 0), (1, 1), (8, 2)]


def reference(name, batches):
    """The value over all rows at once, by other means."""
    if name in ("token", "sequence"):
        preds, target = (torch.cat(part) for part in zip(*(tokens(*b) for b in batches), strict=True))
        counted = target != -1
        if name == "token":
            return float((preds == target)[counted].double().mean())
        rows = [(p[c] == t[c]).all() for p, t, c in zip(preds, target, counted, strict=True) if c.any()]
        return float(torch.stack(rows).double().mean())
    if name == "gap":
        parts = [programme(*b) for b in batches]
        rows, targets = (torch.cat([part[k] for part in parts]) for k in (0, 1))
        _, _, coef, intercept = parts[0]
        return certificate(rows, targets, coef, intercept, loss="cross_entropy", rho=0.05, fit_intercept=True).gap
    rows = torch.cat([spikes(*b).flatten(0, 1) for b in batches])
    columns = [tuple(column.tolist()) for column in rows.T]
    return {
        "rate": float(rows.mean()),
        "dead": sum(len(set(map(bool, column))) == 1 for column in columns) / UNITS,
        "distinct": len(set(columns)),
    }[name]


@pytest.mark.parametrize("name", CASES)
class TestConventions:
    def test_update_and_compute_over_batches(self, name):
        make, arguments = CASES[name]
        metric = make()
        for batch in BATCHES:
            metric.update(*arguments(*batch))
        assert metric.compute().item() == pytest.approx(reference(name, BATCHES), rel=1e-6)
        assert metric.compute().dim() == 0

    def test_forward_gives_the_batch_and_accumulates(self, name):
        make, arguments = CASES[name]
        metric = make()
        for batch in BATCHES:
            assert metric(*arguments(*batch)).item() == pytest.approx(reference(name, [batch]), rel=1e-6, nan_ok=True)
        assert metric.compute().item() == pytest.approx(reference(name, BATCHES), rel=1e-6)

    def test_the_order_of_batches_makes_no_difference(self, name):
        make, arguments = CASES[name]
        values = set()
        for order in ([0, 1, 2], [2, 0, 1]):
            metric = make()
            for k in order:
                metric.update(*arguments(*BATCHES[k]))
            values.add(round(metric.compute().item(), 12))
        assert len(values) == 1

    def test_reset_forgets_everything(self, name):
        make, arguments = CASES[name]
        metric = make()
        metric.update(*arguments(*BATCHES[2]))
        metric.reset()
        with pytest.warns(UserWarning, match="before the ``update`` method"):
            value = metric.compute()
        assert value.isnan() if name != "distinct" else value == 0
        metric.update(*arguments(*BATCHES[0]))
        assert metric.compute().item() == pytest.approx(reference(name, BATCHES[:1]), rel=1e-6)

    def test_merge_state(self, name):
        make, arguments = CASES[name]
        parts = [make() for _ in BATCHES]
        for part, batch in zip(parts, BATCHES, strict=True):
            part.update(*arguments(*batch))
        empty = make()
        for part in parts:
            empty.merge_state(part)
        assert empty.compute().item() == pytest.approx(reference(name, BATCHES), rel=1e-6)

    def test_pickle_and_clone_keep_the_state(self, name):
        make, arguments = CASES[name]
        metric = make()
        metric.update(*arguments(*BATCHES[0]))
        for copy in (pickle.loads(pickle.dumps(metric)), metric.clone(), deepcopy(metric)):
            copy.update(*arguments(*BATCHES[1]))
            assert copy.compute().item() == pytest.approx(reference(name, BATCHES[:2]), rel=1e-6)
        assert metric.compute().item() == pytest.approx(reference(name, BATCHES[:1]), rel=1e-6)

    def test_nothing_in_the_checkpoint_unless_asked(self, name):
        make, arguments = CASES[name]
        metric = make()
        metric.update(*arguments(*BATCHES[0]))
        assert metric.state_dict() == {}
        metric.persistent(True)
        assert metric.state_dict()

    def test_declared_as_torchmetrics_wants(self, name):
        metric = CASES[name][0]()
        assert metric.full_state_update is False
        assert metric.is_differentiable is False
        assert metric.higher_is_better is {"rate": None, "dead": False, "gap": False}.get(name, True)
        with pytest.raises(ValueError, match="Unexpected keyword arguments: `nonsense`"):
            CASES[name][0](nonsense=1)

    def test_plot(self, name):
        make, arguments = CASES[name]
        metric = make()
        values = [metric(*arguments(*batch)) for batch in (BATCHES[0], BATCHES[2])]
        for val in (None, values[0], values):
            figure, axes = metric.plot(val)
            assert len(axes.lines) >= 1
            figure.clear()
            assert metric.plot(val, axes)[1] is axes


def test_they_work_together_and_in_a_trainer():
    class Measured(Net):
        def __init__(self):
            super().__init__()
            self.activity = MetricCollection([FiringRate(), DeadUnits(), DistinctPatterns()])
            self.gap = DualityGap("cross_entropy", rho=0.01)

        def validation_step(self, batch, batch_idx):
            x, y = batch
            functional.reset_net(self.hidden)
            sent = self.hidden(self.steps(x))
            self.activity.update(sent)
            self.gap.update(sent.mean(0), y, self.readout.weight.T, self.readout.bias)
            self.log_dict(self.activity)
            self.log("gap", self.gap)

    torch.manual_seed(0)
    run = trainer(max_epochs=2)
    run.fit(Measured(), loader(), loader(seed=1))
    logged = run.callback_metrics
    assert 0 < logged["FiringRate"] < 1
    assert 0 <= logged["DeadUnits"] < 1
    assert 1 < logged["DistinctPatterns"] <= 24
    assert logged["gap"] > 0


# -- what each one means ------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 4), st.integers(1, 6), st.integers(1, 5), st.integers(0, 2), st.integers(0, 10**6), st.integers(1, 3)
)
def test_activity_is_that_of_brute_force(steps, n, units, largest, seed, cuts):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, largest + 1, (steps, n, units), generator=generator, dtype=torch.uint8)
    rate, dead, distinct = metrics = FiringRate(), DeadUnits(), DistinctPatterns()
    for part in values.tensor_split(cuts, dim=1):
        for metric in metrics:
            metric.update(part)
    columns = [tuple(column.tolist()) for column in values.flatten(0, 1).T]
    assert rate.compute().item() == pytest.approx(values.double().mean().item(), rel=1e-6)
    assert dead.compute().item() == pytest.approx(sum(all(c) or not any(c) for c in columns) / units, rel=1e-6)
    assert distinct.compute() == len(set(columns))


def test_distinct_patterns_are_the_distinct_columns_of_the_dictionary():
    sent = spikes(400)
    metric = DistinctPatterns()
    for part in sent.split(64, dim=1):
        metric.update(part.sum(0, keepdim=True))
    assert metric.compute() == SpikeDictionary.from_values(sent.sum(0)).distinct == UNITS - 1


def test_rows_that_are_seen_twice_tell_no_more_units_apart():
    metric = DistinctPatterns()
    metric.update(spikes(3))
    once = metric.compute().item()
    for _ in range(4):  # powers of two are what sums modulo 2^64 suffer from
        metric.update(spikes(3).repeat(1, 256, 1))
    assert metric.compute().item() == once


def test_a_feature_map_has_a_unit_at_each_position_or_each_channel():
    sent = torch.zeros(2, 3, 4, 5, 5)
    sent[0, 0, 1, 2, 2] = 1
    positions, channels = DeadUnits(), DeadUnits()
    positions.update(sent)
    channels.update(sent.movedim(2, -1).flatten(1, -2))
    assert positions.compute().item() == pytest.approx(99 / 100)
    assert channels.compute().item() == pytest.approx(3 / 4)


def test_counts_beyond_single_precision_are_exact():
    rate = FiringRate()
    rate.update(torch.ones(1, 2**12, 2**13, dtype=torch.bool))
    rate.update(torch.ones(1, 1, 1))
    assert rate.spikes == rate.total == 2**25 + 1


@pytest.mark.parametrize("loss", ["cross_entropy", "squared", "hinge", "squared_hinge"])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("ratio", [1.0, 0.5, 0.0])
def test_the_gap_is_the_certificates_and_closes_at_the_optimum(loss, fit_intercept, ratio):
    rows, targets, *_ = programme(60)
    if loss == "squared":
        targets = torch.nn.functional.one_hot(targets, CLASSES).double()
    penalty = {"rho": 0.05, "l1_ratio": ratio}
    best = solve(rows, targets, loss=loss, fit_intercept=fit_intercept, num_outputs=CLASSES, **penalty)
    metric = DualityGap(loss, **penalty)
    for part in range(0, 60, 25):
        part = slice(part, part + 25)
        metric.update(rows[part], targets[part], best.coef, best.intercept if fit_intercept else None)
    intercept = best.intercept if fit_intercept else None
    proof = certificate(rows, targets, best.coef, intercept, loss=loss, fit_intercept=fit_intercept, **penalty)
    assert metric.compute().item() == pytest.approx(proof.gap, abs=1e-12)
    assert metric.compute() >= best.primal - best.dual - 1e-9 if loss == "hinge" else metric.compute() < 1e-2


def test_a_readout_that_changes_between_updates_is_refused():
    rows, targets, coef, intercept = programme(6)
    metric = DualityGap("cross_entropy", 0.05)
    metric.update(rows, targets, coef, intercept)
    metric.update(rows, targets, coef + 1, intercept)
    with pytest.raises(ValueError, match="changed between updates"):
        metric.compute()


@pytest.mark.parametrize("ignore_index", [None, -1])
def test_accuracies_are_torchmetrics_own_where_both_are_defined(ignore_index):
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(40, 3, CLASSES, generator=generator)
    target = torch.where(torch.rand(40, 3, generator=generator) < 0.6, scores.argmax(-1), 0)
    if ignore_index is not None:
        target[:20, 2] = ignore_index
    ours, theirs = TokenAccuracy(ignore_index), MulticlassAccuracy(CLASSES, average="micro", ignore_index=ignore_index)
    exact = SequenceAccuracy(ignore_index)
    theirs_exact = MulticlassExactMatch(CLASSES, ignore_index=ignore_index)
    for part in (slice(0, 15), slice(15, 40)):
        for metric in (ours, exact):
            metric.update(scores[part], target[part])
        for metric in (theirs, theirs_exact):
            metric.update(scores[part].transpose(1, 2), target[part])  # [N, C, L]
    torch.testing.assert_close(ours.compute(), theirs.compute())
    torch.testing.assert_close(exact.compute(), theirs_exact.compute())
    assert 0 < exact.compute() < ours.compute() < 1


def test_a_sequence_of_padding_is_left_out():
    token, sequence = TokenAccuracy(-1), SequenceAccuracy(-1)
    for metric in (token, sequence):
        metric.update(torch.tensor([[1, 2], [0, 1]]), torch.tensor([[1, 0], [-1, -1]]))
    assert token.compute() == 0.5
    assert sequence.compute() == 0


# -- what they refuse ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [FiringRate, DeadUnits, DistinctPatterns])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.zeros(4, 3), r"spikes has shape \[4, 3\]; expected \[T, N, \*units\]"),
        (torch.full((2, 3, 4), 0.5), "holds negative numbers, fractions"),
        (torch.full((2, 3, 4), -1), "holds negative numbers"),
        (torch.full((2, 3, 4), torch.nan), "NaN"),
        (torch.full((2, 3, 4), torch.inf), "infinity"),
    ],
)
def test_what_is_not_spikes(kind, values, message):
    with pytest.raises(ValueError, match=message):
        kind().update(values)


@pytest.mark.parametrize("kind", [DeadUnits, DistinctPatterns])
def test_another_layer_in_the_same_metric(kind):
    metric = kind()
    metric.update(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match="has 5 units and had 4 before"):
        metric.update(torch.zeros(2, 3, 5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dictionary": torch.zeros(6)}, r"dictionary has shape \[6\]"),
        ({"targets": torch.zeros(5, dtype=torch.long)}, r"targets \[5\]"),
        ({"coef": torch.zeros(4, 7)}, r"coef has shape \[4, 7\]; expected \[7, C\], such as readout\.weight\.T"),
        ({"intercept": torch.zeros(3)}, r"intercept has shape \[3\]; expected \[4\]"),
        ({"targets": torch.full((6,), 4)}, "labels from 4 to 4"),
        ({"coef": torch.full((7, 4), torch.nan)}, "coef holds NaN"),
    ],
)
def test_what_is_no_programme(change, message):
    rows, targets, coef, intercept = programme(6)
    metric = DualityGap("cross_entropy", 0.05)
    arguments = {"dictionary": rows, "targets": targets, "coef": coef, "intercept": intercept} | change
    with pytest.raises(ValueError, match=message):
        metric.update(**arguments)
        metric.compute()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mse", 0.1), "loss is 'mse'"),
        (("hinge", 0.0), "expected a positive finite number"),
        (("hinge", 0.1, 1.5), "l1_ratio is 1.5"),
    ],
)
def test_a_gap_of_no_programme(arguments, message):
    with pytest.raises(ValueError, match=message):
        DualityGap(*arguments)


@pytest.mark.parametrize("kind", [TokenAccuracy, SequenceAccuracy])
def test_what_are_no_tokens(kind):
    for preds, target in (
        (torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.long)),
        (torch.zeros(3, 2, 4), torch.zeros(2, 3, dtype=torch.long)),
        (torch.zeros(2, dtype=torch.long), torch.zeros(2, dtype=torch.long)),
        (torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 3)),
    ):
        with pytest.raises(ValueError, match=r"expected integer tokens \[N, L\] or float scores"):
            kind().update(preds, target)
    with pytest.raises(ValueError, match=r"ignore_index is 1\.5"):
        kind(ignore_index=1.5)


# -- two processes ------------------------------------------------------------------------------------------------


def compute_in_process(rank, folder):
    """One of two processes; each sees rows of its own, in the end the second sees none."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    values = {}
    for name, (make, arguments) in CASES.items():
        metric = make()
        for batch in BATCHES[rank::2]:
            metric.update(*arguments(*batch))
        values[name] = metric.compute().item()
        metric.update(*arguments(4, 7 + rank))  # what was gathered is not counted twice
        values[f"{name} again"] = metric.compute().item()
        metric = make()
        if rank == 0:
            metric.update(*arguments(*BATCHES[0]))
        values[f"{name} alone"] = metric.compute().item()
    torch.save(values, folder / f"{rank}.pt")
    torch.distributed.barrier()  # gloo's threads now and then abort a process that outlives its peer
    torch.distributed.destroy_process_group()


def test_two_processes_agree_with_one(tmp_path):
    context = torch.multiprocessing.get_context("spawn")
    processes = [context.Process(target=compute_in_process, args=(rank, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(TIMEOUT)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0, 0]
    for rank in range(2):
        values = torch.load(tmp_path / f"{rank}.pt")
        for name in CASES:
            assert values[name] == pytest.approx(reference(name, BATCHES), rel=1e-6), name
            assert values[f"{name} again"] == pytest.approx(reference(name, [*BATCHES, (4, 7), (4, 8)]), rel=1e-6)
            assert values[f"{name} alone"] == pytest.approx(reference(name, BATCHES[:1]), rel=1e-6)
