import subprocess
import sys
import zipfile
from pathlib import Path

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
