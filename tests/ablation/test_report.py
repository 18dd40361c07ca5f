"""Run folders read, and tables, sentences, figures and the page that are written from them."""

import json
import re
from xml.etree import ElementTree

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from run_folders import write_cell, write_sweep

from lightning_cvxsnn import ConvexReconstruction, DigitsDataModule, LitSNN
from lightning_cvxsnn.ablation import figures
from lightning_cvxsnn.ablation.report import write_report
from lightning_cvxsnn.ablation.results import read_results
from lightning_cvxsnn.ablation.statistics import ALONE, BETTER, FEW, NOISE
from lightning_cvxsnn.ablation.summary import summarise
from lightning_cvxsnn.ablation.tables import choices_table, comparison, results_table


def small(folder, values, **sweep):
    """One task; a cell for each value of each method."""
    write_sweep(folder, **sweep)
    for method, listed in values.items():
        for seed, value in enumerate(listed):
            write_cell(folder, method, seed, value)
    return folder


def sentences(folder):
    results = read_results(folder)
    return summarise(results, comparison(results))


# -- reading ----------------------------------------------------------------------------------------------------------


def test_cells_are_read_as_far_as_they_got(tmp_path):
    folder = write_sweep(tmp_path / "run")
    write_cell(folder, "sg", 0, 0.9)
    write_cell(folder, "sg", 1, state="failed")
    write_cell(folder, "sg", 2, state="running")
    write_cell(folder, "sg", 3, state="not started")
    killed = write_cell(folder, "sg", 4, 0.5)
    (killed / "state.json").write_text('{"state": "run')
    (killed / "result.json").unlink()
    whole = (killed / "history.csv").read_text()
    (killed / "history.csv").write_text(whole[: whole.rindex(",")])
    (killed / "reports.json").write_text("[{")
    (folder / "cells" / "lock").write_text("")
    (folder / "cells" / "empty").mkdir()
    results = read_results(folder)
    assert results.cells["state"].tolist() == ["finished", "failed", "running", "not started", "not started"]
    assert results.cells["value"].isna().tolist() == [False, True, True, True, True]
    assert results.history.groupby("id").size().to_dict() == {"digits-sg-seed=0": 5, "digits-sg-seed=4": 4}
    write_report(folder)


def test_shards_merge_and_the_cell_that_got_further_counts(tmp_path):
    one, other = (write_sweep(tmp_path / name) for name in ("one", "other"))
    write_cell(one, "sg", 0, 0.9)
    write_cell(one, "sg", 1, state="failed")
    write_cell(other, "sg", 1, 0.8)
    write_cell(other, "sg", 2, state="running")
    for shards in ((one, other), (other, one)):
        states = read_results(*shards).cells.set_index("id")["state"].to_dict()
        assert states == {"digits-sg-seed=0": "finished", "digits-sg-seed=1": "finished", "digits-sg-seed=2": "running"}
    path = write_report(one, other, output=tmp_path / "merged")
    assert path == tmp_path / "merged" / "report.html"
    assert not (one / "report.html").exists()


def test_other_sweeps_are_no_shards(tmp_path):
    one = small(tmp_path / "one", {"sg": [0.9]})
    other = small(tmp_path / "other", {"sg": [0.9]}, metric="val_loss")
    with pytest.raises(MisconfigurationException, match="another metric in"):
        read_results(one, other)


@pytest.mark.parametrize(
    ("folders", "message"), [((), "no folder"), (("here",), "no cells/"), (("empty",), "no cell in")]
)
def test_what_is_no_run_folder_is_refused(folders, message, tmp_path):
    write_sweep(tmp_path / "empty")
    with pytest.raises(MisconfigurationException, match=message):
        write_report(*(tmp_path / folder for folder in folders))


def test_a_file_is_no_folder_for_a_report(tmp_path):
    folder = small(tmp_path / "run", {"sg": [0.9]})
    with pytest.raises(MisconfigurationException, match="Found the file"):
        write_report(folder, output=folder / "sweep.yaml")


def test_settings_with_the_same_last_name_keep_their_whole_names(tmp_path):
    folder = write_sweep(tmp_path / "run")
    for a in (1, 2):
        for b in (1, 2):
            settings = {"model.size": a, "data.size": b, "model.only": 3, "data.seed": a, "model.width": b}
            write_cell(folder, f"m{a}{b}", 0, 0.5, settings=settings)
    whole = {key: key for key in ("model.size", "data.size", "data.seed")}
    assert dict(read_results(folder).axes) == whole | {"model.width": "width"}
    assert {*whole, "width"} <= set(comparison(read_results(folder)).columns)


def test_settings_that_read_alike_stay_apart(tmp_path):
    folder = write_sweep(tmp_path / "run")
    for number, kind in enumerate(("one.Net", "other.Net", "one.Other")):
        write_cell(folder, f"sg{number}", 0, 0.5, settings={"model": kind})
    assert read_results(folder).cells["setting"].nunique() == 3


# -- statistics of folders --------------------------------------------------------------------------------------------


def test_the_table_has_the_differences_verdicts_and_budgets(example_run):
    frame = pd.read_csv(example_run / "results.csv", keep_default_na=False, na_values=[""])
    assert len(frame) == 2 * 3 * 3
    hybrid = frame[frame["method"] == "hybrid"].set_index(["task", "lr"])
    assert (hybrid.loc["digits", "verdict"] == BETTER).all()
    assert hybrid.loc[("xor", 0.003), "verdict"] == NOISE
    assert hybrid.loc[("xor", 0.03), "verdict"] == FEW
    assert hybrid.loc[("xor", 0.03), ["seeds", "used"]].tolist() == [4, 2]
    assert (frame[["epochs", "cpu_seconds", "trained_parameters"]] > 0).all().all()
    values = [
        json.loads(p.read_text())["metrics"]["val_accuracy"]
        for p in example_run.glob("cells/digits-sg-lr=0.01-*/result.json")
    ]
    line = frame[(frame["task"] == "digits") & (frame["lr"] == 0.01) & (frame["method"] == "sg")]
    assert line["mean"].item() == pytest.approx(np.mean(values))
    text = (example_run / "results.md").read_text()
    assert f"| digits | 0.01 | sg | 4 | {100 * np.mean(values):.1f} ± " in text
    assert text.count("| digits |") == text.count("| xor |") == 9


def test_a_baseline_without_a_finished_cell_has_no_differences(tmp_path):
    folder = write_sweep(tmp_path / "run")
    for seed in range(3):
        write_cell(folder, "sg", seed, state="failed")
        write_cell(folder, "hybrid", seed, 0.9)
    frame = comparison(read_results(folder))
    assert frame["verdict"].tolist() == ["baseline", FEW]
    assert sentences(folder)[1] == "No difference could be tested: too few seeds (three pairs are needed)."
    assert "3 cells failed" in sentences(folder)[2]


def test_an_arm_that_has_no_counterpart_says_so(tmp_path):
    folder = write_sweep(tmp_path / "run")
    for seed in range(3):
        write_cell(folder, "sg", seed, 0.8, task="digits")
        write_cell(folder, "hybrid", seed, 0.8, task="xor")
    frame = comparison(read_results(folder))
    assert frame["verdict"].tolist() == ["baseline", ALONE]
    assert "1 arm has no baseline" in sentences(folder)[2]


def test_metrics_that_diverged_are_counted_and_left_out(tmp_path):
    folder = small(tmp_path / "run", {"sg": [0.8, float("nan"), 0.82, 0.81], "hybrid": [0.9, 0.9, float("inf"), 0.92]})
    frame = comparison(read_results(folder))
    assert frame["used"].tolist() == [3, 3]
    assert frame["verdict"].tolist() == ["baseline", FEW]
    assert "2 runs ended without a finite val_accuracy" in sentences(folder)[2]
    write_report(folder)


def test_what_was_chosen_is_no_axis_and_its_runs_are_not_compared(tmp_path):
    folder = write_sweep(tmp_path / "run", choose={"key": "lr", "values": [0.1, 0.2], "metric": "val_accuracy"})
    for method, best in (("sg", 0.1), ("hybrid", 0.2)):
        for lr in (0.1, 0.2):
            tried = write_cell(folder, method, 100, 0.9 if lr == best else 0.3, stage="choose", settings={"lr": lr})
            about = json.loads((tried / "cell.json").read_text())
            (tried / "cell.json").write_text(json.dumps(about | {"chosen": {"lr": lr}}))
        for seed in range(3):
            run = write_cell(folder, method, seed, 0.8 + 0.01 * seed + (0.05 + 0.002 * seed) * (method == "hybrid"))
            about = json.loads((run / "cell.json").read_text())
            (run / "cell.json").write_text(json.dumps(about | {"chosen": {"lr": best}}))
    results = read_results(folder)
    frame = comparison(results)
    assert frame["chosen_lr"].tolist() == ["0.1", "0.2"]
    assert frame["seeds"].tolist() == [3, 3]
    assert frame["verdict"].tolist() == ["baseline", BETTER]
    lines = choices_table(results).markdown().splitlines()[2:]
    assert lines == [
        "| digits |  | sg | 0.1 | 1 | 90.0 | chosen |",
        "| digits |  | sg | 0.2 | 1 | 30.0 |  |",
        "| digits |  | hybrid | 0.1 | 1 | 30.0 |  |",
        "| digits |  | hybrid | 0.2 | 1 | 90.0 | chosen |",
    ]
    assert "after 4 runs that chose lr" in sentences(folder)[0]
    assert "Choices before the sweep" in write_report(folder).read_text()


def test_losses_are_compared_the_other_way_and_not_in_percent(tmp_path):
    folder = small(tmp_path / "run", {"sg": [0.8, 0.81, 0.82], "hybrid": [0.9, 0.91, 0.921]}, metric="val_loss")
    results = read_results(folder)
    assert results.mode == "min"
    assert comparison(results)["verdict"].tolist() == ["baseline", BETTER]
    assert "| 0.19 ± 0.0248 |" in results_table(results, comparison(results)).markdown()


def test_three_sentences(example_run):
    run, real, rest = sentences(example_run)
    assert run.startswith(
        "69 of 72 runs finished: 3 methods (sg, hybrid, lsm), 2 tasks (digits, xor), 3 settings and 4 seeds"
    )
    assert re.match(
        r"Better than sg is hybrid on digits at all 3 settings \(\+\d\.\d to \+\d\.\d points\), and worse", real
    )
    assert "corrected by Holm's method for 11 comparisons" in real
    assert rest == (
        "2 differences are inside the noise, 1 comparison has too few seeds, 1 cell failed, 2 cells are not finished."
    )


def test_sentences_about_next_to_nothing(tmp_path):
    alone = small(tmp_path / "alone", {"sg": [0.8]})
    assert sentences(alone)[0].startswith("1 of 1 run finished: 1 method (sg), 1 task (digits) and 1 seed")
    assert sentences(alone)[1] == "Nothing was compared: it takes two methods, one of them the baseline."
    nothing = write_sweep(tmp_path / "nothing")
    write_cell(nothing, "sg", 0, state="failed")
    assert sentences(nothing)[2] == "1 cell failed."
    assert "ValueError: Found lr=-1." in write_report(nothing).read_text()


# -- figures and page -------------------------------------------------------------------------------------------------


def test_every_figure_is_there_as_png_and_as_svg_with_its_text(example_run):
    names = {path.stem for path in (example_run / "figures").glob("*.*g")}
    assert (
        names
        == {p.stem for p in example_run.glob("figures/*.png")}
        == {p.stem for p in example_run.glob("figures/*.svg")}
    )
    kinds = ("val-accuracy-over-epochs", "val-accuracy-over-CPU-time", "duality-gap-of-solves", "objective-of-solves")
    expected = {
        f"{task}-{kind}-lr-=-{lr}" for task in ("digits", "xor") for kind in kinds for lr in (0.003, 0.01, 0.03)
    }
    assert names == expected | {"digits-val-accuracy-over-lr", "xor-val-accuracy-over-lr"}
    for name in names:
        assert (example_run / f"figures/{name}.png").read_bytes().startswith(b"\x89PNG")
        tree = ElementTree.parse(example_run / f"figures/{name}.svg")
        texts = {element.text for element in tree.iter("{http://www.w3.org/2000/svg}text")}
        assert "hybrid" in texts
        assert texts & {"epoch", "CPU seconds", "lr"}


def test_curves_are_means_and_bands_their_intervals(example_run):
    results = read_results(example_run)
    with figures.style():
        panel = next(p for p in figures.panels(results) if p.name == "digits-val-accuracy-over-epochs-lr-=-0.01")
    (axes,) = panel.figure.axes
    lines = {line.get_label(): line for line in axes.lines}
    found = pd.concat([pd.read_csv(p) for p in example_run.glob("cells/digits-hybrid-lr=0.01-*/history.csv")]).groupby(
        "epoch"
    )
    assert lines["hybrid"].get_xdata() == pytest.approx([0, 1, 2, 3, 4])
    assert lines["hybrid"].get_ydata() == pytest.approx(100 * found["val_accuracy"].mean().to_numpy())
    half = 100 * 3.182446 * found["val_accuracy"].sem().to_numpy()
    band = axes.collections[list(lines).index("hybrid")].get_paths()[0].vertices
    spans = [np.ptp(band[np.isclose(band[:, 0], epoch), 1]) for epoch in range(5)]
    assert spans == pytest.approx(2 * half, rel=1e-5, abs=1e-9)


def test_an_epoch_at_which_one_fit_ends_and_the_next_begins_is_two_points(tmp_path):
    folder = write_sweep(tmp_path / "run")
    for seed in range(3):
        cell = write_cell(folder, "hybrid", seed, 0.8)
        lines = [
            "epoch,step,stage,cpu_seconds,val_accuracy",
            "0,0,1,0,0.1",
            "2,20,1,2,0.5",
            "2,20,2,3,0.7",
            "4,40,2,4,0.8",
        ]
        (cell / "history.csv").write_text("\n".join(lines) + "\n")
        reports = json.loads((cell / "reports.json").read_text())
        (cell / "reports.json").write_text(json.dumps(reports * 2))
    with figures.style():
        drawn = {panel.name: panel.figure.axes[0] for panel in figures.panels(read_results(folder))}
    (line,) = drawn["digits-val-accuracy-over-epochs"].lines
    assert line.get_xydata() == pytest.approx(np.array([[0, 10], [2, 50], [2, 70], [4, 80]]))
    assert drawn["digits-duality-gap-of-solves"].get_xlabel() == "solve"


def test_a_metric_over_words_and_over_numbers_far_apart(tmp_path):
    folder = write_sweep(tmp_path / "run")
    for kind in ("calibrated", "pairs"):
        for rows in (256, 1024, 16384):
            write_cell(folder, "sg", 0, 0.8, settings={"witnesses": kind, "rows": rows})
    with figures.style():
        drawn = {panel.name: panel.figure.axes[0] for panel in figures.panels(read_results(folder))}
    axes = drawn["digits-val-accuracy-over-rows-witnesses-=-pairs"]
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["256", "1024", "16384"]
    axes = drawn["digits-val-accuracy-over-witnesses-rows-=-256"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["calibrated", "pairs"]


def test_the_page_escapes_what_cells_say(tmp_path):
    folder = write_sweep(tmp_path / "run")
    cell = write_cell(folder, "sg", 0, state="failed")
    state = json.loads((cell / "state.json").read_text())
    (cell / "state.json").write_text(json.dumps(state | {"error": "<script>alert(1)</script>"}))
    (cell / "log.txt").write_text("<b>&</b>")
    page = write_report(folder).read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    assert "&lt;b&gt;&amp;&lt;/b&gt;" in page


def test_a_report_written_again_is_the_same_forgets_old_figures_and_leaves_other_files(tmp_path):
    folder = small(tmp_path / "run", {"sg": [0.8, 0.82], "hybrid": [0.9, 0.91]})
    page = write_report(folder).read_text()
    before = sorted((folder / "figures").iterdir())
    assert len(before) > 2
    (folder / "figures/mine.png").write_text("")
    assert write_report(folder).read_text() == page
    assert sorted((folder / "figures").iterdir()) == sorted([*before, folder / "figures/mine.png"])
    other = write_sweep(tmp_path / "other")
    write_cell(other, "sg", 0, state="failed")
    write_report(other, output=folder)
    assert {path.name for path in (folder / "figures").iterdir()} == {".written", "mine.png"}


def test_the_page_holds_the_licence_of_what_it_contains(example_run):
    page = (example_run / "report.html").read_text()
    assert "Permission is hereby granted, free of charge" in page
    assert "SpryMedia Ltd" in page
    assert not re.search(r'(src|href)="(?!#)', page)


class Writer(pl.Callback):
    """Lines of history as the runner writes them."""

    def __init__(self):
        self.lines = []

    def on_validation_end(self, trainer, pl_module):
        if trainer.sanity_checking:
            return
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        line = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step, "cpu_seconds": len(self.lines) + 1.0}
        self.lines.append(line | metrics)


@pytest.mark.filterwarnings("ignore")
def test_real_fits(tmp_path):
    folder = write_sweep(tmp_path / "run")
    for method in ("sg", "hybrid"):
        for seed in range(3):
            cell = write_cell(folder, method, seed, 0.0)
            pl.seed_everything(seed, verbose=False)
            convex = [ConvexReconstruction(max_overhead=None)] if method == "hybrid" else []
            writer = Writer()
            quiet = dict.fromkeys(
                ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
            )
            trainer = pl.Trainer(max_epochs=1, callbacks=[*convex, writer], accelerator="cpu", **quiet)
            trainer.fit(LitSNN(hidden=[32]), DigitsDataModule())
            pd.DataFrame(writer.lines).to_csv(cell / "history.csv", index=False)
            reports = [report.state() for each in convex for report in each.reports]
            (cell / "reports.json").write_text(json.dumps(reports))
            result = {"metrics": {"val_accuracy": writer.lines[-1]["val_accuracy"]}, "epochs": 1}
            (cell / "result.json").write_text(json.dumps({**result, "cpu_seconds": 2.0, "trained_parameters": 4810}))
    page = write_report(folder).read_text()
    frame = pd.read_csv(folder / "results.csv")
    assert frame["verdict"].tolist() == ["baseline", BETTER]
    assert {p.stem for p in folder.glob("figures/*.svg")} >= {
        "digits-duality-gap-of-solves",
        "digits-objective-of-solves",
    }
    assert "solves-table" in page
