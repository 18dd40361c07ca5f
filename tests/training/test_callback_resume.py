"""Checkpoints of a run with the callback, and resuming from them."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from networks import Net, assert_same_state, fitted, loader, occasions, state, trainer

from lightning_cvxsnn import ConvexReconstruction


class Crash(pl.Callback):
    def __init__(self, epoch, batch):
        self.at = epoch, batch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == self.at:
            raise RuntimeError("power cut")


def run_with_crash(tmp_path, make_callbacks, crash):
    """The final network and callback of a run, uninterrupted or crashed in epoch 2 and resumed."""
    torch.manual_seed(5)
    net, ours = Net(lr=0.002), make_callbacks()
    saves = ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", save_top_k=-1)
    fit = {"train_dataloaders": loader(), "val_dataloaders": loader(seed=1)}  # no shuffling: resumable bit for bit
    if not crash:
        trainer(*ours, saves, max_epochs=4, checkpoint=True).fit(net, **fit)
        return net, ours
    with pytest.raises(RuntimeError, match="power cut"):
        trainer(*ours, saves, Crash(2, 2), max_epochs=4, checkpoint=True).fit(net, **fit)
    torch.manual_seed(99)
    net, ours = Net(lr=0.002), make_callbacks()
    saves = ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", save_top_k=-1)
    run = trainer(*ours, saves, max_epochs=4, checkpoint=True)
    run.fit(net, **fit, ckpt_path=tmp_path / "epoch=1.ckpt", weights_only=True)
    return net, ours


@pytest.mark.parametrize("loss", [None, "cross_entropy", "hinge", "squared"], ids=lambda loss: loss or "control")
def test_a_resumed_run_ends_as_the_uninterrupted_one(tmp_path, loss):
    def make():
        return [ConvexReconstruction(loss=loss, scale=1.0, apply="replace", max_overhead=None)] if loss else []

    whole, ours = run_with_crash(tmp_path / "whole", make, crash=False)
    resumed, resumed_ours = run_with_crash(tmp_path / "crashed", make, crash=True)
    assert_same_state(resumed, state(whole))
    if loss:
        timeless = [
            [{k: v for k, v in r.state().items() if not k.startswith("seconds")} for r in c.reports]
            for c in (ours[0], resumed_ours[0])
        ]
        assert timeless[0] == timeless[1]
        assert len(timeless[0]) == 5
        assert loss != "cross_entropy" or any(r["accepted"] for r in timeless[0][1:])


def test_a_checkpoint_without_our_state_is_no_fresh_start(tmp_path):
    saves = ModelCheckpoint(dirpath=tmp_path, filename="plain")
    fitted([saves], max_epochs=1, checkpoint=True)
    callback = ConvexReconstruction(beta=0.02)
    run = trainer(callback, max_epochs=3)
    run.fit(Net(), loader(), ckpt_path=tmp_path / "plain.ckpt")
    assert occasions(callback) == [("periodic solve", 2), ("final solve", 3)]


def test_a_test_of_a_checkpoint_leaves_the_callback_as_it_is(tmp_path):
    saves, callback = ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", save_top_k=-1), ConvexReconstruction()
    net, run = fitted([callback, saves], max_epochs=3, checkpoint=True, validation=True)
    before, last = list(callback.reports), state(net)
    run.validate(net, loader(seed=1), ckpt_path=tmp_path / "epoch=0.ckpt", weights_only=True, verbose=False)
    assert callback.reports == before
    net.load_state_dict(last)
    trainer(callback, max_epochs=1).fit(Net(), loader())
    assert [name for name, _ in occasions(callback)] == ["warm start", "final solve"]


def test_the_checkpoint_holds_plain_values_and_tensors():
    callback = ConvexReconstruction()
    fitted(callback, max_epochs=1)

    def walk(value):
        if isinstance(value, dict):
            for item in value.values():
                walk(item)
        elif isinstance(value, list):
            for item in value:
                walk(item)
        else:
            assert type(value) in (int, float, bool, str, torch.Tensor, type(None)), type(value)

    walk(callback.state_dict())
