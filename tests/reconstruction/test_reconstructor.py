import copy
import warnings

import cvxpy as cp
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from networks import CLASSES, FEATURES, Net, assert_same_state, loader, rows, state
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_cvxsnn import calibrate, reconstruct
from lightning_cvxsnn.convex import mean_loss, solve
from lightning_cvxsnn.network import capture, undisturbed
from lightning_cvxsnn.network.network import Network
from lightning_cvxsnn.network.programme import capture_programme
from lightning_cvxsnn.network.readout import find_readout
from lightning_cvxsnn.network.rows import TrainingRows
from lightning_cvxsnn.reconstruction.reconstructor import Reconstructor
from lightning_cvxsnn.reconstruction.settings import Settings
from lightning_cvxsnn.runtime.progress import no_progress
from lightning_cvxsnn.tasks.stack import LitSNN


def dictionary_of(net, dataloader):
    """``D`` captured from the network as it now is, and the network's outputs."""
    with undisturbed(net):
        net.eval()
        batches = [batch[0] for batch in dataloader]
        readout = find_readout(net, batches[0])
        captured = capture(net, readout, batches)
    return readout, captured.dictionary.to_dense(), captured.outputs


@torch.no_grad()
def be_contrary(net, x, y):
    """Give the readout weights that answer wrongly, which any solution beats."""
    rates = net.hidden(net.steps(x)).mean(0)
    means = torch.stack([rates[y == label].mean(0) for label in range(CLASSES)])
    functional.reset_net(net.hidden)
    net.readout.weight.copy_(30 * (means.mean(0) - means))


def cvxpy_optimum(D, y, loss, rho, ratio, intercept, weights):
    """The programme's optimum by CVXPY, written out once more."""
    D, n, outputs = D.numpy(), len(D), CLASSES
    W = cp.Variable((D.shape[1], outputs))
    b = cp.Variable((1, outputs)) if intercept else cp.Constant([[0.0] * outputs])
    z = D @ W + cp.vstack([b] * n) if intercept else D @ W
    onehot = F.one_hot(y, outputs).double().numpy()
    if loss == "cross_entropy":
        losses = cp.log_sum_exp(z, axis=1) - cp.sum(cp.multiply(onehot, z), axis=1)
    elif loss == "hinge":
        losses = cp.sum(cp.pos(1 - cp.multiply(2 * onehot - 1, z)), axis=1)
    elif loss == "squared_hinge":
        losses = cp.sum(cp.square(cp.pos(1 - cp.multiply(2 * onehot - 1, z))), axis=1)
    else:
        losses = 0.5 * cp.sum(cp.square(z - onehot), axis=1)
    penalty = ratio * cp.sum(cp.abs(W)) + (1 - ratio) / 2 * cp.sum_squares(W)
    problem = cp.Problem(cp.Minimize(weights.numpy() @ losses / n + rho * penalty))
    return problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-10, tol_gap_rel=1e-10)


@pytest.mark.parametrize("ratio", [1.0, 0.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("loss", ["cross_entropy", "hinge", "squared", "squared_hinge"])
def test_the_report_is_what_cvxpy_finds(loss, bias, weighted, ratio):
    net = Net(bias=bias)
    x, y = rows(60)
    weights = torch.linspace(0.2, 2.0, 60).double() if weighted else torch.ones(60).double()
    if weighted:
        net.convex_batch = lambda batch: batch
    dataset = TensorDataset(x, y, weights) if weighted else TensorDataset(x, y)
    dataloader = DataLoader(dataset, batch_size=16)
    be_contrary(net, x, y)
    report = reconstruct(net, dataloader, loss=loss, l1_ratio=ratio, beta=0.1)
    assert report.accepted
    assert (report.l1_ratio, report.beta) == (ratio, 0.1)
    readout, D, outputs = dictionary_of(net, dataloader)
    optimum = cvxpy_optimum(D, y, loss, report.rho, ratio, bias, weights)
    assert report.rho == pytest.approx(0.1 / 24**0.5)
    assert report.primal == pytest.approx(optimum, abs=1e-5)
    assert report.dual == pytest.approx(optimum, abs=1e-5)
    assert -1e-9 <= report.gap <= 1e-5
    assert -1e-9 <= report.gap_written <= 1e-5  # unscaled: only rounding to float32 stands between
    coef, intercept = readout.read()
    predicted = D @ coef + (0.0 if intercept is None else intercept)
    assert torch.allclose(predicted, outputs.double(), atol=1e-5)
    targets = F.one_hot(y, CLASSES).double() if loss == "squared" else y
    penalty = float(ratio * coef.abs().sum() + (1 - ratio) / 2 * coef.square().sum())
    written = mean_loss(outputs, targets, loss=loss, sample_weight=weights) + report.rho * penalty
    assert written - report.dual == pytest.approx(report.gap_written, abs=1e-6)


@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("reduction", ["last", "mean", "sum"])
@pytest.mark.parametrize("bias", [True, False])
def test_the_networks_own_forward_is_the_dictionary_times_the_solution(step_mode, reduction, bias):
    net = Net(reduction, step_mode, bias)
    report = reconstruct(net, loader(), beta=0.02)
    assert report.accepted
    assert report.scale == 1.0
    readout, D, _ = dictionary_of(net, loader())
    coef, intercept = readout.read()
    forward = torch.cat([net(x) for x, _ in loader()]).double()
    assert torch.allclose(forward, D @ coef + (0.0 if intercept is None else intercept), atol=1e-5)
    assert report.active == int((coef != 0).any(1).sum())
    assert (report.rows, report.columns) == (240, 24)


def test_per_step_targets():
    class PerStep(Net):
        def convex_batch(self, batch):
            x, y = batch
            return x, y.expand(4, -1)

    net = PerStep("all")
    report = reconstruct(net, loader(), beta=0.02)
    assert report.rows == 960
    assert report.accepted
    labels = rows()[1].expand(4, -1)
    assert (net(rows()[0]).argmax(-1) == labels).float().mean() > 0.5


def test_logistic_regression_on_one_output():
    net = Net(classes=1)
    x, y = rows(classes=2)
    report = reconstruct(net, DataLoader(TensorDataset(x, y.float()[:, None]), batch_size=16), beta=0.02)
    assert report.accepted
    assert ((net(x)[:, 0] > 0).long() == y).float().mean() > 0.8


def test_a_better_readout_is_kept():
    net = Net()
    reconstruct(net, loader(), beta=1e-3)
    before = state(net)
    report = reconstruct(net, loader(), beta=10.0)  # all shrunk to zero
    assert not report.accepted
    assert "rejected" in report.reason
    assert report.held_out_loss_after >= report.held_out_loss_before
    assert report.rows == 192
    assert_same_state(net, before)


def test_acceptance_means_a_better_score_on_held_out_rows():
    for seed in range(5):
        net = Net()
        report = reconstruct(net, loader(), seed=seed)
        gains = [
            report.held_out_loss_before - report.held_out_loss_after,
            report.accuracy_after - report.accuracy_before,
        ]
        assert report.accepted == (min(gains) >= 0 and max(gains) > 0)


def test_scale_keeps_decisions():
    plain, scaled = Net(), Net()
    scaled.load_state_dict(plain.state_dict())
    reconstruct(plain, loader(), beta=0.02)
    report = reconstruct(scaled, loader(), beta=0.02, scale=0.5)
    assert torch.allclose(scaled.readout.weight, plain.readout.weight * 0.5, atol=1e-6)
    assert torch.allclose(scaled.readout.bias, plain.readout.bias * 0.5, atol=1e-6)
    assert report.gap_written > report.gap


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("outputs", [3, 1])
@pytest.mark.parametrize("loss", ["cross_entropy", "hinge"])
def test_held_out_accuracy_before_and_after(loss, outputs, weighted):
    net = Net(classes=outputs)
    x, y = rows(100, classes=max(outputs, 2))
    weights = torch.linspace(0.2, 2.0, 100).double() if weighted else torch.ones(100).double()
    net.convex_batch = lambda batch: batch
    dataloader = DataLoader(TensorDataset(x, y, weights), batch_size=16)
    held_out = torch.zeros(100, dtype=torch.bool)
    held_out[torch.randperm(100, generator=torch.Generator().manual_seed(0))[:20]] = True

    def accuracy(z):
        right = (z.argmax(1) if outputs > 1 else (z[:, 0] > 0).long()) == y[held_out]
        return float((weights[held_out] * right).sum() / weights[held_out].sum())

    _, D, before = dictionary_of(net, dataloader)
    report = reconstruct(net, dataloader, loss=loss, l1_ratio=1.0, beta=0.1)
    assert report.accuracy_before == pytest.approx(accuracy(before[held_out]))
    fitted = solve(
        D[~held_out], y[~held_out], loss=loss, rho=report.rho, fit_intercept=True, num_outputs=outputs,
        sample_weight=weights[~held_out],
    )  # fmt: skip
    assert report.accuracy_after == pytest.approx(accuracy(D[held_out] @ fitted.coef + fitted.intercept))
    assert report.accuracy_after > report.accuracy_before
    assert report.metrics()["convex/accuracy_after"] == report.accuracy_after


def test_a_squared_loss_has_no_accuracy():
    report = reconstruct(Net(), loader(), loss="squared", beta=0.1)
    assert report.accuracy_before is report.accuracy_after is None
    assert not any("accuracy" in name for name in report.metrics())


def test_dry_run_writes_nothing_and_says_what_would_happen():
    net = Net(gain=0.05)  # dead
    before = state(net)
    with pytest.warns(UserWarning, match="brought dead or half dead spiking layers to life"):
        report = reconstruct(net, loader(), dry_run=True)
    assert report.accepted
    assert "would be accepted" in report.reason
    assert_same_state(net, before)


def test_a_dead_network_is_brought_to_life():
    net = Net(gain=0.05)
    _, D, _ = dictionary_of(net, loader())
    assert D.abs().sum() == 0
    with pytest.warns(UserWarning, match="brought dead or half dead spiking layers to life: 'hidden.1'"):
        report = reconstruct(net, loader(), beta=0.02)
    assert report.repaired.startswith("'hidden.1' (24 of 24 units silent, 0 saturated; 'hidden.0' times")
    assert report.silent < 24
    assert (net(rows()[0]).argmax(1) == rows()[1]).float().mean() > 0.7


def test_a_fresh_dead_layer_keeps_its_weights_but_for_one_factor():
    net = Net(gain=0.05)
    before, bias = net.hidden[0].weight.clone(), net.hidden[0].bias.clone()
    with pytest.warns(UserWarning, match="brought dead"):
        reconstruct(net, loader(), beta=0.02)
    ratio = net.hidden[0].weight / before
    assert torch.allclose(ratio, ratio.median().expand_as(ratio), rtol=1e-4)
    assert (net.hidden[0].bias / bias / ratio.median() - 1).abs().median() > 0.1


def test_units_that_fire_are_kept_in_a_dead_layer_of_somebodys_own():
    net = Net()
    with torch.no_grad():
        nn.init.normal_(net.hidden[0].weight, std=0.01)
        net.hidden[0].weight[5] *= 100
    _, D, _ = dictionary_of(net, loader())
    assert D.any(0).nonzero().tolist() == [[5]]
    before = state(net)
    with pytest.warns(UserWarning, match="brought dead"):
        report = reconstruct(net, loader(), beta=0.02)
    assert report.accepted
    assert report.silent < 3
    changed = (net.hidden[0].weight != before["hidden.0.weight"]).any(1)
    assert not changed[5]
    assert changed.sum() > 20
    cosine = torch.cosine_similarity(net.hidden[0].weight, before["hidden.0.weight"])
    assert torch.allclose(cosine.abs(), torch.ones(24), atol=1e-5)


def test_a_search_reports_how_hard_it_was_and_what_still_violates():
    searched, kept = (reconstruct(Net(), loader(), witnesses=w, beta=0.02) for w in ("priced", "auto"))
    assert searched.candidates >= 24
    assert searched.violation > 0
    assert searched.metrics()["convex/violation"] == searched.violation
    assert (kept.candidates, kept.violation) == (0, None)
    assert "convex/violation" not in kept.metrics()
    assert searched.scope == "dictionary"


def test_the_repair_is_kept_when_the_solve_is_rejected():
    net = Net(gain=0.05)
    hidden, readout = net.hidden[0].weight.clone(), net.readout.weight.clone()
    with torch.no_grad():
        net.readout.bias.zero_()
    with pytest.warns(UserWarning, match="brought dead"):
        report = reconstruct(net, loader(), beta=0.01, scale=1e3)  # absurd: anything is better
    assert not report.accepted
    assert not torch.equal(hidden, net.hidden[0].weight)
    assert torch.equal(readout, net.readout.weight)


def test_keep_refuses_a_dead_network():
    net = Net(gain=0.05)
    before = state(net)
    message = r"receives the same pattern on every training row.*'hidden.1' \(24 of 24 units silent.*witnesses='auto'"
    with pytest.raises(MisconfigurationException, match=message):
        reconstruct(net, loader(), witnesses="keep")
    assert_same_state(net, before)


def test_hidden_weights_of_a_live_network_are_kept_bit_for_bit():
    net = Net()
    before = state(net)
    assert reconstruct(net, loader()).accepted
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]) != name.startswith("readout"), name


def test_nothing_of_the_users_is_disturbed():
    net = Net()
    net.readout.eval()
    net(rows()[0])
    functional.reset_net(net.hidden)
    net.hidden(net.steps(rows(5)[0]))
    v, rng = net.hidden[1].v.clone(), torch.get_rng_state()
    parameters = {name: id(p) for name, p in net.named_parameters()}
    reconstruct(net, loader(shuffle=True))
    assert torch.equal(net.hidden[1].v, v)
    assert torch.equal(torch.get_rng_state(), rng)
    assert not net.readout.training
    assert net.hidden.training
    assert parameters == {name: id(p) for name, p in net.named_parameters()}


def test_runs_repeat_exactly():
    nets = [Net() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    reports = [reconstruct(net, loader(shuffle=True)) for net in nets]
    assert_same_state(nets[0], state(nets[1]))
    timeless = [{k: v for k, v in r.state().items() if not k.startswith("seconds")} for r in reports]
    assert timeless[0] == timeless[1]


WITNESSES = ("gaussian_standard", "gaussian_normalized", "gaussian_orthogonal", "pairs", "pool", "priced")


@pytest.mark.parametrize("kind", WITNESSES)
def test_witnesses_are_written_with_their_readout(kind):
    nets = [Net() for _ in range(2)]
    nets[1].load_state_dict(before := state(nets[0]))
    rng = torch.get_rng_state()
    reports = [reconstruct(net, loader(), witnesses=kind, beta=0.02) for net in nets]
    assert torch.equal(torch.get_rng_state(), rng)
    assert reports[0].accepted
    assert_same_state(nets[1], state(nets[0]))
    net = nets[0]
    moved = (net.hidden[0].weight - before["hidden.0.weight"]).norm(dim=1)
    assert (moved > 1e-3).all()
    readout, D, outputs = dictionary_of(net, loader())
    coef, intercept = readout.read()
    assert torch.allclose(outputs.double(), D @ coef + intercept, atol=1e-5)
    assert D.std(0).min() > 0
    assert (net(rows()[0]).argmax(1) == rows()[1]).float().mean() > 0.7


def test_priced_witnesses_reach_a_lower_objective_than_the_networks_own():
    for seed in range(3):
        own, priced = Net(width=12), Net(width=12)
        priced.load_state_dict(own.state_dict())
        reports = [
            reconstruct(n, loader(), witnesses=w, beta=0.02, seed=seed)
            for n, w in ((own, "calibrated"), (priced, "priced"))
        ]
        assert reports[1].primal < 0.9 * reports[0].primal


@pytest.mark.parametrize("kind", ["pool", "priced"])
def test_a_search_begins_with_what_somebody_has_trained(kind):
    """Targets that are the firing rates of three of the network's own units need no other units."""
    net = Net(width=12)
    with torch.no_grad():
        net.hidden[0].weight.mul_(2.0)  # no constructor draws that
    x, _ = rows()
    _, columns, _ = dictionary_of(net, [(x,)])
    y = columns[:, columns.var(0).argsort(descending=True)[:CLASSES]].float()
    report = reconstruct(net, DataLoader(TensorDataset(x, y), 64), witnesses=kind, loss="squared", beta=1e-3)
    assert report.accepted
    assert ((net(x) - y).square().mean(0) < 0.01 * y.var(0)).all()


def test_the_penalty_is_chosen_over_the_witnesses_that_were_found():
    """As it would be over a network that somebody else had given them."""
    net = Net()
    reconstructor = Reconstructor(Settings(witnesses="priced", apply="replace"))
    data = TrainingRows(net, loader(), transfer=lambda batch: batch, max_samples=None, seed=0)
    first = reconstructor.run(net, data, "warm start")
    hidden = net.hidden[0].weight.clone()
    assert first.accepted
    assert (first.beta, first.l1_ratio) == (reconstructor.penalty.beta, reconstructor.penalty.l1_ratio)
    other = reconstruct(net, loader(), witnesses="keep", dry_run=True)
    assert (other.beta, other.l1_ratio) == (first.beta, first.l1_ratio)
    second = reconstructor.run(net, data, "periodic solve")
    assert second.columns == first.columns
    assert torch.equal(net.hidden[0].weight, hidden)


@pytest.mark.parametrize("kind", WITNESSES)
def test_rejected_witnesses_are_rolled_back(kind):
    net = Net()
    before = state(net)
    report = reconstruct(net, loader(), witnesses=kind, beta=0.01, scale=1e3)  # absurd: anything is better
    assert not report.accepted
    assert_same_state(net, before)


def test_a_dead_network_whose_witnesses_are_rejected_is_repaired():
    net, repaired = Net(gain=0.05), Net(gain=0.05)
    repaired.load_state_dict(net.state_dict())
    with pytest.warns(UserWarning, match="brought dead"):
        reconstruct(repaired, loader(), beta=0.01, scale=1e3)
    with pytest.warns(UserWarning, match="brought dead"):
        report = reconstruct(net, loader(), witnesses="priced", beta=0.01, scale=1e3)
    assert not report.accepted
    assert_same_state(net, state(repaired))


def test_a_dry_run_of_pricing_writes_nothing():
    net = Net(gain=0.05)
    before = state(net)
    assert reconstruct(net, loader(), witnesses="priced", dry_run=True).accepted
    assert_same_state(net, before)


@pytest.mark.parametrize("kind", ["pairs", "priced"])
def test_layers_below_are_calibrated_and_the_last_is_replaced(kind):
    net = LitSNN(in_features=FEATURES, hidden=[16, 12], num_classes=CLASSES)
    before = state(net)
    x, y = rows()
    data = DataLoader(TensorDataset(x[:, None].expand(-1, 4, -1), y), batch_size=60)
    assert reconstruct(net, data, witnesses=kind, beta=0.02).accepted
    cosine = [torch.cosine_similarity(net.layers[i].weight, before[f"layers.{i}.weight"], dim=1) for i in (0, 2)]
    assert torch.allclose(cosine[0].abs(), torch.ones(16), atol=1e-5)
    assert cosine[1].abs().median() < 0.9
    functional.reset_net(net.layers)
    assert float(net.layers[:2](x.expand(4, -1, -1)).detach().mean()) == pytest.approx(0.1, abs=0.02)


class ConvNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            layer.Conv2d(1, 8, 3, step_mode="m"),
            layer.BatchNorm2d(8, step_mode="m"),
            neuron.LIFNode(step_mode="m"),
            layer.MaxPool2d(2, step_mode="m"),
            layer.Flatten(step_mode="m"),
        )
        self.readout = nn.Linear(32, 2)

    def forward(self, x):
        functional.reset_net(self.stem)
        return self.readout(self.stem(x.expand(3, *x.shape))).mean(0)


def images():
    x = torch.rand(64, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, (x[:, 0, :3].mean((1, 2)) > x[:, 0, 3:].mean((1, 2))).long()), batch_size=16)


def test_a_fresh_conv_bn_lif_stack_gets_its_statistics_with_the_write():
    net = ConvNet()
    report = reconstruct(net, images(), beta=0.02)
    assert report.accepted
    assert report.silent < 32
    assert not torch.equal(net.stem[1].running_mean, torch.zeros(8))
    net.eval()
    readout, D, outputs = dictionary_of(net, images())
    coef, intercept = readout.read()
    assert torch.allclose(D @ coef + intercept, outputs.double(), atol=1e-5)
    x, y = images().dataset.tensors
    assert (net(x).argmax(1) == y).float().mean() > 0.8


@pytest.mark.parametrize("norm", ["none", "adapting", "frozen"])
@pytest.mark.parametrize("kind", ["pairs", "pool", "priced"])
def test_channels_are_chosen_and_written(kind, norm):
    torch.manual_seed(0)
    net = ConvNet()
    with torch.no_grad():
        net.readout.bias.copy_(torch.tensor([5.0, -5.0]))  # easily beaten
    if norm == "none":
        net.stem[1] = nn.Identity()
    elif norm == "frozen":
        net(images().dataset.tensors[0])  # statistics of a user's own
        net.stem[1].eval()
    before = state(net)
    report = reconstruct(net, images(), witnesses=kind, beta=0.02)
    assert report.accepted
    assert not (net.stem[0].weight == before["stem.0.weight"]).flatten(1).any(1).any()
    if norm == "frozen":
        assert torch.equal(net.stem[1].running_mean, before["stem.1.running_mean"])
    readout, D, outputs = dictionary_of(net.eval(), images())
    coef, intercept = readout.read()
    assert torch.allclose(D @ coef + intercept, outputs.double(), atol=1e-5)
    x, y = images().dataset.tensors
    assert (net(x).argmax(1) == y).float().mean() > 0.9
    if norm == "adapting":
        assert (net.train()(x).argmax(1) == y).float().mean() > 0.9  # normalised by the batch


def test_a_batch_norm_undoes_its_normalisation_of_new_channels():
    torch.manual_seed(0)
    net = ConvNet()
    with torch.no_grad():
        net.readout.bias.copy_(torch.tensor([5.0, -5.0]))  # easily beaten
    assert reconstruct(net, images(), witnesses="priced", beta=0.02).accepted
    convolution, norm = net.stem[:2]
    x = images().dataset.tensors[0][None]
    net.eval()
    shift = norm.bias - norm.running_mean
    torch.testing.assert_close(norm(convolution(x)), convolution(x) + shift[:, None, None], atol=1e-4, rtol=1e-4)
    assert not convolution.bias.any()  # the norm would take it out again


def test_convolutions_take_random_witnesses():
    net = ConvNet()
    with torch.no_grad():
        net.readout.bias.copy_(torch.tensor([5.0, -5.0]))  # easily beaten
    assert reconstruct(net, images(), witnesses="gaussian_normalized", beta=0.02).accepted
    norms = net.stem[0].weight.flatten(1).norm(dim=1)
    assert torch.allclose(norms, torch.ones(8), atol=1e-5)
    assert not net.stem[0].bias.any()


def test_dead_layers_of_a_deep_network_send_on_what_they_receive():
    torch.manual_seed(0)
    net = LitSNN(in_features=FEATURES, hidden=[24, 24, 24, 40], num_classes=CLASSES)
    before, (x, y) = state(net), rows()
    data = DataLoader(TensorDataset(x[:, None].expand(-1, 4, -1), y), 64)
    with pytest.warns(UserWarning, match="brought dead or half dead spiking layers to life: 'layers.1', 'layers.3'"):
        report = reconstruct(net, data, beta=0.02)
    assert report.accepted
    assert "'layers.4' now sends on the spikes of the layer below" in report.repaired
    for index, width in ((2, 24), (4, 24), (6, 40)):
        added = net.layers[index].weight.detach() - 0.1 * before[f"layers.{index}.weight"]
        below = F.one_hot(torch.arange(width) % 24, 24).float()
        assert torch.allclose(added, 3.0 * below, atol=1e-6)  # half more than tau * threshold, which fires it at rest
        assert torch.allclose(net.layers[index].bias, 0.1 * before[f"layers.{index}.bias"])


def test_running_statistics_change_only_with_an_accepted_write():
    net = ConvNet()
    reconstruct(net, images(), beta=0.02)
    before = state(net)
    net.stem[1].running_mean += 0.001  # the user's statistics, not quite ours
    report = reconstruct(net, images(), beta=50.0)
    assert not report.accepted
    assert torch.allclose(net.stem[1].running_mean, before["stem.1.running_mean"] + 0.001)


@pytest.mark.parametrize("k", range(4))
def test_an_exception_at_any_copy_leaves_everything_as_it_was(monkeypatch, k):
    net = Net(gain=0.05)
    before = copy.deepcopy(net.state_dict())
    calls = 0
    for name in ("copy_", "mul_"):
        original = getattr(torch.Tensor, name)

        def failing(tensor, *args, original=original, **kwargs):
            nonlocal calls
            if isinstance(tensor, nn.Parameter):
                calls += 1
                if calls == k + 1:
                    raise RuntimeError("disk on fire")
            return original(tensor, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, failing)
    with pytest.raises(RuntimeError, match="disk on fire"):
        reconstruct(net, loader(), beta=0.02)
    monkeypatch.undo()
    assert_same_state(net, before)


def test_a_weight_that_is_computed_is_refused():
    net = Net()
    net.readout = nn.utils.parametrizations.weight_norm(net.readout)
    with pytest.raises(MisconfigurationException, match="computed from other parameters"):
        reconstruct(net, loader())


@pytest.mark.parametrize(
    ("dataloader", "error", "message"),
    [
        (DataLoader(TensorDataset(torch.zeros(0, 6), torch.zeros(0))), MisconfigurationException, "empty"),
        (loader(3), MisconfigurationException, "has 3 different samples. Expected at least 5"),
        ([rows(16)[0]], MisconfigurationException, "The training batch is a Tensor"),
        ([(rows(16)[0], torch.full((16,), 7))], MisconfigurationException, "range from 7 to 7"),
        ([(rows(16)[0] * float("nan"), rows(16)[1])], ValueError, "NaN"),
        ([(rows(16)[0], rows(15)[1])], MisconfigurationException, "16 outputs.*15 targets"),
    ],
)
def test_data_that_cannot_be_solved(dataloader, error, message):
    net = Net()
    before = state(net)
    with pytest.raises(error, match=message):
        reconstruct(net, dataloader)
    assert_same_state(net, before)


def test_calibrated_units_fire_at_the_rate_behind_a_batch_norm_in_evaluation_too():
    torch.manual_seed(0)
    net = Net(gain=1.0)
    net.hidden = nn.Sequential(
        layer.Linear(6, 24, step_mode="m"), layer.BatchNorm1d(24, step_mode="m"), neuron.LIFNode(step_mode="m")
    )
    (change,) = calibrate(net, loader(), rate=0.1)
    net.eval()
    net.hidden[2].reset()
    found = float(net.hidden(net.steps(rows()[0])).mean())
    assert found == pytest.approx(change.after.rate, abs=0.005)


def test_calibrate_alone_changes_hidden_weights_only():
    net = Net(gain=0.05)
    before = state(net)
    (change,) = calibrate(net, loader(), rate=0.2)
    assert change.after.rate == pytest.approx(0.2, abs=0.02)
    assert torch.equal(net.readout.weight, before["readout.weight"])
    with pytest.raises(MisconfigurationException, match="rate=2"):
        calibrate(net, loader(), rate=2)


def test_cupy_without_a_gpu_is_refused():
    with pytest.raises(MisconfigurationException, match="backend='cupy' needs"):
        reconstruct(Net(), loader(), backend="cupy")


def test_weights_that_are_all_zero_are_refused():
    class Weighted(Net):
        def convex_batch(self, batch):
            return *batch, torch.zeros(len(batch[1]))

    with pytest.raises(MisconfigurationException, match="All sample weights are zero"):
        reconstruct(Weighted(), loader())


def test_a_sample_that_a_sampler_repeats_never_judges_what_it_fitted():
    x, y = rows(40)
    again = torch.arange(40).repeat_interleave(torch.arange(40) % 4 + 1)[torch.randperm(100)]
    seen = []

    class Noting(Net):
        def convex_batch(self, batch):
            seen.append(batch[0])
            return batch

    net = Noting()
    dataloader = DataLoader(TensorDataset(x, y), batch_size=16, sampler=again.tolist())
    training = TrainingRows(net, dataloader, transfer=lambda batch: batch, max_samples=None, seed=0)
    with undisturbed(net):
        problem = capture_programme(
            Network(net, training), loss="cross_entropy", seed=0, progress=no_progress, stage=""
        )
    inputs = torch.cat(seen)[-len(problem.held_out) :]
    judging, fitted = ({tuple(row) for row in inputs[part].tolist()} for part in (problem.held_out, ~problem.held_out))
    assert len(problem.held_out) == 100
    assert len(judging) == 8
    assert not judging & fitted


@pytest.mark.parametrize("kind", ["gaussian_standard", "pairs", "priced"])
def test_other_outputs_over_the_same_layers_are_warned_of(kind):
    class Two(Net):
        def __init__(self):
            super().__init__()
            self.other = nn.Linear(24, 2)

        def forward(self, x):
            functional.reset_net(self.hidden)
            rates = self.hidden(self.steps(x)).mean(0)
            return {"class": self.readout(rates), "other": self.other(rates)}

        def convex_batch(self, batch):
            return batch[0], {"class": batch[1]}

    with pytest.warns(UserWarning, match=r"also returns \['other'\]"):
        assert reconstruct(Two(), loader(), readout="readout", witnesses=kind, beta=0.02).accepted
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reconstruct(Two(), loader(), readout="readout", witnesses="keep", beta=0.02)
