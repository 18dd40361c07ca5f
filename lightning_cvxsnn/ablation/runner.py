"""Runs a sweep: its cells as processes, over cores or a cluster, from where it was left."""

import os
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import joblib
import yaml
from filelock import FileLock, Timeout
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lightning_cvxsnn.ablation.cell import command, config_name, run_forked
from lightning_cvxsnn.ablation.choice import choose_values
from lightning_cvxsnn.ablation.estimate import show_plan, spoken
from lightning_cvxsnn.ablation.fits import check_cells
from lightning_cvxsnn.ablation.state import (
    State,
    is_finished,
    metric_of,
    outside,
    read_json,
    read_state,
    write_json,
    write_state,
    write_text,
)
from lightning_cvxsnn.ablation.sweep import Cell, Sweep, read_sweep
from lightning_cvxsnn.training.cli import meant

Backend = Literal["loky", "dask", "ray"]


@dataclass
class Run:
    """A sweep in its run folder.

    Args:
        sweep: What is trained.
        folder: The run folder.
        jobs: Cells at a time; -1: as many as there are cores, or workers of the cluster.
        backend: joblib's.
        address: Of the cluster's scheduler; None: one is started here.
        shard: ``(i, n)``: only the i-th of n parts of the cells, from 1.
    """

    sweep: Sweep
    folder: Path
    jobs: int = -1
    backend: Backend = "loky"
    address: str | None = None
    shard: tuple[int, int] = (1, 1)
    console: Console = field(default_factory=lambda: Console(soft_wrap=True, highlight=False))

    def mine(self, cells: list[Cell]) -> list[Cell]:
        """The cells of this shard; where a value is chosen, all seeds of an arm are in one shard."""
        number, shards = self.shard
        if self.sweep.choose is None:
            return cells[number - 1 :: shards]
        arms = list(dict.fromkeys(cell.arm for cell in self.sweep.cells()))
        return [cell for cell in cells if arms.index(cell.arm) % shards == number - 1]

    def place(self, cell: Cell) -> Path:
        """A cell's folder."""
        return self.folder / "cells" / cell.id

    def write(self, cells: list[Cell]) -> None:
        """Write the cells' folders.

        Raises:
            MisconfigurationException: If one has finished with another configuration.
        """
        texts = [[yaml.safe_dump(config, sort_keys=False) for config in cell.configs] for cell in cells]
        for cell, configs in zip(cells, texts, strict=True):
            place = self.place(cell)
            if is_finished(place) and not _trained_with(place, cell, configs):
                raise MisconfigurationException(
                    f"Found the finished cell '{place}', which had another configuration. Expected the sweep that made "
                    "it: use another --output, or delete that folder to train it again."
                )
        for cell, configs in zip(cells, texts, strict=True):
            place = self.place(cell)
            place.mkdir(parents=True, exist_ok=True)
            for stage, text in enumerate(configs):
                write_text(place / config_name(stage), text)
            write_json(place / "cell.json", cell.record())

    def train(self, cells: list[Cell], what: str, metric: str) -> None:
        """Run all cells that are not finished, and say how each ended.

        Raises:
            MisconfigurationException: If the first cell that has finished has no such metric.
        """
        known = any(_has_metric(self.place(cell), metric) for cell in cells)
        waiting = [cell for cell in cells if not is_finished(self.place(cell))]
        if done := len(cells) - len(waiting):
            self.console.print(f"{done} of {len(cells)} {what} were finished before.")
        if not waiting:
            return
        columns = (
            *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()),
            *(TextColumn("left:"), TimeRemainingColumn()),
        )
        progress = Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)
        with progress, closing(self._processes(waiting)) as processes:
            task = progress.add_task(what, total=len(waiting))
            started = time.monotonic()
            for count, process in enumerate(processes, 1):
                place = Path(process.args[3])
                _note_crash(place, process)
                known = known or _has_metric(place, metric)
                left = (time.monotonic() - started) / count * (len(waiting) - count)
                progress.console.print(f"{count}/{len(waiting)} {_line(place, metric)}; about {spoken(left)} left")
                progress.advance(task)

    def _processes(self, cells: list[Cell]) -> Generator["subprocess.CompletedProcess[str]", None, None]:
        """The processes of cells as they end. Workers only start them."""
        options: dict[str, Any] = {"cwd": os.getcwd()}
        jobs, at_first = self.jobs, "2 * n_jobs"
        if self.backend == "loky" and sys.platform == "linux":
            start = joblib.delayed(run_forked)
            if jobs == 1:  # joblib would call it here, and this process may have trained: autograd survives no fork
                jobs, at_first = 2, "1"
        else:  # workers of a cluster have threads; they need nothing of this package
            start = joblib.delayed(subprocess.run)
            options |= {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL}
        with _cluster(self.backend, self.address, self.jobs), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*tasks have been successfully executed")  # where it is stopped
            warnings.filterwarnings("ignore", message=".*tasks which were still being processed")
            parallel = joblib.Parallel(jobs, batch_size=1, pre_dispatch=at_first, return_as="generator_unordered")
            yield from parallel(start(command(self.place(cell), self.lock), **options) for cell in cells)

    def finish(self, cells: list[Cell]) -> bool:
        """Say what failed and write the report, if no cell of the sweep waits; whether all have finished."""
        states = {cell.id: read_state(self.place(cell)) for cell in cells}
        failed = {name: state["error"] for name, state in states.items() if state and state["state"] == "failed"}
        finished = sum(state is not None and state["state"] == "finished" for state in states.values())
        for name, error in failed.items():
            self.console.print(f"failed: {name}: {error} (see {self.folder / 'cells' / name / 'log.txt'})")
        waiting = len(states) - finished - len(failed)
        told = f", {waiting} wait for other shards" if waiting else ""
        self.console.print(f"{finished} of {len(states)} cells finished, {len(failed)} failed{told}: {self.folder}")
        if others := outside(self.folder, [*states]):
            self.console.print(f"{len(others)} cells of an earlier sweep in {self.folder} are left out of the report.")
        if not waiting and finished:
            from lightning_cvxsnn.ablation.report import write_report  # pandas and matplotlib take seconds

            self.console.print(f"The report: {write_report(self.folder)}")
        return finished == len(states)

    @property
    def lock(self) -> Path:
        """What the runner holds as long as it lives."""
        number, shards = self.shard
        return self.folder / ("lock" if shards == 1 else f"lock-{number}-of-{shards}")


def ablate(
    config: str,
    output: str | None = None,
    jobs: int = -1,
    backend: Backend = "loky",
    address: str | None = None,
    shard: str = "1/1",
    dry_run: bool = False,
) -> bool:
    """Train the cells of a sweep, each in a process of its own, and write the report.

    Started again with the same arguments it goes on where it was left: finished cells are kept, all others train.

    Args:
        config: The sweep, a YAML file.
        output: The run folder; default: ``runs/`` with the name of the sweep file.
        jobs: Cells at a time; -1: one for each core, or for each worker of the cluster.
        backend: Where cells run: ``loky``, this machine; ``dask`` or ``ray``, a cluster that shares the file system.
        address: Of the cluster's scheduler; default: a cluster on this machine.
        shard: ``i/n``: only the i-th of n parts of the cells, for batch systems.
        dry_run: List the cells and estimate the time, train nothing.

    Returns:
        Whether all cells of the sweep have finished; of a shard, those of all shards.

    Raises:
        MisconfigurationException: If an argument or the sweep is wrong, before anything is trained.
    """
    if jobs != -1 and jobs < 1:
        raise MisconfigurationException(f"Found --jobs={jobs}. Expected an integer >= 1, or -1: all cores.")
    sweep = read_sweep(config)
    folder = Path(output) if output else Path("runs") / Path(config).stem
    if jobs == -1 and backend == "loky":
        jobs = max(1, joblib.cpu_count() // sweep.threads)
    run = Run(sweep, folder, jobs, backend, address, _shard(shard))
    tried, cells = sweep.choosing(), sweep.cells()
    check_cells([*tried, *cells])
    if dry_run:
        show_plan(run.console, {run.place(cell): cell for cell in [*run.mine(tried), *run.mine(cells)]}, jobs)
        return True
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(run.lock, timeout=5):
            return _all(run, tried)
    except Timeout as error:
        raise MisconfigurationException(
            f"Found another 'cvxsnn ablate' at work in '{folder}'. Expected one: wait for it, or use another --output."
        ) from error


def _all(run: Run, tried: list[Cell]) -> bool:
    """Choose, train and report."""
    mine = run.mine(tried)
    run.write(mine)
    write_text(run.folder / "sweep.yaml", yaml.safe_dump(run.sweep.resolved, sort_keys=False))
    if run.sweep.choose:
        run.train(mine, "cells of the choice", run.sweep.choose["metric"])
    choice, missing = choose_values(run.sweep, tried, run.place)
    cells = run.sweep.cells(choice)
    mine = run.mine(cells)
    ready = [cell for cell in mine if cell.arm not in missing]
    run.write(mine)
    for cell in mine:
        if cell.arm in missing:
            write_state(run.place(cell), failed_state(missing[cell.arm]))
    run.train(ready, "cells", run.sweep.metric)
    return run.finish([*tried, *cells])


def _trained_with(place: Path, cell: Cell, configs: list[str]) -> bool:
    """Whether a finished cell's folder has these configurations and as many threads."""
    files, told = [place / config_name(stage) for stage in range(len(configs))], read_json(place / "cell.json") or {}
    same = (told.get("parts"), told.get("threads")) == (cell.parts, cell.threads)
    return same and all(file.exists() for file in files) and [f.read_text(encoding="utf-8") for f in files] == configs


def failed_state(error: str, attempts: int = 0) -> State:
    """The state of a cell that could not begin or tell."""
    return {"state": "failed", "error": error, "attempts": attempts, "started": "", "seconds": 0.0, "machine": {}}


def _line(place: Path, metric: str) -> str:
    """How a cell ended."""
    state, value = read_state(place), metric_of(place, metric)
    if state is None or state["state"] != "finished":
        return f"{place.name} failed: {state['error'] if state else ''}"
    return f"{place.name}: {'' if value is None else f'{metric} {value:.3g}, '}{spoken(state['seconds'])}"


def _has_metric(place: Path, metric: str) -> bool:
    """Whether a cell has finished and has this metric; refuse the metric if it has finished without."""
    if not is_finished(place):
        return False
    result = read_json(place / "result.json")
    if not isinstance(result, dict):
        raise MisconfigurationException(
            f"Found no result.json in the finished cell '{place}'. Expected its metrics: delete that folder to train "
            "it again."
        )
    names = list(result["metrics"])
    if metric not in names:
        expected = f"one of {', '.join(names)}.{meant(metric, names)}" if names else "a module that logs it in"
        expected += "" if names else " validation_step or test_step; what training_step logs is not compared."
        raise MisconfigurationException(f"Found no metric '{metric}'. Expected {expected}")
    return True


def _note_crash(place: Path, process: "subprocess.CompletedProcess[str]") -> None:
    """Say in its state how a process ended that could not say so itself."""
    state = read_state(place)
    if process.returncode == 0 or (state is not None and state["state"] in ("failed", "finished")):
        return
    lines = process.stderr.strip().splitlines() or [""]
    how = f"signal {-process.returncode}" if process.returncode < 0 else f"status {process.returncode}"
    error = f"The process ended with {how}. {lines[-1]}".strip()
    write_state(place, {**state, "state": "failed", "error": error} if state else failed_state(error, 1))


@contextmanager
def _cluster(backend: Backend, address: str | None, jobs: int) -> Iterator[None]:
    """Let joblib run where cells are to run."""
    try:
        if backend == "dask":
            from dask.distributed import Client

            local = (
                {} if address else {"n_workers": joblib.cpu_count() if jobs == -1 else jobs, "threads_per_worker": 1}
            )
            with Client(address, **local), joblib.parallel_config(backend="dask"):
                yield
            return
        if backend == "ray":
            import ray
            from ray.util.joblib import register_ray

            ray.init(address)
            register_ray()
    except ImportError as error:
        raise MisconfigurationException(
            f"Found no {backend} for --backend={backend} ({error}). Expected it here and on the cluster: install "
            f"{'dask[distributed]' if backend == 'dask' else 'ray'}."
        ) from error
    options = {"idle_worker_timeout": 10} if backend == "loky" else {}  # those of a killed runner go soon
    with joblib.parallel_config(backend=backend, **options):
        yield


def _shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise MisconfigurationException(f"Found --shard={text}. Expected i/n with i from 1 to n, such as 1/4.")
    return int(found[1]), int(found[2])
