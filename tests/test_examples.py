import importlib.util
from pathlib import Path

import pytest
from torch.utils.data import TensorDataset

from lightning_cvxsnn import ConvexReconstruction

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore")
def test_own_module(capsys, monkeypatch):
    module = load("own_module")
    monkeypatch.setattr(module, "TensorDataset", lambda x, y: TensorDataset(x[:400], y[:400]))
    trainer = module.main(epochs=1)
    (callback,) = [c for c in trainer.callbacks if isinstance(c, ConvexReconstruction)]
    assert callback.reports[0].accepted
    assert trainer.callback_metrics["accuracy"] > 0.5


def test_global_optimum(capsys, monkeypatch, tmp_path):
    module = load("global_optimum")
    monkeypatch.setattr(module, "ROWS", 4)
    picture = tmp_path / "picture.png"
    monkeypatch.setattr("sys.argv", ["global_optimum.py", "--runs", "3", "--epochs", "5", "--output", str(picture)])
    module.main()
    printed = capsys.readouterr().out
    assert "of 3 stay more than 1 % above the optimum" in printed
    worst = [line.rsplit("best ", 1)[1].split("%")[0] for line in printed.splitlines() if "best " in line]
    assert len(worst) == 2
    assert all(float(excess) > -1e-3 for excess in worst)  # nothing is below a certified optimum
    assert picture.stat().st_size > 10_000
