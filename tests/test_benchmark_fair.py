"""The fair benchmark chooses on validation rows, repeats nothing, and its arms do what they are called."""

import importlib
import json
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_cvxsnn import LitSNN

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))  # after tests/, which has a networks.py, too
fair, arms, choices, summaries, tasks, unseen = map(
    importlib.import_module, ("fair", "fair_arms", "fair_choice", "fair_summary", "fair_tasks", "fair_unseen")
)
TASK = "digits, 1 layer"
QUICK = ["--tasks", TASK, "--seeds", "1", "--epochs", "2", "--rates", "0.01"]


@pytest.fixture
def threads():
    """The number of threads, which a benchmark sets to one."""
    number = torch.get_num_threads()
    yield
    torch.set_num_threads(number)


def test_series_are_read_and_standardised_by_their_training_rows(tmp_path):
    folder = tmp_path / "aeon" / "Waves"
    folder.mkdir(parents=True)
    lines = ["0,2,4,6,8:1,1,1,1,1:up", "8,6,4,2,0:3,3,3,3,3:down"]
    for part, wanted in (("TRAIN", lines), ("TEST", lines[:1])):
        (folder / f"Waves_{part}.ts").write_text("@problemName Waves\n@data\n" + "\n".join(wanted) + "\n")
    (x, y), (test, labels) = (part.tensors for part in unseen.archive("Waves", 2, None, False, tmp_path))
    assert x.shape == (2, 2, 4)  # of five steps two windows of two, of two channels
    torch.testing.assert_close(test[0, 0], torch.tensor([-(2**0.5), -1.0, -(2**-0.5), -1.0]))
    assert y.tolist() == [1, 0]
    assert labels.tolist() == [1]


def test_what_was_kept_aside_has_a_file_of_its_own(tmp_path, monkeypatch, threads):
    monkeypatch.setattr(fair, "RESULTS", tmp_path)
    assert not unseen.UNSEEN.keys() & tasks.TASKS.keys()
    arguments = ["--unseen", "--tasks", "breast cancer, 1 layer", "diabetes, 2 layers", "--arms", arms.SG]
    fair.main([*arguments, "--seeds", "0", "--epochs", "1", "--rates", "0.01"])
    assert [path.name for path in tmp_path.iterdir()] == ["fair_unseen.json"]
    runs = json.loads((tmp_path / "fair_unseen.json").read_text())["runs"]
    assert len(runs) == 4
    assert not any("error" in run for run in runs.values())


def test_arms_run_once_and_test_rows_choose_nothing(tmp_path, monkeypatch, capsys, threads):
    cut = tasks.Task.cut
    hidden = lambda self, folder, seed: [*cut(self, folder, seed)[:2], None]  # noqa: E731
    path, own = tmp_path / "fair.json", "ConvexReconstruction()"
    options = [*QUICK, "--output", str(path), "--arms", arms.SG, arms.CALIBRATED, own]
    with monkeypatch.context() as patch:
        patch.setattr(tasks.Task, "cut", hidden)
        fair.main([*options, "--seeds", "0"])
    chosen = json.loads(path.read_text())["runs"]
    assert len(chosen) == 6
    assert not any("test" in point for run in chosen.values() for point in run["points"])

    fair.main([*options, "--plot", str(tmp_path / "fair.svg")])
    written, printed = path.read_text(), capsys.readouterr().out
    runs = json.loads(written)["runs"]
    assert {key: runs[key] for key in chosen} == chosen
    assert len(runs) == 6 + 6
    for arm in (arms.SG, own):
        setting = choices.choice(TASK, arm, runs, (0.01,))
        points = runs[choices.Cell(TASK, arm, *setting, 0).key]["points"]
        assert [point["epoch"] for point in points] == [0, 1, 2]
        assert [point["seconds"] for point in points] == sorted(point["seconds"] for point in points)
    assert points[0]["test"] > 50
    assert f"{TASK}: paired differences to SG" in printed
    assert (tmp_path / "fair.svg").stat().st_size > 5000

    fair.main(options)
    assert path.read_text() == written

    fair.main([*QUICK, "--output", str(path), "--arms", arms.OURS_IN_TIME, "--markdown"])
    later = json.loads(path.read_text())["runs"]
    (added,) = later.keys() - runs.keys()
    assert later[added]["epochs"] == 1  # the solves of two epochs take longer than one of them
    assert "ended in SG's CPU time" in capsys.readouterr().out


def test_a_run_that_is_cut_short_goes_on(tmp_path, threads):
    path = tmp_path / "fair.json"
    fair.main([*QUICK, "--output", str(path), "--arms", arms.RAW, "--minutes", "0"])
    assert not path.exists()
    fair.main([*QUICK, "--output", str(path), "--arms", arms.RAW])
    (run,) = json.loads(path.read_text())["runs"].values()
    assert run["points"][0]["test"] > 90


def test_what_is_best_on_validation_rows_is_chosen():
    def run(validation, test=0.0):
        return {"points": [{"validation": v, "test": test} for v in validation]}

    runs = {
        choices.Cell(TASK, arms.SG, rate, schedule, 1000).key: each
        for rate, schedule, each in (
            (1e-3, "cosine", run([10, 20], test=99)),
            (3e-3, "cosine", run([10, 80])),
            (1e-2, "cosine", run([30, 80])),  # ends as high, and was there earlier
            (3e-2, "cosine", {"error": "refused"}),
            (1e-2, "constant", run([30, 81])),
        )
    }
    assert choices.choice(TASK, arms.SG, runs, choices.RATES) == (1e-2, "constant")


@pytest.mark.parametrize(
    ("seconds", "wanted"),
    [
        ([0.1, 1.1, 2.1, 4.1], 4),  # as fast as SG, which takes 5 s
        ([1.0, 2.0, 3.0, 7.0], 2),  # an epoch a second, and 2 s at the end
        ([4.0, 5.0, 6.0, 9.0], 1),  # one is too many already
        ([0.1, 0.4, 0.7, 1.3], 4),
        ([0.1, 1.0, 4.0, 4.9], 4),  # the last epochs took less
    ],
)
def test_what_ends_in_sgs_time_takes_no_longer_than_sg(seconds, wanted):
    def run(times):
        looks = zip((0, 1, 2, 4), times, strict=True)
        return {"points": [{"validation": 1.0, "epoch": e, "seconds": s} for e, s in looks]}

    own, sg = "ConvexReconstruction()", [0.2, 1.4, 2.6, 5.0]
    cells = {
        choices.Cell(TASK, arm, 0.01, schedule, seed).key: run(times)
        for arm, times in ((arms.SG, sg), (arms.CALIBRATED, sg), (own, seconds))
        for schedule in ("cosine", "constant")
        for seed in (0, 1, 1000)
    }
    assert choices.epochs_in_time(TASK, own, cells, (0.01,), 2) == wanted


def test_fluctuations_reach_the_threshold(monkeypatch):
    torch.manual_seed(0)
    net = LitSNN(20, [200, 200], 2)
    x = (torch.rand(300, 12, 20) < 0.3).float()
    arms.drive_by_fluctuations(net, x)
    for units in (net.layers[1], net.layers[3]):
        units.v_threshold = 1e9  # no spikes: membranes as they are derived
        units.store_v_seq = True
        net(x)
        assert float(units.v_seq.detach().std(1).mean()) == pytest.approx(1.0, rel=0.25)
        units.v_threshold = 1.0


def test_callbacks_beside_surrogate_gradients():
    torch.manual_seed(0)
    rows = TensorDataset(torch.rand(60, 4, 8), torch.arange(60) % 3)
    net, seen = LitSNN(8, [32], 3, lr=0.1), []

    class Watch(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            seen.append([part.weight.detach().clone() for part in (net.layers[0], net.readout)])

    first = [part.weight.detach().clone() for part in (net.layers[0], net.readout)]
    arms.prepare(net, "calibrated", rows, DataLoader(rows, 20))
    calibrated = net.layers[0].weight.detach().clone()
    callbacks = [arms.HeadFirst(), Watch(), arms.RidgeAtTheEnd(rows)]
    fair.trainer(2, callbacks).fit(net, DataLoader(rows, 20))
    assert not torch.equal(calibrated, first[0])
    assert torch.equal(seen[0][0], calibrated)
    assert not torch.equal(seen[0][1], first[1])
    assert not torch.equal(seen[1][0], calibrated)
    with arms.received(net.readout) as spikes:
        net(rows.tensors[0])
    model = arms.linear(spikes[0], rows.tensors[1], 1.0)
    torch.testing.assert_close(net.readout.weight.detach(), torch.tensor(model.coef_).float(), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("act", [arms.average, arms.reconstruction(witnesses="calibrated")], ids=["average", "own"])
def test_what_is_scored_after_an_epoch_is_what_a_user_has_then(act):
    torch.manual_seed(0)
    x = torch.rand(300, 4, 8)
    rows = TensorDataset(x, x.sum(1)[:, :3].argmax(1))
    net = LitSNN(8, [12], 3, lr=0.1)
    curve = fair.Curve(tasks.TASKS[TASK], 2, {"validation": rows, "test": rows})
    curve.looks = {1, 2}
    callbacks = [act(rows, 15), curve]
    with fair.quiet():
        fair.trainer(2, callbacks, num_sanity_val_steps=0).fit(net, DataLoader(rows, 20), DataLoader(rows, 60))
    curve.pause()
    curve.look(net, 2)
    *_, shown, left = curve.points
    assert shown["epoch"] == left["epoch"] == 2
    assert shown["test"] == left["test"]
    assert len({point["test"] for point in curve.points}) > 1


def test_equal_time_is_read_off_the_curve():
    run = {"points": [{"seconds": 1.0, "test": 50.0}, {"seconds": 3.0, "test": 90.0}]}
    assert [summaries.at(run, seconds, 10.0) for seconds in (0.5, 1.0, 2.0, 9.0)] == [10.0, 50.0, 70.0, 90.0]
    assert [summaries.time_to(run, goal) for goal in (40.0, 80.0, 95.0)] == [1.0, 2.5, None]
