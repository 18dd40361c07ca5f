import textwrap

import pytest
import yaml
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_cvxsnn.ablation.fits import check_cells
from lightning_cvxsnn.ablation.overrides import with_overrides
from lightning_cvxsnn.ablation.sweep import Sweep, read_sweep

BASE = {"model": "LitSNN", "data": "DigitsDataModule", "trainer": {"max_epochs": 2, "accelerator": "cpu"}}
LR = "model.init_args.lr"


def sweep(**keys):
    return Sweep({"base": BASE, "methods": ["sg"], **keys})


def ids(cells):
    return [cell.id for cell in cells]


# -- cells ------------------------------------------------------------------------------------------------------------


def test_seeds_methods_and_values_are_combined():
    cells = sweep(methods=["sg", "hybrid"], grid={LR: [0.001, 0.01]}, seeds=[0, 7]).cells()
    assert ids(cells) == [
        f"digits-{method}-lr={lr}-seed={seed}" for seed in (0, 7) for method in ("sg", "hybrid") for lr in (0.001, 0.01)
    ]
    assert [cell.order for cell in cells] == list(range(8))
    last = cells[-1]
    assert (last.method, last.task, last.seed, last.stage) == ("hybrid", "digits", 7, "run")
    assert last.settings == {LR: 0.01}
    (config,) = last.configs
    assert config["seed_everything"] == 7
    assert config["model"] == {"class_path": "LitSNN", "init_args": {"lr": 0.01}}
    assert config["trainer"]["callbacks"] == ["lightning_cvxsnn.ConvexReconstruction"]


def test_later_overrides_win_and_the_base_stays():
    one = sweep(
        tasks={"easy": {LR: 0.1, "trainer.max_epochs": 3, "data.init_args.batch_size": 8}},
        methods={"mine": {LR: 0.2, "trainer.max_epochs": 4}},
        grid={LR: [0.3]},
    )
    (cell,) = one.cells()
    (config,) = cell.configs
    assert cell.id == "easy-mine-lr=0.3-seed=0"
    assert config["model"]["init_args"]["lr"] == 0.3
    assert config["trainer"]["max_epochs"] == 4
    assert config["data"]["init_args"]["batch_size"] == 8
    assert one.base == BASE


def test_a_grid_of_one_method_leaves_the_others_alone():
    beta = "trainer.callbacks.ConvexReconstruction.init_args.beta"
    cells = sweep(methods={"sg": None, "ours": {"preset": "hybrid", "grid": {beta: [0.1, 1]}}}).cells()
    assert ids(cells) == ["digits-sg-seed=0", "digits-ours-beta=0.1-seed=0", "digits-ours-beta=1-seed=0"]
    assert cells[2].configs[0]["trainer"]["callbacks"][0]["init_args"] == {"beta": 1}


def test_named_values_and_points_of_a_list():
    depth = {"flat": {"model.init_args.hidden": [64]}, "deep": {"model.init_args.hidden": [32, 32]}}
    cells = sweep(grid={"depth": depth}, list=[{LR: 0.1, "trainer.max_epochs": 1}, {LR: 0.2}]).cells()
    assert [cell.settings for cell in cells] == [
        {"depth": "flat", LR: 0.1, "trainer.max_epochs": 1},
        {"depth": "flat", LR: 0.2},
        {"depth": "deep", LR: 0.1, "trainer.max_epochs": 1},
        {"depth": "deep", LR: 0.2},
    ]
    assert cells[2].configs[0]["model"]["init_args"] == {"hidden": [32, 32], "lr": 0.1}
    assert cells[2].id == "digits-sg-depth=deep-lr=0.1-max_epochs=1-seed=0"


def test_stages_share_the_overrides_of_their_method_and_have_their_own():
    stages = [{"part": [1, 2]}, {"trainer.max_epochs": 5, "trainer.callbacks+": "ConvexReconstruction"}]
    beta = "trainer.callbacks.ConvexReconstruction.init_args.beta"
    (cell,) = sweep(methods={"two": {LR: 0.5, "stages": stages}}, grid={beta: [0.1]}).cells()
    first, second = cell.configs
    assert cell.parts == [[1, 2], None]
    assert first["model"] == second["model"] == {"class_path": "LitSNN", "init_args": {"lr": 0.5}}
    assert "callbacks" not in first["trainer"]
    assert second["trainer"]["max_epochs"] == 5
    assert second["trainer"]["callbacks"][0]["init_args"]["beta"] == 0.1


def test_the_seed_goes_where_the_sweep_says():
    cells = sweep(seeds=[3, 4], seed_keys=["data.init_args.seed"]).cells()
    assert [cell.configs[0]["data"]["init_args"]["seed"] for cell in cells] == [3, 4]


def test_the_choice_has_cells_and_a_seed_of_its_own_and_no_name_of_a_run_tells_the_value():
    one = sweep(choose={"key": LR, "values": [0.1, 0.2]}, methods=["sg", "hybrid"], seeds=[0])
    tried = one.choosing()
    assert ids(tried)[:2] == ["choose-digits-sg-lr=0.1-seed=100", "choose-digits-hybrid-lr=0.1-seed=100"]
    assert {cell.stage for cell in tried} == {"choose"}
    runs = one.cells()
    assert ids(runs) == ["digits-sg-seed=0", "digits-hybrid-seed=0"]
    assert {cell.arm for cell in tried} == {cell.arm for cell in runs}
    chosen = one.cells({runs[0].arm: 0.2, runs[1].arm: 0.1})
    assert ids(chosen) == ids(runs)
    assert [cell.configs[0]["model"]["init_args"]["lr"] for cell in chosen] == [0.2, 0.1]
    assert chosen[0].chosen == {LR: 0.2}


def test_names_are_safe_and_distinct():
    cells = sweep(grid={"data.init_args.batch_size": ["a/b", "a b", "x" * 300]}).cells()
    assert len(set(ids(cells))) == 3
    assert all(len(cell.id) < 180 and "/" not in cell.id and " " not in cell.id for cell in cells)


def test_methods_that_differ_in_special_characters_have_folders_of_their_own():
    cells = sweep(methods={"a (x)": {"trainer.max_epochs": 1}, "a [x]": {"trainer.max_epochs": 2}}).cells()
    assert len(set(ids(cells))) == 2


@pytest.mark.parametrize(
    ("metric", "mode", "best"),
    [("val_loss", None, "min"), ("test_accuracy", None, "max"), ("nrmse", None, "min"), ("val_loss", "max", "max")],
)
def test_a_loss_is_better_if_it_is_smaller_unless_told_otherwise(metric, mode, best):
    told = {} if mode is None else {"mode": mode}
    choose = {"key": LR, "values": [0.1, 0.2]}
    assert sweep(metric=metric, **told).mode == best
    assert sweep(choose=choose | {"metric": "val_loss"}).choose["mode"] == "min"
    assert sweep(metric=metric, **told, choose=choose).choose["mode"] == ("max" if "test" in metric else best)


def test_cells_are_quiet_unless_told_otherwise():
    plain = sweep().cells()[0].configs[0]["trainer"]
    assert plain["logger"] is plain["enable_checkpointing"] is plain["enable_progress_bar"] is False
    kept = sweep(methods={"sg": {"trainer.callbacks+": "ModelCheckpoint", "trainer.logger": True}}).cells()[0]
    assert kept.configs[0]["trainer"]["logger"] is True
    assert "enable_checkpointing" not in kept.configs[0]["trainer"]


def test_the_resolved_sweep_is_a_sweep_of_the_same_cells(tmp_path):
    one = sweep(methods=["sg", "priced"], grid={LR: [1e-3]}, choose={"key": "trainer.max_epochs", "values": [1, 2]})
    path = tmp_path / "again.yaml"
    path.write_text(yaml.safe_dump(one.resolved, sort_keys=False))
    again = read_sweep(path)
    assert again.cells() == one.cells()
    assert again.choosing() == one.choosing()
    assert (again.baseline, again.metric, again.mode) == ("sg", "val_accuracy", "max")


# -- files ------------------------------------------------------------------------------------------------------------


def written(tmp_path, text):
    path = tmp_path / "sweep.yaml"
    path.write_text(textwrap.dedent(text))
    return path


def test_numbers_are_numbers_and_the_base_may_be_a_file_beside_the_sweep(tmp_path):
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(BASE))
    path = written(tmp_path, "base: base.yaml\nmethods: {sg: }\ngrid: {model.init_args.lr: [1e-3, 3E-2, 1.]}\n")
    cells = read_sweep(path).cells()
    assert [cell.settings[LR] for cell in cells] == [0.001, 0.03, 1.0]
    assert cells[0].configs[0]["data"] == "DigitsDataModule"
    check_cells(cells)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("methods: {sg: , sg: {}}", "Found the key 'sg' twice in one mapping, line 1"),
        ("methods: [sg, sg]", "'sg' twice in methods"),
        ("methods: [sg\n", "Found no YAML"),
        ("- sg", "Expected a mapping"),
        ("base: other.yaml\nmethods: [sg]", "Found no file that can be read at"),
    ],
)
def test_a_bad_file_is_refused_in_one_sentence(tmp_path, text, message):
    with pytest.raises(MisconfigurationException, match="(?s)" + message.replace("[", r"\[")) as found:
        read_sweep(written(tmp_path, text))
    assert "\n" not in str(found.value)


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"method": ["sg"]}, "the key 'method' in the sweep.*Did you mean 'methods'?"),
        ({"methods": {}}, "Found no methods"),
        ({"methods": ["hybird"]}, "'hybird' in methods without overrides.*Did you mean 'hybrid'?"),
        ({"methods": {"sg": 3}}, "Found 3 as methods: sg"),
        ({"methods": {"a": {"preset": "none"}}}, "Found 'none' in methods"),
        ({"baseline": "cvx"}, "Found baseline 'cvx'. Expected a method of the sweep: sg"),
        ({"seeds": [0, 0]}, "Found 0 twice in seeds"),
        ({"seeds": 3}, "Found seeds: 3. Expected a list"),
        ({"seeds": [-1]}, "Expected a list of integers >= 0"),
        ({"mode": "best"}, "Found mode: 'best'"),
        ({"threads": 0}, "Found threads: 0"),
        ({"grid": {LR: 0.1}}, "Expected a list of values, or names with overrides"),
        ({"grid": {LR: [0.1, 0.1]}}, "Found 0.1 twice in grid"),
        ({"list": {LR: 0.1}}, "Expected a list of overrides"),
        ({"grid": {LR: [0.1]}, "list": [{LR: 0.2}]}, f"Found {LR} twice in the axes of method sg"),
        ({"grid": {"model.lr": [0.1]}}, "Expected 'init_args' after 'model', which is a class"),
        ({"methods": {"a": {"trainer.max_epochs.x": 1}}}, "'max_epochs' there is 2"),
        ({"methods": {"a": {"trainer..x": 1}}}, "Expected a dotted key"),
        ({"grid": {"trainer.callbacks.Timer.init_args.x": [1]}}, "Expected one 'Timer' in that list, which has none"),
        ({"choose": {"key": LR}}, "Found values: None in choose"),
        ({"choose": {"key": LR, "values": [1], "seed": 3}}, "Did you mean 'seeds'?"),
        ({"choose": {"key": LR, "values": [1], "metric": "test_accuracy"}}, "Expected one of the validation rows"),
        ({"choose": {"key": LR, "values": [1], "seeds": [0]}}, "Found seed 0 in choose and in seeds"),
        ({"choose": {"key": LR, "values": [1]}, "grid": {LR: [2]}}, "in choose and among the axes"),
        ({"methods": {"a": {"stages": {}}}}, "Found no list under 'stages'"),
        ({"methods": {"a": {"stages": [{"part": [0, 2]}]}}}, "Found part: .0, 2. in method a. Expected .i, n."),
    ],
)
def test_a_wrong_sweep_is_refused_in_one_sentence(keys, message):
    with pytest.raises(MisconfigurationException, match=message) as found:
        one = sweep(**keys)
        one.cells()
        one.choosing()
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model.init_args.lrr": 1}, "method bad, task digits: .*Option 'lrr' is not accepted"),
        ({"modl": "LitSNN"}, "does not accept option 'modl'"),
        ({"trainer.max_epochs": "many"}, "max_epochs.*many"),
        ({"trainer.callbacks+": "Missing"}, "Missing"),
    ],
)
def test_what_lightning_would_not_take_is_refused_before_anything_runs(overrides, message):
    with pytest.raises(MisconfigurationException, match=message) as found:
        check_cells(sweep(methods={"sg": {}, "bad": overrides}).cells())
    assert "\n" not in str(found.value)


# -- overrides --------------------------------------------------------------------------------------------------------


def test_another_class_replaces_and_the_same_is_changed():
    config = {"data": {"class_path": "A", "init_args": {"x": 1, "y": 2}}}
    assert with_overrides(config, {"data": {"class_path": "B"}}, "it") == {"data": {"class_path": "B"}}
    changed = with_overrides(config, {"data": {"init_args": {"x": 3}}}, "it")
    assert changed == {"data": {"class_path": "A", "init_args": {"x": 3, "y": 2}}}
    assert config["data"]["init_args"] == {"x": 1, "y": 2}


def test_lists_are_replaced_or_added_to_and_elements_found_by_class_or_place():
    config = with_overrides({}, {"trainer.callbacks": "Timer", "trainer.callbacks+": ["a.B", "c.D"]}, "it")
    assert config == {"trainer": {"callbacks": ["Timer", "a.B", "c.D"]}}
    config = with_overrides(config, {"trainer.callbacks.B.init_args.x": 1, "trainer.callbacks.2": "E"}, "it")
    assert config == {"trainer": {"callbacks": ["Timer", {"class_path": "a.B", "init_args": {"x": 1}}, "E"]}}
    nested = with_overrides(config, {"trainer": {"callbacks+": "F"}}, "it")
    assert nested["trainer"]["callbacks"][-1] == "F"
    with pytest.raises(MisconfigurationException, match="Expected one 'G' in that list, which has Timer, B, E"):
        with_overrides(config, {"trainer.callbacks.G.init_args.x": 1}, "it")
