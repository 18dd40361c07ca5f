"""Draws the pictures of the pages into docs/pages/img: `python docs/draw.py` (about two minutes).

Those of the examples come from the examples themselves, those of the results from benchmarks/results.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.figure import Figure

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "docs/pages/img"
EXAMPLES = ("quick_start", "dead_layers", "dictionary", "certificate", "own_module", "own_loader", "shown")
LIMIT = 30  # points ahead that are drawn
COLOURS = {"default": "#999999", "calibrated": "#e69f00", "callback": "#0072b2", "ahead": "#009e73"}


def results(name: str) -> Any:
    """What a benchmark has measured."""
    found = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text())
    return found.get("results", found)


def panels(width: float, height: float, titles: list[str], columns: int = 9) -> Iterator[Any]:
    """A panel for each title, in rows of that height; after the last one is drawn, a legend above them all."""
    columns = min(columns, len(titles))
    rows = -(-len(titles) // columns)
    figure = Figure(figsize=(width, height * rows), layout="constrained")
    every = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in every[len(titles) :]:
        axes.set_axis_off()
    for axes, title in zip(every, titles, strict=False):
        axes.set_title(title, fontsize="medium" if len(title) < 30 else "x-small")
        axes.grid(alpha=0.25)
        yield axes
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)


def digits() -> Figure:
    """Validation accuracy over epochs, of two networks, means over seeds."""
    rows = results("digits")["rows"]
    networks = list(dict.fromkeys(row["network"] for row in rows))
    for axes, network in zip(panels(9, 3.6, networks), networks, strict=True):
        for row in rows:
            if row["network"] != network or "equal time" in row["training"]:
                continue
            kind = next(k for k in ("default", "calibrated", "callback") if k in row["training"] or k == "callback")
            curves = [[run["start"], *run["validation"]] for run in row["runs"]]
            values = [100 * mean(each) for each in zip(*curves, strict=True)]
            axes.plot(range(len(values)), values, color=COLOURS[kind], label=row["training"])
        axes.set(xlabel="epochs", ylim=(0, 100))
        if network == networks[0]:
            axes.set_ylabel("validation accuracy, %")
    return axes.figure


def compared() -> tuple[Any, list[str]]:
    """The fair comparison, and the tasks that were run."""
    sys.path.append(str(ROOT / "benchmarks"))
    from fair_arms import OURS
    from fair_summary import Summary
    from fair_tasks import TASKS

    summary = Summary(results("fair")["runs"])
    return summary, [task for task in TASKS if summary.figures(task, OURS).get(OURS)]


def fair() -> Figure:
    """Test accuracy over epochs on the tasks of the fair comparison, each side at its own best."""
    summary, tasks = compared()
    from fair_arms import OURS

    for axes, task in zip(panels(12, 2.6, tasks, columns=4), tasks, strict=True):
        sg = summary.reference(task)
        for name, label, colour in ((sg, "SG at its best", "calibrated"), (OURS, OURS, "callback")):
            runs = list(summary.paired(task, name, summary.chosen(task, name)).values())
            epochs = [point["epoch"] for point in runs[0]["points"]]
            values = [mean(run["points"][k]["test"] for run in runs) for k in range(len(epochs))]
            axes.plot(epochs, values, ".-", color=COLOURS[colour], label=label)
        axes.set(xlabel="epochs", ylim=(0, 100))
    axes.figure.axes[0].set_ylabel("test score, %")
    return axes.figure


def gains() -> Figure:
    """A line for each task: both sides before training and at the end, and the difference with its interval."""
    summary, tasks = compared()
    from fair_arms import OURS, OURS_IN_TIME
    from fair_summary import interval

    figure = Figure(figsize=(12, 1.3 + 0.27 * len(tasks)), layout="constrained")
    scores, ahead = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for place, task in enumerate(tasks):
        found = summary.figures(task, OURS)
        for arm, label, colour, shift in (("SG", "SG", "calibrated", 0.13), (OURS, OURS, "callback", -0.13)):
            start, end = (mean(run[look] for run in found[arm]) for look in ("start", "end"))
            first = {"label": label} if place == 0 else {}
            scores.plot([start, end], [place + shift] * 2, color=COLOURS[colour], lw=1)
            scores.plot(start, place + shift, "o", color=COLOURS[colour], mfc="white", ms=4)
            scores.plot(end, place + shift, "o", color=COLOURS[colour], ms=5, **first)
        arms = ((OURS, "as many epochs", "callback", 0.13), (OURS_IN_TIME, "as much CPU time", "ahead", -0.13))
        for arm, label, colour, shift in arms:
            if differences := summary.differences(task, arm).get("end"):
                centre, half = interval(differences)
                first = {"label": label} if place == 0 else {}
                ahead.errorbar(centre, place + shift, xerr=half, fmt="o", color=COLOURS[colour], ms=4, lw=1, **first)
                if centre > LIMIT:
                    ahead.annotate(f"{centre:+.0f} →", (LIMIT - 1, place), ha="right", va="center", fontsize="small")
    scores.set(
        xlabel="test score, %: before training (hollow), at the end", xlim=(-3, 100), ylim=(-0.7, len(tasks) - 0.3)
    )
    scores.set_yticks(range(len(tasks)), tasks)
    scores.invert_yaxis()
    ahead.axvline(0, color="0.5", lw=1)
    ahead.set(xlabel="points ahead, 95 % intervals", xlim=(-LIMIT, LIMIT))
    for axes in (scores, ahead):
        axes.grid(alpha=0.25)
        axes.legend(
            loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False, fontsize="small", columnspacing=1
        )
    return figure


def depth() -> Figure:
    """Test accuracy on sequential MNIST over the number of layers, before training and at the end; a dot is a seed."""
    summary, tasks = compared()
    from fair_arms import OURS

    counted = {task: int(found[1]) for task in tasks if (found := re.fullmatch(r"mnist mean, (\d+) layers?", task))}
    figure = Figure(figsize=(8, 3.8), layout="constrained")
    axes = figure.subplots()
    for arm, label, colour in (("SG", "SG at its best", "calibrated"), (OURS, OURS, "callback")):
        found = {task: summary.figures(task, OURS)[arm] for task in sorted(counted, key=lambda task: counted[task])}
        for look, style in (("start", {"ls": ":", "mfc": "white"}), ("end", {"label": label})):
            values = [mean(run[look] for run in runs) for runs in found.values()]
            axes.plot([counted[task] for task in found], values, marker="o", color=COLOURS[colour], ms=5, **style)
        for task, runs in found.items():
            axes.plot([counted[task]] * len(runs), [run["end"] for run in runs], ".", color=COLOURS[colour], alpha=0.5)
    layers = sorted(counted.values())
    axes.set(xscale="log", xlabel="spiking layers", ylabel="test accuracy, %", ylim=(0, 100), xticks=layers)
    axes.set_xticks(layers, [str(count) for count in layers])
    axes.minorticks_off()
    axes.grid(alpha=0.25)
    axes.legend(loc="center left")
    return figure


def witnesses() -> Figure:
    """Validation accuracy over epochs from several starts, a panel a network."""
    networks = {"512": "512 units", "256-512": "256 and 512", "-".join(["256"] * 9): "nine of 256"}
    networks["conv32"] = "32 channels"
    kinds = {"SG, default weights": "default", "SG, calibrated weights": "calibrated"}
    kinds |= {"auto": "callback", "priced": "ahead"}
    for axes, widths in zip(panels(11, 3.4, list(networks.values())), networks, strict=True):
        for row in results(f"witnesses-mnist-{widths}")["results"]:
            if (kind := row["witnesses"]) in kinds:
                points = sorted((int(epoch), score) for epoch, score in row["validation"].items())
                axes.plot(*zip(*points, strict=True), ".-", color=COLOURS[kinds[kind]], label=kind)
        axes.set(xlabel="epochs", ylim=(0, 100))
    axes.figure.axes[0].set_ylabel("validation accuracy, %")
    return axes.figure


def ablations() -> Figure:
    """The paper's ablations: accuracy over rows, the objective over branches, accuracy over beta and over the leak."""
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    rows, branches, penalty, leak = figure.subplots(1, 4)
    for axes, title in zip(figure.axes, ("rows", "branches", "penalty", "leak"), strict=True):
        axes.set_title(title)
        axes.grid(alpha=0.25)
    for method, label, colour in (("sg", "SG", "calibrated"), ("hybrid", "ConvexReconstruction()", "callback")):
        cells = [cell for cell in results("paper/rows")["cells"] if cell["method"] == method]
        points = sorted((int(cell["setting"].split("=")[-1]), 100 * cell["value"]) for cell in cells)
        rows.plot(*zip(*points, strict=True), ".-", color=COLOURS[colour], label=label)
    rows.set(xscale="log", xlabel="training rows", ylabel="accuracy, %")
    rows.legend()
    cells = results("paper/branches")["cells"]
    points = sorted((int(setting(cell)["branches"]), cell["objective"]) for cell in cells)
    branches.plot(*zip(*points, strict=True), ".-", color=COLOURS["callback"])
    branches.axvline(201, color=COLOURS["default"], linestyle=":")
    branches.annotate("n + 1", (201, max(y for _, y in points)), ha="right", va="top")
    branches.set(xscale="log", xlabel="branches", ylabel="objective")
    for task, colour in (("digits", "default"), ("xor-t8-l5", "callback")):
        cells = [cell for cell in results("paper/beta")["cells"] if cell["task"] == task]
        points = sorted((float(setting(cell)["beta"]), 100 * cell["value"]) for cell in cells)
        penalty.plot(*zip(*points, strict=True), ".-", color=COLOURS[colour], label=task)
    penalty.set(xscale="log", xlabel="beta", ylabel="accuracy, %")
    penalty.legend()
    cells = [cell for cell in results("paper/neuron")["cells"] if cell["task"] == "addition-base3"]
    for threshold in sorted({setting(cell)["v_threshold"] for cell in cells}, key=float):
        own = [cell for cell in cells if setting(cell)["v_threshold"] == threshold]
        points = sorted((1 - 1 / float(setting(cell)["tau"]), 100 * cell["value"]) for cell in own)
        leak.plot(*zip(*points, strict=True), ".-", label=f"threshold {threshold}")
    leak.set(xlabel="share of the voltage that is kept", ylabel="accuracy, %")
    leak.legend()
    return figure


def configurations() -> Figure:
    """Configurations drawn at random: the callback's end against the better start of surrogate gradients."""
    for axes, start in zip(
        panels(8, 4.8, ["default weights", "calibrated weights"]), ("sg", "sg-calibrated"), strict=True
    ):
        for name, label, colour in (("robustness", "digits", "callback"), ("robustness-mnist", "MNIST", "ahead")):
            ends: dict[str, dict[str, float]] = {}
            for cell in results(f"paper/{name}")["cells"]:
                ends.setdefault(cell["setting"], {})[cell["method"]] = 100 * cell["value"]
            points = [(end[start], end["hybrid"]) for end in ends.values() if {start, "hybrid"} <= end.keys()]
            axes.plot(*zip(*points, strict=True), "o", color=COLOURS[colour], label=label, alpha=0.8)
        axes.plot([0, 100], [0, 100], color=COLOURS["default"], linestyle=":")
        axes.set(xlabel="SG, test accuracy, %", xlim=(0, 100), ylim=(0, 100), aspect="equal")
    axes.figure.axes[0].set_ylabel("ConvexReconstruction(), %")
    return axes.figure


def setting(cell: dict[str, Any]) -> dict[str, str]:
    """``a = 1, b = 2`` of a cell by names."""
    return dict(part.split(" = ") for part in cell["setting"].split(", "))


def one_fit() -> Figure:
    """What is trained and what is shown in a fit of three epochs, as a sketch."""
    figure = Figure(figsize=(9, 3.1), layout="constrained")
    axes = figure.subplots()
    trained, shown, blue = COLOURS["calibrated"], COLOURS["callback"], {"color": COLOURS["callback"]}
    arrow = {"arrowstyle": "->", "lw": 1.5, "shrinkA": 8, "shrinkB": 8}
    for epoch in range(4):
        axes.plot(epoch, 0, "o", color=trained, markersize=11)
        axes.plot(epoch, 1, "s", color=shown, markersize=11)
        axes.annotate("", (epoch, 1), (epoch, 0), arrowprops=arrow | blue)
        axes.annotate("solve", (epoch - 0.03, 0.5), ha="right", va="center", **blue)
        if epoch < 3:
            start = epoch + 0.18 * (epoch > 0)
            axes.plot([start, epoch + 1], [0, 0], color=trained, zorder=0)
            axes.annotate(f"epoch {epoch + 1}", (epoch + 0.6, -0.08), ha="center", va="top", color=trained)
        if epoch in (1, 2):
            axes.annotate("", (epoch + 0.18, 0), (epoch, 1), arrowprops=arrow | blue | {"linestyle": "--"})
            axes.annotate("drawn 0.3\nof the way", (epoch + 0.14, 0.45), va="center", fontsize="small", **blue)
    told = (
        "shown until the\nfirst step",
        "validated\nand saved",
        "validated\nand saved",
        "validated, saved,\nleft at the end",
    )
    for epoch, words in enumerate(told):
        axes.annotate(words, (epoch, 1.12), ha="center", va="bottom", fontsize="small")
    axes.set(xlim=(-0.4, 3.4), ylim=(-0.35, 1.6))
    axes.set_yticks([0, 1], ["the trained\nreadout W", "the solution W*"])
    axes.set_xticks([])
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(length=0)
    return figure


def main() -> None:
    """Draw them all, or with ``--results`` those of the results."""
    PICTURES.mkdir(exist_ok=True)
    for draw in (digits, fair, gains, depth, witnesses, ablations, configurations, one_fit):
        draw().savefig(PICTURES / f"{draw.__name__}.png", dpi=90)
    if "--results" not in sys.argv:
        for name in EXAMPLES:
            subprocess.run([sys.executable, ROOT / f"examples/{name}.py", PICTURES / f"{name}.png"], check=True)
        command = [ROOT / "examples/global_optimum.py", "--output", PICTURES / "global_optimum.png"]
        subprocess.run([sys.executable, *command], check=True)


if __name__ == "__main__":
    main()
