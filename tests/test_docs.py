"""Every code block of the README and the docs runs, every message shown is one that the code gives, and every number
in a table is in a committed result file.
"""

import importlib
import inspect
import json
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path
from statistics import mean, median

import pytest
import yaml
from lightning.pytorch import LightningDataModule, LightningModule

import lightning_cvxsnn
from lightning_cvxsnn import ConvexReconstruction, SolveReport
from lightning_cvxsnn.ablation.reading import read_yaml
from lightning_cvxsnn.cli import main

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs/pages").glob("*.md"))]
BLOCKS = [
    pytest.param(language, code, id=f"{page.name}-{index}-{language}")
    for page in PAGES
    if page.name != "errors.md"  # whose blocks fail, as they shall
    for index, (language, code) in enumerate(re.findall(r"```(\w+)\n(.*?)```", page.read_text(), re.S))
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("language", "code"), BLOCKS)
def test_code_blocks(language, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if language == "python":
        namespace = {"__name__": "block"}
        exec(compile(code, "block", "exec"), namespace)
        if "MySNN" in namespace:
            solve_own_network(namespace["MySNN"])
    elif language == "yaml":
        (tmp_path / "config.yaml").write_text(code)
        monkeypatch.setattr(sys, "argv", ["cvxsnn"])
        if not {"model", "trainer"} & yaml.safe_load(code).keys():
            return check_sweep(code, tmp_path)
        main(["fit", "--config=config.yaml", "--trainer.max_epochs=1", "--trainer.accelerator=cpu"])
    elif language == "bash":
        check_shell(code)
    else:
        assert language == "text"  # shown, not run


ERRORS = (ROOT / "docs/pages/errors.md").read_text()
BEGINNING = re.search(r"```python\n(.*?)```", ERRORS, re.S)[1]
MESSAGES = [
    pytest.param(code, " ".join(message.split()), id=title)
    for title, code, message in re.findall(
        r"^### (.*?)\n(?:(?!###).)*?```python\n(.*?)```\n\n``` \{.text .message\}\n(.*?)```", ERRORS, re.S | re.M
    )
]


def test_every_message_of_the_errors_page_is_tested():
    assert len(MESSAGES) == len(re.findall(r"^### ", ERRORS, re.M)) >= 15


@pytest.mark.parametrize(("code", "message"), MESSAGES)
def test_the_errors_page_shows_what_is_said(code, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "block"}
    exec(BEGINNING, namespace)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        said = ""
        try:
            exec(code, namespace)
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
    said = said or " ".join(str(each.message) for each in caught if "ConvexReconstruction" in str(each.message))
    # Another machine may round otherwise.
    assert re.sub(r"\d[\d.]*", "0", " ".join(said.split())) == re.sub(r"\d[\d.]*", "0", message)


@pytest.mark.filterwarnings("ignore")
def test_the_doctors_page_shows_what_is_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs/pages/doctor.md").read_text()
    code, shown = re.search(r"```python\n(.*?)```.*?\n```\n(.*?)```", text, re.S).groups()
    exec(compile(code, "block", "exec"), {})
    # Another machine may round otherwise.
    words = [re.sub(r"[\d.]+", "0", out).split() for out in (shown, capsys.readouterr().out)]
    assert words[0] == words[1]
    assert (tmp_path / "layers.png").exists()


def check_sweep(code, folder):
    """A sweep; of parts of one the rest is that of the page's first."""
    text = (ROOT / "docs/pages/ablations.md").read_text()
    whole = read_yaml_text(re.search(r"```yaml\n(.*?)```", text, re.S).group(1), folder)
    part = read_yaml_text(code, folder)
    if "methods" in part:
        del whole["baseline"]  # a method of the page's first
    (folder / "sweep.yaml").write_text(yaml.safe_dump(whole | part, sort_keys=False))
    main(["ablate", "--config=sweep.yaml", "--dry-run"])


def read_yaml_text(text, folder):
    (folder / "text.yaml").write_text(text)
    return read_yaml(folder / "text.yaml")


def test_the_report_that_is_annotated_is_one():
    (shown,) = re.findall(r"^```\n(.*?)```", (ROOT / "docs/pages/report.md").read_text(), re.S | re.M)
    marks = re.findall(r" \((\d+)\)$", shown, re.M)
    assert marks == [str(number) for number in range(1, len(marks) + 1)]
    report = SolveReport(
        epoch=10, step=180, loss="cross_entropy", beta=0.000457, l1_ratio=0.0, rho=0.00004, primal=0.0797867,
        dual=0.0797859, gap=8.6e-7, gap_written=8.6e-7, scope="dictionary", rows=1097, columns=128, distinct=128,
        silent=0, saturated=0, active=128, scale=1.0, relaxation=0.0, judge="validation", accepted=True,
        reason="final solve: accepted", held_out_loss_before=0.4711, held_out_loss_after=0.4284, seconds_patterns=0.2,
        seconds_solve=0.2, accuracy_before=0.857, accuracy_after=0.874,
    )  # fmt: skip
    assert re.sub(r"\s+\(\d+\)$", "", shown.rstrip(), flags=re.M) == str(report)


def solve_own_network(network):
    """The README's network, in an empty folder, with batches of its own kind."""
    from lightning.pytorch import Trainer
    from torch.utils.data import DataLoader

    from lightning_cvxsnn import ConvexReconstruction, DigitsDataModule

    data = DigitsDataModule()
    data.setup("fit")
    samples = [{"pixels": x, "digit": y} for x, y in data.train]
    callback = ConvexReconstruction()
    Trainer(max_epochs=1, callbacks=[callback], accelerator="cpu", logger=False).fit(
        network(), DataLoader(samples, batch_size=64, shuffle=True)
    )
    assert callback.reports[0].accepted


def check_shell(code):
    """The steps of a README command, without the installation that this environment is."""
    venv, install, run = (shlex.split(step) for step in code.split("&&"))
    assert venv[:3] == ["python3", "-m", "venv"]
    folder = venv[3]
    assert install[:4] == [f"{folder}/bin/python", "-m", "pip", "install"]
    program = Path(run[0])
    assert program.parts[:2] == (folder, "bin")
    installed = Path(sys.executable).parent / program.name
    assert installed.exists()
    if program.name == "cvxsnn":
        assert run[1:] in (["demo"], ["--version"])
        asked = ["demo", "--help"] if run[1] == "demo" else run[1:]
        subprocess.run([installed, *asked], check=True, capture_output=True)
    else:
        assert run[1:3] == ["-m", "pytest"]


def test_ci_runs_the_readmes_test_command():
    script = (ROOT / ".ci/run").read_text()
    extract = re.search(r"command=\$\((.*)\)\n", script).group(1)
    command = subprocess.run(
        ["bash", "-c", extract], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert command in (ROOT / "README.md").read_text()
    assert "-m pytest" in command


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 100


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_outside_the_site_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\((?!http)([^)#]+)#?([^)]*)\)", (ROOT / page).read_text()):
        text = (ROOT / target).read_text() if target.endswith(".md") else ""
        assert (ROOT / target).exists()
        headings = [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.*)", text, re.M)]
        assert not anchor or anchor in headings


def test_the_table_of_digits_is_the_committed_result():
    results = json.loads((ROOT / "benchmarks/results/digits.json").read_text())
    text = (ROOT / "docs/pages/results.md").read_text()
    table = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if re.match(r"\| (two|nine)", line)
    ]
    rows = results["results"]["rows"]
    assert len(table) == len(rows) == 8
    for cells, row in zip(table, rows, strict=True):
        written = [row["network"], row["training"], str(row["epochs"])]
        written += [f"{row[key]:.1f}" for key in ("start", "epoch_1", "epoch_5", "end", "test", "seconds")]
        assert [cell.strip("*`") for cell in cells] == written
    machine = results["machine"]
    assert f"{machine['cores']} cores" in text
    assert f"{max(row['largest_gap'] for row in rows):.0e}" in text


def test_the_table_of_backends_is_the_committed_result():
    results = json.loads((ROOT / "benchmarks/results/gpu.json").read_text())["results"]
    text = (ROOT / "docs/pages/gpu.md").read_text()
    seconds = {(r["T, N, M"], r["what"], r["backend"]): r["seconds"] for r in results["patterns"]}
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\| \d, .*$", text, re.M)]
    assert len(rows) == 8
    for size, what, *milliseconds, ratio in rows:
        found = [seconds[size, what, backend] for backend in ("torch", "spikingjelly", "cupy")]
        assert milliseconds == [f"{1e3 * each:.1f}" for each in found]
        assert ratio == f"{found[0] / found[2]:.1f}"
    solves = {(r["n, P, C"], r["l1_ratio"]): r for r in results["solvers"] if r["loss"] == "cross_entropy"}
    large, small = solves["20000, 4096, 10", 1.0], solves["2000, 256, 10", 0.0]
    assert f"{large['seconds']:.2f} s there with L1 and {solves['20000, 4096, 10', 0.0]['seconds']:.2f} s" in text
    assert f"{small['seconds']:.3f} s, and {small['seconds on the CPU']:.3f} s on 16 cores" in text
    assert all(row["entries that differ"] == 0 for row in results["kernels"])


@pytest.mark.parametrize("page", ["README.md", "docs/pages/results.md"])
def test_the_fair_tables_are_the_committed_results(page, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    runs = json.loads((ROOT / "benchmarks/results/fair.json").read_text())["runs"]
    tasks = list(importlib.import_module("fair_tasks").TASKS)
    expected = importlib.import_module("fair_summary").Summary(runs).markdown(tasks, "ConvexReconstruction()")
    written = re.search(r"<!-- fair-results -->(.*?)<!-- /fair-results -->", (ROOT / page).read_text(), re.S)
    assert written
    rows = re.findall(r"^\|.*$", written[1], re.M)
    if page == "README.md":
        expected = means(expected)
    assert "\n".join(rows) == expected


def test_the_table_of_unseen_tasks_is_the_committed_result(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    runs = json.loads((ROOT / "benchmarks/results/fair_unseen.json").read_text())["runs"]
    unseen, summaries = map(importlib.import_module, ("fair_unseen", "fair_summary"))
    expected = summaries.Summary(runs).markdown(list(unseen.UNSEEN), "ConvexReconstruction()")
    text = (ROOT / "docs/pages/results.md").read_text()
    written = re.search(r"<!-- unseen-results -->(.*?)<!-- /unseen-results -->", text, re.S)
    assert written
    assert "\n".join(re.findall(r"^\|.*$", written[1], re.M)) == expected
    words = ["ten", "eleven", "twelve", "thirteen"]
    assert f"Do they hold on others? {words[len(unseen.UNSEEN) - 10].capitalize()} were kept aside" in text
    summary, arm = summaries.Summary(runs), "ConvexReconstruction()"
    ends = {name: summaries.interval(summary.differences(name, arm)["end"]) for name in unseen.UNSEEN}
    assert [name for name, (middle, half) in ends.items() if middle > half] == [
        "GunPoint, 1 layer",
        "recurrent, OSULeaf",
    ]
    assert [name for name, (middle, half) in ends.items() if -middle > half] == ["ACSF1, 4 layers"]


def test_the_comparison_with_averaged_weights_is_the_committed_result(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    summaries, arms, tasks = map(importlib.import_module, ("fair_summary", "fair_arms", "fair_tasks"))
    summary = summaries.Summary(json.loads((ROOT / "benchmarks/results/fair.json").read_text())["runs"])
    classified = [name for name, task in tasks.TASKS.items() if task.loss != "squared"]
    found = [each for name in classified if (each := summary.between(name, arms.OURS, "SG, weights averaged"))]
    ahead = "{:+.1f} ± {:.1f}".format(*summaries.interval([mean(each) for each in found]))
    text = " ".join((ROOT / "docs/pages/results.md").read_text().split())
    assert f"weights averaged* as a mean of {len(found)} tasks: {ahead}" in text


def test_the_table_of_other_arms_is_the_committed_result(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    summaries, arms, tasks = map(importlib.import_module, ("fair_summary", "fair_arms", "fair_tasks"))
    summary = summaries.Summary(json.loads((ROOT / "benchmarks/results/fair.json").read_text())["runs"])
    expected = summary.arms([name for name, task in tasks.TASKS.items() if task.loss != "squared"], arms.OURS)
    text = (ROOT / "docs/pages/results.md").read_text()
    written = re.search(r"<!-- arms-results -->(.*?)<!-- /arms-results -->", text, re.S)
    assert written
    assert "\n".join(re.findall(r"^\|.*$", written[1], re.M)) == expected


def test_the_lead_over_sg_that_leaves_its_best_epoch_is_the_committed_result(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    summaries, arms, tasks = map(importlib.import_module, ("fair_summary", "fair_arms", "fair_tasks"))
    summary = summaries.Summary(json.loads((ROOT / "benchmarks/results/fair.json").read_text())["runs"])
    leads = []
    for name in (name for name, task in tasks.TASKS.items() if task.loss != "squared" and not task.deep):
        sg, own = (summary.paired(name, arm, summary.chosen(name, arm)) for arm in (summary.reference(name), arms.OURS))
        best = {s: max(reversed(run["points"]), key=lambda p: p["validation"])["test"] for s, run in sg.items()}
        leads.append(mean(own[seed]["points"][-1]["test"] - best[seed] for seed in own.keys() & best.keys()))
    told = "{:+.1f} ± {:.1f}".format(*summaries.interval(leads))
    text = " ".join((ROOT / "docs/pages/results.md").read_text().split())
    assert f"the callback's lead below four layers is {told}" in text


def test_what_the_pages_count_in_the_fair_comparison(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    summaries, arms, tasks = map(importlib.import_module, ("fair_summary", "fair_arms", "fair_tasks"))
    summary = summaries.Summary(json.loads((ROOT / "benchmarks/results/fair.json").read_text())["runs"])
    words = ["none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    words += ["eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"]

    def count(differences):
        """Tasks, those whose interval is wholly above 0, and those wholly below."""
        found = {name: summaries.interval(each) for name in tasks.TASKS if (each := differences(name))}
        ahead = [name for name, (middle, half) in found.items() if middle > half]
        behind = [name for name, (middle, half) in found.items() if -middle > half]
        deep = [name for name in ahead if tasks.TASKS[name].deep]
        return len(found), *(words[len(names)] for names in (ahead, behind, deep))

    when, results = (" ".join((ROOT / f"docs/pages/{page}.md").read_text().split()) for page in ("when", "results"))
    number, ahead, behind, deep = count(lambda name: summary.differences(name, arms.OURS).get("end"))
    assert f"ahead on {ahead} of these {number} tasks" in when
    assert f"{deep} of them deep, and behind on {behind}." in when
    assert number == len(tasks.TASKS)
    assert f"All {number} tasks were run" in results
    number, ahead, behind, deep = count(lambda name: summary.differences(name, arms.OURS_IN_TIME).get("end"))
    assert f"ahead for certain on {ahead} of {number} tasks, {deep} of them of four layers and more, and" in when
    assert f"behind for certain on {behind}." in when
    assert (
        f"wholly ahead on {ahead} tasks, {deep} of them of four layers and more, and wholly behind on {behind}"
        in results
    )
    alone = {}
    for name in ("mnist mean, 9 layers", "mnist mean, 20 layers", "mnist1d_w5, 6 layers"):
        for arm in ("hidden start alone", arms.OURS):
            figures = summary.figures(name, arm)
            alone[name, arm] = [f"{mean(run['end'] for run in figures[each]):.1f} %" for each in (arm, "SG")]
    nine, twenty, six = (alone[name, "hidden start alone"][0] for name in dict.fromkeys(name for name, _ in alone))
    assert f"ends at {nine} with nine layers and at {twenty} with twenty" in results
    ours, sg = alone["mnist1d_w5, 6 layers", arms.OURS]
    assert f"it ends at {six}, where the callback ends at {ours} and SG at {sg}" in results
    for arm, made in (("SG, fluctuation-driven weights", "from"), ("SG, threshold-dependent norm", "with a")):
        end = mean(run["end"] for run in summary.figures("mnist mean, 20 layers", arm)[arm])
        assert f"at {end:.1f} % {made} {arm.removeprefix('SG, ')}" in results
    _, ahead, behind, deep = count(lambda name: summary.between(name, arms.OURS, "SG, weights averaged"))
    others = words[words.index(ahead) - words.index(deep)]
    assert f"ahead for certain on {deep} tasks of nine layers and on {others} other" in results
    assert f"others, and behind for certain on {behind}." in results


def test_the_networks_drawn_at_random_are_the_committed_results():
    ends = {}
    for name in ("robustness", "robustness-mnist"):
        for cell in json.loads((ROOT / f"benchmarks/results/paper/{name}.json").read_text())["cells"]:
            ends.setdefault((name, cell["setting"]), {})[cell["method"]] = 100 * cell["value"]
    names = {
        "sg": "SG, default weights",
        "sg-calibrated": "SG, weights rescaled until every layer fires",
        "hybrid": "`ConvexReconstruction()`",
    }
    expected, worst = [], {}
    for method, name in names.items():
        scores = sorted(end[method] for end in ends.values())
        worst[method] = mean(scores[:3])
        expected.append(f"| {name} | {worst[method]:.1f} | {median(scores):.1f} | {mean(scores):.1f} |")
    readme = (ROOT / "README.md").read_text()
    written = re.search(r"<!-- random-results -->\n(.*?)\n<!-- /random-results -->", readme, re.S)[1]
    assert written.splitlines()[2:] == expected
    assert len(ends) == 30
    stuck = sum(end["sg"] < 20 for end in ends.values())
    assert f"on the left, {stuck} of these networks" in " ".join((ROOT / "docs/pages/when.md").read_text().split())
    ahead = [end["hybrid"] - end["sg-calibrated"] for end in ends.values()]
    text = " ".join((ROOT / "docs/pages/paper.md").read_text().split())
    assert f"in all thirty, by {min(ahead):.0f} to {max(ahead):.0f} points" in text
    assert f"three worst ends is {worst['hybrid']:.0f} % against {worst['sg-calibrated']:.0f} %" in text


def means(table):
    """Its last rows; before training, after the first epoch, at the end, how far ahead, and both at one rate."""
    lines = [line.strip("|").split("|") for line in table.splitlines()]
    return "\n".join(f"|{'|'.join(line[k] for k in (0, 1, 2, 5, 6, 8, 9))}|" for line in [*lines[:2], *lines[-3:]])


def test_the_table_of_readouts_is_the_committed_result(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    elastic_net, readouts, layers = map(importlib.import_module, ("elastic_net", "readouts", "layers"))
    results = json.loads((ROOT / "benchmarks/results/elastic_net.json").read_text())["results"]
    rows = readouts.readouts(layers.Sources(Path(), Path()), quick=False)
    text = (ROOT / "docs/pages/results.md").read_text()
    written = re.search(r"<!-- readouts-results -->\n(.*?)\n<!-- /readouts-results -->", text, re.S)[1]
    assert written == elastic_net.markdown(results, rows)


def test_the_table_of_relays_is_the_committed_result(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    results = json.loads((ROOT / "benchmarks/results/relays.json").read_text())["results"]
    text = (ROOT / "docs/pages/results.md").read_text()
    written = re.search(r"<!-- relays-results -->\n(.*?)\n<!-- /relays-results -->", text, re.S)[1]
    assert written == importlib.import_module("relays").markdown(results)


def test_the_witness_table_of_the_docs_is_the_committed_results():
    text = (ROOT / "docs/pages/witnesses.md").read_text()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    written = [cells for cells in table if len(cells) == 7 and re.fullmatch(r"[\d, ]+( channels.*)?", cells[0])]
    expected = []
    networks = {
        "512": "512",
        "256-512": "256, 512",
        "-".join(["256"] * 9): "9, 256",
        "conv32": "32 channels",
        "conv32-norm": "32 channels, batch norm",
    }
    for widths, hidden in networks.items():
        results = json.loads((ROOT / f"benchmarks/results/witnesses-mnist-{widths}.json").read_text())["results"]
        for row in results["results"]:
            found = [row["validation"].get(epoch) for epoch in ("0", "5", "10", "20")]
            accuracies = ["-" if accuracy is None else f"{accuracy:.1f}" for accuracy in found]
            expected.append([hidden, row["witnesses"], str(len(row["runs"])), *accuracies])
    assert [[cell.strip("`") for cell in cells] for cells in written] == expected


def test_the_table_of_searches_is_the_committed_result():
    rows = json.loads((ROOT / "benchmarks/results/pricing.json").read_text())["results"]
    written = re.findall(
        r"^\| (?:0\.0?\d|auto) \| (?:priced|pool).*$", (ROOT / "docs/pages/witnesses.md").read_text(), re.M
    )
    expected = [
        f"| {row['beta']} | {row['search']} | {row['accuracy']:.1f} | {row['objective']:.3f} | {row['active']:.0f} "
        f"| {row['work'] / 1e6:.0f} |"
        for row in rows
    ]
    assert written == expected


def small_table(rows):
    names = [name for name in rows[0] if name != "gap"]
    cells = [[f"{row[n]:.{0 if n in WHOLE else 1}f}" if isinstance(row[n], float) else str(row[n]) for n in names]
             for row in rows]  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in (names, ["---"] * len(names), *cells))


WHOLE = ("units", "parameters")


@pytest.mark.parametrize("name", ["sparse", "converted", "probe"])
def test_the_tables_of_small_networks_are_the_committed_results(name):
    rows = json.loads((ROOT / "benchmarks/results/small_networks.json").read_text())["results"][name]
    text = (ROOT / "docs/pages/small.md").read_text()
    written = re.search(rf"<!-- {name}-results -->\n(.*?)\n<!-- /{name}-results -->", text, re.S)[1]
    assert written == small_table(rows)
    assert max(row.get("gap", 0.0) for row in rows) < 1e-5


@pytest.mark.parametrize("path", sorted((ROOT / "examples/configs").rglob("*.yaml")), ids=lambda path: path.stem)
def test_configurations_name_real_classes_and_arguments(path):
    configuration = yaml.safe_load(path.read_text())
    entries = [configuration["model"], configuration["data"], *configuration["trainer"]["callbacks"]]
    kinds = [LightningModule, LightningDataModule, *[ConvexReconstruction] * (len(entries) - 2)]
    assert len(entries) > 2
    for entry, kind in zip(entries, kinds, strict=True):
        given = entry if isinstance(entry, dict) else {"class_path": entry}
        found = getattr(lightning_cvxsnn, given["class_path"].removeprefix("lightning_cvxsnn."))
        assert issubclass(found, kind)
        assert given.get("init_args", {}).keys() <= inspect.signature(found).parameters.keys()


def test_the_api_page_has_every_public_name():
    page = re.findall(r"^::: (\S+)$", (ROOT / "docs/pages/api.md").read_text(), re.M)
    for package in ("lightning_cvxsnn", "lightning_cvxsnn.convex", "lightning_cvxsnn.patterns"):
        for name in importlib.import_module(package).__all__:
            public = getattr(importlib.import_module(package), name)
            if inspect.isclass(public) or inspect.isfunction(public):
                assert f"{package}.{name}" in page


def test_the_table_of_networks_is_the_committed_result():
    rows = json.loads((ROOT / "benchmarks/results/networks.json").read_text())["results"]
    text = (ROOT / "docs/pages/networks.md").read_text()
    expected = [f"| {row['network']} | {row['columns'] or ''} | {row['verdict']} |" for row in rows]
    assert re.findall(r"^\| .*, batch \d+ \|.*$", text, re.M) == expected
    works = sum(row["verdict"] == "works" for row in rows)
    assert f"{works} of {len(rows)} work" in text
    assert len(rows) == 40
    assert works >= 34


TABLES = [
    pytest.param(name, text, id=name)
    for name, text in re.findall(
        r"<!-- paper:([\w-]+) -->\n(.*?)<!-- /paper", (ROOT / "docs/pages/paper.md").read_text(), re.S
    )
]


@pytest.mark.parametrize(("name", "text"), TABLES)
def test_the_papers_tables_are_the_committed_results(name, text, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    collected = json.loads((ROOT / f"benchmarks/results/paper/{name}.json").read_text())
    assert text.strip() == importlib.import_module("paper_results").table(collected)
