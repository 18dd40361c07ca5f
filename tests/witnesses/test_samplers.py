import pytest
import torch
from networks import Net
from spikingjelly.activation_based import layer
from torch import nn

from lightning_cvxsnn.witnesses.samplers import between, gaussian, is_initialised, pairs, write_gaussian


def test_gaussian_kinds():
    generator = torch.Generator().manual_seed(0)
    standard = gaussian("gaussian_standard", (400, 30), generator)
    assert standard.mean().abs() < 0.03
    assert standard.std() == pytest.approx(1, abs=0.03)
    for kind in ("gaussian_normalized", "gaussian_orthogonal"):
        w = gaussian(kind, (40, 5, 3, 2), generator)
        assert torch.allclose(w.flatten(1).norm(dim=1), torch.ones(40), atol=1e-5)
    assert torch.allclose(w.flatten(1)[:30] @ w.flatten(1)[:30].T, torch.eye(30), atol=1e-5)


def test_gaussian_weights_are_written_with_no_bias_and_repeat():
    nets = [Net() for _ in range(2)]
    state = torch.get_rng_state()
    for net in nets:
        write_gaussian(net, ["hidden.0"], "gaussian_normalized", 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(nets[0].hidden[0].weight, nets[1].hidden[0].weight)
    assert not nets[0].hidden[0].bias.any()


def test_a_pair_is_told_apart():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(3, 30, 4, generator=generator)
    targets = torch.arange(30) % 3
    weight, bias = between(*pairs(inputs, targets, 20, generator))
    for w, b in zip(weight, bias, strict=True):
        currents = inputs @ w + b
        up, down = (currents - 1).abs() < 1e-4, (currents + 1).abs() < 1e-4
        assert any(
            (targets[i] != targets[j])
            for up_t, down_t in zip(up, down, strict=True)
            for i in up_t.nonzero()[:, 0]
            for j in down_t.nonzero()[:, 0]
        )


def test_the_constructors_weights_are_recognised():
    torch.manual_seed(0)
    makers = [
        lambda: nn.Linear(6, 24),
        lambda: layer.Linear(200, 100, bias=False),
        lambda: nn.Conv2d(4, 8, 3, groups=2),
        lambda: layer.Conv1d(3, 5, 7),
    ]
    verdicts = [is_initialised(make()) for make in makers for _ in range(50)]
    assert sum(verdicts) >= 198  # two tests at the level 0.001 for each


def test_a_default_dtype_of_low_precision_changes_nothing():
    torch.manual_seed(0)
    affine = nn.Linear(1000, 1000)
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert is_initialised(affine)
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_few_zero_biases_are_not_a_constructors():
    torch.manual_seed(0)
    affine = nn.Linear(40, 15)
    nn.init.zeros_(affine.bias)
    assert not is_initialised(affine)


def one_outside(affine):
    affine.weight[3, 2] = 1.01 / affine.in_features**0.5


def trained(affine):
    optimizer = torch.optim.Adam(affine.parameters(), lr=1e-3)
    with torch.enable_grad():
        for _ in range(3):
            optimizer.zero_grad()
            affine(torch.rand(20, affine.in_features)).square().sum().backward()
            optimizer.step()


@pytest.mark.parametrize(
    "change",
    [
        one_outside,
        trained,
        lambda affine: affine.bias.zero_(),
        lambda affine: affine.weight.mul_(0.8),
        lambda affine: affine.weight.requires_grad_(False),
        lambda affine: affine.bias.requires_grad_(False),
        nn.init.xavier_normal_,
        nn.init.orthogonal_,
        nn.utils.parametrizations.weight_norm,
    ],
)
def test_weights_of_somebodys_own_are_told_apart(change):
    torch.manual_seed(0)
    affine = nn.Linear(40, 60)
    with torch.no_grad():
        change(affine.weight if "init" in getattr(change, "__module__", "") else affine)
    assert not is_initialised(affine)


@pytest.mark.parametrize("module", [nn.BatchNorm1d(40), nn.ReLU(), nn.utils.weight_norm(nn.Linear(40, 60))])
def test_other_layers_and_computed_weights_are_not_a_constructors(module):
    assert not is_initialised(module)
