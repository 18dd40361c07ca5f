"""Networks that are shown on until training has passed them on the validation rows."""

import warnings

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint, ModelPruning
from networks import Net, assert_same_state, loader, occasions, state, trainer
from torch.nn import functional as F

from lightning_cvxsnn import ConvexReconstruction

NEXT_TO_NONE = 1e-6  # pays for no solve between the first periodic one and the last
PARAMETERS = {name for name, _ in Net().named_parameters()}


class Watch(pl.Callback):
    """What is stepped from and validated, and how validations and the callback's passes went."""

    def __init__(self):
        self.stepped, self.validated, self.losses = [], [], []

    def on_train_start(self, trainer, pl_module):
        self.start = state(pl_module)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.stepped.append(state(pl_module))

    def on_validation_start(self, trainer, pl_module):
        self.validated.append(state(pl_module))

    def on_validation_end(self, trainer, pl_module):
        self.losses.append(float(trainer.callback_metrics["val_loss"]))


def fit(callback, *others, net=None, n=240, **options):
    """A fit whose learning rate destroys what the warm start has made, unless the network brings its own."""
    torch.manual_seed(1)
    net, watch = net or Net(lr=3.0), Watch()
    run = trainer(callback, watch, *others, **{"max_epochs": 4, "num_sanity_val_steps": 0} | options)
    torch.manual_seed(2)
    run.fit(net, loader(), loader(n, seed=1))
    return net, watch


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def stands(callback):
    """The epochs after which a solve found that the network of the warm start scores better."""
    return [report.epoch for report in callback.reports if report.shown_epoch == 0]


@pytest.mark.parametrize("max_overhead", [None, NEXT_TO_NONE])
def test_what_is_shown_does_not_get_worse(max_overhead, caplog):
    callback = ConvexReconstruction(max_overhead=max_overhead)
    net, watch = fit(callback)
    assert [epoch for _, epoch in occasions(callback)] == ([0, 1, 2, 3, 4] if max_overhead is None else [0, 4])
    assert all(later <= earlier + 1e-6 for earlier, later in zip(watch.losses, watch.losses[1:], strict=False))
    assert same(watch.validated[0], watch.start)
    assert watch.losses[0] == pytest.approx(callback.reports[0].held_out_loss_after, rel=1e-4)
    assert_same_state(net, watch.validated[-1])
    told = [record.message for record in caplog.records if "goes on showing the network of epoch 0" in record.message]
    assert len(told) == 1


@pytest.mark.parametrize("apply", ["auto", "shadow"])
def test_training_is_that_of_a_fit_that_shows_nothing_on(apply):
    """Bit for bit: each step starts from what the last one left."""
    options = {"apply": apply, "max_overhead": NEXT_TO_NONE, "beta": 0.02, "l1_ratio": 0.0}
    _, shown = fit(callback := ConvexReconstruction(**options))
    _, plain = fit(other := ConvexReconstruction(**options, judge="train"))
    assert occasions(callback) == occasions(other)
    assert len(shown.stepped) == len(plain.stepped)
    assert all(map(same, shown.stepped, plain.stepped))
    assert not any(map(same, shown.validated, plain.validated))


class Learning(Net):
    """Trains at a good rate, from a start that it soon passes."""

    def __init__(self):
        super().__init__(lr=0.03, width=64)


def test_once_training_has_passed_it_it_is_forgotten(caplog):
    callback = ConvexReconstruction(max_overhead=NEXT_TO_NONE, beta=3.0, l1_ratio=0.0, final_solve=False)
    _, watch = fit(callback, net=Learning(), max_epochs=8)
    passed = [same(a, b) for a, b in zip(watch.validated[:-1], watch.stepped[4::4], strict=True)]
    assert passed[-1]
    assert passed == sorted(passed)
    assert callback._reconstructor.showing.best is None
    assert watch.losses[-1] < watch.losses[0]


def test_a_resumed_run_goes_on_as_if_nothing_had_happened(tmp_path):
    saves = ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", save_top_k=-1)
    reference, _ = fit(first := ConvexReconstruction(max_overhead=NEXT_TO_NONE), saves, checkpoint=True)
    torch.manual_seed(5)
    net, watch, callback = Net(lr=3.0), Watch(), ConvexReconstruction(max_overhead=NEXT_TO_NONE)
    run = trainer(callback, watch, max_epochs=4, num_sanity_val_steps=0)
    run.fit(net, loader(), loader(240, seed=1), ckpt_path=tmp_path / "epoch=1.ckpt", weights_only=True)
    assert_same_state(net, state(reference))
    assert occasions(callback) == occasions(first)
    assert same(watch.validated[0], torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)["state_dict"])


def test_few_validation_rows_do_not_decide():
    callback = ConvexReconstruction(max_overhead=NEXT_TO_NONE)
    _, watch = fit(callback, n=60)
    assert not same(watch.validated[0], watch.start)


class Clip(pl.Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        with torch.no_grad():
            pl_module.hidden[0].weight.clamp_(-0.1, 0.1)


def test_weights_that_somebody_changes_as_an_epoch_ends_are_told_and_training_goes_on_from_its_own():
    with pytest.warns(UserWarning, match="Something has changed the weights of an earlier network") as warned:
        _, watch = fit(callback := ConvexReconstruction(max_overhead=NEXT_TO_NONE), Clip())
    assert len([w for w in warned if "Something has changed" in str(w.message)]) == 1
    assert float(watch.stepped[4]["hidden.0.weight"].abs().max()) > 1.0  # the first change was to what was shown
    assert float(watch.stepped[8]["hidden.0.weight"].abs().max()) == pytest.approx(0.1)
    assert callback._reconstructor.showing.best is None


def test_a_resumed_run_remembers_that_somebody_changes_what_is_shown(tmp_path):
    saves = ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", save_top_k=-1)
    with pytest.warns(UserWarning, match="Something has changed"):
        reference, _ = fit(ConvexReconstruction(max_overhead=NEXT_TO_NONE), Clip(), saves, checkpoint=True)
    torch.manual_seed(5)
    net = Net(lr=3.0)
    run = trainer(ConvexReconstruction(max_overhead=NEXT_TO_NONE), Clip(), max_epochs=4, num_sanity_val_steps=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Something has changed")
        run.fit(net, loader(), loader(240, seed=1), ckpt_path=tmp_path / "epoch=1.ckpt", weights_only=True)
    assert_same_state(net, state(reference))


class Clamped(Net):
    def on_train_batch_end(self, outputs, batch, batch_idx):
        with torch.no_grad():
            self.hidden[0].weight.clamp_(-0.3, 0.3)


class Averaged(Net):
    """An average of its own, after each batch."""

    def on_train_batch_end(self, outputs, batch, batch_idx):
        own = self.hidden[0].weight.detach().clone()
        self.average = own if batch_idx == 0 == self.current_epoch else 0.9 * self.average + 0.1 * own


@pytest.mark.parametrize("kind", [Clamped, Averaged])
def test_hooks_after_a_batch_see_the_network_in_training(kind):
    nets, steps = [], []
    for judge in ("auto", "train"):
        callback = ConvexReconstruction(max_overhead=NEXT_TO_NONE, beta=0.02, l1_ratio=0.0, judge=judge)
        torch.manual_seed(1)
        net, watch = fit(callback, net=kind(lr=3.0))
        nets.append(net)
        steps.append(watch.stepped)
    assert all(map(same, *steps))
    assert torch.equal(*(getattr(net, "average", torch.zeros(1)) for net in nets))


def test_what_was_shown_comes_back_where_training_has_diverged():
    class Diverging(Net):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * (float("nan") if self.current_epoch else 1.0)

    with pytest.warns(UserWarning, match="leaves out the final solve"):
        net, watch = fit(ConvexReconstruction(max_overhead=NEXT_TO_NONE), net=Diverging(lr=3.0))
    assert watch.losses == [watch.losses[0]] * 4
    assert all(bool(p.isfinite().all()) for p in net.parameters())
    assert_same_state(net, watch.start)


def test_at_the_end_what_was_shown_is_compared_in_any_case(tmp_path):
    for others, options in (([], {"every_n_epochs": 0}), ([EarlyStopping("val_loss", patience=1)], {})):
        saves = ModelCheckpoint(dirpath=tmp_path, filename="{epoch}")
        callback = ConvexReconstruction(**options)
        net, watch = fit(callback, *others, saves, checkpoint=True)
        assert callback.reports[-1].shown_epoch == 0
        assert_same_state(net, watch.start)
        last = max(tmp_path.glob("convex-last*"), key=lambda path: path.stat().st_mtime)
        assert same(torch.load(last, weights_only=True)["state_dict"], watch.start)


@pytest.mark.parametrize(
    "other",
    [
        EMAWeightAveraging(decay=0.9),
        ModelPruning("l1_unstructured", amount=0.2, parameters_to_prune=None),
        ConvexReconstruction(readout="readout", loss="squared", max_overhead=NEXT_TO_NONE),
    ],
)
def test_beside_others_that_write_weights_nothing_is_shown_on(other):
    callback = ConvexReconstruction(readout="readout", max_overhead=NEXT_TO_NONE)
    fit(callback, other, max_epochs=2)
    assert callback._reconstructor.showing.best is None
    assert stands(callback) == []


def test_where_validations_are_compared_they_are_those_of_training():
    callback = ConvexReconstruction(max_overhead=NEXT_TO_NONE)
    _, watch = fit(callback, EarlyStopping("val_loss", patience=1), max_epochs=6)
    assert len(watch.losses) < 6
    assert not any(same(validated, watch.start) for validated in watch.validated)


def test_a_comparison_that_fails_is_left_out_with_a_warning():
    class Broken(Net):
        looks = 0

        def convex_batch(self, batch):
            Broken.looks += not self.training and len(batch[0]) == 48
            if Broken.looks > 20:
                raise RuntimeError("broken rows")
            return batch

    callback = ConvexReconstruction(max_overhead=NEXT_TO_NONE, final_solve=False)
    torch.manual_seed(1)
    run = trainer(callback, watch := Watch(), max_epochs=3, num_sanity_val_steps=0)
    with pytest.warns(UserWarning, match="leaves out the comparison with what was shown.*broken rows"):
        run.fit(Broken(lr=3.0), loader(), loader(240, batch_size=48, seed=1))
    assert len(watch.losses) == 3


def test_the_network_that_is_shown_answers_as_it_did():
    callback = ConvexReconstruction(max_overhead=NEXT_TO_NONE)
    net, watch = fit(callback)
    assert stands(callback) in ([], [4])
    x, y = next(iter(loader(240, batch_size=240, seed=1)))
    net.eval()
    with torch.no_grad():
        assert float(F.cross_entropy(net(x), y)) == pytest.approx(watch.losses[-1], rel=1e-5)
    assert set(watch.start) == PARAMETERS


def test_weights_that_somebody_changes_as_an_epoch_starts_are_those_in_training():
    class Clamps(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            with torch.no_grad():
                pl_module.hidden[0].weight.clamp_(-0.1, 0.1)

    callback, watch = ConvexReconstruction(max_overhead=NEXT_TO_NONE), Watch()
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Something has changed")
        run = trainer(callback, Clamps(), watch, max_epochs=3, num_sanity_val_steps=0)
        run.fit(Net(lr=3.0), loader(), loader(240, seed=1))
    assert same(watch.validated[0], watch.validated[1])
    for step in (4, 8):
        assert float(watch.stepped[step]["hidden.0.weight"].abs().max()) == pytest.approx(0.1)
        assert float(watch.stepped[step + 1]["hidden.0.weight"].abs().max()) > 0.1
