"""Reads a YAML file of settings, and refuses what loading alone would pass over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from cpo_ds.errors import UserError
from cpo_ds.settings.problems import yaml_problem

_MOST_VALUES = 100_000  # of a file, written out


def read_yaml(path: Path, example: str = "recipes/demo.yaml") -> dict[str, Any]:
    """The mapping in a recipe or another YAML file of settings, each key of it given once.

    Raises `UserError`, with the line, for a file that is missing, no YAML or no mapping; it
    names an `example`.
    """
    if not path.is_file():
        raise UserError(f"there is no recipe {path}; give --config an existing YAML file.")
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        if node is not None:
            _check_nodes(node, path, {})
        values = None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise UserError(f"{path} {yaml_problem(error)}.") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} must be a mapping of sections; see {example}.")
    return values


def _check_nodes(node: yaml.Node, path: Path, sizes: dict[int, int]) -> int:
    """Returns the number of values that a YAML node stands for, with its aliases written out.

    `sizes` has those of finished nodes by id, and 0 for nodes around this one. Raises `UserError`
    for faults that loading does not report: a key that is given twice, of which the last would
    count, an alias inside the value that it names, and aliases that make a file huge.
    """
    line = f"{path}, line {node.start_mark.line + 1}"
    if id(node) in sizes:
        if not sizes[id(node)]:
            raise UserError(f"{line}: an alias (*) stands inside the value that it names.")
        return sizes[id(node)]
    sizes[id(node)] = 0
    parts = node.value if isinstance(node, yaml.CollectionNode) else []
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key in (key for key, _ in parts if isinstance(key, yaml.ScalarNode)):
            number = key.start_mark.line + 1
            if key.value in lines:
                raise UserError(
                    f"{path}: {key.value} is given twice in one part, in lines {lines[key.value]} "
                    f"and {number}; keep one of them."
                )
            lines[key.value] = number
        parts = [part for pair in parts for part in pair]
    size = 1 + sum(_check_nodes(part, path, sizes) for part in parts)
    if size > _MOST_VALUES:
        raise UserError(f"{line}: aliases (*) make more than {_MOST_VALUES} values of it.")
    sizes[id(node)] = size
    return size
