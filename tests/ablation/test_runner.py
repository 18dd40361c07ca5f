import csv
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from sweeps import BASE, LR, MINE, ablate, cells, read, results, states, write, written
from torch.utils.data import DataLoader, RandomSampler, SubsetRandomSampler, WeightedRandomSampler

from lightning_cvxsnn import DigitsDataModule
from lightning_cvxsnn.ablation.cell import command
from lightning_cvxsnn.ablation.parts import see_part

pytestmark = pytest.mark.usefixtures("elsewhere")


def test_a_sweep_its_folder_and_the_same_command_again(capsys):
    methods = {
        "sg": None,
        "hybrid": None,
        "broken": {"trainer.callbacks+": "mine.Broken"},
        "killed": {"trainer.callbacks+": "mine.Killed"},
    }
    write(methods=methods, tasks={"digits": {}, "workers": {"data": "mine.Workers"}})
    assert ablate() == 1
    printed = capsys.readouterr().out
    assert (
        "failed: digits-broken-seed=0: RuntimeError: broken on purpose (see run/cells/digits-broken-seed=0" in printed
    )
    assert "failed: workers-killed-seed=0: The process ended with signal 9." in printed
    assert "4 of 8 cells finished, 4 failed: run" in printed
    assert sorted(cells()) == sorted(f"{task}-{method}-seed=0" for task in ("digits", "workers") for method in methods)

    place = cells()["digits-hybrid-seed=0"]
    assert read(place, "cell.json").items() >= {
        "id": "digits-hybrid-seed=0", "method": "hybrid", "task": "digits", "seed": 0, "stage": "run", "settings": {},
        "order": 1,
    }.items()  # fmt: skip
    config = yaml.safe_load((place / "config.yaml").read_text())
    assert config["trainer"]["callbacks"] == ["lightning_cvxsnn.ConvexReconstruction"]
    state, result = read(place, "state.json"), read(place, "result.json")
    assert (state["state"], state["error"], state["attempts"]) == ("finished", None, 1)
    assert state["seconds"] > 0
    assert state["machine"]["torch"] == torch.__version__
    assert result["metrics"].keys() == {"val_loss", "val_accuracy", "test_accuracy"}
    assert (result["epochs"], result["trained_parameters"]) == (1, 8 * 9 + 10 * 9)
    with open(place / "history.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["epoch"] for line in lines] == ["0", "1"]
    assert float(lines[-1]["cpu_seconds"]) <= result["cpu_seconds"]
    assert float(lines[-1]["val_loss"]) == result["metrics"]["val_loss"]
    assert len(read(place, "reports.json")) == 2
    assert "ConvexReconstruction warm start" in (place / "log.txt").read_text()
    assert "threads 1" in (cells()["workers-sg-seed=0"] / "log.txt").read_text()
    assert 'raise RuntimeError("broken' in (cells()["digits-broken-seed=0"] / "log.txt").read_text()

    finished = {name: state for name, state in states().items() if state["state"] == "finished"}
    Path("mine.py").write_text(re.sub("raise RuntimeError.*", "pass", MINE))
    assert ablate() == 1
    assert "4 of 8 cells were finished before" in capsys.readouterr().out
    after = states()
    assert {name: after[name] for name in finished} == finished
    assert after["digits-broken-seed=0"].items() >= {"state": "finished", "attempts": 2, "error": None}.items()
    assert after["digits-killed-seed=0"].items() >= {"state": "failed", "attempts": 2}.items()

    shutil.rmtree("run/cells/digits-sg-seed=0")
    write(methods={"sg": {LR: 0.5}, "hybrid": {"trainer.max_epochs": 3}})
    before = written()
    assert ablate() == 2
    error = capsys.readouterr().err
    assert error.startswith(
        "cvxsnn: error: Found the finished cell 'run/cells/digits-hybrid-seed=0', which had another"
    )
    assert error.count("\n") == 1
    assert written() == before
    assert "digits-sg-seed=0" not in cells()


def test_a_plan_trains_nothing_and_knows_the_time_once_a_cell_has_finished(capsys):
    write(seeds=[0, 1, 2], methods=["sg", "hybrid"])
    assert ablate("--dry-run") == 0
    printed = capsys.readouterr().out
    assert printed.count("to train") == 7
    assert "6 cells, 6 to train, 2 at a time" in printed
    assert "not known before one has finished, of sg on digits, hybrid on digits" in printed
    assert not Path("run").exists()
    write(seeds=[0], methods=["sg"])
    assert ablate() == 0
    write(seeds=[0, 1, 2], methods=["sg", "hybrid"])
    capsys.readouterr()
    assert ablate("--dry-run") == 0
    printed = capsys.readouterr().out
    assert "digits-sg-seed=0: finished" in printed
    assert "digits-sg-seed=1: to train, about" in printed
    assert "not known before one has finished, of hybrid on digits." in printed


def test_shards_in_folders_of_their_own_are_copied_together(capsys):
    write(seeds=[0, 1, 2])
    for shard, count in (("1/2", 2), ("2/2", 1)):
        assert ablate(f"--shard={shard}", f"--output=part{shard[0]}") == 1  # others wait
        assert f"{count} of 3 cells finished, 0 failed, {3 - count} wait for other shards" in capsys.readouterr().out
    shutil.copytree("part1", "run")
    shutil.copytree("part2", "run", dirs_exist_ok=True)
    before = written()
    assert ablate() == 0
    assert "3 of 3 cells were finished before" in capsys.readouterr().out
    assert written() == before


def test_the_best_value_on_validation_rows_is_chosen_for_each_method(capsys):
    Path("other.py").write_text(
        "from lightning_cvxsnn import LitSNN\n\n\nclass Wants(LitSNN):\n"
        "    def __init__(self, wanted: float, lr: float = 0.1):\n"
        "        super().__init__(hidden=[8], lr=lr)\n        self.wanted = wanted\n\n"
        "    def validation_step(self, batch, batch_idx):\n        self.log('val_loss', abs(self.lr - self.wanted))\n"
    )
    choose = {"key": LR, "values": [-1.0, 0.0, 0.01], "metric": "val_loss", "mode": "min"}
    wants = {w: {"model": {"class_path": "other.Wants", "init_args": {"wanted": w}}} for w in (0.0, 0.008)}
    write(methods={"none": wants[0.0], "some": wants[0.008]}, choose=choose, metric="val_loss", mode="min")
    assert ablate() == 1  # a negative rate fails, and is told
    found = {name: read(path, "cell.json") for name, path in cells().items()}
    assert len(found) == 8
    assert found["digits-some-seed=0"]["chosen"] == {LR: 0.01}
    assert found["digits-none-seed=0"]["chosen"] == {LR: 0.0}
    tried = cells()["choose-digits-some-lr=0.01-seed=100"]
    assert "test_accuracy" not in read(tried, "result.json")["metrics"]
    config = yaml.safe_load((cells()["digits-some-seed=0"] / "config.yaml").read_text())
    assert config["model"]["init_args"] == {"wanted": 0.008, "lr": 0.01}
    error = states()["choose-digits-some-lr=-1-seed=100"]["error"]
    assert error.endswith("Invalid value lr=-1.0. Expected a finite number >= 0.")

    write(methods={"sg": {}}, choose={**choose, "values": [-1.0]})
    assert ablate("--output=none") == 1
    error = states("none")["digits-sg-seed=0"]["error"]
    assert error == f"No value of {LR} could be chosen: no cell of the choice gave val_loss."


def test_one_job_in_a_process_that_has_trained():
    """Forked from here, a cell could not train; one after the other they run all the same."""
    torch.ones(2, requires_grad=True).sum().backward()
    write(seeds=[0, 1, 2])
    assert ablate("--jobs=1") == 0
    ends = {name: (path / "state.json").stat().st_mtime for name, path in cells().items()}
    spans = sorted((end - read(cells()[name], "state.json")["seconds"], end) for name, end in ends.items())
    assert all(end < start + 0.05 for (_, end), (start, _) in pairwise(spans))


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"metric": "val_acuracy"}, "val_loss, val_accuracy, test_accuracy"),
        ({"choose": {"key": LR, "values": [0.1, 0.2, 0.3], "metric": "val_acuracy"}}, "val_loss, val_accuracy"),
    ],
)
def test_a_metric_that_no_cell_has_ends_the_sweep_at_the_first(keys, expected, capsys, recwarn):
    write(seeds=list(range(6)), **keys)
    for _ in range(2):  # again, with a cell that was finished before
        assert ablate("--jobs=1") == 2
        error = capsys.readouterr().err
        assert error == (
            f"cvxsnn: error: Found no metric 'val_acuracy'. Expected one of {expected}. Did you mean 'val_accuracy'?\n"
        )
        found = [state["state"] for state in states_so_far().values()]
        assert found.count("finished") == 1
        assert len(found) <= 2
    assert not [str(w.message) for w in recwarn if "tasks" in str(w.message)]
    assert not Path("run/report.html").exists()


def test_the_fits_of_a_method_go_on_from_the_weights_of_the_one_before():
    stages = [{"part": [1, 2]}, {"part": [2, 2], LR: 0.0, "trainer.max_epochs": 2}]
    write(methods={"two": {"stages": stages}})
    assert ablate() == 0
    (place,) = cells().values()
    with open(place / "history.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["stage"], line["epoch"]) for line in lines] == [("1", "0"), ("1", "1"), *[("2", e) for e in "123"]]
    losses = [line["val_loss"] for line in lines]
    assert losses[0] != losses[1] == losses[2] == losses[4]
    assert read(place, "result.json")["epochs"] == 3
    assert yaml.safe_load((place / "config-2.yaml").read_text())["trainer"]["max_epochs"] == 2


def test_parts_are_disjoint_cover_all_rows_and_stay_the_same():
    rows = []
    for number in (1, 2, 3):
        data = DigitsDataModule(batch_size=50)
        data.setup("fit")
        see_part(data, number, 3, seed=4)
        first, second = data.train_dataloader().dataset.indices, data.train_dataloader().dataset.indices
        assert first == second
        assert data.train_dataloader().batch_size == 50
        rows += first
    assert sorted(rows) == list(range(1097))


class Sampled(DigitsDataModule):
    """Trains on some rows alone, by a sampler."""

    sampler = SubsetRandomSampler(range(100, 200))

    def train_dataloader(self):
        return DataLoader(self.train, 10, sampler=self.sampler)


def test_parts_are_of_the_rows_that_a_sampler_reads():
    rows = []
    for number in (1, 2):
        data = Sampled()
        data.setup("fit")
        see_part(data, number, 2, seed=4)
        loader = data.train_dataloader()
        assert type(loader.sampler) is RandomSampler
        rows += loader.dataset.indices
    assert sorted(rows) == list(range(100, 200))


@pytest.mark.parametrize("sampler", [WeightedRandomSampler([1.0] * 50, 50), RandomSampler(range(50), replacement=True)])
def test_parts_of_rows_that_are_drawn_with_repeats_are_refused(monkeypatch, sampler):
    data = Sampled()
    data.setup("fit")
    monkeypatch.setattr(Sampled, "sampler", sampler)
    see_part(data, 1, 2, seed=4)
    with pytest.raises(MisconfigurationException, match=f"'part' with training rows from a {type(sampler).__name__}"):
        data.train_dataloader()


# -- being killed -----------------------------------------------------------------------------------------------------


def test_two_processes_of_one_cell_train_it_once():
    write(methods={"slow": {"trainer.callbacks+": "mine.Slow"}})
    assert ablate() == 0
    (place,) = cells().values()
    (place / "state.json").unlink()
    with FileLock("run/lock"):
        processes = [subprocess.Popen(command(place, Path("run/lock"))) for _ in range(2)]
        assert [process.wait() for process in processes] == [0, 0]
    assert read(place, "state.json")["attempts"] == 1


def test_a_second_runner_in_one_folder_is_refused(capsys):
    write()
    Path("run").mkdir()
    with FileLock("run/lock"):
        assert ablate() == 2
    assert "Found another 'cvxsnn ablate' at work in 'run'" in capsys.readouterr().err
    assert not Path("run/cells").exists()


def start():
    code = "from lightning_cvxsnn.cli import main; main()"
    arguments = ["ablate", "-c", "sweep.yaml", "--output=run", "--jobs=2"]
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.DEVNULL)


def wait_for(wanted, seconds=120):
    end = time.monotonic() + seconds
    while not wanted():
        assert time.monotonic() < end
        time.sleep(0.05)


def running():
    return [
        path for path in Path("run").glob("cells/*/state.json") if json.loads(path.read_text())["state"] == "running"
    ]


def free(path):
    try:
        with FileLock(path, timeout=0):
            return True
    except TimeoutError:
        return False


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL")
def test_a_sweep_killed_and_started_again_gives_the_same_table():
    write(base=BASE | {"trainer": BASE["trainer"] | {"max_epochs": 150}}, methods=["sg", "hybrid"], seeds=[0, 1])
    process = start()
    wait_for(lambda: len(states_so_far()) > 2)  # one has finished, and the third has only just begun
    process.kill()
    process.wait()
    wait_for(lambda: all(free(path.parent / "lock") for path in running()), 20)  # cells end with their runner
    done = {name: state for name, state in states_so_far().items() if state["state"] == "finished"}
    cut = [path.parent.name for path in running()]
    assert done
    assert cut
    assert start().wait() == 0
    after = states()
    assert {name: after[name] for name in done} == done
    assert {after[name]["attempts"] for name in cut} == {2}
    assert ablate("--output=undisturbed") == 0
    assert results() == results("undisturbed")


def states_so_far():
    return {path.parent.name: json.loads(path.read_text()) for path in Path("run").glob("cells/*/state.json")}


# -- clusters and arguments -------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_cells_on_a_dask_cluster_give_the_same():
    distributed = pytest.importorskip("dask.distributed")
    write(seeds=[0, 1])
    assert ablate("--output=here") == 0
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        assert ablate("--backend=dask", f"--address={cluster.scheduler_address}") == 0
    assert results() == results("here")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shard=3/2"], "Found --shard=3/2. Expected i/n"),
        (["--jobs=0"], "Found --jobs=0"),
        (["--backend=slurm"], "slurm"),
        (["--config=missing.yaml"], "Found no file that can be read at 'missing.yaml'"),
        (["--outptu=x"], "outptu"),
    ],
)
def test_a_wrong_argument_ends_the_command_with_one_line(arguments, message, capsys):
    write()
    assert ablate(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("cvxsnn: error: ")
    assert error.count("\n") == 1
