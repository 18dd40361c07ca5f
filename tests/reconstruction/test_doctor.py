"""`diagnose`: its numbers against brute force, whatever the network, and nothing changed."""

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from networks import ConvNet, Net, assert_same_state, images, loader, rows, state
from sklearn.linear_model import Ridge
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_cvxsnn import Diagnosis, LitSNN, diagnose


def deep(**arguments):
    """Two spiking layers."""
    net = Net(**arguments)
    more = nn.Sequential(layer.Linear(24, 20), neuron.LIFNode(tau=1.5))
    with torch.no_grad():
        more[0].weight.mul_(4)
    functional.set_step_mode(more, net.step_mode)
    net.hidden = nn.Sequential(*net.hidden, *more)
    net.readout = layer.Linear(20, 3, step_mode=net.step_mode)
    return net


def probe(columns, y):
    """Accuracy and share of the variance left of scikit-learn's ridge of the best penalty, each row left out."""
    columns, values = columns.double(), nn.functional.one_hot(y).double()
    centred = columns - columns.mean(0)
    largest = float(torch.linalg.eigvalsh(centred.T @ centred).max())
    answers = [
        torch.tensor(cross_val_predict(Ridge(alpha=p * largest), columns.numpy(), values.numpy(), cv=LeaveOneOut()))
        for p in (1e-1, 1e-2, 1e-3, 1e-4)
    ]
    best = min(answers, key=lambda a: float((a - values).square().sum()))
    left = float((best - values).square().sum() / (values - values.mean(0)).square().sum())
    return float((best.argmax(1) == y).double().mean()), left


@pytest.mark.filterwarnings("ignore:ConvexReconstruction")
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_the_numbers_are_those_of_brute_force(step_mode):
    net = deep(step_mode=step_mode)
    with torch.no_grad():
        net.hidden[0].weight[0], net.hidden[0].bias[0] = 0.0, -1.0  # silent
        net.hidden[0].weight[1], net.hidden[0].bias[1] = 0.0, 9.0  # saturated
        net.hidden[0].weight[2], net.hidden[0].bias[2] = net.hidden[0].weight[3], net.hidden[0].bias[3]
    found = diagnose(net, loader(120)).layers
    assert [each.name for each in found] == ["hidden.1", "hidden.3"]
    x, y = rows(120)
    functional.set_step_mode(net.hidden, "m")
    functional.reset_net(net.hidden)
    spikes = net.steps(x)
    for part, each in zip((net.hidden[:2], net.hidden[2:]), found, strict=True):
        spikes = part(spikes).detach()
        average = spikes.mean(0)
        constant = (average == average[0]).all(0)
        assert each.units == spikes.shape[-1]
        assert each.rate == pytest.approx(float(spikes.mean()))
        assert each.silent == int((spikes == 0).all(0).all(0).sum())
        assert each.saturated == int((constant & (average[0] > 0)).sum())
        assert each.distinct == average.unique(dim=1).shape[1]
        accuracy, error = probe(average, y)
        assert each.accuracy == pytest.approx(accuracy, abs=0.009)  # a row may be within rounding of a tie
        assert each.error == pytest.approx(error, rel=1e-2)
    assert found[0].silent >= 1
    assert found[0].saturated >= 1
    assert found[0].distinct < 24


@pytest.mark.filterwarnings("ignore:ConvexReconstruction")
@pytest.mark.parametrize("witnesses", ["auto", "keep"])
@pytest.mark.parametrize("make", [Net, lambda: LitSNN(in_features=6, num_classes=3, hidden=[24, 24])])
def test_a_dead_network_is_described(make, witnesses):
    net = make()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.mul_(0.01 if "weight" in name else 0.0)
    diagnosis = diagnose(net, sequences() if isinstance(net, LitSNN) else loader(), witnesses=witnesses)
    assert all(each.state == "dead" and each.silent == each.units == 24 for each in diagnosis.layers)
    assert all(each.rate == 0 and each.accuracy < 0.5 for each in diagnosis.layers)
    if witnesses == "keep":
        assert diagnosis.report is None
        assert "would refuse" in str(diagnosis)
        assert "24 of 24 units silent" in str(diagnosis)
    else:
        assert diagnosis.report.accepted
        assert diagnosis.layers[0].name in diagnosis.report.repaired


def sequences():
    x, y = rows()
    return DataLoader(TensorDataset(x[:, None].repeat(1, 4, 1), y), 64)


@pytest.mark.filterwarnings("ignore:ConvexReconstruction")
@pytest.mark.parametrize("net", [Net(step_mode="s"), ConvNet(norm=True)], ids=["single step", "norm"])
def test_nothing_changes(net):
    x, y = images() if isinstance(net, ConvNet) else rows()
    data = DataLoader(TensorDataset(x, y), 32, shuffle=True)
    net.train()
    net.hidden.eval()
    net(x[:8])  # neurons hold a state
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    (node,) = (part for part in net.modules() if isinstance(part, neuron.LIFNode))
    saved, v, modes = state(net), node.v, [part.training for part in net.modules()]
    hooks = [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in net.modules()]
    random = torch.get_rng_state()
    assert diagnose(net, data).report is not None
    assert_same_state(net, saved)
    assert node.v is v
    assert [part.training for part in net.modules()] == modes
    assert [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in net.modules()] == hooks
    assert torch.equal(torch.get_rng_state(), random)
    assert all(bool((parameter.grad == 1).all()) for parameter in net.parameters())


@pytest.mark.filterwarnings("ignore:ConvexReconstruction")
def test_a_norm_in_training_mode_is_measured_as_training_would_see_it():
    net = ConvNet(norm=True)
    data = DataLoader(TensorDataset(*images()), 40)
    (frozen,), (fresh,) = diagnose(net.eval(), data).layers, diagnose(net.train(), data).layers
    assert frozen.rate != fresh.rate


@pytest.mark.filterwarnings("ignore:ConvexReconstruction")
def test_at_most_a_thousand_rows_are_measured():
    assert diagnose(Net(), loader(1200)).rows == 1000
    assert diagnose(Net(), loader(1200), max_samples=100).rows == 100


@pytest.mark.filterwarnings("ignore:ConvexReconstruction")
def test_real_targets_are_probed_by_their_variance():
    x, _ = rows()
    net = Net(classes=2)
    diagnosis = diagnose(net, DataLoader(TensorDataset(x, x[:, :2]), 64), loss="squared")
    (found,) = diagnosis.layers
    assert found.accuracy is None
    assert 0 < found.error < 0.9
    assert "probe accuracy" not in str(diagnosis)


@pytest.mark.filterwarnings("ignore:ConvexReconstruction")
def test_targets_of_each_step_are_not_probed():
    x, y = rows()
    diagnosis = diagnose(Net("all"), [(x, y.expand(4, -1))])
    assert diagnosis.layers[0].error is None
    assert isinstance(diagnosis, Diagnosis)


def test_wrong_arguments_are_refused():
    for arguments in ({"betas": 1.0}, {"dry_run": True}):
        with pytest.raises(MisconfigurationException, match="got unexpected arguments"):
            diagnose(Net(), loader(), **arguments)
    with pytest.raises(MisconfigurationException, match="loss='absolute'"):
        diagnose(Net(), loader(), loss="absolute")


def test_wrong_networks_and_data_are_refused():
    with pytest.raises(MisconfigurationException, match="no spiking layer"):
        diagnose(nn.Linear(6, 3), loader())
    with pytest.raises(MisconfigurationException, match="empty"):
        diagnose(Net(), [])
    with pytest.raises(ValueError, match="NaN"):
        diagnose(Net(), [(torch.full((4, 6), torch.nan), torch.zeros(4).long())])


@pytest.mark.filterwarnings("ignore:ConvexReconstruction")
@pytest.mark.parametrize(("loss", "outputs"), [("squared", 1), ("cross_entropy", 3)])
def test_whole_numbers_are_values_of_a_squared_loss_and_classes_of_others(loss, outputs):
    torch.manual_seed(0)
    x = torch.rand(200, 6)
    y = (3 * x[:, 0]).floor()
    batches = [(x, y[:, None] if loss == "squared" else y.long())]
    (found,) = diagnose(Net(classes=outputs), batches, loss=loss).layers
    assert (found.accuracy is None) == (loss == "squared")
