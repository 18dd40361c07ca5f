"""How a solve closes its gap: `python examples/certificate.py` (draws `certificate.png`).

The same programme is stopped after ever more iterations. Each time the best objective so far and the lower bound that
is proved by then are kept: the optimum lies between the two.
"""

import sys

import torch
from matplotlib.figure import Figure

from lightning_cvxsnn import DigitsDataModule, LitSNN, calibrate, spike_dictionary
from lightning_cvxsnn.convex import solve


def main(output: str = "certificate.png", most: int = 12) -> list[float]:
    torch.manual_seed(0)
    data, net = DigitsDataModule(), LitSNN(hidden=[64])
    data.setup("fit")
    calibrate(net, data.train_dataloader())
    rows = [(x, y) for x, y in data.train]
    spikes = spike_dictionary(net, [(torch.stack([x for x, _ in rows]), torch.tensor([int(y) for _, y in rows]))])
    labels = torch.tensor([int(y) for _, y in rows])
    options = {"loss": "cross_entropy", "rho": 0.003, "fit_intercept": True}
    stopped = [solve(spikes, labels, max_iterations=count, **options) for count in range(1, most + 1)]
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    steps = range(1, most + 1)
    axes.fill_between(steps, [s.dual for s in stopped], [s.primal for s in stopped], alpha=0.3, color="#e69f00")
    axes.plot(steps, [s.primal for s in stopped], color="#0072b2", label="best objective so far")
    axes.plot(steps, [s.dual for s in stopped], "--", color="#009e73", label="proved lower bound")
    axes.set(xlabel="iterations", ylabel="objective", ylim=(0, None), title="The optimum lies between the two")
    axes.legend()
    figure.savefig(output, dpi=80)
    print(f"gap after {most} iterations: {stopped[-1].gap:.1e}")
    return [s.gap for s in stopped]


if __name__ == "__main__":
    main(*sys.argv[1:])
