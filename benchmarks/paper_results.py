"""Collects run folders of the sweeps in ``benchmarks/paper/`` for the repository, and prints their tables.

``cvxsnn ablate -c benchmarks/paper/xor.yaml`` makes ``runs/xor``; ``python benchmarks/paper_results.py runs/xor`` makes
``results/paper/xor.json`` of it: the metrics, epochs and CPU seconds of each cell, the largest certified gap of its
solves and the objective of the last one. Cells that are not finished are left out. ``results/paper/xor.md`` is the
report in Markdown, with intervals and verdicts. ``--page PAGE`` writes the tables into a page, between marks.
"""

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
from common import RESULTS, describe

from lightning_cvxsnn.ablation.report import write_report
from lightning_cvxsnn.ablation.results import Results, read_results

FOLDER = RESULTS / "paper"
_KEPT = ("id", "task", "method", "setting", "seed", "value", "metrics", "epochs", "cpu_seconds", "trained_parameters")


def collect(results: Results) -> dict[str, Any]:
    """What is kept of a run folder: plain values."""
    finished = results.runs[results.runs["state"] == "finished"]
    solves = results.solves if len(results.solves) else pd.DataFrame({"id": [], "gap": [], "primal": []})
    gaps, objectives = solves.groupby("id")["gap"].max(), solves.groupby("id")["primal"].last()
    cells = json.loads(finished[list(_KEPT)].to_json(orient="records", double_precision=6))
    for cell in cells:
        cell["largest_gap"] = float(gaps[cell["id"]]) if cell["id"] in gaps else None
        cell["objective"] = float(objectives[cell["id"]]) if cell["id"] in gaps else None
    machines = finished["machine"].tolist()
    return {
        "machine": describe() | {"cells ran on": machines[0] if machines else {}},
        "metric": results.metric,
        "baseline": results.baseline,
        "cells of the sweep": len(results.runs),
        "cpu_hours": round(float(finished["cpu_seconds"].sum()) / 3600, 3),
        "cells": cells,
    }


def table(collected: dict[str, Any]) -> str:
    """Means over seeds as Markdown: a line for each task and setting, a column for each method."""
    frame = pd.DataFrame(collected["cells"])
    share = 100.0 if "accuracy" in collected["metric"] else 1.0
    frame["row"] = (frame["task"] + ", " + frame["setting"]).str.removesuffix(", ")
    methods = list(dict.fromkeys(frame["method"]))
    lines = [f"| | {' | '.join(methods)} |", "|---|" + "---|" * len(methods)]
    for row in dict.fromkeys(frame["row"]):
        written = []
        for method in methods:
            values = frame.loc[(frame["row"] == row) & (frame["method"] == method), "value"].dropna() * share
            several = f" ({len(values)})" if len(values) > 1 else ""
            digits = 1 if share == 100.0 else 3
            written.append(f"{values.mean():.{digits}f}{several}" if len(values) else "")
        lines.append(f"| {row} | {' | '.join(written)} |")
    return "\n".join(lines)


def fill(page: Path, name: str, text: str) -> None:
    """Replace what stands between ``<!-- paper:name -->`` and its end in a page."""
    begin, end = f"<!-- paper:{name} -->\n", f"<!-- /paper:{name} -->"
    before, _, rest = page.read_text().partition(begin)
    _, found, after = rest.partition(end)
    if found:
        page.write_text(f"{before}{begin}{text}\n{end}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument("--output", type=Path, default=FOLDER)
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for run in options.runs:
        collected = collect(read_results(run))
        if not collected["cells"]:
            continue
        (options.output / f"{run.name}.json").write_text(json.dumps(collected, indent=1) + "\n")
        with TemporaryDirectory() as folder:
            write_report(run, output=folder)
            (options.output / f"{run.name}.md").write_text(Path(folder, "results.md").read_text() + "\n")
        told = f"{len(collected['cells'])} of {collected['cells of the sweep']} cells"
        print(f"\n{run.name}: {collected['metric']}, means over seeds; {told}, {collected['cpu_hours']} CPU hours")
        print(table(collected))
        if options.page:
            fill(options.page, run.name, table(collected))


if __name__ == "__main__":
    main()
