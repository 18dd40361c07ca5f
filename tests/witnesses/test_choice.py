import logging
import re
from functools import partial

import pytest
import torch
from networks import ConvNet, Net, images, rows
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_cvxsnn import DigitsDataModule, LitSNN
from lightning_cvxsnn.network import measure_activity, undisturbed
from lightning_cvxsnn.network.network import Network
from lightning_cvxsnn.network.programme import capture_programme
from lightning_cvxsnn.network.rows import rows_of
from lightning_cvxsnn.runtime.progress import no_progress
from lightning_cvxsnn.runtime.rng import isolate_rng
from lightning_cvxsnn.witnesses.choice import _NAMES, choose_start, fresh_layers
from lightning_cvxsnn.witnesses.kinds import WitnessOptions
from lightning_cvxsnn.witnesses.ridge import left_out_error


def started(net, dataset, loss="cross_entropy"):
    """What was done to the layers of ``net``, and the error over its columns, before and after."""
    network = Network(net, rows_of(net, DataLoader(dataset, 64)))
    capture = partial(capture_programme, network, loss=loss, seed=0, progress=no_progress, stage="patterns")
    with isolate_rng(), undisturbed(net):
        net.eval()
        before = capture()
        layers = choose_start(network, WitnessOptions("auto", 0, "auto", loss))
        after = capture()
    errors = [
        left_out_error(p.dictionary.to_dense(torch.float32), one_hot(p), p.weights.float()) for p in (before, after)
    ]
    return layers, *errors


def one_hot(programme):
    if programme.targets.dim() > 1:
        return programme.targets.float()
    return nn.functional.one_hot(programme.targets, programme.num_outputs).float()


def digits():
    data = DigitsDataModule()
    data.setup("fit")
    return data.train


def series(n=120):
    """Rows of `rows` as sequences ``[n, 4, F]``."""
    x, y = rows(n)
    return TensorDataset(x[:, None].expand(-1, 4, -1) * torch.arange(1.0, 5.0)[:, None], y)


def activities(net, x):
    with undisturbed(net):
        net.eval()
        return measure_activity(net, [x])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(40, 6), (12, 30)])
def test_the_error_is_that_of_fits_without_each_row(shape, weighted):
    generator = torch.Generator().manual_seed(0)
    d = torch.randint(0, 2, shape, generator=generator).float()
    y = d[:, :2] + 0.3 * torch.randn(len(d), 2, generator=generator)
    w = torch.rand(len(d), generator=generator) + 0.5 if weighted else torch.ones(len(d))
    share = (w / w.sum()).double()
    centred = (d.double() - share @ d.double()) * share.sqrt()[:, None]
    largest = torch.linalg.eigvalsh(centred.T @ centred).max()
    total = (share[:, None] * (y - share.float() @ y).double().square()).sum()
    best = 9.0
    for penalty in (1e-1, 1e-2, 1e-3, 1e-4):
        error = 0.0
        for i in range(len(d)):
            keep = torch.arange(len(d)) != i
            x, t, v = d[keep].double(), y[keep].double(), share[keep]
            a = torch.cat([x, torch.ones(len(x), 1).double()], 1)
            ridge = penalty * largest * torch.eye(a.shape[1]).double()
            ridge[-1, -1] = 0  # the intercept is free
            coef = torch.linalg.solve(a.T @ (v[:, None] * a) + ridge, a.T @ (v[:, None] * t))
            error += share[i] * (y[i].double() - (d[i].double() @ coef[:-1] + coef[-1])).square().sum()
        best = min(best, float(error / total))
    assert left_out_error(d, y, w) == pytest.approx(best, rel=2e-2)


def test_a_dead_network_starts_with_every_layer_alive_and_a_better_readout():
    torch.manual_seed(0)
    net = LitSNN(hidden=[64, 64])
    layers, before, after = started(net, digits())
    assert before > 0.95
    assert after < 0.7
    assert {layer.affine_name for layer in layers} == {"layers.0", "layers.2"}
    assert all(a.healthy for a in activities(net, digits()[:200][0]))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("soft", [True, False])
def test_the_last_of_nine_layers_knows_what_the_first_does(soft, bias):
    torch.manual_seed(0)
    net = LitSNN(hidden=[64] * 9, tau=100.0 if soft else 2.0, v_reset=None if soft else 0.0)
    for module in net.layers:
        if hasattr(module, "decay_input"):
            module.decay_input = not soft
        elif not bias:
            module.bias = None
    layers, _, deep = started(net, digits())
    assert [layer.copies for layer in layers] == [False] + [True] * 8
    spikes = {}
    handles = [
        net.layers[i].register_forward_hook(lambda _m, _a, out, i=i: spikes.__setitem__(i, out)) for i in (1, 17)
    ]
    with torch.no_grad():
        net(digits()[:200][0])
    for handle in handles:
        handle.remove()
    assert spikes[1].any()
    assert (spikes[1] == spikes[17]).float().mean() > 0.999
    assert deep < 0.75


def test_weights_that_somebody_has_trained_are_kept():
    torch.manual_seed(0)
    net = LitSNN(in_features=6, hidden=[24, 24], num_classes=3)
    with torch.no_grad():
        net.layers[0].weight.mul_(3)  # no constructor draws these
    before = net.layers[0].weight.clone(), net.layers[0].bias.clone()
    network = Network(net, rows_of(net, DataLoader(series(), 64)))
    assert fresh_layers(network) == {net.layers[2]}
    dead = activities(net, series()[:][0])[0]
    started(net, series())
    living = torch.ones(24, dtype=torch.bool)
    if dead.silent or dead.saturated:
        living = (net.layers[0].weight == before[0]).all(1)
        assert int((~living).sum()) <= dead.silent + dead.saturated
    assert torch.equal(net.layers[0].weight[living], before[0][living])
    assert torch.equal(net.layers[0].bias[living], before[1][living])


def test_a_choice_repeats_and_leaves_the_generators_alone():
    chosen = []
    for _ in range(2):
        torch.manual_seed(5)
        net = LitSNN(in_features=6, hidden=[24, 24], num_classes=3)
        state = torch.get_rng_state()
        started(net, series())
        assert torch.equal(torch.get_rng_state(), state)
        chosen.append([p.clone() for p in net.parameters()])
    assert all(map(torch.equal, *chosen))


def test_a_convolution_may_get_patches_of_two_images(caplog):
    torch.manual_seed(0)
    net = ConvNet(channels=12)
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        layers, _, after = started(net, TensorDataset(*images(200)))
    told = r"starts from (.*); a quick ridge readout over it explains (.*) % of the variance"
    ((name, explained),) = re.findall(told, caplog.text)
    assert name in ("repaired hidden weights", *_NAMES.values())
    assert 0 < float(explained) < 100
    assert after < 1
    assert len(layers) <= 1


def test_values_are_scored_as_they_are():
    torch.manual_seed(0)
    net = Net()
    x = rows(200)[0]
    values = torch.stack([x[:, 0], x[:, 1] - x[:, 2], x[:, 3]], 1)
    _, before, after = started(net, TensorDataset(x, values), loss="squared")
    assert after <= before * 1.02


@pytest.mark.parametrize("fits", [True, False])
def test_pairs_in_the_last_layer_are_tried_where_what_it_receives_fits(fits, monkeypatch):
    tried = []
    monkeypatch.setattr(
        "lightning_cvxsnn.witnesses.choice.replace_by_pairs", lambda *_: tried.append(1) or pytest.fail("not scored")
    )
    torch.manual_seed(0)
    net, data = LitSNN(in_features=6, hidden=[24, 24], num_classes=3), series()
    if not fits:
        monkeypatch.setattr("lightning_cvxsnn.runtime.memory.free_memory", lambda device: 1000)
        started(net, data)
    else:
        with pytest.raises(pytest.fail.Exception):
            started(net, data)
    assert bool(tried) == fits


def test_weights_that_are_kept_as_they_are_are_called_the_networks_own(caplog):
    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        net.hidden[0].weight.mul_(2)  # no constructor draws these
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        layers, *_ = started(net, TensorDataset(*rows(120)))
    assert not layers
    assert "ConvexReconstruction starts from the network's own hidden weights; a quick ridge readout" in caplog.text
