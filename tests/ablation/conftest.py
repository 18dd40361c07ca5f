import os
from pathlib import Path

import pytest
from run_folders import example
from sweeps import MINE, ROOT

from lightning_cvxsnn.ablation.report import write_report


@pytest.fixture(scope="session")
def example_run(tmp_path_factory):
    """A run folder with its report; tests only read it."""
    folder = example(tmp_path_factory.mktemp("runs") / "example")
    write_report(folder)
    return folder


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty folder but for ``mine.py``; processes of cells find the package."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(MINE)
