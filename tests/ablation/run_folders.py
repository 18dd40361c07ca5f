"""Run folders of ``cvxsnn ablate`` without the runner: made-up figures in the real format."""

import csv
import json
import math
import random
from pathlib import Path

import yaml

SOLVE = {
    "step": 0,
    "loss": "cross_entropy",
    "beta": 0.01,
    "l1_ratio": 0.0,
    "rho": 0.001,
    "scope": "dictionary",
    "rows": 1000,
    "columns": 64,
    "distinct": 60,
    "silent": 2,
    "saturated": 0,
    "active": 58,
    "reason": "better on validation rows",
    "held_out_loss_before": 2.1,
    "held_out_loss_after": 0.4,
    "seconds_patterns": 0.1,
    "seconds_solve": 0.3,
}


def write_sweep(folder: Path, **sweep) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sweep.yaml").write_text(yaml.safe_dump({"baseline": "sg", "metric": "val_accuracy", **sweep}))
    (folder / "cells").mkdir(exist_ok=True)
    return folder


def write_cell(
    folder: Path, method, seed, value=None, *, task="digits", settings=None, stage="run", state="finished", epochs=4
) -> Path:
    """One cell; ``value`` is its val_accuracy at the end, towards which its history climbs."""
    settings = settings or {}
    words = [f"{key.rsplit('.', 1)[-1]}={value}" for key, value in settings.items()]
    name = "-".join(filter(None, [task, method, *words, "choose" if stage == "choose" else "", f"seed={seed}"]))
    cell = folder / "cells" / name
    cell.mkdir()
    order = len(list((folder / "cells").iterdir()))

    def write(file, content):
        (cell / file).write_text(json.dumps(content))

    about = {"id": name, "method": method, "task": task, "seed": seed, "stage": stage, "settings": settings}
    write("cell.json", {**about, "order": order})
    (cell / "config.yaml").write_text(
        yaml.safe_dump({"model": "LitSNN", "trainer": {"max_epochs": epochs}, **settings})
    )
    (cell / "log.txt").write_text("".join(f"epoch {epoch} of {method}\n" for epoch in range(100)))
    if state == "not started":
        return cell
    error = "ValueError: Found lr=-1. Expected a positive number." if state == "failed" else None
    write(
        "state.json",
        {
            "state": state,
            "error": error,
            "attempts": 1,
            "started": "2026-11-28T20:00:00",
            "seconds": 3.5,
            "machine": {"cores": 2},
        },
    )
    if state != "finished":
        return cell
    shown = value if value is not None and math.isfinite(value) else 0.5
    pace, noise = (1.5 if method == "hybrid" else 0.5), random.Random(name)
    with open(cell / "history.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["epoch", "step", "cpu_seconds", "val_accuracy", "val_loss"])
        for epoch in range(epochs + 1):
            accuracy = shown - (shown - 0.1) * math.exp(-pace * epoch) + noise.gauss(0, 0.005) * (epoch < epochs)
            table.writerow([epoch, 10 * epoch, epoch * pace * 1.3, round(accuracy, 6), 1 - accuracy])
    metrics = {"val_accuracy": value, "val_loss": None if value is None else 1 - value}
    write("result.json", {"metrics": metrics, "epochs": epochs, "cpu_seconds": 5.2 * pace, "trained_parameters": 12810})
    solves = [
        SOLVE
        | {"epoch": epoch, "primal": 0.5 / (epoch + 1), "dual": 0.5 / (epoch + 1) - 1e-7, "accepted": epoch < 3}
        | {"gap": 10 ** -noise.uniform(6, 8), "gap_written": 1e-3}
        for epoch in range(epochs + 1)
    ]
    write("reports.json", solves if method == "hybrid" else [])
    return cell


def example(folder: Path, seeds=4) -> Path:
    """Two tasks, three methods, two learning rates: real differences, noise, failed and unfinished cells."""
    write_sweep(folder)
    lead = {"sg": 0.0, "hybrid": 0.06, "lsm": -0.2}
    for task, ease in (("digits", 0.85), ("xor", 0.7)):
        for method in lead:
            for lr in (0.003, 0.01, 0.03):
                for seed in range(seeds):
                    split, own = random.Random(f"{task} {seed}"), random.Random(f"{task} {method} {lr} {seed}")
                    value = (
                        ease
                        + split.gauss(0, 0.02)
                        + own.gauss(0, 0.006)
                        + lead[method] * (task == "digits" or method == "lsm")
                    )
                    state = "finished"
                    if (method, lr, seed, task) == ("lsm", 0.03, 1, "xor"):
                        state = "failed"
                    if (method, lr, task) == ("hybrid", 0.03, "xor") and seed >= 2:
                        state = "running" if seed == 2 else "not started"
                    write_cell(folder, method, seed, value, task=task, settings={"model.init_args.lr": lr}, state=state)
    return folder
