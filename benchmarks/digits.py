"""The embedded demonstration over several seeds and two depths: `python benchmarks/digits.py` (about 5 minutes).

Surrogate gradients (SG) from default weights, SG from calibrated weights, SG with `ConvexReconstruction()`: same seed,
same epochs, same learning rate. Prints medians over seeds and writes results/digits.json.
"""

from dataclasses import asdict
from statistics import median

from machine import write
from rich.console import Console
from rich.table import Table

from lightning_cvxsnn.demo import run_demo

SEEDS = (0, 1, 2)
EPOCHS = 20
NETWORKS = {"two layers": (128, 128), "nine layers": (128,) * 9}


def main() -> None:
    results = []
    for network, hidden in NETWORKS.items():
        runs = [run_demo(epochs=EPOCHS, hidden=hidden, seed=seed) for seed in SEEDS]
        for rows in zip(*runs, strict=True):
            results.append(
                {
                    "network": network,
                    "training": rows[0].name,
                    "start": round(100 * median(row.start for row in rows), 1),
                    "epoch_1": round(100 * median(row.validation[0] for row in rows), 1),
                    "epoch_5": round(100 * median(row.validation[4] for row in rows), 1),
                    "epoch_20": round(100 * median(row.validation[-1] for row in rows), 1),
                    "test": round(100 * median(row.test for row in rows), 1),
                    "largest_gap": max((row.gap or 0.0) for row in rows),
                    "seconds": round(median(row.seconds for row in rows), 1),
                    "seconds_solves": round(median(row.seconds_solves for row in rows), 1),
                    "runs": [asdict(row) for row in rows],
                }
            )
    table = Table(title=f"digits, median of {len(SEEDS)} seeds, {EPOCHS} epochs; accuracies in %")
    columns = [key for key in results[0] if key != "runs"]
    for column in columns:
        table.add_column(column)
    for result in results:
        table.add_row(*(f"{result[c]:.0e}" if c == "largest_gap" else str(result[c]) for c in columns))
    Console().print(table)
    write("digits", {"seeds": SEEDS, "epochs": EPOCHS, "rows": results})


if __name__ == "__main__":
    main()
