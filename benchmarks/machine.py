"""Where and with what a result was measured."""

import importlib.metadata
import json
import os
import platform
from datetime import date
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "lightning", "spikingjelly", "numpy", "scipy", "scikit-learn", "cvxpy")
RESULTS = Path(__file__).parent / "results"


def describe(packages: tuple[str, ...] = PACKAGES) -> dict[str, Any]:
    """Processor, GPU, cores, threads, Python and the versions of the packages that are installed."""
    installed = {d.name.lower() for d in importlib.metadata.distributions()}
    model = platform.processor()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            model = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), model)
    return {
        "date": date.today().isoformat(),
        "processor": model,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages if name in installed},
    }


def write(name: str, results: Any, packages: tuple[str, ...] = PACKAGES, folder: Path = RESULTS) -> None:
    """Write ``<folder>/<name>.json``."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"machine": describe(packages), "results": results}, indent=2) + "\n")
    print(f"written: {path}")
