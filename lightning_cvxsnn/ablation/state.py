"""What a cell's folder says of it, written so that no moment of being killed leaves half a file."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

from filelock import FileLock, Timeout


class State(TypedDict):
    """``state.json``: how far a cell is.

    ``error`` is one line, None unless the cell failed. ``attempts`` counts its processes, those that were killed
    included; ``seconds`` is the wall clock of the last one. ``machine`` says what it ran on.
    """

    state: Literal["running", "finished", "failed"]
    error: str | None
    attempts: int
    started: str
    seconds: float
    machine: dict[str, Any]


def write_text(path: Path, text: str) -> None:
    """Write a file as a whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """Write JSON as a whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """What a JSON file holds; None where there is none that can be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def read_state(folder: Path) -> State | None:
    """A cell's state; None before its first attempt."""
    found = read_json(folder / "state.json")
    return cast(State, found) if isinstance(found, dict) else None


def write_state(folder: Path, state: State) -> None:
    """Write ``state.json``."""
    write_json(folder / "state.json", state)


def is_finished(folder: Path) -> bool:
    """Whether a cell has its result."""
    state = read_state(folder)
    return state is not None and state["state"] == "finished"


def metric_of(folder: Path, metric: str) -> float | None:
    """A metric of a finished cell; None where the cell has not finished or has no such metric."""
    result = read_json(folder / "result.json") if is_finished(folder) else None
    value = result["metrics"].get(metric) if isinstance(result, Mapping) else None
    return None if value is None else float(value)


def outside(folder: Path, ids: Iterable[str]) -> list[Path]:
    """Cells' folders of a run folder that are of none of these cells."""
    known = set(ids)
    return [place for place in sorted(folder.glob("cells/*")) if place.is_dir() and place.name not in known]


def is_held(lock: Path) -> bool:
    """Whether a living process holds a lock. The kernel releases what a killed one held."""
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True
