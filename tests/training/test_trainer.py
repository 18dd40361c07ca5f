"""The callback in Trainers as people set them up: each feature works, or is refused in one sentence."""

import copy
from itertools import count

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
    ModelPruning,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.tuner import Tuner
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from networks import CLASSES, FEATURES, Net, assert_same_state, loader, rows, state, trainer
from spikingjelly.activation_based import functional, layer, neuron
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, WeightedRandomSampler

from lightning_cvxsnn import ConvexReconstruction
from lightning_cvxsnn.convex import solve

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

ROWS, BATCH = 60, 16  # four batches, the last one short
REPLACE = {"beta": 0.02, "l1_ratio": 1.0, "apply": "replace", "max_overhead": None}  # training goes on from solutions


def data(**kwargs):
    return loader(ROWS, BATCH, **kwargs)


def small(**kwargs):
    torch.manual_seed(1)
    return Net(width=8, **kwargs)


def occasions(callback):
    return [(report.reason.split(":")[0], report.step) for report in callback.reports]


def stored_gap(net, run, report):
    """The objective at the stored readout, computed here in float64, minus the report's bound; and the programme."""
    received = []
    handle = net.readout.register_forward_pre_hook(lambda _, args: received.append(args[0]))
    x, y = rows(ROWS)
    with torch.no_grad(), run.precision_plugin.forward_context():
        net.eval()
        net(run.precision_plugin.convert_input(x))
        functional.reset_net(net.hidden)
    handle.remove()
    spikes = received[0].double().mean(0)
    assert set(received[0].unique().tolist()) <= {0.0, 1.0}
    weight, bias = net.readout.weight.detach().double(), net.readout.bias.detach().double()
    objective = F.cross_entropy(spikes @ weight.T + bias, y) + report.rho * weight.abs().sum()
    return float(objective) - report.dual, spikes, y


# -- precision ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed", "bf16-true", "64-true"])
def test_both_gaps_are_right_in_float64(precision):
    callback = ConvexReconstruction(**REPLACE | {"beta": 0.05}, every_n_epochs=0, final_solve=False, scale=1.0)
    net, run = small(lr=0.0), trainer(callback, max_epochs=1, precision=precision)
    run.fit(net, data())
    (report,) = callback.reports
    assert report.accepted
    gap, spikes, y = stored_gap(net, run, report)
    reference = solve(spikes, y, loss="cross_entropy", rho=report.rho, fit_intercept=True, solver="cvxpy")
    objective = gap + report.dual
    assert objective - reference.primal - 1e-9 <= report.gap_written <= gap + 1e-12
    assert report.dual <= reference.primal + 1e-9
    assert reference.dual - 1e-9 <= report.primal
    assert report.gap == report.primal - report.dual
    assert 0 <= report.gap <= 1e-6 * 1.2
    stored = torch.float64 if precision == "64-true" else torch.bfloat16 if precision == "bf16-true" else torch.float32
    assert net.readout.weight.dtype == stored
    if precision == "bf16-true":
        assert report.gap_written > 2 * report.gap  # the rounded weights are another point, and it says so
    else:
        assert report.gap_written == pytest.approx(report.gap, abs=1e-7)


def test_float16_autocast_with_a_gradient_scaler(recwarn):
    """'16-mixed' as on a GPU. The Trainer refuses it on a CPU, the plugin that it would choose does not."""
    plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**10))
    callback = ConvexReconstruction(beta=0.05, l1_ratio=1.0, scale=1.0, max_overhead=None, witnesses="keep")
    net, run = small(), trainer(callback, max_epochs=3, plugins=[plugin])
    run.fit(net, data())
    assert run.precision_plugin is plugin
    assert plugin.scaler.state_dict()["_growth_tracker"] == 12  # of twelve steps no gradient overflowed
    assert [name for name, _ in occasions(callback)] == ["warm start"] + 2 * ["periodic solve"] + ["final solve"]
    report = callback.reports[-1]
    assert 0 <= report.gap <= 1e-6 * 1.2
    assert all(0 <= shown.gap <= 1e-3 * 1.2 for shown in callback.reports)
    assert report.accepted
    assert report.gap_written == pytest.approx(stored_gap(net, run, report)[0], abs=1e-7)
    assert net.readout.weight.dtype == torch.float32
    assert not [w for w in recwarn if "ConvexReconstruction solves" in str(w.message)]  # the scale is taken out


def test_float16_weights_that_overflow_are_named():
    callback = ConvexReconstruction(beta=0.05)
    message = r"leaves out the final solve.*parameters \['hidden.0.weight'.* NaN .*training has diverged"
    with pytest.warns(UserWarning, match=message):
        trainer(callback, precision="16-true").fit(small(), data())  # Adam's eps is zero in float16
    assert len(callback.reports) == 1


# -- optimisation -------------------------------------------------------------------------------------------------


class Windows(pl.Callback):
    """Backward passes since the last optimiser step, noted at each solve; it comes after the callback."""

    def __init__(self, callback):
        self.callback, self.pending, self.at_solves, self.gradients = callback, 0, [], []

    def on_after_backward(self, trainer, pl_module):
        self.pending += 1

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.pending = 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if len(self.at_solves) < len(self.callback.reports):
            self.at_solves.append(self.pending)
            self.gradients.append(pl_module.readout.weight.grad)


@pytest.mark.parametrize("schedule", [3, {0: 2, 1: 3, 2: 1}], ids=str)
def test_no_solve_lands_inside_an_accumulation_window(schedule):
    callback = ConvexReconstruction(beta=0.05, warm_start=False, scale=1.0, apply="replace", max_overhead=None)
    windows = Windows(callback)
    fixed = isinstance(schedule, int)
    others = [] if fixed else [GradientAccumulationScheduler(schedule)]
    run = trainer(callback, windows, *others, max_epochs=3, **({"accumulate_grad_batches": schedule} if fixed else {}))
    run.fit(small(), data())
    assert windows.at_solves == [0, 0, 0]
    assert [step for _, step in occasions(callback)] == ([2, 4, 6] if fixed else [2, 4, 8])
    for report, gradient in zip(callback.reports, windows.gradients, strict=True):
        assert (gradient is None) == report.accepted


class Alternating(Net):
    """Manual optimisation, two optimisers, gradients accumulated by hand."""

    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.manual_backward(loss)
        if batch_idx % 2 == 1:
            for optimizer in self.optimizers():
                optimizer.step()
                optimizer.zero_grad()

    def configure_optimizers(self):
        return [torch.optim.SGD(self.hidden.parameters(), 0.1, 0.9), torch.optim.Adam(self.readout.parameters(), 0.01)]


class Quasi(Net):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)


@pytest.mark.parametrize(
    ("network", "steps", "options"),
    [
        (Net, [0, 4, 8], {"gradient_clip_val": 0.1}),
        (Net, [0, 4, 8], {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"}),
        (Alternating, [0, 4, 8], {}),
        (Quasi, [0, 4, 8], {}),
    ],
    ids=["clipped norm", "clipped values", "manual, two optimisers", "LBFGS"],
)
def test_ways_to_optimise(network, steps, options):
    """Training goes on from what is written; optimisers forget what they remember of it, and only that."""

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.is_last_batch and callback.reports[-1].accepted:
                remembered = {p for optimizer in trainer.optimizers for p in optimizer.state}
                assert pl_module.readout.weight not in remembered
                assert (pl_module.hidden[0].weight in remembered) == (network is not Quasi)
                looked.append(trainer.global_step)

    torch.manual_seed(1)
    looked, callback = [], ConvexReconstruction(**REPLACE, loss="squared")  # better than what cross-entropy trains
    net = network(width=8)
    trainer(callback, Look(), **options).fit(net, data())
    assert [step for _, step in occasions(callback)] == steps
    assert looked
    assert all(report.gap <= 2e-6 for report in callback.reports if report.accepted)
    assert all(bool(p.isfinite().all()) for p in net.parameters())


class Rows(pl.LightningDataModule):
    batch_size = 4

    def train_dataloader(self):
        return loader(ROWS, self.batch_size)

    val_dataloader = train_dataloader


@pytest.mark.parametrize("finder", ["lr callback", "lr tuner", "batch size callback", "batch size tuner"])
def test_finders_run_before_the_warm_start(finder, tmp_path):
    """Their trial runs know nothing of the callback, and their own checkpoint is no resume."""
    callbacks = {
        "lr callback": [LearningRateFinder(num_training_steps=40)],
        "batch size callback": [BatchSizeFinder(max_trials=3, steps_per_trial=1)],
    }.get(finder, [])
    callback = ConvexReconstruction(beta=0.05, every_n_epochs=0, final_solve=False)
    rows_, net = Rows(), small()
    run = trainer(callback, *callbacks, max_epochs=1, default_root_dir=tmp_path)
    if finder == "lr tuner":
        assert Tuner(run).lr_find(net, datamodule=rows_, num_training=40).suggestion() > 0
    elif finder == "batch size tuner":
        Tuner(run).scale_batch_size(net, datamodule=rows_, max_trials=3, steps_per_trial=1)
    assert callback.reports == []
    run.fit(net, datamodule=rows_)
    assert occasions(callback) == [("warm start", 0)]
    assert rows_.batch_size == (8 if "batch size" in finder else 4)
    assert (net.lr != 0.05) == ("lr" in finder)


# -- averages of weights ------------------------------------------------------------------------------------------


def averaging(kind):
    if kind == "SWA":
        return StochasticWeightAveraging(0.01, swa_epoch_start=1)
    return WeightAveraging() if kind == "average" else EMAWeightAveraging(decay=0.8)


@pytest.mark.parametrize("order", [1, -1], ids=["listed first", "listed last"])
@pytest.mark.parametrize("kind", ["SWA", "EMA", "average"])
def test_the_final_solve_is_over_the_averaged_network_and_is_what_remains(kind, order, tmp_path):
    ends = []
    for final in (False, True):
        callback = ConvexReconstruction(beta=0.02, l1_ratio=1.0, final_solve=final, every_n_epochs=3)
        net = small()
        saves = ModelCheckpoint(dirpath=tmp_path / str(final))
        run = trainer(*[callback, averaging(kind)][::order], saves, max_epochs=4, checkpoint=True)
        run.fit(net, data(), loader(20, seed=1))
        ends.append(net)
    average, solved = ends
    for name, value in average.state_dict().items():
        assert torch.equal(value, solved.state_dict()[name]) != name.startswith("readout")
    assert occasions(callback)[-1] == ("final solve", 16)
    report = callback.reports[-1]
    assert report.accepted
    assert report.gap_written == pytest.approx(stored_gap(solved, run, report)[0], abs=1e-6)
    saved = torch.load(tmp_path / "True/convex-last.ckpt", weights_only=True)
    assert torch.equal(saved["state_dict"]["readout.weight"], solved.readout.weight)
    assert not (tmp_path / "False/convex-last.ckpt").exists()


def test_averaging_with_batch_norms_ends_with_a_solve_after_its_extra_epoch():
    net = small(lr=1e-3)
    net.hidden.insert(1, layer.BatchNorm1d(8, step_mode="m"))
    callback = ConvexReconstruction(**REPLACE | {"beta": 1e-3}, judge="validation")
    run = trainer(callback, averaging("SWA"), max_epochs=3)
    run.fit(net, data(), data())
    assert [name for name, _ in occasions(callback)] == ["warm start"] + ["periodic solve"] * 3 + ["final solve"]
    assert callback.reports[-1].accepted
    assert callback.reports[-1].gap_written == pytest.approx(stored_gap(net, run, callback.reports[-1])[0], abs=1e-6)


class Decoded(Net):
    """Neurons that do not spike keep the graph of their last pass too."""

    def __init__(self):
        super().__init__(width=8)
        self.decoder = neuron.NonSpikingLIFNode(decode="last_mem")

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.decoder(self.readout.weight[None] * 1.0)
        return loss


@pytest.mark.parametrize("interrupted", [False, True])
@pytest.mark.parametrize("kind", ["SWA", "EMA"])
def test_a_second_fit_can_copy_the_network(kind, interrupted):
    class Stop(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if interrupted:
                raise RuntimeError("stop")

    for callbacks, works in (([], False), ([ConvexReconstruction(beta=0.02)], True)):
        torch.manual_seed(1)
        net = Decoded()
        try:
            trainer(*callbacks, Stop(), max_epochs=1).fit(net, data())
        except RuntimeError as error:
            assert str(error) == "stop"  # noqa: PT017
        memory = net.hidden[1].v.clone()
        again = trainer(*callbacks, averaging(kind), max_epochs=2)
        if not works:  # as it is without the callback: the graph of the last training step is in the way
            with pytest.raises(RuntimeError, match="deepcopy"):
                again.fit(net, data())
            continue
        assert torch.equal(net.hidden[1].v, memory)
        copy.deepcopy(net)
        again.fit(net, data())
        assert callbacks[0].reports[-1].step == 8


# -- two callbacks ------------------------------------------------------------------------------------------------


def test_two_callbacks_keep_two_states(tmp_path):
    def make():
        return [
            ConvexReconstruction(readout="readout", beta=0.02, every_n_epochs=0, final_solve=False),
            ConvexReconstruction(
                readout="readout", loss="squared", beta=0.01, warm_start=False, final_solve=False, max_overhead=None
            ),
        ]

    def expected(epochs):
        return [("warm start", 0)], [("periodic solve", 4 * (k + 1)) for k in range(epochs)]

    first, saves = make(), ModelCheckpoint(dirpath=tmp_path, filename="both")
    trainer(*first, saves, max_epochs=1, checkpoint=True).fit(small(), data())
    assert tuple(map(occasions, first)) == expected(1)
    second = make()
    trainer(*second, max_epochs=2).fit(small(), data(), ckpt_path=tmp_path / "both.ckpt", weights_only=True)
    assert tuple(map(occasions, second)) == expected(2)
    assert [c.reports[0] for c in second] == [c.reports[0] for c in first]


def test_two_callbacks_log_apart_and_only_the_first_changes_hidden_weights(tmp_path):
    class Kept(Logger):
        name, version = "kept", 0

        def __init__(self):
            super().__init__()
            self.keys = set()

        def log_metrics(self, metrics, step=None):
            self.keys |= set(metrics)

        def log_hyperparams(self, params, *args, **kwargs):
            pass

    class Two(Net):
        def __init__(self):
            super().__init__()
            self.second = layer.Linear(24, CLASSES, step_mode="m")

        def forward(self, x):
            functional.reset_net(self.hidden)
            spikes = self.hidden(self.steps(x))
            return self.readout(spikes).mean(0), self.second(spikes).mean(0)

        def training_step(self, batch, batch_idx):
            return sum(F.cross_entropy(logits, batch[1]) for logits in self(batch[0]))

        def convex_batch(self, batch):
            return batch[0], (batch[1], batch[1])

    def both(first, second):
        kinds = (("readout", first), ("second", second))
        return [
            ConvexReconstruction(readout=n, witnesses=w, beta=0.02, every_n_epochs=0, final_solve=False)
            for n, w in kinds
        ]

    kept = Kept()
    trainer(*both("pairs", "auto"), max_epochs=1, logger=kept).fit(Two(), data())
    assert {"convex/readout/gap", "convex/second/gap"} <= kept.keys
    assert "convex/gap" not in kept.keys
    for kinds in (("pairs", "priced"), ("auto", "gaussian_standard")):
        with pytest.raises(MisconfigurationException, match="Only the first may change hidden weights"):
            trainer(*both(*kinds), max_epochs=1).fit(Two(), data())


def test_a_readout_that_pruning_has_reparametrised_since_is_left_alone():
    net = small()
    pruning = ModelPruning("l1_unstructured", amount=0.5, parameters_to_prune=[(net.readout, "weight")])
    callback = ConvexReconstruction(beta=0.02, every_n_epochs=0)
    run = trainer(callback, pruning, max_epochs=2)
    with pytest.warns(UserWarning, match="leaves out the final solve.*computed from other parameters"):
        run.fit(net, data())
    assert run.current_epoch == 2
    assert [report.reason.split(":")[0] for report in callback.reports] == ["warm start"]


# -- data ---------------------------------------------------------------------------------------------------------


def trained(callback, dataloader, net=None):
    net = net or small()
    trainer(*([callback] if callback else []), max_epochs=2).fit(net, dataloader)
    return net


def test_persistent_workers_go_on_undisturbed():
    ends = []
    for callback in (None, ConvexReconstruction(beta=0.05, dry_run=True, max_overhead=None)):
        torch.manual_seed(2)
        net = small()
        ends.append(trained(callback, data(shuffle=True, num_workers=1, persistent_workers=True), net))
    assert len(callback.reports) == 3
    assert_same_state(ends[1], state(ends[0]))


def test_a_weighted_sampler_decides_which_rows_are_solved():
    labels = rows(ROWS)[1]
    sampler = WeightedRandomSampler((labels != 0).double(), 40)
    callback = ConvexReconstruction(beta=0.05, every_n_epochs=0, final_solve=False, loss="squared")
    trained(callback, DataLoader(TensorDataset(*rows(ROWS)), batch_size=BATCH, sampler=sampler))
    assert callback.reports[0].rows in (40, 32)


class Stream(IterableDataset):
    """Rows without end or of a finite pass, with a random state of its own that a second reader would move."""

    def __init__(self, size):
        self.size, self.generator = size, torch.Generator().manual_seed(0)

    def __iter__(self):
        for _ in count() if self.size is None else range(self.size):
            x = torch.rand(FEATURES, generator=self.generator)
            yield x, x[:CLASSES].argmax()


@pytest.mark.parametrize("size", [60, None], ids=["finite", "endless"])
@pytest.mark.parametrize("batched", [True, False])
def test_a_stream_is_solved_over_its_first_rows_and_trains_undisturbed(size, batched):
    class Chunks(Stream):
        def __iter__(self):
            for x, y in super().__iter__():
                yield x[None].repeat(3, 1), y[None].repeat(3)

    ends = []
    for callback in (None, ConvexReconstruction(beta=0.05, max_samples=30, dry_run=True, max_overhead=None)):
        net = small()
        stream = DataLoader(Stream(size), batch_size=BATCH) if batched else DataLoader(Chunks(size), batch_size=None)
        run = trainer(*([callback] if callback else []), max_epochs=2, limit_train_batches=4 if batched else 10)
        run.fit(net, stream)
        ends.append(state(net))
    assert len(callback.reports) == 3
    assert {report.rows for report in callback.reports} <= {32, 30, 26, 24}  # all rows, or four fifths of them
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_streams_that_are_refused():
    class Once(Stream):
        def __init__(self):
            super().__init__(60)
            self.rows = super().__iter__()

        def __iter__(self):
            return self.rows

    net = small()
    before = state(net)
    with pytest.raises(MisconfigurationException, match=r"IterableDataset \(Stream\), which may have no end.*max_samp"):
        trained(ConvexReconstruction(), DataLoader(Stream(60), batch_size=BATCH), net)
    with pytest.raises(MisconfigurationException, match=r"IterableDataset \(Once\) that cannot be copied"):
        trained(ConvexReconstruction(max_samples=30), DataLoader(Once(), batch_size=BATCH), net)
    assert_same_state(net, before)


@pytest.mark.parametrize("make", [lambda: {"a": data(), "b": data()}, lambda: [data(), data()], lambda: {"a": data()}])
@pytest.mark.parametrize("combine", [lambda x: x, lambda x: CombinedLoader(x, "max_size_cycle")])
def test_several_loaders_are_refused(make, combine):
    net = small()
    before = state(net)
    with pytest.raises(MisconfigurationException, match=r"comes from a (dict|list) of \d loaders. Expected one torch"):
        trained(ConvexReconstruction(), combine(make()), net)
    assert_same_state(net, before)


def test_of_a_dataset_larger_than_memory_only_max_samples_are_loaded():
    class Huge(Dataset):
        loaded = 0
        targets = torch.arange(10**6) % CLASSES

        def __len__(self):
            return 10**6

        def __getitem__(self, index):
            Huge.loaded += 1
            x = torch.rand(FEATURES, generator=torch.Generator().manual_seed(index))
            return x, self.targets[index]

    callback = ConvexReconstruction(beta=0.05, every_n_epochs=0, final_solve=False, max_samples=50, witnesses="keep")
    trainer(callback, max_epochs=1, max_steps=1).fit(small(), DataLoader(Huge(), batch_size=BATCH))
    assert callback.reports[0].rows in (50, 40)
    assert Huge.loaded <= 6 * 50


def test_two_callbacks_without_a_readout_meet_our_message():
    with pytest.raises(MisconfigurationException, match=r"one has readout=None; expected each to name its own readout"):
        trainer(ConvexReconstruction(), ConvexReconstruction(), max_epochs=1).fit(small(), data())


def test_in_a_trainer_the_key_depends_on_readout_and_loss_only():
    keys = set()
    for callback in (ConvexReconstruction(), ConvexReconstruction(beta=0.02)):
        trainer(callback, max_epochs=1).validate(small(), data(), verbose=False)
        keys.add(callback.state_key)
    assert keys == {"ConvexReconstruction{'readout': None, 'loss': 'cross_entropy'}"}
