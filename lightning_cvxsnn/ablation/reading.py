"""YAML read strictly: nothing twice, no key that nobody knows, numbers as numbers."""

import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_cvxsnn.training.cli import meant

_PRESETS = Path(__file__).parent / "presets"


class _Loader(yaml.SafeLoader):
    """PyYAML's, which takes ``1e-3`` for a number and refuses a key that stands twice in a mapping."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise MisconfigurationException(
                    f"Found the key {key!r} twice in one mapping, line {node.start_mark.line + 1} of "
                    f"{node.start_mark.name}. Expected it once."
                )
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d[\d_]*\.?|\.\d)[\d_]*[eE][-+]?\d+$"),  # YAML 1.2's floats, which 1.1 takes for strings
    list("-+0123456789."),
)


def read_yaml(path: Path) -> Any:
    """What a YAML file holds.

    Raises:
        MisconfigurationException: If it cannot be read, is not YAML, or has a key twice.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return yaml.load(file, _Loader)
    except OSError as error:
        raise MisconfigurationException(f"Found no file that can be read at '{path}' ({error.strerror}).") from error
    except yaml.YAMLError as error:
        raise MisconfigurationException(f"Found no YAML in '{path}': {' '.join(str(error).split())}.") from error


@cache
def presets(kind: str) -> dict[str, dict[str, Any]]:
    """The shipped ``methods`` or ``tasks``, by name."""
    path = _PRESETS / f"{kind}.yaml"
    return mapping_of(read_yaml(path) if path.exists() else {}, str(path))


def named(given: Any, kind: str) -> dict[str, dict[str, Any]]:
    """Methods or tasks by name, each with its overrides; those of presets are written out.

    Args:
        given: Names with overrides; a name without any is a preset's. A list of names. ``preset`` among overrides names
            the one that they change.
        kind: ``"methods"`` or ``"tasks"``.
    """
    if isinstance(given, list) and all(isinstance(name, str) for name in given):
        distinct(given, kind)
        given = dict.fromkeys(given)
    result = {}
    for name, overrides in mapping_of(given, kind).items():
        own = {} if overrides is None else mapping_of(overrides, f"{kind}: {name}")
        wanted = name if overrides is None else own.get("preset")
        if wanted is not None and wanted not in presets(kind):
            raise MisconfigurationException(
                f"Found {wanted!r} in {kind}{' without overrides' if overrides is None else ' as a preset'}. Expected "
                f"{'overrides, or ' if overrides is None else ''}one of the presets: "
                f"{', '.join(presets(kind)) or 'there are none'}.{meant(wanted, presets(kind))}"
            )
        result[name] = dict(presets(kind)[wanted]) if wanted else {}
        for key, value in own.items():
            if key.endswith("+") and key in result[name]:
                result[name][key] = [*_listed(result[name][key]), *_listed(value)]
            elif key != "preset":
                result[name][key] = value
    return result


def mapping_of(value: Any, where: str) -> dict[str, Any]:
    """``value`` if it is a mapping with names for keys."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise MisconfigurationException(f"Found {value!r} as {where}. Expected a mapping with names for its keys.")
    return dict(value)


def check_keys(given: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """Refuse keys that nobody knows."""
    for key in given:
        if key not in known:
            raise MisconfigurationException(
                f"Found the key {key!r} in {where}. Expected {', '.join(known)}.{meant(key, known)}"
            )


def distinct(values: list[Any], where: str) -> None:
    """Refuse a list in which a value stands twice."""
    for place, value in enumerate(values):
        if value in values[:place]:
            raise MisconfigurationException(f"Found {value!r} twice in {where}. Expected it once.")


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
