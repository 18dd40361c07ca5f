"""Warnings that teach: what triggers each one, by public means, that it comes once per run, and when none comes."""

import warnings

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from networks import Net, loader, trainer
from torch.utils.data import DataLoader, TensorDataset

from lightning_cvxsnn import ConvexReconstruction, reconstruct


def told(action):
    """What ``action`` warns of in our name."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        action()
    return [str(w.message) for w in caught if str(w.message).startswith("ConvexReconstruction ")]


def with_units(change, count, width=24):
    """A network of which the first ``count`` hidden units are changed."""
    torch.manual_seed(0)
    net = Net(width=width)
    with torch.no_grad():
        change(net.hidden[0].weight[:count], net.hidden[0].bias[:count])
    return net


def constant(value):
    def change(weight, bias):
        weight.zero_()
        bias.fill_(value)

    return change


def alike(weight, bias):
    weight.fill_(0.2)
    bias.zero_()


def noise():
    """Targets that have nothing to do with the inputs."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(100, 6, generator=generator), torch.randint(0, 3, (100,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=20)


@pytest.mark.parametrize("seed", range(3))
def test_a_healthy_network_is_told_nothing(seed):
    torch.manual_seed(seed)
    assert told(lambda: reconstruct(Net(width=48), loader())) == []


def test_a_healthy_run_is_told_nothing():
    torch.manual_seed(0)
    callback = ConvexReconstruction(every_n_epochs=2, max_overhead=None)
    assert told(lambda: trainer(callback, max_epochs=5).fit(Net(width=48), loader(shuffle=True), loader(seed=1))) == []
    assert len(callback.reports) == 4


@pytest.mark.parametrize(
    ("network", "data", "arguments", "found", "remedy"),
    [
        (
            lambda: Net(gain=0.05),
            loader,
            {"beta": 0.02},
            "brought dead or half dead spiking layers to life",
            "witnesses='keep'",
        ),
        (
            lambda: with_units(constant(-1.0), 16),
            loader,
            {"beta": 0.02},
            r"found (1[6-9]|2\d) of the 24 units that the readout receives silent",
            "lower v_threshold",
        ),
        (
            lambda: with_units(constant(100.0), 16),
            loader,
            {"beta": 0.02},
            "found 16 of the 24 units that the readout receives saturated",
            "higher v_threshold",
        ),
        (
            lambda: with_units(alike, 46, width=48),
            loader,
            {"beta": 0.02},
            "found only [1-3] different patterns among the 48 units",
            "witnesses='pairs'",
        ),
        (Net, noise, {}, r"chose beta = 0\.197, the largest of its grid", "inputs and targets belong together"),
        (
            lambda: Net(width=2),
            lambda: loader(2000),
            {"l1_ratio": 1.0},
            r"chose beta = .*, the smallest of its grid",
            "Pass beta=",
        ),
    ],
    ids=["dead layer", "silent", "saturated", "few patterns", "largest beta", "smallest beta"],
)
def test_what_is_found_is_told_with_a_remedy(network, data, arguments, found, remedy):
    torch.manual_seed(0)
    net, batches = network(), data()
    with pytest.warns(UserWarning, match=found) as caught:
        reconstruct(net, batches, **arguments)
    (message,) = [str(w.message) for w in caught if str(w.message).startswith("ConvexReconstruction ")]
    assert remedy in message


def strict(**arguments):
    """Asks for so much sparsity that training scores better at once."""
    return ConvexReconstruction(beta=5.0, warm_start=False, final_solve=False, max_overhead=None, **arguments)


def test_three_rejected_solves_are_told_once():
    callback = strict()
    messages = told(lambda: trainer(callback, max_epochs=7).fit(Net(), loader()))
    assert [report.accepted for report in callback.reports] == [False] * 7
    (message,) = messages
    assert "rejected the last three solves" in message
    assert "every_n_epochs" in message
    assert (
        f"{callback.reports[2].held_out_loss_before:.4f} against {callback.reports[2].held_out_loss_after:.4f}"
        in message
    )


def test_two_rejected_solves_are_not_told():
    assert told(lambda: trainer(strict(), max_epochs=2).fit(Net(), loader())) == []


def test_a_layer_that_dies_again_is_told_once_and_reported_each_time():
    class Dying(Net):
        def on_train_epoch_end(self):
            with torch.no_grad():
                self.hidden[0].weight.mul_(1e-3)
                self.hidden[0].bias.mul_(1e-3)

    callback = ConvexReconstruction(beta=0.02, max_overhead=None)
    messages = told(lambda: trainer(callback, max_epochs=3).fit(Dying(lr=0.0), loader()))
    assert sum("brought dead" in message for message in messages) == 1
    assert [bool(report.repaired) for report in callback.reports] == [False, False, True, True]
    assert "'hidden.1' (24 of 24 units silent" in str(callback.reports[-1])


def test_a_resumed_run_repeats_nothing(tmp_path):
    saves = ModelCheckpoint(dirpath=tmp_path, filename="saved")
    trainer(strict(), saves, max_epochs=4, checkpoint=True).fit(Net(), loader())
    callback = strict()
    run = trainer(callback, max_epochs=7)
    assert told(lambda: run.fit(Net(), loader(), ckpt_path=tmp_path / "saved.ckpt")) == []
    assert len(callback.reports) == 7


def test_another_network_is_another_run():
    callback = strict()
    for _ in range(2):
        assert len(told(lambda: trainer(callback, max_epochs=3).fit(Net(), loader()))) == 1


def test_training_that_undoes_the_start_is_told():
    """At such a rate hidden layers lose what they told apart; the readout is solved again at the end all the same."""
    torch.manual_seed(0)
    callback = ConvexReconstruction(every_n_epochs=0)
    fit = trainer(callback, max_epochs=3).fit
    messages = told(lambda: fit(Net(width=48, lr=20.0), loader(400), loader(200, seed=1)))
    first, last = callback.reports
    accuracy = last.accuracy_after if last.accepted else last.accuracy_before
    assert accuracy < first.accuracy_after - 0.05
    (message,) = [message for message in messages if "training has undone" in message]
    assert f"{first.accuracy_after:.1%}" in message
    assert f"{accuracy:.1%} at the end" in message
    assert "lower learning rate" in message
