"""Run folders of ``cvxsnn ablate`` as pandas frames.

A run folder holds ``sweep.yaml`` and one folder for each cell, ``cells/<id>/``. Cells that were killed, failed or not
begun are read as far as they got: nothing here takes a file for granted.
"""

import csv
import json
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_cvxsnn.ablation.metric_names import better_mode
from lightning_cvxsnn.ablation.state import read_json
from lightning_cvxsnn.ablation.sweep import Sweep

#: From the best to keep to the worst, where two folders have the same cell.
STATES = ("finished", "failed", "running", "not started")


@dataclass(frozen=True)
class Results:
    """What the cells of a sweep left.

    Attributes:
        title: Name of the first run folder.
        metric: The metric that is compared.
        mode: ``"max"`` or ``"min"``: which of two values of it is better.
        baseline: The method that others are compared with; None if there is only one method.
        axes: Dotted keys of the grid that take several values, to the short names that tables use.
        names: All keys of settings, to their short names.
        choose: Key of what each method chose for itself before the sweep; None if nothing was.
        choice_metric: The metric it was chosen by.
        cells: A line for each cell, in the order of the sweep: ``id``, ``method``, ``task``, ``setting`` (the axes in
            words), ``seed``, ``stage``, ``state``, ``error``, ``attempts``, ``seconds``, ``value`` (of the metric; NaN
            where there is none), ``epochs``, ``cpu_seconds``, ``trained_parameters``, ``settings``, ``metrics``,
            ``folder``.
        history: A line for each validation: ``id``, ``epoch``, ``step``, ``cpu_seconds`` and the logged metrics.
        solves: A line for each solve: ``id`` and the fields of its report.
    """

    title: str
    metric: str
    mode: str
    baseline: str | None
    axes: Mapping[str, str]
    names: Mapping[str, str]
    choose: str | None
    choice_metric: str
    cells: pd.DataFrame
    history: pd.DataFrame
    solves: pd.DataFrame

    @property
    def chosen(self) -> str | None:
        """Short name of what was chosen."""
        return None if self.choose is None else self.names[self.choose]

    @property
    def runs(self) -> pd.DataFrame:
        """The cells that are compared: not those that chose a value for the others."""
        return self.cells[self.cells["stage"] == "run"]

    def of_cells(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Lines of ``history`` or ``solves`` of finished runs, beside their cell's method, task, setting and seed."""
        finished = self.runs[self.runs["state"] == "finished"]
        return frame.merge(finished[["id", "method", "task", "setting", "seed"]], on="id")


def read_results(*folders: str | Path) -> Results:
    """Read run folders: those of one sweep, or of its shards.

    Args:
        folders: Run folders. Where two have the same cell, the one that got further counts. Cells that ``sweep.yaml``
            no longer has are left out.

    Returns:
        The frames.

    Raises:
        MisconfigurationException: If a folder is no run folder, or the folders compare different things.
    """
    sweeps = [_read_sweep(Path(folder)) for folder in folders]
    if not sweeps:
        raise MisconfigurationException("Found no folder. Expected at least one: name a run folder of cvxsnn ablate.")
    for folder, sweep in zip(folders, sweeps, strict=True):
        differing = [key for key in ("metric", "mode", "baseline", "choose") if sweep.get(key) != sweeps[0].get(key)]
        if differing:
            raise MisconfigurationException(
                f"Found another {differing[0]} in {folder} than in {folders[0]}. Expected shards of one sweep: write a "
                "report for each."
            )
    cells: dict[str, dict[str, Any]] = {}
    for folder, sweep in zip(folders, sweeps, strict=True):
        places = sorted((Path(folder) / "cells").iterdir())
        wanted = _wanted(sweep)
        for cell in map(_read_cell, [place for place in places if wanted is None or place.name in wanted]):
            if cell is not None and _further(cell, cells.get(cell["id"])):
                cells[cell["id"]] = cell
    if not cells:
        raise MisconfigurationException(
            f"Found no cell in {folders[0]}. Expected a sweep that was begun: run it first."
        )
    ordered = sorted(cells.values(), key=lambda cell: (cell["stage"] == "run", cell["order"], cell["id"]))
    return _results(Path(folders[0]).resolve().name, sweeps[0], ordered)


def _read_sweep(folder: Path) -> dict[str, Any]:
    if not (folder / "cells").is_dir():
        raise MisconfigurationException(f"Found no cells/ in {folder}. Expected a run folder of cvxsnn ablate.")
    path = folder / "sweep.yaml"
    sweep = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    return sweep if isinstance(sweep, dict) else {}


def _wanted(sweep: Mapping[str, Any]) -> set[str] | None:
    """The cells of a sweep: a run folder may hold those of an earlier one; None where the file does not tell."""
    if "methods" not in sweep:
        return None
    try:
        read = Sweep(sweep)
        return {cell.id for cell in [*read.choosing(), *read.cells()]}
    except MisconfigurationException:
        return None  # of a version with other keys


def _read_cell(folder: Path) -> dict[str, Any] | None:
    """One cell's line; None if the folder is none."""
    cell, state, result = (_mapping(folder / f"{name}.json") for name in ("cell", "state", "result"))
    if not cell:
        return None
    finished = state.get("state") == "finished"
    return {
        "id": str(cell["id"]),
        "method": str(cell["method"]),
        "task": str(cell.get("task") or ""),
        "seed": cell.get("seed"),
        "stage": cell.get("stage", "run"),
        "order": cell.get("order", 0),
        "settings": cell.get("settings") or {},
        "choice": cell.get("chosen") or {},
        "state": state.get("state", STATES[-1]),
        "error": state.get("error") or "",
        "attempts": state.get("attempts", 0),
        "seconds": state.get("seconds"),
        "started": state.get("started") or "",
        "machine": state.get("machine") or {},
        "metrics": result.get("metrics", {}) if finished else {},
        **{name: result.get(name) if finished else None for name in ("epochs", "cpu_seconds", "trained_parameters")},
        "folder": folder,
    }


def _mapping(path: Path) -> dict[str, Any]:
    found = read_json(path)
    return found if isinstance(found, dict) else {}


def _further(cell: Mapping[str, Any], other: Mapping[str, Any] | None) -> bool:
    return other is None or STATES.index(cell["state"]) < STATES.index(other["state"])


def read_history(path: Path) -> pd.DataFrame:
    """A cell's ``history.csv`` or Lightning's ``metrics.csv``; a line that was not written to its end is left out."""
    if not path.exists():
        return pd.DataFrame()
    with open(path, newline="") as file:
        header, *lines = [*csv.reader(file)] or [[]]
    frame = pd.DataFrame([line for line in lines if len(line) == len(header)], columns=header)
    return frame.apply(pd.to_numeric, errors="coerce")


def read_reports(folder: Path) -> list[dict[str, Any]]:
    """``reports.json`` of a cell: its solves."""
    found = read_json(folder / "reports.json")
    return found if isinstance(found, list) else []


def _results(title: str, sweep: Mapping[str, Any], cells: list[dict[str, Any]]) -> Results:
    choice = sweep.get("choose") or {}
    choose = choice.get("key")
    names = _short_names({key: None for cell in cells for key in cell["settings"]} | ({choose: None} if choose else {}))
    axes = {key: name for key, name in names.items() if key != choose and _varies(cells, key)}
    metric = sweep.get("metric") or _metric(cells)
    settings = _settings_in_words(cells, axes)
    for cell, setting in zip(cells, settings, strict=True):
        cell["setting"] = setting
        cell["value"] = cell["metrics"].get(metric)
        cell["chosen"] = cell["choice"].get(choose)
    frame = pd.DataFrame(cells)
    for name in ("value", "epochs", "cpu_seconds", "trained_parameters", "seconds"):
        frame[name] = pd.to_numeric(frame[name], errors="coerce").astype(float)
    frame["value"] = frame["value"].where(frame["value"].abs() < float("inf"))  # a metric that diverged is none
    methods = list(dict.fromkeys(frame.loc[frame["stage"] == "run", "method"]))
    return Results(
        title=title,
        metric=metric,
        mode=sweep.get("mode") or better_mode(metric),
        baseline=sweep.get("baseline") or (methods[0] if len(methods) > 1 else None),
        axes=axes,
        names=names,
        choose=choose,
        choice_metric=choice.get("metric") or metric,
        cells=frame,
        history=_stack({cell["id"]: read_history(cell["folder"] / "history.csv") for cell in cells}),
        solves=_stack({cell["id"]: pd.DataFrame(read_reports(cell["folder"])) for cell in cells}),
    )


def _stack(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    kept = [frame.assign(id=name) for name, frame in frames.items() if len(frame)]
    return pd.concat(kept, ignore_index=True) if kept else pd.DataFrame({"id": pd.Series(dtype=str)})


def _varies(cells: Iterable[Mapping[str, Any]], key: str) -> bool:
    return len({words(cell["settings"].get(key)) for cell in cells if cell["stage"] == "run"}) > 1


def _settings_in_words(cells: Iterable[Mapping[str, Any]], axes: Mapping[str, str]) -> list[str]:
    """The setting of each cell; in full where the short words of two would be the same."""
    exact = [{key: value for key, value in cell["settings"].items() if key in axes} for cell in cells]
    short = [", ".join(f"{axes[key]} = {words(value)}" for key, value in one.items()) for one in exact]
    full = [json.dumps(one, sort_keys=True) for one in exact]
    meant = {text: {f for s, f in zip(short, full, strict=True) if s == text} for text in set(short)}
    return [s if len(meant[s]) == 1 else f for s, f in zip(short, full, strict=True)]


def _short_names(keys: Iterable[str]) -> dict[str, str]:
    """The last part of each dotted key, or all of it where another key, or a column of tables, is called so too."""
    listed = list(keys)
    last = [key.rsplit(".", 1)[-1] for key in listed]
    taken = [*last, "task", "method", "seed", "seeds", "epochs", "mean", "low", "high", "p", "pairs"]
    return {key: short if taken.count(short) == 1 else key for key, short in zip(listed, last, strict=True)}


def _metric(cells: Iterable[Mapping[str, Any]]) -> str:
    """Test accuracy where there is one, else validation accuracy, else the first metric of all."""
    names = dict.fromkeys(name for cell in cells for name in cell["metrics"])
    return next((name for name in ("test_accuracy", "val_accuracy", *names) if name in names), "val_accuracy")


def words(value: Hashable | list[Any]) -> str:
    """A value of a setting, as one writes it.

    Example:
        >>> words(0.01), words(1e-05), words([256, 512]), words("lightning_cvxsnn.LitSNN"), words(True)
        ('0.01', '1e-05', '256, 512', 'LitSNN', 'true')
    """
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, dict):
        return words(value["class_path"]) if "class_path" in value else json.dumps(value)
    if isinstance(value, (list, tuple)):
        return ", ".join(words(each) for each in value)
    if isinstance(value, float):
        return f"{value:g}"
    text = str(value)
    package, _, last = text.rpartition(".")
    return last if package and last.isidentifier() and "/" not in text else text
