import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import lightning_cvxsnn

ROOT = Path(__file__).parent.parent


def test_import_needs_no_cupy_and_no_cvxpy():
    code = "import sys; sys.modules['cupy'] = sys.modules['cvxpy'] = None; import lightning_cvxsnn.cli"
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/")


def test_public_names():
    for name in lightning_cvxsnn.__all__:
        assert getattr(lightning_cvxsnn, name).__doc__


def test_the_wheel_holds_the_package_its_types_and_its_licence(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, ROOT]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    files = [p for p in (ROOT / "lightning_cvxsnn").rglob("*") if p.suffix in (".py", ".cu", ".h", ".yaml")]
    assert {str(p.relative_to(ROOT)) for p in files} <= set(names)
    assert {"lightning_cvxsnn/patterns/kernels.cu", "lightning_cvxsnn/patterns/neuron.h"} <= set(names)
    assert {"lightning_cvxsnn/ablation/templates/report.html", "lightning_cvxsnn/ablation/templates/report.css"} <= set(
        names
    )
    assert "lightning_cvxsnn/py.typed" in names
    assert any(name.endswith("LICENSE") for name in names)
    assert not any(name.startswith(("tests", "benchmarks")) for name in names)


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TOP = {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md"}


@pytest.mark.parametrize(
    ("schema", "file"),
    [("github-workflows", ".github/workflows/tests.yml"), ("citation-file-format", "CITATION.cff")],
)
def test_files_of_the_ecosystem_are_well_formed(schema, file):
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", ROOT / file]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_one_version_and_one_list_of_pythons():
    version = lightning_cvxsnn.__version__
    assert PROJECT["version"] == version
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
    named = [name.rsplit(" ", 1)[1] for name in PROJECT["classifiers"] if re.search(r"Python :: 3\.", name)]
    workflow = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())
    assert workflow["jobs"]["tests"]["strategy"]["matrix"]["python"] == named == ["3.11", "3.12", "3.13"]
    assert PROJECT["requires-python"] == f">={named[0]}"


def test_the_hooks_are_programs_of_the_test_environment():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    programs = {hook["entry"].split()[0] for hook in repository["hooks"]}
    assert programs == {"ruff", "mypy"}
    assert all(shutil.which(program, path=str(Path(sys.executable).parent)) for program in programs)


def test_the_top_level_is_short():
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("This is no checkout")
    files = {file for file in listed.stdout.splitlines() if "/" not in file and not file.startswith(".")}
    assert files == TOP
