"""Configurations of LightningCLI put together from a base and overrides by dotted keys."""

import copy
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.utilities.exceptions import MisconfigurationException

Config = dict[str, Any]
_OF_A_CLASS = ("class_path", "init_args", "dict_kwargs")


class NotInListError(MisconfigurationException):
    """A dotted key names an element that a list does not have."""


def with_overrides(config: Mapping[str, Any], overrides: Mapping[str, Any], where: str) -> Config:
    """A configuration with some of its keys changed.

    A key is dotted, as on LightningCLI's command line. Of a list, a number or the name of a class tells the element:
    ``trainer.callbacks.ConvexReconstruction.init_args.beta``. ``key+`` adds to a list. A mapping changes the keys that
    it has and leaves the others, unless it names another class.

    Args:
        config: A configuration; it is not changed.
        overrides: Values by dotted keys.
        where: What the overrides belong to, for errors.

    Raises:
        MisconfigurationException: If a key cannot be followed.

    Example:
        >>> with_overrides({"model": "LitSNN"}, {"model.init_args.lr": 0.1, "trainer.callbacks+": "Timer"}, "it")
        {'model': {'class_path': 'LitSNN', 'init_args': {'lr': 0.1}}, 'trainer': {'callbacks': ['Timer']}}
    """
    result: Config = copy.deepcopy(dict(config))
    for key, value in overrides.items():
        if not isinstance(key, str) or not all(key.removesuffix("+").split(".")):
            raise MisconfigurationException(f"Found the key {key!r} in {where}. Expected a dotted key of LightningCLI.")
        *parents, last = key.removesuffix("+").split(".")
        node: Any = result
        for part, following in zip(parents, [*parents, last][1:], strict=True):
            node = _child(node, part, key, where)
            if isinstance(node, dict) and "class_path" in node and following not in _OF_A_CLASS:
                raise MisconfigurationException(
                    f"Found the key {key!r} in {where}. Expected 'init_args' after {part!r}, which is a class."
                )
        if isinstance(node, list):
            place = _place(node, last, key, where)
            node[place] = _merged(node[place], value)
        elif key.endswith("+"):
            _append(node, last, value)
        else:
            node[last] = _merged(node.get(last), value)
    return result


def _child(node: Any, part: str, key: str, where: str) -> Any:
    """The mapping or list to which ``part`` of a dotted key leads; class names on the way become mappings."""
    place: Any = _place(node, part, key, where) if isinstance(node, list) else part
    child = node[place] if isinstance(node, list) else node.get(part)
    if part == "callbacks" and not isinstance(child, list):
        child = [] if child is None else [child]
    elif child is None:
        child = {}
    elif isinstance(child, str):
        child = {"class_path": child}
    elif not isinstance(child, (dict, list)):
        raise MisconfigurationException(f"Found the key {key!r} in {where}, but {part!r} there is {child!r}.")
    node[place] = child
    return child


def _place(node: list[Any], part: str, key: str, where: str) -> int:
    """The place in a list that ``part`` of a dotted key means."""
    names = [str(each.get("class_path") if isinstance(each, dict) else each).split(".")[-1] for each in node]
    if part.isdecimal() and int(part) < len(node):
        return int(part)
    if names.count(part) == 1:
        return names.index(part)
    raise NotInListError(
        f"Found the key {key!r} in {where}. Expected one {part!r} in that list, which has {', '.join(names) or 'none'}."
    )


def _append(node: Any, last: str, value: Any) -> None:
    old = node.get(last)
    before = [] if old is None else old if isinstance(old, list) else [old]
    node[last] = [*before, *copy.deepcopy(value if isinstance(value, list) else [value])]


def _merged(old: Any, value: Any) -> Any:
    """``value`` over ``old``: mappings key by key, unless they are of different classes."""
    if not isinstance(value, dict):
        return copy.deepcopy(value)
    if isinstance(old, str):
        old = {"class_path": old}
    if not isinstance(old, dict) or value.get("class_path", old.get("class_path")) != old.get("class_path"):
        old = {}
    result = dict(old)
    for name, each in value.items():
        if isinstance(name, str) and name.endswith("+"):
            _append(result, name.removesuffix("+"), each)
        else:
            result[name] = _merged(result.get(name), each)
    return result
