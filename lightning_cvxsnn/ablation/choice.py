"""The best value of a key for each arm, from the cells that tried them."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning_cvxsnn.ablation.state import metric_of
from lightning_cvxsnn.ablation.sweep import Cell, Sweep


def choose_values(
    sweep: Sweep, tried: list[Cell], place: Callable[[Cell], Path]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Choose the value with the best mean of the metric over the seeds of the choice; of equals the first.

    Args:
        sweep: The sweep.
        tried: Its cells of the choice.
        place: A cell's folder.

    Returns:
        The value of each arm, and what is wrong with each arm that has none: no value was tried with success.
    """
    if sweep.choose is None:
        return {}, {}
    metric, sign = sweep.choose["metric"], 1 if sweep.choose["mode"] == "max" else -1
    chosen: dict[str, Any] = {}
    missing: dict[str, str] = {}
    for arm in dict.fromkeys(cell.arm for cell in tried):
        means = []
        for value in sweep.choose["values"]:
            cells = [cell for cell in tried if cell.arm == arm and cell.chosen[sweep.choose["key"]] == value]
            found = [metric_of(place(cell), metric) for cell in cells]
            known = [each for each in found if each is not None and math.isfinite(each)]
            if known and len(known) == len(cells):  # a value that fails for some seed is not one to choose
                means.append((sign * sum(known) / len(known), value))
        if means:
            best = max(mean for mean, _ in means)
            chosen[arm] = next(value for mean, value in means if mean == best)
        else:
            missing[arm] = f"No value of {sweep.choose['key']} could be chosen: no cell of the choice gave {metric}."
    return chosen, missing
