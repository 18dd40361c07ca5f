"""Deep networks that train under the callback: layers that only send on spikes are held."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from networks import DeepNet, assert_same_state, fitted, loader, moved, state, trainer
from spikingjelly.activation_based import neuron

from lightning_cvxsnn import ConvexReconstruction, DigitsDataModule, LitSNN, calibrate

HELD = {f"hidden.{i}.{kind}" for i in (6, 8, 10) for kind in ("weight", "bias")}


class Watch(pl.Callback):
    """The network as the first step finds it, and the hooks that it has in steps and in validations."""

    def __init__(self):
        self.hooks = {"step": set(), "validation": set()}

    def on_train_start(self, trainer, pl_module):
        self.state = state(pl_module)

    def on_before_backward(self, trainer, pl_module, loss):
        self.hooks["step"].add(hooks(pl_module))

    def on_validation_start(self, trainer, pl_module):
        self.hooks["validation"].add(hooks(pl_module))


def hooks(module):
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


class Decaying(DeepNet):
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.1)


class Manual(Decaying):
    automatic_optimization, wrapped = False, True

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers(use_pl_optimizer=self.wrapped)
        loss = super().training_step(batch, batch_idx)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()


class Raw(Manual):
    wrapped = False


class Logging(Decaying):
    def on_before_optimizer_step(self, optimizer):
        self.log("norm", sum(p.grad.norm() for p in self.parameters()))


@pytest.mark.parametrize("kind", [Decaying, Manual, Raw, Logging])
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_all_but_the_first_three_layers_are_held(kind, step_mode):
    watch, ours = Watch(), ConvexReconstruction(judge="train")
    options = {"gradient_clip_val": 1.0} if kind.automatic_optimization else {}
    net, _ = fitted([ours, watch], kind(step_mode=step_mode), validation=True, **options)
    assert moved(net, watch.state) == set(net.state_dict()) - HELD
    assert [report.relays for report in ours.reports] == [3] * len(ours.reports)
    assert watch.hooks == {"step": {6}, "validation": {0}}
    assert hooks(net) == 0
    assert "3 layers, held while the others train" in str(ours.reports[0])


def lively():
    """A deep network that somebody has brought to life."""
    torch.manual_seed(1)
    net = DeepNet(lr=0.01)
    calibrate(net, loader())
    return net


def started():
    """A deep network that has been started before."""
    torch.manual_seed(1)
    net = DeepNet(lr=0.01)
    fitted(ConvexReconstruction(), net, max_epochs=1)
    return net


class Unknown(neuron.LIFNode):
    pass


@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        pytest.param(DeepNet, {"witnesses": "calibrated"}, id="calibrated"),
        pytest.param(lively, {"witnesses": "keep"}, id="kept"),
        pytest.param(started, {"witnesses": "keep"}, id="sent on and kept"),
        pytest.param(started, {"apply": "shadow"}, id="shadow over one's own"),
        pytest.param(lively, {}, id="of somebody's own"),
        pytest.param(lively, {"dry_run": True}, id="dry run"),
        pytest.param(lambda: DeepNet(3), {}, id="three"),
        pytest.param(lambda: DeepNet(4, last_width=40), {}, id="a wider last one"),
        pytest.param(lambda: DeepNet(node=Unknown), {}, id="unknown neurons"),
    ],
)
def test_other_layers_train(make, arguments):
    watch, ours = Watch(), ConvexReconstruction(**arguments)
    net, _ = fitted([ours, watch], make(), max_epochs=3)
    weights = {name for name in net.state_dict() if name.endswith("weight")}
    assert weights <= moved(net, watch.state)
    assert watch.hooks["step"] == {0}
    assert [report.relays for report in ours.reports] == [0] * len(ours.reports)


def test_it_says_which_layers_it_holds(caplog):
    with caplog.at_level("INFO"):
        fitted(ConvexReconstruction(), DeepNet(), max_epochs=1)
    (message,) = [record.message for record in caplog.records if " holds " in record.message]
    assert "holds 3 spiking layers, from 'hidden.7' on" in message
    assert "witnesses='calibrated'" in message


def test_a_shadow_over_a_network_that_it_has_started_holds_layers():
    ours = ConvexReconstruction(apply="shadow")
    fitted(ours, DeepNet(lr=0.01))
    assert ours.reports[0].relays == 3


def test_a_network_that_was_started_before_is_held_by_another_callback():
    watch, ours = Watch(), ConvexReconstruction()
    net, _ = fitted([ours, watch], started(), validation=True)
    assert moved(net, watch.state) == set(net.state_dict()) - HELD
    assert ours.reports[0].relays == 3


class Clamps(pl.Callback):
    """Changes a relay so that it is none any more."""

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            pl_module.hidden[8].weight.data.clamp_(-0.2, 0.2)


def test_a_relay_that_somebody_changes_trains_from_the_next_solve_on():
    watch, ours = Watch(), ConvexReconstruction(max_overhead=None)
    net, _ = fitted([ours, Clamps(), watch], DeepNet(lr=0.01), validation=True, max_epochs=4)
    assert [report.relays for report in ours.reports][:2] == [3, 3]
    assert ours.reports[2].relays < 3
    clamped = watch.state["hidden.8.weight"].clamp(-0.2, 0.2)
    assert not torch.equal(net.hidden[8].weight, clamped)


class Crash(pl.Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 6:
            raise KeyboardInterrupt if self.asks else RuntimeError("power cut")


@pytest.mark.parametrize("asks", [True, False], ids=["interrupted", "crashed"])
def test_a_resumed_run_holds_the_same_layers(tmp_path, asks):
    data = {"train_dataloaders": loader(), "val_dataloaders": loader(seed=1)}

    def run(name, *others, **options):
        torch.manual_seed(1)
        net, ours = DeepNet(lr=0.01), ConvexReconstruction()
        saves = ModelCheckpoint(dirpath=tmp_path / name, filename="{epoch}", save_top_k=-1)
        ended = trainer(ours, saves, *others, max_epochs=3, checkpoint=True)
        try:
            ended.fit(net, **data, **options)
        except (RuntimeError, SystemExit):
            assert others
        return net, ours

    whole, _ = run("whole")
    crash = Crash()
    crash.asks = asks
    broken, _ = run("broken", crash)
    assert hooks(broken) == 0
    resumed, ours = run("again", ckpt_path=tmp_path / "broken" / "epoch=0.ckpt", weights_only=True)
    assert_same_state(resumed, state(whole))
    assert [report.relays for report in ours.reports] == [3] * len(ours.reports)


def test_twenty_layers_keep_what_they_began_with():
    torch.manual_seed(0)
    net, ours, data = LitSNN(hidden=[64] * 20, lr=1e-2), ConvexReconstruction(), DigitsDataModule()
    trainer(ours, max_epochs=10).fit(net, datamodule=data)
    assert ours.reports[0].relays == 17
    began, ended = (report.accuracy_after for report in (ours.reports[0], ours.reports[-1]))
    assert ended > began - 0.05 > 0.65  # trained as a whole, it lost 8 and 16 points with two seeds
