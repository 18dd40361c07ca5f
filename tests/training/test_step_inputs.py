"""A module's ``training_step`` and the callback must give the network the same."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from networks import CLASSES, FEATURES, STEPS, Net, assert_same_state, loader, rows, state, trainer
from spikingjelly.activation_based import encoding
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_cvxsnn import ConvexReconstruction


def start(**kwargs):
    return ConvexReconstruction(beta=0.02, every_n_epochs=0, final_solve=False, **kwargs)


class TimeFirst(Net):
    """Sequences ``[N, T, F]`` that ``training_step`` transposes; N and T may be equal."""

    def steps(self, x):
        return 4 * x

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0].transpose(0, 1)), batch[1])


def sequences(batch_size):
    x, y = rows(64)
    steps = torch.linspace(0.5, 1.5, STEPS)[:, None]
    return DataLoader(TensorDataset(x[:, None] * steps, y), batch_size=batch_size)


class Normalised(Net):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0] * 3 - 1), batch[1])


class Encoded(Net):
    """Poisson spikes that ``training_step`` draws; the forward takes whatever it gets."""

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(encoding.PoissonEncoder()(batch[0])), batch[1])


@pytest.mark.parametrize("batch_size", [STEPS, 32])
def test_a_step_that_transposes_is_refused_before_anything_is_written(batch_size):
    net = TimeFirst()
    saved = state(net)
    with pytest.raises(MisconfigurationException, match=r"differ first at 'hidden.0'.*define `convex_batch"):
        trainer(start(), max_epochs=1).fit(net, sequences(batch_size))
    assert_same_state(net, saved)


@pytest.mark.parametrize("net", [Normalised, Encoded])
def test_a_step_that_changes_the_inputs_is_refused(net):
    with pytest.raises(MisconfigurationException, match=r"'hidden.0', by \d+% of their mean size"):
        trainer(start(), max_epochs=1).fit(net(), loader())


def test_the_two_methods_mend_it():
    class Batch(Normalised):
        def convex_batch(self, batch):
            return batch[0] * 3 - 1, batch[1]

    class Forward(Normalised):
        def convex_forward(self, x):
            return self(x * 3 - 1)

    for net in (Batch(), Forward()):
        callback = start()
        trainer(callback, max_epochs=1).fit(net, loader())
        assert callback.reports[0].accepted


def test_a_dead_network_hides_nothing():
    net = Normalised()
    with torch.no_grad():
        net.hidden[0].weight.zero_()
        net.hidden[0].bias.fill_(-1.0)
    with pytest.raises(MisconfigurationException, match="gives the network other inputs"):
        trainer(start(), max_epochs=1).fit(net, loader())


def test_random_encoders_and_several_views_of_a_batch_agree():
    class Random(Net):
        def steps(self, x):
            return torch.stack([encoding.PoissonEncoder()(x) for _ in range(STEPS)])

    class Views(Net):
        def training_step(self, batch, batch_idx):
            noisy = self(batch[0] + 0.1 * torch.rand_like(batch[0]))
            return F.cross_entropy(self(batch[0]), batch[1]) + F.cross_entropy(noisy, batch[1])

    class Manual(Net):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
            optimizer.step()

    for net in (Random(), Views(), Manual()):
        callback = start()
        trainer(callback, max_epochs=1).fit(net, loader())
        assert len(callback.reports) == 1


def test_the_rehearsal_leaves_no_trace(tmp_path):
    """A dry run is the run without the callback, also where the step counts, logs and draws random numbers."""

    class Counting(Net):
        def __init__(self):
            super().__init__()
            self.calls, self.seen = 0, []
            self.norm = nn.BatchNorm1d(FEATURES)

        def forward(self, x):
            return super().forward(self.norm(x))

        def training_step(self, batch, batch_idx):
            self.calls += 1
            self.seen.append(batch_idx)
            self.logger.experiment.log_metrics({"calls": self.calls}, self.calls)
            self.log("noise", torch.rand(()))
            return super().training_step(batch, batch_idx)

    found = []
    for callbacks in ([], [start(dry_run=True)]):
        pl.seed_everything(3)
        net, logger = Counting(), CSVLogger(tmp_path, version=str(len(callbacks)))
        trainer(*callbacks, max_epochs=2, logger=logger).fit(net, loader(shuffle=True))
        logged = [row["calls"] for row in logger.experiment.metrics if "calls" in row]
        found.append((net.calls, net.seen, logged, torch.get_rng_state().tolist(), state(net)))
    assert found[0][:4] == found[1][:4]
    assert_same_state(net, found[0][4])


@pytest.mark.parametrize("early", [False, True])
def test_what_the_module_sets_as_training_starts_is_there_at_the_warm_start(early):
    class Statistics(Net):
        calls, scale = 0, 0.0

        def ready(self):
            self.calls, self.scale = self.calls + 1, 3.0

        def on_train_start(self):
            if not early:
                self.ready()

        def on_fit_start(self):
            if early:
                self.ready()

        def forward(self, x):
            return super().forward(x * self.scale)

    class After(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            self.weight = pl_module.readout.weight.clone()

    net, callback, after = Statistics(), start(), After()
    before = net.readout.weight.clone()
    trainer(callback, after, max_epochs=1).fit(net, loader())
    assert callback.reports[0].accepted
    assert net.calls == 1
    assert "on_train_start" not in vars(net)
    assert not torch.equal(after.weight, before)  # the solution is there when other callbacks start


class Frames(Net):
    def steps(self, x):
        return torch.stack(STEPS * [x])

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0].float()), batch[1])


class PerStep(Net):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]).flatten(0, 1), batch[1].T.flatten(), ignore_index=-100)


class Lazy(Net):
    def __init__(self):
        super().__init__()
        self.readout = nn.LazyLinear(CLASSES)


@pytest.mark.parametrize(
    ("net", "change", "message"),
    [
        (
            Frames,
            lambda x, y: ((100 * x).byte(), y),
            r"Frames.forward, called with .* \(a uint8 tensor of shape.*convex_batch",
        ),
        (
            lambda: PerStep("all"),
            lambda x, y: (x, torch.where(torch.arange(STEPS) < 2, y[:, None], -100)),
            r"targets range from -100 to .*weight 0: define `convex_batch",
        ),
        (Lazy, lambda x, y: (x, y), r"\['readout.weight', 'readout.bias'\] of lazy modules.*run one batch"),
    ],
    ids=["uint8", "ignored targets", "lazy"],
)
def test_what_the_forward_lacks_is_said_in_one_sentence(net, change, message):
    data = DataLoader(TensorDataset(*change(*rows(40))), batch_size=20)
    with pytest.raises(MisconfigurationException, match=message):
        trainer(start(), max_epochs=1).fit(net(), data)


class Manual(Net):
    """Two optimisers; before its first forward the step changes what the subclass says."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self):
        parts = (self.readout, self.hidden)
        optimizers = [torch.optim.SGD(part.parameters(), 0.05, momentum=0.9) for part in parts]
        return optimizers, [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9) for optimizer in optimizers]

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            self.change(optimizer)
            loss = F.cross_entropy(self(batch[0]), batch[1])
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            self.finish(optimizer)

    def finish(self, optimizer): ...


class Toggled(Manual):
    def change(self, optimizer):
        self.toggle_optimizer(optimizer)

    def finish(self, optimizer):
        self.untoggle_optimizer(optimizer)


class Scheduled(Manual):
    def change(self, optimizer):
        for schedule in self.lr_schedulers():
            schedule.step()


class ByHand(Manual):
    def change(self, optimizer):
        optimizer.param_groups[0]["lr"] *= 0.9


class Adversary(Manual):
    """Steps and backward passes of another loss come before the network is asked."""

    def change(self, optimizer):
        self.manual_backward(self.readout.weight.square().sum())
        optimizer.step()


@pytest.mark.parametrize("net", [Toggled, Scheduled, ByHand, Adversary])
def test_the_rehearsal_leaves_optimisers_as_they_are(net):
    found = []
    for callbacks in ([], [start(dry_run=True)]):
        torch.manual_seed(0)
        module = net()
        run = trainer(*callbacks, max_epochs=2)
        run.fit(module, loader())
        rates = [optimizer.param_groups[0]["lr"] for optimizer in run.optimizers]
        found.append((rates, run.global_step, [p.requires_grad for p in module.parameters()], state(module)))
    assert found[0][:3] == found[1][:3]
    assert_same_state(module, found[0][3])


class LeftOut(Net):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) if self.wanted(batch_idx) else None

    def wanted(self, index):
        return index % 2 == 1


def test_batches_that_the_step_leaves_out_are_passed_over():
    class Never(LeftOut):
        def wanted(self, index):
            return False

    callback = start()
    trainer(callback, max_epochs=1).fit(LeftOut(), loader())
    assert callback.reports[0].accepted
    net = Never()
    saved = state(net)
    with pytest.raises(MisconfigurationException, match="returned None for each of the first 4 training batches"):
        trainer(start(), max_epochs=1).fit(net, loader())
    assert_same_state(net, saved)


def test_a_step_that_takes_an_iterator_is_compared():
    class Normalising(Net):
        def training_step(self, dataloader_iter):
            (x, y), _, _ = next(dataloader_iter)
            return F.cross_entropy(self(3 * x - 1), y)

    with pytest.raises(MisconfigurationException, match="gives the network other inputs"):
        trainer(start(), max_epochs=1).fit(Normalising(), loader())


def test_a_start_that_was_refused_is_no_start():
    class Counted(Net):
        starts, factor = 0, 2.0

        def on_train_start(self):
            self.starts += 1

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self(self.factor * batch[0]), batch[1])

    net = Counted()
    with pytest.raises(MisconfigurationException, match="gives the network other inputs"):
        trainer(start(), max_epochs=1).fit(net, loader())
    net.factor = 1.0
    trainer(start(), max_epochs=1).fit(net, loader())
    assert net.starts == 2
