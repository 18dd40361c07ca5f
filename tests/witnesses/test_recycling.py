import pytest
import torch
from networks import ConvNet, Net, assert_same_state, images, loader, state, trainer
from torch import nn

from lightning_cvxsnn import AdditionDataModule, AdditionSNN, ConvexReconstruction, calibrate
from lightning_cvxsnn.convex import solve
from lightning_cvxsnn.network import capture, undisturbed
from lightning_cvxsnn.network.readout import find_readout
from lightning_cvxsnn.network.rows import TrainingRows
from lightning_cvxsnn.reconstruction.context import TrainerContext
from lightning_cvxsnn.reconstruction.reconstructor import Reconstructor
from lightning_cvxsnn.reconstruction.settings import Settings

REJECTED = 1e3  # an absurd scale: anything is better
SILENT, SATURATED = 2, 1


def with_idle_units(**options):
    """A network whose first units are silent and whose next one fires at every step; its readout uses them all."""
    torch.manual_seed(0)
    net = Net(**options)
    with torch.no_grad():
        net.hidden[0].weight[: SILENT + SATURATED] = 0.0
        net.hidden[0].bias[:SILENT] = -1.0
        net.hidden[0].bias[SILENT : SILENT + SATURATED] = 100.0
    return net


def solved(net, occasion="periodic solve", data=None, optimizers=(), **arguments):
    data = data or loader()
    found = TrainingRows(net, data, transfer=lambda batch: batch, max_samples=None, seed=0)
    settings = Settings(**({"witnesses": "priced", "apply": "replace", "beta": 0.05} | arguments))
    reconstructor = Reconstructor(settings)
    return reconstructor.run(net, found, occasion, TrainerContext(optimizers=list(optimizers)))


def columns(net, data=None):
    with undisturbed(net):
        net.eval()
        batches = [batch[0] for batch in data or loader()]
        readout = find_readout(net, batches[0])
        return capture(net, readout, batches).dictionary


def answers(net):
    with torch.no_grad():
        return torch.cat([net(x) for x, _ in loader()])


@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("reduction", ["mean", "last", "sum"])
def test_idle_units_fire_again_and_no_answer_changes(reduction, step_mode):
    net = with_idle_units(reduction=reduction, step_mode=step_mode)
    before, outputs = state(net), answers(net)
    idle = columns(net).constant
    assert idle[: SILENT + SATURATED].all()
    report = solved(net, scale=REJECTED)
    assert not report.accepted
    assert report.candidates > 0
    assert report.violation > 0
    assert torch.allclose(answers(net), outputs, atol=1e-5)
    assert not columns(net).constant.any()
    assert not net.readout.weight[:, idle].any()
    for name in ("weight", "bias"):
        now, then = net.hidden[0].get_parameter(name), before[f"hidden.0.{name}"]
        assert torch.equal(now[~idle], then[~idle])
        assert not (now[idle] == then[idle]).any()
    assert torch.equal(net.readout.weight[:, ~idle], before["readout.weight"][:, ~idle])


def test_channels_are_recycled_as_wholes():
    torch.manual_seed(0)
    net = ConvNet()
    data = [(x, y) for x, y in zip(*(part.split(32) for part in images(96)), strict=True)]
    with torch.no_grad():
        net.hidden[0].weight[0], net.hidden[0].bias[0] = 0.0, -1.0  # silent
        net.hidden[0].weight[1], net.hidden[0].bias[1] = 0.0, 100.0  # fires at every step
        net.readout.weight.view(3, 5, 36)[:, 2, :30] = 0.0  # partly in use
    before, rows = state(net), torch.cat([x for x, _ in data])
    outputs = net(rows)
    report = solved(net, scale=REJECTED, data=data)
    assert not report.accepted
    assert torch.allclose(net(rows), outputs, atol=1e-5)
    changed = (net.hidden[0].weight != before["hidden.0.weight"]).flatten(1).any(1)
    assert changed.tolist() == [True, True, False, False, False]
    assert not net.readout.weight.view(3, 5, 36)[:, :2].any()
    assert torch.equal(net.readout.weight[:, 72:], before["readout.weight"][:, 72:])
    assert not columns(net, data).constant.view(5, 36)[:2].all(1).any()


@pytest.mark.parametrize("adapting", [True, False])
def test_channels_behind_a_batch_norm_are_recycled_with_its_affine(adapting):
    torch.manual_seed(0)
    net = ConvNet(norm=True).train(adapting)
    data = [(x, y) for x, y in zip(*(part.split(32) for part in images(96)), strict=True)]
    convolution, norm = net.hidden[:2]
    with torch.no_grad():
        norm.bias.fill_(1.0)
        norm.weight[:2], norm.bias[0], norm.bias[1] = 0.0, -1.0, 100.0  # silent; fires at every step
    rows = torch.cat([x for x, _ in data])
    outputs, before = net(rows), state(net)
    report = solved(net, scale=REJECTED, data=data)
    assert not report.accepted
    for parameter, old in ((convolution.weight, "0.weight"), (norm.weight, "1.weight"), (norm.bias, "1.bias")):
        changed = (parameter != before[f"hidden.{old}"]).view(5, -1).any(1)
        assert changed.tolist() == [True, True, False, False, False]
    assert torch.allclose(net(rows), outputs, atol=1e-5)
    assert not net.readout.weight.view(3, 5, 36)[:, :2].any()
    with torch.no_grad():
        spikes = net.hidden[:3](net.steps(rows))
    rates = spikes.mean((0, 1, 3, 4))[:2]
    assert 0.01 < rates.min() < rates.max() < 0.6


def test_without_a_bias_nothing_can_take_over_from_a_saturated_unit():
    net = with_idle_units(bias=False)
    outputs, saturated = answers(net), net.hidden[0].bias[SILENT].clone()
    solved(net, scale=REJECTED)
    assert torch.equal(answers(net), outputs)
    assert net.hidden[0].bias[SILENT] == saturated
    assert columns(net).silent == 0


def test_units_that_an_accepted_solution_leaves_out_lower_the_next_objective():
    net = with_idle_units(width=48)
    hidden, before = net.hidden[0].weight.clone(), columns(net)
    report = solved(net, scale=1.0)
    assert report.accepted
    unused = ~net.readout.weight.any(0)
    changed = (net.hidden[0].weight != hidden).any(1)
    assert (changed & ~columns(net).constant).sum() > SILENT + SATURATED
    assert not (changed & ~unused).any()
    labels = torch.cat([y for _, y in loader()])
    primal, lower = (
        solve(d, labels, loss="cross_entropy", rho=report.rho, fit_intercept=True).primal
        for d in (before, columns(net))
    )
    assert primal == pytest.approx(report.primal, abs=1e-5)
    assert lower < 0.98 * primal


@pytest.mark.parametrize(
    "arguments",
    [
        {"apply": "auto"},
        {"apply": "shadow"},
        {"witnesses": "auto"},
        {"witnesses": "pool"},
        {"occasion": "final solve"},
        {"dry_run": True},
    ],
)
def test_hidden_weights_are_left_alone_where_nothing_trains_on_or_nobody_asked(arguments):
    net = with_idle_units()
    before = state(net)
    solved(net, scale=REJECTED, **arguments)
    assert_same_state(net, before)


def test_nothing_is_tried_where_every_unit_has_a_part():
    torch.manual_seed(0)
    net = Net()
    calibrate(net, loader())
    assert not columns(net).constant.any()
    before = state(net)
    report = solved(net, scale=REJECTED)
    assert report.candidates == 0
    assert report.violation is None
    assert_same_state(net, before)


def test_a_penalty_at_which_no_unit_is_used_replaces_idle_ones_only():
    net = with_idle_units()
    before, idle = state(net), columns(net).constant
    solved(net, beta=1e3)
    assert torch.equal(net.hidden[0].weight[~idle], before["hidden.0.weight"][~idle])
    assert not columns(net).constant.any()


def test_what_optimisers_remember_of_new_weights_is_dropped():
    net = with_idle_units()
    optimizer = net.configure_optimizers()
    net.training_step(next(iter(loader())), 0).backward()
    optimizer.step()
    kept = with_idle_units().hidden[0]
    net.hidden[0].load_state_dict(kept.state_dict())
    solved(net, scale=REJECTED, optimizers=[optimizer])
    assert net.hidden[0].weight not in optimizer.state
    assert net.hidden[0].weight.grad is None


def test_the_search_counts_as_work():
    searched, kept = (solved(with_idle_units(), scale=REJECTED, witnesses=w) for w in ("priced", "keep"))
    drawn_on, steps, fan_in = 192, 4, 6  # the fitted four fifths of 240 samples
    assert searched.work - kept.work > searched.candidates * drawn_on * steps * fan_in


class TwoHeads(Net):
    """A second output reads the same units."""

    def __init__(self):
        super().__init__()
        self.other = nn.Linear(24, 2)

    def convex_forward(self, x):
        spikes = self.hidden(self.steps(x)).mean(0)
        return {"a": self.readout(spikes), "b": self.other(spikes)}


def test_units_that_another_output_needs_are_left_alone():
    torch.manual_seed(0)
    net = TwoHeads()
    with torch.no_grad():
        net.readout.weight[:, :5] = 0.0
    net.convex_batch = lambda batch: (batch[0], {"a": batch[1], "b": batch[1] % 2})
    before = state(net)
    with pytest.warns(UserWarning, match="were not given other weights: something else that the network returns"):
        solved(net, scale=REJECTED, readout="readout")
    assert_same_state(net, before)


def test_units_that_fall_silent_in_training_are_alive_at_the_end():
    class Kill(Net):
        def on_train_epoch_start(self):
            if self.current_epoch == 1:
                with torch.no_grad():
                    self.hidden[0].bias[:5] = -100.0

    def train(**arguments):
        torch.manual_seed(0)
        net = Kill()
        callback = ConvexReconstruction(
            witnesses="priced", apply="replace", beta=0.02, max_overhead=None, final_solve=False, **arguments
        )
        trainer(callback, max_epochs=4).fit(net, loader())
        return columns(net).silent, [report.candidates for report in callback.reports]

    silent, candidates = train()
    assert silent == 0
    assert candidates[2] > 0
    assert train(every_n_epochs=0)[0] >= 5
    assert train() == (silent, candidates)


@pytest.mark.parametrize("branches", [1, 2])
def test_units_of_branches_are_recycled_on_the_same_lower_layers_and_constants(branches):
    torch.manual_seed(0)
    data = AdditionDataModule(3, digits=3, sizes=(150, 20, 20), test_digits=(3,))
    data.setup("fit")
    net = AdditionSNN(3, last_width=64, branches=branches, tau=(1.05, 100.0))
    last = net.branches[-1][-2]
    with torch.no_grad():
        last.weight[:3] = 0.0
        last.bias[:3] = -1.0
    rows = data.train_dataloader()
    before, outputs = state(net), net(data.train.tensors[0])
    idle = columns(net, rows).constant
    assert idle[-64 // branches :][:3].all()
    report = solved(net, data=rows, scale=REJECTED)
    assert not report.accepted
    assert report.candidates == 3 * 64
    assert report.violation > 0
    assert torch.allclose(net(data.train.tensors[0]), outputs, atol=1e-5)
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert f"branches.{branches - 1}.{len(net.branches[-1]) - 2}.weight" in changed
    lasts = {f"branches.{k}.{len(net.branches[k]) - 2}.{kind}" for k in range(branches) for kind in ("weight", "bias")}
    assert changed <= lasts | {"readout.weight", "readout.bias"}
    assert columns(net, rows).constant.sum() < idle.sum()
