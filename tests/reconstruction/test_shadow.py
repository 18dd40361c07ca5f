"""Solutions that stand in between two training steps: what is validated, saved, resumed, and never trained on."""

import warnings

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from networks import Net, assert_same_state, loader, rows, state, trainer
from spikingjelly.activation_based import layer, neuron
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from lightning_cvxsnn import ConvexReconstruction

# training rows judge, so that no earlier network is shown on, see test_showing.py
ARGUMENTS = {"apply": "shadow", "beta": 0.02, "max_overhead": None, "judge": "train"}


class Eyes(pl.Callback):
    """The network and its optimiser's state at chosen moments."""

    def setup(self, trainer, pl_module, stage):
        self.net = pl_module

    def __init__(self):
        self.seen = []

    def note(self, moment, trainer, pl_module):
        self.seen.append((moment, state(pl_module)))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.note("step", trainer, pl_module)

    def on_validation_start(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.note("validation", trainer, pl_module)

    def on_train_epoch_end(self, trainer, pl_module):
        self.note("epoch end", trainer, pl_module)

    def of(self, moment):
        return [weights for name, weights in self.seen if name == moment]


class NormNet(Net):
    """A batch norm between the layers, whose statistics a solve estimates anew."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden = nn.Sequential(
            layer.Linear(6, 24), layer.BatchNorm1d(24, step_mode="m"), neuron.LIFNode(step_mode="m")
        )
        self.hidden[0].step_mode = "m"


def fit(*callbacks, kind=Net, lr=1e-3, seed=1, **kwargs):
    torch.manual_seed(seed)
    net = kind(lr=lr)
    kwargs = {"max_epochs": 4} | kwargs
    run = trainer(*callbacks, **kwargs)
    torch.manual_seed(2)
    run.fit(net, stateful(), loader(seed=1))
    return net, run


class Stateful(DataLoader):
    """Goes on in the middle of an epoch after a resume."""

    yielded = 0

    def __iter__(self):
        skipped = self.yielded
        for index, batch in enumerate(super().__iter__()):
            if index >= skipped:
                self.yielded = (index + 1) % len(self)
                yield batch

    def state_dict(self):
        return {"yielded": self.yielded}

    def load_state_dict(self, state):
        self.yielded = state["yielded"]


def stateful():
    return Stateful(TensorDataset(*rows()), batch_size=64)


def differ(first, second):
    return {name for name in first if not torch.equal(first[name], second[name])}


READOUT = {"readout.weight", "readout.bias"}
STATISTICS = {"hidden.1.running_mean", "hidden.1.running_var", "hidden.1.num_batches_tracked"}


@pytest.mark.parametrize("kind", [Net, NormNet])
def test_training_is_bit_for_bit_that_without_the_callback(kind):
    plain, ours = Eyes(), Eyes()
    _, reference = fit(plain, kind=kind)
    callback = ConvexReconstruction(**ARGUMENTS)
    _, run = fit(callback, ours, kind=kind)
    assert sum(report.accepted for report in callback.reports) >= 3
    for theirs, own in zip(plain.of("step"), ours.of("step"), strict=True):
        assert not differ(theirs, own)
    torch.testing.assert_close(run.optimizers[0].state_dict(), reference.optimizers[0].state_dict(), rtol=0, atol=0)
    for report, theirs, own in zip(callback.reports[1:], plain.of("validation"), ours.of("validation"), strict=True):
        assert differ(theirs, own) <= READOUT | STATISTICS
        assert bool(differ(theirs, own) & READOUT) == report.accepted
        assert report.scale == 1.0


def test_what_is_validated_is_saved_and_lasts(tmp_path):
    callback, eyes = ConvexReconstruction(**ARGUMENTS), Eyes()
    full = ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", monitor="val_loss", save_top_k=-1)
    light = ModelCheckpoint(dirpath=tmp_path, filename="light-{epoch}", save_top_k=-1, save_weights_only=True)
    net, run = fit(callback, eyes, full, light, checkpoint=True)
    assert all(report.accepted for report in callback.reports[1:])
    for epoch, validated in enumerate(eyes.of("validation")):
        for name in (f"epoch={epoch}.ckpt", f"light-epoch={epoch}.ckpt"):
            saved = torch.load(tmp_path / name, weights_only=True)["state_dict"]
            assert not differ(validated, saved), name
    assert_same_state(net, eyes.of("validation")[-1])
    run.save_checkpoint(tmp_path / "mine.ckpt")
    assert not differ(torch.load(tmp_path / "mine.ckpt", weights_only=True)["state_dict"], state(net))
    (loss,) = run.validate(net, loader(seed=1), verbose=False)
    assert loss["val_loss"] == pytest.approx(float(F.cross_entropy(net(loader(seed=1).dataset.tensors[0]),
                                                                   loader(seed=1).dataset.tensors[1])))  # fmt: skip
    assert_same_state(net, eyes.of("validation")[-1])


def test_a_better_score_is_validated_than_that_of_the_weights_trained():
    callback, plain = ConvexReconstruction(**ARGUMENTS), Eyes()
    eyes = Eyes()
    fit(plain, lr=1e-4)
    net, _ = fit(callback, eyes, lr=1e-4)
    x, y = loader(seed=1).dataset.tensors

    def loss(weights):
        net.load_state_dict(weights)
        return float(F.cross_entropy(net(x), y))

    for trained, validated in zip(plain.of("validation"), eyes.of("validation"), strict=True):
        assert loss(validated) < loss(trained)


def test_a_rejected_solution_is_not_swapped_in():
    callback, eyes, plain = ConvexReconstruction(apply="shadow", beta=10.0, max_overhead=None), Eyes(), Eyes()
    fit(callback, eyes, lr=0.05)
    fit(plain, lr=0.05)
    rejected = [not report.accepted for report in callback.reports[1:]]
    assert any(rejected)
    for no, theirs, own in zip(rejected, plain.of("validation"), eyes.of("validation"), strict=True):
        assert not (no and differ(theirs, own))


def test_a_dry_run_swaps_nothing_in():
    callback = ConvexReconstruction(**ARGUMENTS, dry_run=True)
    net, _ = fit(callback)
    assert any(report.accepted for report in callback.reports)
    assert_same_state(net, state(fit()[0]))


def test_repair_is_written_and_trained_on():
    class Dead(Net):
        def __init__(self, **kwargs):
            super().__init__(gain=0.05, **kwargs)

    before = None

    class Start(pl.Callback):
        def on_fit_start(self, trainer, pl_module):
            nonlocal before
            before = state(pl_module)

    callback, eyes = ConvexReconstruction(**ARGUMENTS), Eyes()
    with pytest.warns(UserWarning, match="brought dead"):
        fit(Start(), callback, eyes, kind=Dead, max_epochs=1)
    assert differ(before, eyes.of("step")[0]) == {"hidden.0.weight", "hidden.0.bias"}


# -- what goes wrong ----------------------------------------------------------------------------------------------


class Fails(Net):
    """Raises in a step of validation."""

    error: type[BaseException] = RuntimeError

    def validation_step(self, batch, batch_idx):
        if not self.trainer.sanity_checking and batch_idx == 1:
            raise self.error("in validation")
        return super().validation_step(batch, batch_idx)


class Interrupted(Fails):
    error = KeyboardInterrupt


@pytest.mark.parametrize(("kind", "raised"), [(Fails, RuntimeError), (Interrupted, SystemExit)])
def test_trained_weights_come_back_after_an_exception_in_validation(kind, raised):
    callback, eyes, plain = ConvexReconstruction(**ARGUMENTS), Eyes(), Eyes()
    with pytest.raises(raised):
        fit(callback, eyes, kind=kind)
    net = eyes.net
    fit(plain, max_epochs=1)
    assert callback.reports[-1].accepted
    assert differ(plain.of("validation")[0], eyes.of("validation")[0]) == READOUT
    assert_same_state(net, plain.of("validation")[0])


@pytest.mark.parametrize("k", [0, 1])
def test_trained_weights_come_back_after_an_exception_at_any_write_of_the_swap(k):
    class Fault(TorchDispatchMode):
        """Fails once, at the k-th write to the readout after a validation."""

        writes = None

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if self.writes is not None and func is torch.ops.aten.copy_.default and args[0].shape in readout:
                self.writes += 1
                if self.writes > k:
                    self.writes = None
                    raise OSError("no such bit")
            return func(*args, **kwargs or {})

    class Arm(pl.Callback):
        def on_validation_end(self, trainer, pl_module):
            if not trainer.sanity_checking:
                fault.writes = 0

    readout, fault = [(3, 24), (3,)], Fault()
    callback, eyes, plain = ConvexReconstruction(**ARGUMENTS), Eyes(), Eyes()
    with fault, pytest.raises(OSError, match="no such bit"):
        fit(Arm(), callback, eyes)
    net = eyes.net
    fit(plain, max_epochs=1)
    assert differ(plain.of("validation")[0], eyes.of("validation")[0]) == READOUT
    assert_same_state(net, plain.of("validation")[0])


def test_a_checkpoint_written_on_an_exception_resumes_from_trained_weights(tmp_path):
    saves = ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", save_on_exception=True)
    with pytest.raises(RuntimeError, match="in validation"):
        fit(ConvexReconstruction(**ARGUMENTS), saves, kind=Fails, checkpoint=True)
    (path,) = tmp_path.glob("*.ckpt")
    plain = Eyes()
    fit(plain, max_epochs=1)
    saved = torch.load(path, weights_only=True)["state_dict"]
    assert not differ(saved, plain.of("validation")[0])


def test_an_exception_after_training_leaves_the_solution():
    callback = ConvexReconstruction(**ARGUMENTS)
    net, run = fit(callback, max_epochs=1)
    assert callback.reports[-1].accepted
    solved = state(net)
    net.__class__ = Fails
    with pytest.raises(RuntimeError, match="in validation"):
        run.validate(net, loader(seed=1), verbose=False)
    assert_same_state(net, solved)


class SavesByHand(pl.Callback):
    """A checkpoint in the middle of a validation, at its end, and at the end of the epoch."""

    def __init__(self, path):
        self.path = path

    def save(self, trainer, phase):
        if not trainer.sanity_checking:
            trainer.save_checkpoint(self.path / f"{phase}-{trainer.current_epoch}.ckpt")

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        if batch_idx == 1:
            self.save(trainer, "inside")

    def on_validation_end(self, trainer, pl_module):
        self.save(trainer, "validated")

    def on_train_epoch_end(self, trainer, pl_module):
        self.save(trainer, "ended")


#: Checkpoints of the second epoch: after its last step but one and its last; in validation; at its end; at the epoch's.
PHASES = ["step-7.ckpt", "step-8.ckpt", "inside-1.ckpt", "validated-1.ckpt", "ended-1.ckpt"]


def savers(folder):
    steps = {"every_n_train_steps": 1, "save_on_train_epoch_end": False, "auto_insert_metric_name": False}
    return [SavesByHand(folder), ModelCheckpoint(folder, filename="step-{step}", save_top_k=-1, **steps)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """For each policy: the weights of an uninterrupted run, its optimiser's state, its reports, and its checkpoints."""
    results = {}
    for apply in ("none", "auto", "shadow"):
        folder = tmp_path_factory.mktemp(apply)
        ours = [] if apply == "none" else [ConvexReconstruction(**ARGUMENTS | {"apply": apply})]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            eyes = Eyes()
            net, run = fit(*ours, eyes, *savers(folder), checkpoint=True)
        results[apply] = state(net), run.optimizers[0].state_dict(), ours, folder, eyes
    return results


def timeless(callback):
    return [{k: v for k, v in r.state().items() if not k.startswith("seconds")} for r in callback.reports]


@pytest.mark.parametrize("apply", ["auto", "shadow"])
@pytest.mark.parametrize("phase", PHASES)
def test_a_run_resumed_from_any_phase_ends_as_the_uninterrupted_one(whole, phase, apply):
    def resumed(apply, callbacks):
        torch.manual_seed(99)
        net = Net(lr=1e-3)
        run = trainer(*callbacks, max_epochs=4)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run.fit(net, stateful(), loader(seed=1), ckpt_path=whole[apply][3] / phase, weights_only=True)
        return net, run

    control, _ = resumed("none", [])
    assert_same_state(control, whole["none"][0])  # such a run is resumable bit for bit
    callback = ConvexReconstruction(**ARGUMENTS | {"apply": apply})
    net, run = resumed(apply, [callback])
    weights, optimizer, (uninterrupted,), *_ = whole[apply]
    assert_same_state(net, weights)
    torch.testing.assert_close(run.optimizers[0].state_dict(), optimizer, rtol=0, atol=0)
    assert timeless(callback) == timeless(uninterrupted)
    assert any(report.accepted or report.relaxation for report in callback.reports[2:])


@pytest.mark.parametrize("phase", PHASES[1:])
def test_checkpoints_after_a_solve_hold_its_solution(whole, phase):
    saved = torch.load(whole["shadow"][3] / phase, weights_only=True)["state_dict"]
    eyes = whole["shadow"][4]
    assert not differ(saved, eyes.of("validation")[1])
    assert differ(saved, eyes.of("step")[8]) == READOUT
    assert differ(torch.load(whole["shadow"][3] / PHASES[0], weights_only=True)["state_dict"], saved) >= READOUT


def test_a_longer_run_goes_on_from_the_weights_that_were_trained():
    callback, eyes, plain = ConvexReconstruction(**ARGUMENTS), Eyes(), Eyes()
    net, run = fit(callback, eyes, max_epochs=2)
    solved = state(net)
    run.fit_loop.max_epochs = 3
    run.fit(net, stateful(), loader(seed=1))
    reference, again = fit(plain, max_epochs=2)
    again.fit_loop.max_epochs = 3
    again.fit(reference, stateful(), loader(seed=1))
    assert differ(solved, eyes.of("step")[8]) == READOUT
    for theirs, own in zip(plain.of("step"), eyes.of("step"), strict=True):
        assert not differ(theirs, own)


def test_weights_that_someone_else_wrote_are_left_alone():
    callback, eyes = ConvexReconstruction(**ARGUMENTS), Eyes()
    net, run = fit(callback, max_epochs=1)
    with torch.no_grad():
        net.readout.weight.fill_(0.5)
    run.fit_loop.max_epochs = 2
    run.callbacks.append(eyes)
    run.fit(net, stateful(), loader(seed=1))
    assert torch.equal(eyes.of("step")[0]["readout.weight"], torch.full((3, 24), 0.5))


def test_after_early_stopping_a_last_solve_is_made(tmp_path):
    """What an epoch showed was solved to a looser gap, and is in no file of its own."""

    class Worse(Net):
        def validation_step(self, batch, batch_idx):
            self.log("val_loss", float(self.current_epoch))

    callback = ConvexReconstruction(**ARGUMENTS)
    saves = ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", save_top_k=-1)
    net, _ = fit(callback, saves, EarlyStopping("val_loss", patience=1), kind=Worse, checkpoint=True)
    occasions = [report.reason.split(":")[0] for report in callback.reports]
    assert occasions == ["warm start", *2 * ["periodic solve"], "final solve"]
    assert callback.reports[-1].accepted
    assert not differ(torch.load(tmp_path / "convex-last.ckpt", weights_only=True)["state_dict"], state(net))


def test_a_last_solve_after_early_stopping_is_saved_with_what_it_stands_in_for(tmp_path):
    class Worse(Net):
        def validation_step(self, batch, batch_idx):
            self.log("val_loss", float(self.current_epoch))

    callback = ConvexReconstruction(**ARGUMENTS, every_n_epochs=50)
    saves = ModelCheckpoint(dirpath=tmp_path, filename="{epoch}")
    eyes = Eyes()
    net, _ = fit(callback, eyes, saves, EarlyStopping("val_loss", patience=1), kind=Worse, checkpoint=True)
    assert callback.reports[-1].accepted
    last = torch.load(tmp_path / "convex-last.ckpt", weights_only=True)
    assert not differ(last["state_dict"], state(net))
    shadow = last["callbacks"][callback.state_key]["reconstructor"]["shadow"]
    trained = eyes.of("epoch end")[-1]
    assert shadow["trained"].keys() == READOUT
    assert not differ(shadow["trained"], {name: trained[name] for name in READOUT})


def test_statistics_that_another_pass_has_moved_on_do_not_keep_a_shadow_in():
    """A forward in training mode between the solve and the next step changes them, not what is trained."""
    seen = []

    class Watching(NormNet):
        def on_train_epoch_end(self):
            with torch.no_grad():
                self(rows(8)[0])

        def on_train_epoch_start(self):
            seen.append(self.readout.weight.clone())

    fit(kind=Watching)
    plain = seen.copy()
    seen.clear()
    callback = ConvexReconstruction(**ARGUMENTS, warm_start=False, final_solve=False)
    fit(callback, kind=Watching)
    assert any(report.accepted for report in callback.reports)
    assert len(seen) == len(plain) == 4
    assert all(torch.equal(found, expected) for found, expected in zip(seen, plain, strict=True))


def test_shadows_of_two_readouts_leave_in_reverse_order():
    class Two(NormNet):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.second = layer.Linear(24, 3, step_mode="m")

        def forward(self, x):
            spikes = self.hidden(self.steps(x))
            logits = self.readout(spikes).mean(0), self.second(spikes).mean(0)
            for module in self.hidden[2:]:
                module.reset()
            return logits

        def training_step(self, batch, batch_idx):
            x, y = batch
            return sum(F.cross_entropy(logits, y) for logits in self(x))

        def validation_step(self, batch, batch_idx):
            self(batch[0])

        def convex_batch(self, batch):
            return batch[0], (batch[1], batch[1])

    common = {**ARGUMENTS, "warm_start": False, "final_solve": False, "witnesses": "keep"}
    callbacks = [  # of which each estimates the statistics by rows of its own
        ConvexReconstruction(readout=name, max_samples=samples, **common)
        for name, samples in (("readout", None), ("second", 60))
    ]
    plain, eyes = Eyes(), Eyes()
    fit(plain, kind=Two)
    fit(*callbacks, eyes, kind=Two)
    assert all(any(report.accepted for report in callback.reports) for callback in callbacks)
    for found, expected in zip(eyes.of("step"), plain.of("step"), strict=True):
        assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("watcher", ["EarlyStopping", "ReduceLROnPlateau", "patient", None])
@pytest.mark.parametrize("apply", ["auto", "shadow", "replace"])
def test_what_compares_validations_is_not_misled_by_shadows(apply, watcher, recwarn):
    class Scheduled(Net):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            if watcher != "ReduceLROnPlateau":
                return optimizer
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}

    stops = {
        "EarlyStopping": [EarlyStopping("val_loss", patience=1)],
        "patient": [EarlyStopping("val_loss", patience=9)],
    }
    callback, eyes = ConvexReconstruction(**ARGUMENTS | {"apply": apply}, warm_start=False, final_solve=False), Eyes()
    fit(callback, *stops.get(watcher, []), eyes, kind=Scheduled, max_epochs=2)
    misled = watcher in ("EarlyStopping", "ReduceLROnPlateau")
    assert len(callback.reports) == 2
    shown = {"auto": not misled, "shadow": callback.reports[0].accepted, "replace": False}[apply]
    assert bool(differ(eyes.of("validation")[0], eyes.of("step")[4])) == shown
    warned = [w for w in recwarn if "compares validations of solutions" in str(w.message)]
    assert bool(warned) == (misled and apply == "shadow")
