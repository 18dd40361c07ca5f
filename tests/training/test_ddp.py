"""The callback under DDP: two real processes on the CPU, launched by a script as a user would."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from networks import Net, loader, rows, state, trainer

from lightning_cvxsnn import ConvexReconstruction

HERE = Path(__file__).parent
TIMEOUT = 400
READOUT = {"readout.weight", "readout.bias"}


def run(folder, *arguments):
    """Run ``ddp.py`` until both of its processes have ended; the exit status of the first one and the output."""
    environment = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE")}
    environment |= {"PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE.parent)]), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, HERE / "ddp.py", folder, *arguments], env=environment, cwd=folder, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"The processes hang:\n{process.communicate()[0][-5000:]}")
    return process.returncode, output


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What the two processes of ``ddp.py`` saw, the folder they wrote to, and how they ended after one was killed."""
    folder = tmp_path_factory.mktemp("ddp")
    code, output = run(folder)
    seconds = since_the_kill(folder)
    files = [folder / f"{rank}.pt" for rank in range(2)]
    assert all(file.exists() for file in files), output[-5000:]
    return *(torch.load(file, weights_only=False) for file in files), folder, code, seconds


def since_the_kill(folder):
    return time.time() - (folder / "killed").stat().st_mtime


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def timeless(report):
    return {k: v for k, v in report.items() if not k.startswith("seconds")}


@pytest.mark.parametrize(
    "case",
    [
        "fit",
        "shadow",
        "batch norm",
        "dead",
        "priced",
        "deep",
        "branches",
        "judged",
        "judged together",
        "judged by few",
        "subset",
        "late",
    ],
)
def test_all_processes_end_with_the_same_bits_and_the_same_reports(outcomes, case):
    first, second = outcomes[0][case], outcomes[1][case]
    assert "error" not in first
    assert any(report["accepted"] for report in first["reports"])
    assert [timeless(report) for report in first["reports"]] == [timeless(report) for report in second["reports"]]
    assert same(first["after"], second["after"])
    assert not same(first["before"], first["after"])


def test_both_processes_hold_the_layers_that_send_on_spikes(outcomes):
    for rank in range(2):
        deep = outcomes[rank]["deep"]
        assert [report["relays"] for report in deep["reports"]] == [3, 3]
        moved = {name for name, value in deep["after"].items() if not torch.equal(value, deep["warm start"][name])}
        assert {name for name in moved if "weight" in name} == {
            "hidden.0.weight", "hidden.2.weight", "hidden.4.weight", "readout.weight"
        }  # fmt: skip


@pytest.mark.parametrize("case", ["fit", "batch norm", "dead", "priced", "deep", "branches"])
def test_the_warm_start_is_that_of_one_process(outcomes, case):
    for rank in range(2):
        together, one = outcomes[rank][case], outcomes[rank][f"{case} alone"]
        assert same(together["warm start"], one["after"])
        ours, theirs = (timeless(report) for report in (together["reports"][0], one["report"]))
        own = {"reason": "", "work": 0}  # passes over the rows are shared out
        assert ours | own == theirs | own


@pytest.mark.parametrize(
    ("case", "kind", "count"),
    [("judged", "validation", 131), ("judged together", "both", 45), ("judged by few", "validation", 45)],
)
def test_validation_rows_judge_for_all_processes_and_none_of_them_twice(outcomes, case, kind, count):
    first, second = (result[case] for result in outcomes[:2])
    expected = rows(count, seed=1)[1]
    assert len(first["labels"]) >= 5
    assert all(torch.equal(labels, expected) for labels in first["labels"])
    assert second["labels"] == []  # rank 0 compares
    for report in first["reports"]:
        assert report["judge"] == kind
        assert report["rows"] == (149 if kind == "validation" or report["accepted"] else 120)


@pytest.mark.parametrize("case", ["judged", "judged together", "judged by few", "rejected"])
def test_all_processes_show_the_same_and_train_on_the_same(outcomes, case):
    first, second = (result[case] for result in outcomes[:2])
    assert len(first["validated"]) == len(first["stepped"]) == 4
    for moment in ("validated", "stepped"):
        assert all(same(a, b) for a, b in zip(first[moment], second[moment], strict=True))
    shown, drawn = first["validated"][:3], first["stepped"][1:]
    periodic = [report for report in first["reports"] if report["reason"].startswith("periodic")]
    for report, validated, stepped in zip(periodic, shown, drawn, strict=False):
        assert report["relaxation"] == 0.3
        assert report["accepted"] or case != "judged" or report["epoch"] > 1
        assert not (report["accepted"] and case == "rejected")
        changed = {name for name in validated if not torch.equal(validated[name], stepped[name])}
        stands = report["shown_epoch"] is not None  # with its hidden weights
        assert changed > READOUT if stands else changed == READOUT


def test_all_processes_show_the_same_network_on(outcomes):
    first, second = (result["shown on"] for result in outcomes[:2])
    assert [report["epoch"] for report in first["reports"]] == [0, 4]
    assert len(first["labels"]) == 6  # before and after the start's choice, three comparisons, the end
    for moment in ("validated", "stepped"):
        assert all(same(a, b) for a, b in zip(first[moment], second[moment], strict=True))
    assert same(first["validated"][0], first["validated"][1])
    assert not same(first["stepped"][0], first["stepped"][1])
    assert not same(first["validated"][0], first["stepped"][1])


def test_validation_rows_that_cannot_judge_are_refused_in_both(outcomes):
    """One process that left them out would wait for the other."""
    for rank in range(2):
        result = outcomes[rank]["unreadable"]
        assert result["error"][0] == "MisconfigurationException"
        assert "The validation rows cannot judge" in result["error"][1]
        assert "judge='train'" in result["error"][1]
        assert same(result["before"], result["after"])


@pytest.mark.parametrize("case", ["dictionary", "fewer batches than processes", "a list of batches"])
def test_the_dictionary_is_that_of_one_process_bit_for_bit(outcomes, case):
    (together, one), (elsewhere, _) = outcomes[0][case], outcomes[1][case]
    assert elsewhere is None
    assert together[1] == one[1]
    for ours, theirs in zip(together[::2], one[::2], strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


def test_no_row_is_counted_twice(outcomes):
    for case, count in (("fit", 149), ("subset", 100)):
        assert {r["rows"] for r in outcomes[0][case]["reports"]} <= {count, count - count // 5}


def test_a_failure_in_one_process_is_raised_in_both_and_nothing_is_written(outcomes):
    first, second = outcomes[0]["NaN"], outcomes[1]["NaN"]
    assert second["error"][0] == "ValueError"
    assert "training batch 9 hold" in second["error"][1]
    assert first["error"] == ("ValueError", f"Rank 1 failed with ValueError: {second['error'][1]}")
    for result in (first, second):
        assert same(result["before"], result["after"])


def test_a_write_that_fails_in_one_process_is_undone_in_both(outcomes):
    first, second = outcomes[0]["failed write"], outcomes[1]["failed write"]
    assert second["error"] == ("OSError", "the memory is worn out")
    assert first["error"] == ("RuntimeError", "Rank 1 failed with OSError: the memory is worn out")
    for result in (first, second):
        assert same(result["before"], result["after"])


def test_a_write_of_other_bits_in_one_process_is_undone_in_both(outcomes):
    for rank in range(2):
        result = outcomes[rank]["wrong write"]
        assert result["error"][0] == "RuntimeError"
        assert "hold different parameters" in result["error"][1]
        assert same(result["before"], result["after"])


def test_one_process_logs_and_saves(outcomes):
    folder = outcomes[2]
    with open(folder / "log/metrics.csv") as file:
        written = [row for row in csv.DictReader(file) if row["convex/gap"]]
    assert len(written) == len(outcomes[0]["fit"]["reports"]) == 3
    assert len(list((folder / "saves").glob("*.ckpt"))) == 1
    late = [path.name for path in (folder / "late").glob("convex-last*")]
    assert late == ["convex-last.ckpt"]
    saved = torch.load(folder / "late/convex-last.ckpt", weights_only=True)
    assert same(saved["state_dict"], outcomes[1]["late"]["after"])


def test_a_shadow_is_saved_with_what_it_stands_in_for(outcomes):
    result, folder = outcomes[1]["shadow"], outcomes[2]
    reports = result["reports"]
    assert reports[-1]["accepted"]
    assert any(report["overhead"] > 0 for report in reports)
    (path,) = (folder / "shadow").glob("*.ckpt")
    saved = torch.load(path, weights_only=True)
    assert same(saved["state_dict"], result["after"])
    (state,) = [value for key, value in saved["callbacks"].items() if key.startswith("ConvexReconstruction")]
    shadow = state["reconstructor"]["shadow"]
    assert same(shadow["solved"], {name: result["after"][name] for name in shadow["solved"]})
    assert not same(shadow["solved"], shadow["trained"])
    # the warm start was a shadow too: the first step found the weights of the start
    assert same(result["warm start"], result["before"])


def test_a_batch_sampler_of_which_each_process_sees_a_part_is_refused(outcomes):
    for rank in range(2):
        assert "comes by a Own, of which each of 2 processes sees a part" in outcomes[rank]["batch sampler"]


def test_processes_that_lightning_spawns_itself(tmp_path):
    """Weights and logs come back; the callback that solved was a copy in another process."""
    torch.manual_seed(0)
    net, callback = Net(), ConvexReconstruction(beta=0.02)
    before, logger = state(net), CSVLogger(tmp_path, name="", version="")
    run = trainer(callback, max_epochs=1, devices=2, strategy="ddp_spawn", logger=logger, log_every_n_steps=1)
    run.fit(net, loader(), loader(seed=1))
    assert not same(before, state(net))
    assert callback.reports == []
    with open(tmp_path / "metrics.csv") as file:
        gaps = [float(row["convex/gap"]) for row in csv.DictReader(file) if row["convex/gap"]]
    start, end = gaps
    assert start < 1e-3  # what is only shown
    assert end < 1e-5


def test_when_the_second_process_is_killed_in_a_solve_the_first_ends(outcomes):
    *_, code, seconds = outcomes
    assert code != 0
    assert seconds < 60


def test_when_the_first_process_is_killed_in_a_solve_the_second_ends_with_an_error(tmp_path):
    code, output = run(tmp_path, "kill the first")
    assert code == -signal.SIGKILL
    assert since_the_kill(tmp_path) < 60
    assert "onnection" in (tmp_path / "survived").read_text(), output[-5000:]
