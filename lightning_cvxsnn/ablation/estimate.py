"""What a sweep would train, and how long it would take."""

from collections.abc import Mapping
from pathlib import Path
from statistics import mean

import joblib
from rich.console import Console

from lightning_cvxsnn.ablation.state import is_held, read_state
from lightning_cvxsnn.ablation.sweep import Cell


def spoken(seconds: float) -> str:
    """A duration for people."""
    minutes = seconds / 60
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def show_plan(console: Console, cells: Mapping[Path, Cell], jobs: int) -> None:
    """List cells, and estimate the time of those that are not finished from those that are.

    Args:
        console: Where to.
        cells: By their folders.
        jobs: Cells at a time; -1: as many as there are cores.
    """
    known: dict[tuple[str, str], list[float]] = {}
    states = {place: read_state(place) for place in cells}
    for place, cell in cells.items():
        if (state := states[place]) and state["state"] == "finished":
            known.setdefault((cell.task, cell.method), []).append(state["seconds"])
    total, unknown = 0.0, []
    for place, cell in cells.items():
        state, kind = states[place], (cell.task, cell.method)
        told: str = state["state"] if state else "to train"
        if told == "running" and not is_held(place / "lock"):
            told = "stopped, to train again"
        if told != "finished" and kind in known:
            total += mean(known[kind])
            told += f", about {spoken(mean(known[kind]))}"
        elif told != "finished":
            unknown.append(kind)
        console.print(f"{cell.id}: {told}")
    workers = joblib.cpu_count() if jobs == -1 else jobs
    waiting = sum(not (state and state["state"] == "finished") for state in states.values())
    console.print(f"{len(cells)} cells, {waiting} to train, {workers} at a time.")
    if known:
        console.print(f"About {spoken(total / workers)}, by the finished cells of the same method and task.")
    if unknown:
        kinds = ", ".join(f"{method} on {task}" for task, method in dict.fromkeys(unknown))
        console.print(f"How long a cell takes is not known before one has finished, of {kinds}.")
