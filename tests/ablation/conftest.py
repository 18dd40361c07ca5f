import pytest
from run_folders import example

from lightning_cvxsnn.ablation.report import write_report


@pytest.fixture(scope="session")
def example_run(tmp_path_factory):
    """A run folder with its report; tests only read it."""
    folder = example(tmp_path_factory.mktemp("runs") / "example")
    write_report(folder)
    return folder
