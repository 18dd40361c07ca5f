import copy

import pytest
import torch
from torch import nn

from lightning_cvxsnn.network.transaction import all_or_nothing


def trained(optimizer_class=torch.optim.Adam, **options):
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = optimizer_class(net.parameters(), lr=0.1, **options)

    def closure():
        optimizer.zero_grad()
        loss = net(torch.ones(5, 3) * torch.arange(5)[:, None]).square().sum()
        loss.backward()
        return loss

    for _ in range(2):
        optimizer.step(closure)
    return net, optimizer


def everything(net, optimizer):
    return copy.deepcopy((net.state_dict(), optimizer.state_dict(), [p.grad for p in net.parameters()]))


def assert_same(left, right):
    torch.testing.assert_close(left, right, rtol=0, atol=0)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_rolls_everything_back(error):
    net, optimizer = trained()
    before = everything(net, optimizer)
    with pytest.raises(error), torch.no_grad(), all_or_nothing(net, [optimizer]) as transaction:
        net[0].weight.add_(1)
        net[1].running_mean.add_(1)
        transaction.forget_history(transaction.changed())
        raise error
    assert_same(before, everything(net, optimizer))


def test_only_what_was_written_forgets_its_history():
    net, optimizer = trained()
    with torch.no_grad(), all_or_nothing(net, [optimizer]) as transaction:
        net[2].weight.add_(1)
        transaction.forget_history(transaction.changed())
    assert net[2].weight not in optimizer.state
    assert net[2].weight.grad is None
    assert net[2].bias in optimizer.state
    assert net[0].weight.grad is not None


def test_adam_without_its_history_does_not_move_written_weights_by_itself():
    net, optimizer = trained()
    with torch.no_grad(), all_or_nothing(net, [optimizer]) as transaction:
        net[2].weight.zero_()
        transaction.forget_history(transaction.changed())
    net[2].weight.grad = torch.zeros_like(net[2].weight)
    optimizer.step()
    assert torch.equal(net[2].weight, torch.zeros(2, 4))


def test_lbfgs_forgets_its_one_history():
    net, optimizer = trained(torch.optim.LBFGS)
    assert optimizer.state
    with torch.no_grad(), all_or_nothing(net, [optimizer]) as transaction:
        net[2].weight.add_(1)
        transaction.forget_history(transaction.changed())
    assert not optimizer.state


def test_the_optimizer_goes_on_after_a_roll_back():
    net, optimizer = trained()
    twin, twin_optimizer = trained()
    twin.load_state_dict(net.state_dict())
    twin_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    with pytest.raises(RuntimeError), torch.no_grad(), all_or_nothing(net, [optimizer]) as transaction:
        net[0].weight.add_(1)
        transaction.forget_history(transaction.changed())
        raise RuntimeError
    for network, steps in ((net, optimizer), (twin, twin_optimizer)):
        steps.zero_grad()
        network(torch.ones(5, 3)).sum().backward()
        steps.step()
    assert_same(net.state_dict(), twin.state_dict())
