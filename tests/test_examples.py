"""Every example runs and draws its picture; every picture of the pages is drawn by an example or from the results."""

import importlib.util
import re
from pathlib import Path

import pytest
from torch.utils.data import TensorDataset

from lightning_cvxsnn import ConvexReconstruction

ROOT = Path(__file__).parent.parent
DRAWN = {"digits", "fair", "gains", "depth", "witnesses", "ablations", "configurations", "one_fit"}  # by docs/draw.py
EXAMPLES = ROOT / "examples"


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def drawn(path):
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 5_000


@pytest.mark.filterwarnings("ignore")
def test_own_module(monkeypatch, tmp_path):
    module = load(EXAMPLES / "own_module.py")
    monkeypatch.setattr(module, "TensorDataset", lambda x, y: TensorDataset(x[:400], y[:400]))
    trainer = module.main(str(tmp_path / "picture.png"), epochs=1)
    (callback,) = [c for c in trainer.callbacks if isinstance(c, ConvexReconstruction)]
    assert callback.reports[0].accepted
    assert trainer.callback_metrics["accuracy"] > 0.5
    assert drawn(tmp_path / "picture.png")


@pytest.mark.filterwarnings("ignore")
def test_own_loader(tmp_path):
    trainer = load(EXAMPLES / "own_loader.py").main(str(tmp_path / "picture.png"), epochs=1)
    assert trainer.callback_metrics["val_accuracy"] > 0.9
    assert drawn(tmp_path / "picture.png")


@pytest.mark.filterwarnings("ignore")
def test_quick_start(capsys, tmp_path):
    callback = load(EXAMPLES / "quick_start.py").main(str(tmp_path / "picture.png"), epochs=2)
    assert next(report.accepted for report in callback.reports)
    assert "duality gap" in capsys.readouterr().out
    assert drawn(tmp_path / "picture.png")


@pytest.mark.filterwarnings("ignore")
def test_shown(tmp_path):
    trained, shown = load(EXAMPLES / "shown.py").main(str(tmp_path / "picture.png"), epochs=3)
    assert shown.epochs == [0, 1, 2, 3]
    assert trained.epochs == [1, 2, 3]
    page = " ".join((ROOT / "docs/pages/training.md").read_text().split())
    told = re.search(r"the warm start has (\d+) % of .* in training (\d+) % after its first epoch", page)
    assert [shown.values[0], trained.values[0]] == pytest.approx([float(each) for each in told.groups()], abs=2)
    assert shown.values == sorted(shown.values)
    assert all(below <= above for below, above in zip(trained.values, shown.values[1:], strict=True))
    assert drawn(tmp_path / "picture.png")


@pytest.mark.filterwarnings("ignore")
def test_dead_layers(capsys, tmp_path):
    load(EXAMPLES / "dead_layers.py").main(str(tmp_path / "picture.png"))
    dead, alive = capsys.readouterr().out.split("2 spiking layers")[1:]
    assert re.findall(r"layers\.\d  (\w+)", dead) == ["dead", "dead"]
    assert re.findall(r"layers\.\d  (\w+)", alive) == ["alive", "alive"]
    assert drawn(tmp_path / "picture.png")


@pytest.mark.filterwarnings("ignore")
def test_dictionary(capsys, tmp_path):
    load(EXAMPLES / "dictionary.py").main(str(tmp_path / "picture.png"), epochs=1)
    assert "distinct columns" in capsys.readouterr().out
    assert drawn(tmp_path / "picture.png")


def test_certificate(tmp_path):
    gaps = load(EXAMPLES / "certificate.py").main(str(tmp_path / "picture.png"))
    assert gaps[0] > 0.1
    assert 0 <= gaps[-1] < 1e-5
    assert drawn(tmp_path / "picture.png")


def test_global_optimum(capsys, monkeypatch, tmp_path):
    module = load(EXAMPLES / "global_optimum.py")
    monkeypatch.setattr(module, "ROWS", 4)
    picture = tmp_path / "picture.png"
    monkeypatch.setattr("sys.argv", ["global_optimum.py", "--runs", "3", "--epochs", "5", "--output", str(picture)])
    module.main()
    printed = capsys.readouterr().out
    assert "of 3 stay more than 1 % above the optimum" in printed
    worst = [line.rsplit("best ", 1)[1].split("%")[0] for line in printed.splitlines() if "best " in line]
    assert len(worst) == 2
    assert all(float(excess) > -1e-3 for excess in worst)  # nothing is below a certified optimum
    assert drawn(picture)


def test_the_pictures_of_results_can_be_drawn(monkeypatch, tmp_path):
    module = load(ROOT / "docs/draw.py")
    monkeypatch.setattr(module, "PICTURES", tmp_path)
    monkeypatch.setattr("sys.argv", ["draw.py", "--results"])
    module.main()
    assert {path.stem for path in tmp_path.iterdir() if drawn(path)} == DRAWN


def test_every_picture_of_the_pages_has_a_script():
    shown = {
        name for page in (ROOT / "docs/pages").glob("*.md") for name in re.findall(r"\(img/(\w+)\.", page.read_text())
    }
    scripts = {path.stem for path in (*EXAMPLES.glob("*.py"), *(ROOT / "benchmarks").glob("*.py"))}
    assert shown <= scripts | DRAWN
    assert shown == {path.stem for path in (ROOT / "docs/pages/img").iterdir()}
