"""The embedded demonstration over several seeds and two depths: `python benchmarks/digits.py` (about 10 minutes).

Surrogate gradients (SG) from default and from calibrated weights, and SG with `ConvexReconstruction()`: same seed,
epochs and learning rate. Then SG from calibrated weights for as many epochs as fit in the callback's wall clock. Prints
medians over seeds and writes results/digits.json.
"""

from dataclasses import asdict
from statistics import median

from common import show, write
from rich.progress import Progress

from lightning_cvxsnn.demo import DemoRow, DemoSettings, run_demo, train

SEEDS = (0, 1, 2)
EPOCHS = 20
LEARNING_RATE = 1e-2
NETWORKS = {"two layers": (128, 128), "nine layers": (128,) * 9}


def run(hidden: tuple[int, ...], seed: int) -> list[DemoRow]:
    rows = run_demo(EPOCHS, hidden, LEARNING_RATE, seed)
    longer = DemoSettings(round(EPOCHS * rows[2].seconds / rows[1].seconds), hidden, LEARNING_RATE, seed)
    with Progress(transient=True) as progress:
        rows.append(train("SG, calibrated, equal time", longer, progress, calibrated=True))
    return rows


def main() -> None:
    results = []
    for network, hidden in NETWORKS.items():
        for rows in zip(*(run(hidden, seed) for seed in SEEDS), strict=True):
            results.append(
                {
                    "network": network,
                    "training": rows[0].name,
                    "epochs": round(median(len(row.validation) for row in rows)),
                    "start": round(100 * median(row.start for row in rows), 1),
                    "epoch_1": round(100 * median(row.validation[0] for row in rows), 1),
                    "epoch_5": round(100 * median(row.validation[4] for row in rows), 1),
                    "end": round(100 * median(row.validation[-1] for row in rows), 1),
                    "test": round(100 * median(row.test for row in rows), 1),
                    "largest_gap": max((row.gap or 0.0) for row in rows),
                    "seconds": round(median(row.seconds for row in rows), 1),
                    "seconds_solves": round(median(row.seconds_solves for row in rows), 1),
                    "runs": [asdict(row) for row in rows],
                }
            )
    shown = [{key: value for key, value in result.items() if key != "runs"} for result in results]
    show(f"digits, median of {len(SEEDS)} seeds; accuracies in %", shown)
    write("digits", {"seeds": SEEDS, "learning_rate": LEARNING_RATE, "rows": results})


if __name__ == "__main__":
    main()
