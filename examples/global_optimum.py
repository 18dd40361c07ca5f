"""How often surrogate gradients miss the global optimum: `python examples/global_optimum.py`.

Ten points in the plane, shown for two steps, labelled at random: so few that every spike train a LIF unit can have
is enumerated, and the optimum over *all* one-layer networks of any width is certified. 100 networks of equal
width are then trained with surrogate gradients on the same objective (cross-entropy plus L1 on the readout), with the
learning rate and the size of the initial weights chosen on other seeds, and their readouts are re-solved exactly in the
end. Prints how many stay more than 1 % above the optimum and draws them (`global_optimum.png`, needs matplotlib).
"""

import argparse
from itertools import product
from pathlib import Path

import torch
from spikingjelly.activation_based import neuron, surrogate
from torch import Tensor

from lightning_cvxsnn.convex import solve
from lightning_cvxsnn.network import reset_neurons
from lightning_cvxsnn.patterns import Neuron
from lightning_cvxsnn.witnesses.optimum import network_optimum

STEPS, ROWS, RHO = 2, 10, 0.01
RATES, SIZES = (0.03, 0.1, 0.3, 1.0), (1.0, 3.0, 10.0, 30.0, 100.0)


def task() -> tuple[Tensor, Tensor]:
    """Points `[T, N, 2]`, the same at every step, and their labels."""
    points = torch.rand(ROWS, 2, generator=torch.Generator().manual_seed(0)) * 4 - 2
    labels = torch.randint(2, (ROWS,), generator=torch.Generator().manual_seed(3))
    return points.expand(STEPS, ROWS, 2), labels


def train(runs: int, width: int, epochs: int, rate: float, size: float, seed: int) -> tuple[Tensor, Tensor]:
    """Objectives `[runs]` of networks trained side by side, before and after their readouts are re-solved."""
    x, labels = task()
    generator = torch.Generator().manual_seed(seed)
    hidden = (size * torch.randn(runs, 3, width, generator=generator)).requires_grad_()
    readout = (torch.randn(runs, width, 1, generator=generator) / width**0.5).requires_grad_()
    intercept = torch.zeros(runs, 1, 1, requires_grad=True)
    lif = neuron.LIFNode(tau=2.0, surrogate_function=surrogate.ATan(), step_mode="m")
    optimizer = torch.optim.Adam([hidden, readout, intercept], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    inputs = torch.cat([x, torch.ones_like(x[..., :1])], 2)
    target = labels[:, None].float().expand(runs, ROWS, 1)

    def rates() -> Tensor:
        reset_neurons(lif)
        return lif(torch.einsum("tnf,rfm->trnm", inputs, hidden)).mean(0)

    def objectives(received: Tensor) -> Tensor:
        outputs = received @ readout + intercept
        loss = torch.nn.functional.binary_cross_entropy_with_logits(outputs, target, reduction="none")
        return loss.mean((1, 2)) + RHO * readout.abs().sum((1, 2))

    best = torch.full((runs,), float("inf"))
    kept = torch.zeros(runs, ROWS, width)
    for _ in range(epochs):
        received = rates()
        values = objectives(received)
        better = values.detach() < best
        best, kept[better] = torch.where(better, values.detach(), best), received.detach()[better]
        optimizer.zero_grad()
        values.sum().backward()
        optimizer.step()
        schedule.step()
    options = {"loss": "cross_entropy", "rho": RHO, "fit_intercept": True, "num_outputs": 1}
    return best, torch.tensor([solve(each, labels, **options).primal for each in kept])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=1000)
    parser.add_argument("--output", type=Path, default=Path("global_optimum.png"))
    options = parser.parse_args()
    x, labels = task()
    best = network_optimum(
        Neuron(tau=2.0), x, labels, kind="mean", loss="cross_entropy", rho=RHO, bias=True, fit_intercept=True,
        num_outputs=1,
    )  # fmt: skip
    optimum, width = best.solution.primal, 4 * len(best.weight)
    print(
        f"Certified optimum of all one-layer networks: {optimum:.6f}, gap {best.solution.gap:.1e}, attained by "
        f"{len(best.weight)} units out of {best.dictionary.shape[1]} attainable columns ({best.trains} spike trains)."
    )
    trials = max(options.runs // 5, 2)
    scores = {
        (rate, size): float(train(trials, width, options.epochs, rate, size, seed=1)[0].median())
        for rate, size in product(RATES, SIZES)
    }
    rate, size = min(scores, key=scores.__getitem__)
    trained, solved = train(options.runs, width, options.epochs, rate, size, seed=2)
    print(f"{options.runs} networks of {width} units, Adam at {rate}, initial weights of size {size}:")
    for name, values in (("surrogate gradients", trained), ("the same, readout re-solved", solved)):
        excess = values / optimum - 1
        print(
            f"  {name}: {int((excess > 0.01).sum())} of {options.runs} stay more than 1 % above the optimum; "
            f"median {excess.median():.1%}, best {excess.min():.2%}, worst {excess.max():.1%}"
        )
    draw(options.output, trained / optimum - 1, solved / optimum - 1)


def draw(path: Path, trained: Tensor, solved: Tensor) -> None:
    """Sorted excess over the optimum, a point for each network."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for values, label in ((trained, "surrogate gradients"), (solved, "the same, readout re-solved")):
        axes.plot(100 * values.clamp_min(1e-6).sort().values, ".", label=label)
    axes.axhline(1, color="gray", linestyle="--", linewidth=1)
    axes.set(yscale="log", xlabel="network, sorted", ylabel="% above the certified optimum")
    axes.legend()
    figure.savefig(path, dpi=120)
    print(f"Drawn: {path}")


if __name__ == "__main__":
    main()
