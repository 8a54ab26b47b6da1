"""YAML with line numbers: a mapping read with `SafeLoader`, and for any key path the line it stands on.

Duplicate keys, which PyYAML lets the last one win silently, are errors here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from saestore.errors import InputError, MissingError


@dataclass(frozen=True)
class YamlFile:
    """One parsed YAML file.

    path : the file as the user named it
    content : the mapping at its top; {} for an empty file
    root : the node tree `content` was made from, for line numbers
    """

    path: Path
    content: dict[Any, Any]
    root: yaml.Node | None

    def line(self, keys: Sequence[str | int]) -> int:
        """Line (from 1) of the key path, or of its deepest part that exists."""
        node, line = self.root, 1
        for key in keys:
            step = _child(node, key)
            if step is not None:
                line, node = step
        return line

    def error(self, keys: Sequence[str | int], message: str) -> InputError:
        """An error about the key path: `FILE:LINE: a.b.c: message`."""
        where = f"{self.path}:{self.line(keys)}"
        return InputError(f"{where}: {'.'.join(map(str, keys))}: {message}" if keys else f"{where}: {message}")


def read_yaml(path: Path) -> YamlFile:
    """Read a YAML file whose top is a mapping.

    Raises
    ------
    MissingError
        There is no such file.
    InputError
        Not UTF-8, not YAML, a duplicate key, a tag that builds Python objects, or a top that is no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise MissingError(f"{path}: no such file; check the path") from None
    except IsADirectoryError:
        raise InputError(f"{path}: expected a YAML file, got a folder") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}; save the file as UTF-8") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return YamlFile(path, {}, None)
        _refuse_duplicates(path, root)
        try:
            content = loader.construct_document(root)
        except ValueError as error:  # e.g. the date 2024-13-45: SafeLoader does not wrap it
            raise InputError(f"{path}: {error}; quote the value if it is text") from None
    except RecursionError:
        raise InputError(f"{path}: nested too deeply to be a catalog; check its anchors and brackets") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        problem = " ".join(str(error.problem or error.context or "not valid YAML").split())
        raise InputError(f"{path}:{line}: not valid YAML: {problem}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}:1: not valid YAML: {' '.join(str(error).split())}") from None
    finally:
        loader.dispose()
    if not isinstance(content, dict):
        raise InputError(f"{path}:1: expected a mapping at the top, got {type(content).__name__}")
    return YamlFile(path, content, root)


def _child(node: yaml.Node | None, key: str | int) -> tuple[int, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        for name, value in reversed(node.value):  # reversed: keys given here stand after merged ones
            if isinstance(name, yaml.ScalarNode) and name.value == str(key):
                return name.start_mark.line + 1, value
    if isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
        item = node.value[key]
        return item.start_mark.line + 1, item
    return None


def _refuse_duplicates(path: Path, root: yaml.Node) -> None:
    seen: set[int] = set()  # an alias refers to a node again; recursive ones would loop
    todo: list[tuple[str, yaml.Node]] = [("", root)]
    while todo:
        prefix, node = todo.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            todo.extend((f"{prefix}[{i}]", item) for i, item in enumerate(node.value))
        if not isinstance(node, yaml.MappingNode):
            continue
        first: dict[str, int] = {}
        for name, value in node.value:
            if not isinstance(name, yaml.ScalarNode):
                raise InputError(f"{path}:{name.start_mark.line + 1}: expected a plain text key, got a {name.id}")
            key, line = f"{prefix}.{name.value}" if prefix else str(name.value), name.start_mark.line + 1
            if name.tag != "tag:yaml.org,2002:merge":
                if name.value in first:
                    raise InputError(f"{path}:{line}: {key}: given twice, first on line {first[name.value]}")
                first[name.value] = line
            todo.append((key, value))
