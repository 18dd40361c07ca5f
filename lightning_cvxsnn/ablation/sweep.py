"""A sweep: one YAML file read, checked and unfolded into cells."""

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_cvxsnn.ablation.metric_names import better_mode, words_of
from lightning_cvxsnn.ablation.overrides import Config, NotInListError, with_overrides
from lightning_cvxsnn.ablation.reading import check_keys, distinct, mapping_of, named, read_yaml

_KEYS = (
    "base", "tasks", "methods", "grid", "list", "seeds", "seed_keys", "baseline", "metric", "mode", "choose", "threads",
)  # fmt: skip
#: What a cell's Trainer is given where the sweep does not say otherwise.
_TRAINER = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}

#: Keys of a Trainer whose null, which ``--print_config`` writes, says nothing.
_UNSAID = {*_TRAINER, "default_root_dir", "callbacks"}

Point = tuple[dict[str, Any], dict[str, Any]]  # settings by the names of their axes, and overrides


@dataclass(frozen=True)
class Cell:
    """One run of one method: what ``cell.json`` holds, and its configurations.

    Attributes:
        id: Name of its folder.
        method: Name of the method.
        task: Name of the task.
        seed: Seed of weights and batches.
        stage: ``"choose"`` for a cell that only serves to choose a value, else ``"run"``.
        settings: Values by the names of the axes.
        order: Its place in the sweep.
        chosen: The value that was chosen for this cell, by its key; empty where nothing is chosen.
        threads: Threads of torch.
        parts: Of each stage the part of the training rows that it sees, ``[i, n]``; None: all.
        configs: Of each stage the configuration of LightningCLI.
    """

    id: str
    method: str
    task: str
    seed: int
    stage: Literal["choose", "run"]
    settings: dict[str, Any]
    order: int
    chosen: dict[str, Any]
    threads: int
    parts: list[list[int] | None]
    configs: list[Config]

    @property
    def arm(self) -> str:
        """What a value is chosen for: method, task and settings, but not the seed."""
        settings = {name: value for name, value in self.settings.items() if name not in self.chosen}
        return json.dumps([self.task, self.method, settings], sort_keys=True)

    def record(self) -> dict[str, Any]:
        """``cell.json``."""
        return {name: value for name, value in vars(self).items() if name != "configs"}


class Sweep:
    """What is trained, from a mapping as `read_sweep` reads it.

    Args:
        given: The keys of a sweep file; ``base`` is a mapping.

    Attributes:
        resolved: The same with presets written out and defaults filled in.

    Raises:
        MisconfigurationException: For anything wrong, in one sentence.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        check_keys(given, _KEYS, "the sweep")
        if not given.get("methods"):
            raise MisconfigurationException("Found no methods. Expected 'methods:', names with their overrides.")
        self.base = with_overrides({}, mapping_of(given.get("base") or {}, "base"), "base")
        self.methods = named(given["methods"], "methods")
        self.tasks = named(given.get("tasks") or {_task_of(self.base): {}}, "tasks")
        self.grid, self.list = given.get("grid") or {}, given.get("list") or []
        self.seeds = _seeds(given.get("seeds", [0]), "seeds")
        self.seed_keys = given.get("seed_keys") or []
        if not isinstance(self.seed_keys, list) or not all(isinstance(key, str) for key in self.seed_keys):
            raise MisconfigurationException(f"Found seed_keys: {self.seed_keys!r}. Expected a list of dotted keys.")
        self.baseline = given.get("baseline", next(iter(self.methods)))
        if not isinstance(self.baseline, str) or self.baseline not in self.methods:
            raise MisconfigurationException(
                f"Found baseline {self.baseline!r}. Expected a method of the sweep: {', '.join(self.methods)}."
            )
        self.metric = given.get("metric", "val_accuracy")
        if not isinstance(self.metric, str):
            raise MisconfigurationException(f"Found metric: {self.metric!r}. Expected the name of one that is logged.")
        self.mode = _mode(given.get("mode", better_mode(self.metric)))
        self.threads = given.get("threads", 1)
        if isinstance(self.threads, bool) or not isinstance(self.threads, int) or self.threads < 1:
            raise MisconfigurationException(f"Found threads: {self.threads!r}. Expected an integer >= 1.")
        self.choose = _choose(given["choose"], self) if given.get("choose") else None

    @property
    def resolved(self) -> dict[str, Any]:  # noqa: D102  an attribute of the class
        return {key: vars(self)[key] for key in _KEYS if vars(self)[key] not in (None, [], {})}

    def cells(self, chosen: Mapping[str, Any] | None = None) -> list[Cell]:
        """The cells that are trained for the result.

        Args:
            chosen: Of each arm the value that was chosen; None: not known yet, their configurations have none.
        """
        key = self.choose["key"] if self.choose else None
        cells = []
        for seed, (task, method, settings, overrides) in itertools.product(self.seeds, list(self._arms())):
            cell = self._cell("run", (task, method, seed), settings, overrides, {})
            if key is not None and chosen is not None and cell.arm in chosen:
                value = {key: chosen[cell.arm]}
                cell = self._cell("run", (task, method, seed), settings, {**overrides, **value}, value)
            cells.append(cell)
        return _in_order(cells)

    def choosing(self) -> list[Cell]:
        """The cells of the choice, none where nothing is chosen."""
        if self.choose is None:
            return []
        key, cells = self.choose["key"], []
        for seed, value in itertools.product(self.choose["seeds"], self.choose["values"]):
            for task, method, settings, overrides in self._arms():
                tried = {key: value}
                cells.append(
                    self._cell("choose", (task, method, seed), settings | tried, {**overrides, **tried}, tried)
                )
        return _in_order(cells)

    def _arms(self) -> Iterator[tuple[str, str, dict[str, Any], dict[str, Any]]]:
        """Task, method, settings and overrides of all cells that differ in more than the seed."""
        for (task, of_task), (method, of_method) in itertools.product(self.tasks.items(), self.methods.items()):
            axes = [*_axes(self.grid, "grid"), *([_points(self.list)] if self.list else [])]
            for name, spec in ((f"task {task}", of_task), (f"method {method}", of_method)):
                axes += _axes(spec.get("grid") or {}, f"grid of {name}")
            for points in itertools.product(*axes):
                settings: dict[str, Any] = {}
                overrides: dict[str, Any] = {}
                for names, values in points:
                    for known, more in ((settings, names), (overrides, values)):
                        if double := known.keys() & more.keys():
                            raise MisconfigurationException(
                                f"Found {min(double)} twice in the axes of method {method}. Expected it once: name it "
                                "in one grid or list only."
                            )
                        known.update(more)
                if self.choose and self.choose["key"] in overrides:
                    raise MisconfigurationException(
                        f"Found {self.choose['key']} in choose and among the axes of method {method}. Expected one."
                    )
                yield task, method, settings, overrides

    def _cell(
        self,
        stage: Literal["choose", "run"],
        whose: tuple[str, str, int],
        settings: dict[str, Any],
        overrides: dict[str, Any],
        chosen: dict[str, Any],
    ) -> Cell:
        task, method, seed = whose
        configs, parts = self._stages(task, method, overrides, seed)
        name = _name(stage, task, method, settings, seed)
        return Cell(name, method, task, seed, stage, settings, 0, chosen, self.threads, parts, configs)

    def _stages(
        self, task: str, method: str, overrides: dict[str, Any], seed: int
    ) -> tuple[list[Config], list[list[int] | None]]:
        """Configurations and parts of a method's fits."""
        own = {key: value for key, value in self.methods[method].items() if key not in ("stages", "grid")}
        of_task = {key: value for key, value in self.tasks[task].items() if key != "grid"}
        common = with_overrides(with_overrides(self.base, of_task, f"task {task}"), own, f"method {method}")
        stages = self.methods[method].get("stages", [{}])
        if not isinstance(stages, list) or not stages:
            raise MisconfigurationException(
                f"Found no list under 'stages' of method {method}. Expected overrides each."
            )
        configs, parts = [], []
        absent: dict[str, list[NotInListError]] = {}
        for number, stage in enumerate(stages, 1):
            where = f"method {method}" if len(stages) == 1 else f"stage {number} of method {method}"
            stage = mapping_of(stage, where)
            parts.append(_part(stage.get("part"), where))
            config = with_overrides(common, {k: v for k, v in stage.items() if k != "part"}, where)
            for key, value in overrides.items():
                try:
                    config = with_overrides(config, {key: value}, f"the axes of {where}")
                except NotInListError as error:  # of a callback that other stages have
                    absent.setdefault(key, []).append(error)
            config = with_overrides(config, dict.fromkeys(["seed_everything", *self.seed_keys], seed), "seed_keys")
            configs.append(_with_defaults(config))
        for errors in absent.values():
            if len(errors) == len(stages):
                raise errors[0]
        return configs, parts


def read_sweep(path: str | Path) -> Sweep:
    """Read a sweep file; ``base`` may be the path of a configuration, from the sweep file's folder.

    Raises:
        MisconfigurationException: If it is not there, or for anything wrong in it.
    """
    given = mapping_of(read_yaml(Path(path)), str(path))
    if isinstance(given.get("base"), str):
        given["base"] = read_yaml(Path(path).parent / given["base"])
    return Sweep(given)


def _with_defaults(config: Config) -> Config:
    trainer = mapping_of(config.get("trainer") or {}, "trainer")
    defaults = dict(_TRAINER)
    callbacks = trainer.get("callbacks") or []
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        name = callback.get("class_path", "") if isinstance(callback, dict) else callback
        if str(name).endswith("Checkpoint"):
            del defaults["enable_checkpointing"]
            break
    given = {key: value for key, value in trainer.items() if value is not None or key not in _UNSAID}
    return {**config, "trainer": {**defaults, **given}}


def _axes(grid: Any, where: str) -> list[list[Point]]:
    """The points of each axis of a grid."""
    axes: list[list[Point]] = []
    for name, values in mapping_of(grid, where).items():
        if isinstance(values, dict) and values:  # named overrides
            axes.append([({name: label}, mapping_of(over, f"{where}: {name}")) for label, over in values.items()])
        elif isinstance(values, list) and values:
            distinct(values, f"{where}: {name}")
            axes.append([({name: value}, {name: value}) for value in values])
        else:
            raise MisconfigurationException(
                f"Found {name}: {values!r} in {where}. Expected a list of values, or names with overrides."
            )
    return axes


def _points(points: Any) -> list[Point]:
    if not isinstance(points, list):
        raise MisconfigurationException(f"Found list: {points!r}. Expected a list of overrides by dotted keys.")
    distinct(points, "list")
    checked = [mapping_of(point, "list") for point in points]
    return [(point, point) for point in checked]


def _choose(given: Any, sweep: Sweep) -> dict[str, Any]:
    check_keys(mapping_of(given, "choose"), ("key", "values", "metric", "mode", "seeds"), "choose")
    for key, kind in (("key", str), ("values", list)):
        if not given.get(key) or not isinstance(given[key], kind):
            raise MisconfigurationException(
                f"Found {key}: {given.get(key)!r} in choose. Expected the dotted key and a list of its values."
            )
    distinct(given["values"], "choose: values")
    metric = given.get("metric", "val_accuracy" if _of_test(sweep.metric) else sweep.metric)
    if not isinstance(metric, str) or _of_test(metric):
        raise MisconfigurationException(f"Found metric {metric!r} in choose. Expected one of the validation rows.")
    seeds = _seeds(given.get("seeds", [100]), "choose: seeds")
    if shared := set(seeds) & set(sweep.seeds):
        raise MisconfigurationException(
            f"Found seed {min(shared)} in choose and in seeds. Expected others: the choice must not see the runs."
        )
    mode = _mode(given.get("mode", sweep.mode if metric == sweep.metric else better_mode(metric)))
    return {"key": given["key"], "values": given["values"], "metric": metric, "mode": mode, "seeds": seeds}


def _of_test(metric: str) -> bool:
    return any(word.startswith("test") for word in words_of(metric))


def _seeds(seeds: Any, where: str) -> list[int]:
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise MisconfigurationException(f"Found {where}: {seeds!r}. Expected a list of integers >= 0.")
    distinct(seeds, where)
    return seeds


def _mode(mode: Any) -> str:
    if mode not in ("max", "min"):
        raise MisconfigurationException(f"Found mode: {mode!r}. Expected 'max' or 'min'.")
    return mode


def _part(part: Any, where: str) -> list[int] | None:
    if part is None:
        return None
    if (
        not isinstance(part, list)
        or len(part) != 2
        or not all(type(n) is int for n in part)
        or not 1 <= part[0] <= part[1]
    ):
        raise MisconfigurationException(
            f"Found part: {part!r} in {where}. Expected [i, n]: the i-th of n parts, from 1."
        )
    return part


def _task_of(base: Config) -> str:
    """The name of the only task: that of the data's class."""
    data = base.get("data") or "task"
    name = str(data.get("class_path", "task") if isinstance(data, dict) else data).split(".")[-1]
    return name.removesuffix("DataModule").lower() or "task"


def _in_order(cells: list[Cell]) -> list[Cell]:
    """The cells with their places, and with names of their own where several were alike in safe characters."""
    names = Counter(cell.id for cell in cells)
    result = []
    for order, cell in enumerate(cells):
        apart = json.dumps([cell.task, cell.method, cell.settings], sort_keys=True)
        digest = hashlib.sha256(apart.encode()).hexdigest()[:8]
        result.append(replace(cell, order=order, id=f"{cell.id}-{digest}" if names[cell.id] > 1 else cell.id))
    return result


def _name(stage: str, task: str, method: str, settings: Mapping[str, Any], seed: int) -> str:
    """A folder's name that tells the cell apart, such as ``digits-hybrid-lr=0.01-seed=0``."""
    short = [key.split(".")[-1] for key in settings]
    labels = [last if short.count(last) == 1 else key for last, key in zip(short, settings, strict=True)]
    values = [f"{label}={_text(value)}" for label, value in zip(labels, settings.values(), strict=True)]
    parts = [*(["choose"] if stage == "choose" else []), task, method, *values, f"seed={seed}"]
    name = re.sub(r"[^\w.=+-]+", "_", "-".join(parts), flags=re.ASCII)
    if len(name) > 150:
        name = f"{name[:120]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}-seed={seed}"
    return name


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return "_".join(map(_text, value))
    if isinstance(value, dict):
        return _text(value["class_path"]) if "class_path" in value else "_".join(map(str, value))
    return str(value).split(".")[-1] if isinstance(value, str) else str(value)
