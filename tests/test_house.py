"""The picture of the house: its rooms, what each may import, and the sizes that keep every part readable.

The rules read the source with ``ast``, imports inside functions and under ``TYPE_CHECKING`` included. Each rule is
first tried on a small package that breaks it.
"""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "lightning_cvxsnn"

#: From the ground up: each room and the rooms that it may import, all of them below it.
HOUSE = {
    "runtime": set(),
    "patterns": {"runtime"},
    "convex": {"runtime"},
    "network": {"runtime", "patterns", "convex"},
    "witnesses": {"runtime", "patterns", "convex", "network"},
    "reports": {"patterns"},
    "reconstruction": {"runtime", "patterns", "convex", "network", "witnesses", "reports"},
    "metrics": {"patterns", "convex"},
    "training": {"runtime", "patterns", "convex", "network", "reports", "reconstruction"},
    "tasks": {"network"},
    "ablation": {"runtime", "network", "witnesses", "reports", "training"},
}
#: The public face, and the commands.
ROOF = {
    "__init__": set(HOUSE) - {"ablation"},
    "demo": {"__init__"},
    "cli": {"__init__", "demo", "training", "ablation"},
}
TOP = {"__init__.py", "demo.py", "cli.py", "py.typed"}

#: Who may import which library; the longest name that fits decides.
LIBRARIES = {
    "torch": {*HOUSE, "demo", "cli"},
    "numpy": {"patterns", "convex", "network", "witnesses", "tasks", "ablation"},
    "itables": {"ablation"},
    "jinja2": {"ablation"},
    "markupsafe": {"ablation"},
    "pandas": {"ablation"},
    "tensorboard": {"ablation"},
    "typing_extensions": {*HOUSE, *ROOF},
    "cupy": {"patterns"},
    "cvxpy": {"convex", "witnesses"},
    "cvxpylayers": {"witnesses"},
    "scipy": {"witnesses", "ablation"},
    "spikingjelly": {"network", "tasks"},
    "lightning": {*HOUSE, *ROOF} - {"patterns", "convex"},
    "lightning.pytorch.callbacks": {"training", "ablation"},
    "lightning.pytorch.cli": {"training"},
    "lightning.pytorch.loggers": {"reports", "training"},
    "lightning.pytorch.plugins": {"training"},
    "lightning.pytorch.strategies": {"training"},
    "lightning.pytorch.trainer": {"training", "ablation"},
    "matplotlib": {"reports", "training", "ablation"},
    "torchmetrics": {"metrics", "tasks"},
    "torchvision": {"tasks"},
    "sklearn": {"tasks"},
    "jsonargparse": {"cli"},
    "rich": {"demo", "ablation"},
    "dask": {"ablation"},
    "filelock": {"ablation"},
    "joblib": {"ablation"},
    "ray": {"ablation"},
    "threadpoolctl": {"ablation"},
    "yaml": {"ablation"},
    "tqdm": {"training"},
}

MOST_FUNCTION_LINES = 60
MOST_PARAMETERS = 7
MOST_FILE_LINES = 400
MOST_TYPE_IGNORES = 15
ENTRY = "public entry point, of keywords"
SETTINGS = "constructor of settings, of keywords"
MANY_PARAMETERS = {
    "solve": ENTRY,
    "certificate": ENTRY,
    "path": ENTRY,
    "network_optimum": ENTRY,
    "ConvexReconstruction.__init__": SETTINGS,
    "ParallelSNN.__init__": SETTINGS,
    "AdditionSNN.__init__": SETTINGS,
    "AutomatonDataModule.__init__": SETTINGS,
    "AutomatonSNN.__init__": SETTINGS,
    "TwoHeadedAdditionSNN.__init__": SETTINGS,
}


# -- rules ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Import:
    """``name`` is what is imported, dotted; ``room`` is where, or the module's name at the top of the package."""

    room: str
    place: str
    name: str


def sources(package: Path) -> list[Path]:
    return sorted(package.rglob("*.py"))


def room_of(package: Path, path: Path) -> str:
    parts = path.relative_to(package).with_suffix("").parts
    return parts[0]


def imports(package: Path) -> Iterator[Import]:
    """All imports of all files, relative ones made absolute."""
    for path in sources(package):
        here = [package.name, *path.relative_to(package).parent.parts]
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = (
                    [*here[: len(here) + 1 - node.level], *filter(None, [node.module])] if node.level else [node.module]
                )
                names = [".".join([*base, alias.name]) for alias in node.names]
            for name in names:
                yield Import(room_of(package, path), f"{path.relative_to(package)}:{node.lineno}", name)


def inner_imports(package: Path) -> Iterator[tuple[Import, str]]:
    """Imports of the package's own rooms, with the room that is imported; ``__init__`` where it is the public face."""
    for each in imports(package):
        first, *rest = each.name.split(".")
        if first == package.name:
            known = bool(rest) and ((package / rest[0]).is_dir() or (package / f"{rest[0]}.py").exists())
            target = rest[0] if known else "__init__"
            if target != each.room:
                yield each, target


def upward(package: Path, house: dict[str, set[str]]) -> list[str]:
    return [
        f"{each.place}: {each.room} imports {each.name}"
        for each, target in inner_imports(package)
        if target not in house.get(each.room, set())
    ]


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The rooms of one circle; empty if there is none."""
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return error.args[1]
    return []


def rooms_imported(package: Path) -> dict[str, set[str]]:
    graph: dict[str, set[str]] = {}
    for each, target in inner_imports(package):
        graph.setdefault(each.room, set()).add(target)
    return graph


def behind_walls(package: Path, libraries: dict[str, set[str]]) -> list[str]:
    found = []
    for each in imports(package):
        if each.name.split(".")[0] not in (package.name, *sys.stdlib_module_names):
            fitting = [name for name in libraries if f"{each.name}.".startswith(f"{name}.")]
            if not fitting or each.room not in libraries[max(fitting, key=len)]:
                found.append(f"{each.place}: {each.room} imports {each.name}")
    return found


def hidden_modules(package: Path) -> list[str]:
    """Public functions and classes named as a module of their room, or as a room: importing one hides the other."""
    modules: dict[str, set[str]] = {}
    for path in sources(package):
        modules.setdefault(room_of(package, path), set()).update(path.relative_to(package).with_suffix("").parts)
    found = []
    for path in sources(package):
        taken = modules[room_of(package, path)] | modules.keys()
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in taken:
                found.append(f"{path.relative_to(package)}:{node.lineno}: {node.name} has the name of a module")
    return found


def functions(package: Path) -> Iterator[tuple[str, ast.FunctionDef]]:
    """All functions and methods, by file and qualified name."""

    def inside(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
                name = f"{prefix}{child.name}"
                if isinstance(child, ast.FunctionDef):
                    yield name, child
                yield from inside(child, f"{name}.")
            else:
                yield from inside(child, prefix)

    for path in sources(package):
        yield from inside(ast.parse(path.read_text()), f"{path.relative_to(package)} ")


def lines_of(function: ast.FunctionDef) -> int:
    """Lines from ``def`` to the end, without those of the docstring."""
    total = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is not None:
        total -= function.body[0].end_lineno - function.body[0].lineno + 1
    return total


def long_functions(package: Path) -> list[str]:
    lengths = ((name, lines_of(function)) for name, function in functions(package))
    return [f"{name}: {length} lines" for name, length in lengths if length > MOST_FUNCTION_LINES]


def parameters(function: ast.FunctionDef) -> int:
    given = function.args
    names = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len([n for n in names if n not in ("self", "cls")]) + (given.vararg is not None) + (given.kwarg is not None)


def wide_functions(package: Path) -> dict[str, int]:
    counted = {name: parameters(function) for name, function in functions(package)}
    return {name: count for name, count in counted.items() if count > MOST_PARAMETERS}


def long_files(package: Path) -> list[str]:
    files = [path for path in package.rglob("*") if path.suffix in (".py", ".cu", ".h")]
    lengths = {str(path.relative_to(package)): len(path.read_text().splitlines()) for path in sorted(files)}
    return [f"{name}: {length} lines" for name, length in lengths.items() if length > MOST_FILE_LINES]


def type_ignores(package: Path) -> list[str]:
    lines = ((path, line.strip()) for path in sources(package) for line in path.read_text().splitlines())
    return [f"{path.relative_to(package)}: {line}" for path, line in lines if re.search(r"#\s*type: ignore", line)]


# -- the house --------------------------------------------------------------------------------------------------------


def test_imports_go_down_only():
    assert upward(PACKAGE, HOUSE | ROOF) == []


def test_no_circle_of_rooms():
    assert circle(rooms_imported(PACKAGE)) == []


def test_the_picture_is_drawn_from_the_ground_up():
    drawn = list(HOUSE | ROOF)
    for place, (room, below) in enumerate((HOUSE | ROOF).items()):
        assert below <= set(drawn[:place]), room


def test_the_docs_show_the_same_house():
    text = (ROOT / "docs/pages/architecture.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \|.*\|(.*)\|$", text, re.M)
    assert [(room, set(re.findall(r"\w+", below))) for room, below in rows] == list(HOUSE.items())


def test_the_files_that_the_docs_send_one_to_are_there():
    text = (ROOT / "docs/pages/architecture.md").read_text()
    files = set(re.findall(r"`([\w/]+\.\w+|[\w/]+/)`", text)) - {"convex/losses/NAME.py"}
    assert [file for file in sorted(files) if not ((PACKAGE / file).exists() or (ROOT / file).exists())] == []


def test_libraries_stay_behind_their_walls():
    assert behind_walls(PACKAGE, LIBRARIES) == []


def test_only_rooms_stand_at_the_top():
    assert {path.name for path in PACKAGE.iterdir()} - {"__pycache__"} == HOUSE.keys() | TOP


def test_every_room_says_what_it_is_for():
    for room in HOUSE:
        assert ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text())), room


def test_no_module_is_hidden_by_a_name():
    assert hidden_modules(PACKAGE) == []


def test_no_function_is_longer_than_a_screen():
    assert long_functions(PACKAGE) == []


def test_no_function_takes_more_than_seven_parameters():
    wide = wide_functions(PACKAGE)
    assert {place: count for place, count in wide.items() if place.split()[1] not in MANY_PARAMETERS} == {}
    assert {place.split()[1] for place in wide} == MANY_PARAMETERS.keys()


def test_no_file_is_longer_than_four_hundred_lines():
    assert long_files(PACKAGE) == []


def test_types_are_ignored_rarely():
    ignores = type_ignores(PACKAGE)
    assert len(ignores) <= MOST_TYPE_IGNORES, ignores


# -- the rules themselves, on houses that break them ------------------------------------------------------------------

TWO_FLOORS = {"low": set(), "high": {"low"}}


def build(folder: Path, files: dict[str, str]) -> Path:
    """A package ``house`` with the rooms ``low`` and ``high`` and these files."""
    package = folder / "house"
    for name, text in ({"__init__.py": "", "low/__init__.py": "", "high/__init__.py": ""} | files).items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return package


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("low/a.py", "import house.high"),
        ("low/a.py", "import house.high.b as b"),
        ("low/a.py", "from house.high.b import c"),
        ("low/a.py", "from house import high"),
        ("low/a.py", "from .. import high"),
        ("low/a.py", "from ..high import b"),
        ("low/a.py", "from house import anything"),
        ("low/__init__.py", "from ..high import b"),
        ("low/cellar/a.py", "from house.high import b"),
        ("low/cellar/a.py", "from ...high import b"),
        ("low/a.py", "def f():\n    from house.high import b"),
        ("low/a.py", "class C:\n    def f(self):\n        import house.high"),
        ("low/a.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house.high import b"),
        ("low/a.py", "try:\n    import house.high\nexcept ImportError:\n    pass"),
        ("loft.py", "import house.low"),
    ],
)
def test_an_upward_import_is_found(tmp_path, file, text):
    package = build(tmp_path, {"high/b.py": "c = 1", file: text})
    (offence,) = upward(package, TWO_FLOORS)
    assert offence.startswith(f"{file}:")


@pytest.mark.parametrize(
    "text", ["from house.low import a", "from ..low.a import b", "from . import other", "from house.high import other"]
)
def test_an_import_downward_or_of_the_same_room_is_none(tmp_path, text):
    package = build(tmp_path, {"low/a.py": "b = 1", "high/other.py": "", "high/b.py": text})
    assert upward(package, TWO_FLOORS) == []


def test_a_circle_is_found(tmp_path):
    package = build(tmp_path, {"low/a.py": "def f():\n    from house.high import b", "high/b.py": "import house.low.c"})
    assert set(circle(rooms_imported(package))) == {"low", "high"}
    assert circle(TWO_FLOORS) == []


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("import torch.nn", True),
        ("import math, os.path", True),
        ("import torchmetrics", False),
        ("def f():\n    import torch.cuda", False),
        ("from torch import cuda", False),
    ],
)
def test_a_library_behind_the_wall_is_found(tmp_path, text, allowed):
    package = build(tmp_path, {"low/a.py": text})
    assert (behind_walls(package, {"torch": {"low"}, "torch.cuda": {"high"}}) == []) == allowed


def test_a_hidden_module_is_found(tmp_path):
    files = {"low/solve.py": "def solve(): ...", "low/path.py": "def _path(): ...", "high/a.py": "class low: ..."}
    files["high/b.py"] = "def path(): ..."
    assert hidden_modules(build(tmp_path, files)) == [
        "high/a.py:1: low has the name of a module",
        "low/solve.py:1: solve has the name of a module",
    ]


def test_a_long_function_is_found_and_its_docstring_not_counted(tmp_path):
    def function(lines: int) -> str:
        return 'def f():\n    """One.\n\n    Three.\n    """\n' + "    x = 1\n" * (lines - 1)

    nested = "class C:\n" + "\n".join(f"    {line}" for line in function(61).splitlines())
    package = build(tmp_path, {"low/a.py": function(60), "low/b.py": function(61), "low/cellar/c.py": nested})
    assert long_functions(package) == ["low/b.py f: 61 lines", "low/cellar/c.py C.f: 61 lines"]


def test_a_wide_function_is_found_and_self_not_counted(tmp_path):
    seven = "self, a, b, /, c, *d, e, f, **g"
    text = f"class C:\n    def f({seven}): ...\n    def g({seven.replace('e,', 'e, h,')}): ...\n"
    assert wide_functions(build(tmp_path, {"low/a.py": text})) == {"low/a.py C.g": 8}


def test_a_long_file_is_found(tmp_path):
    files = {"low/a.py": "a = 1\n" * 400, "low/b.py": "a = 1\n" * 401, "low/cellar/c.cu": "//\n" * 401}
    assert long_files(build(tmp_path, files)) == ["low/b.py: 401 lines", "low/cellar/c.cu: 401 lines"]


def test_ignored_types_are_counted(tmp_path):
    package = build(tmp_path, {"low/a.py": "a = 1  # type: ignore[misc]\nb = 'type: ignore'\n"})
    assert type_ignores(package) == ["low/a.py: a = 1  # type: ignore[misc]"]
