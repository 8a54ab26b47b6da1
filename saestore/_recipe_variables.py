"""Variables of recipes: `${name}` in the values of a recipe, with defaults that a run may set.

`${dataset.model}` is what the catalog says of the dataset that the variable `dataset` names; so it is with `model`,
`sae` and `parameters`. An empty variable leaves out the parameter whose value it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import yaml

from saestore._entries import SECRET
from saestore._nearest import nearest
from saestore._yaml_lines import YamlFile
from saestore.catalogs import Catalog
from saestore.errors import InputError, MissingError

SECTIONS: Mapping[str, str] = {"dataset": "dataset", "model": "model", "sae": "sae", "parameters": "parameter_set"}
"""Variables that may name an entry of the catalog, and how the catalog finds it."""

LAKE = "lake"
"""The variable that every recipe has."""

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_REFERENCE = re.compile(r"\$\{([^{}]*)\}")


@dataclass
class Variables:
    """The variables of one recipe.

    values : by name, in the order of the file
    why_empty : what the catalog says of variables that are empty because it knows nothing
    """

    file: YamlFile
    find_catalog: Callable[[], Catalog]
    values: dict[str, Any] = field(default_factory=dict)
    why_empty: dict[str, str] = field(default_factory=dict)
    _unknown: str = field(default="", init=False)

    def filled(self, value: Any, keys: list[str | int]) -> Any:
        """Return a value of the recipe with the variables in their places.

        A text that is one variable becomes its value, whatever that is; within a longer text it is written out. What
        is empty is left out of mappings and lists, and a list of nothing is empty.

        Parameters
        ----------
        keys : list of str and int
            Where the value stands, for messages.

        Raises
        ------
        InputError
            A variable or key of the catalog that there is not.
        """
        if isinstance(value, dict):
            parts = {name: self.filled(part, [*keys, name]) for name, part in value.items()}
            return {name: part for name, part in parts.items() if part is not None or value[name] is None}
        if isinstance(value, list):
            items = [self.filled(part, [*keys, place]) for place, part in enumerate(value)]
            kept = [item for item, own in zip(items, value, strict=True) if item is not None or own is None]
            return kept if kept or not value else None
        if not isinstance(value, str) or "${" not in value:
            return value
        whole = _REFERENCE.fullmatch(value)
        if whole:
            return _or_none(self._value(whole[1], keys))
        return _or_none(_REFERENCE.sub(lambda match: _text(self._value(match[1], keys)), value))

    def named_in(self, value: Any) -> list[str]:
        """Return the variables that a value refers to, those that their defaults refer to not among them."""
        if isinstance(value, dict | list):
            parts = value.values() if isinstance(value, dict) else value
            return list(dict.fromkeys(name for part in parts for name in self.named_in(part)))
        found = _REFERENCE.findall(value) if isinstance(value, str) else []
        return list(dict.fromkeys(name.partition(".")[0] for name in found))

    def hint(self, value: Any) -> str:
        """Return how the empty variables of a value are set: the end of a message."""
        empty = [name for name in self.named_in(value) if _or_none(self.values.get(name)) is None]
        reasons = [self.why_empty[name] for name in empty if name in self.why_empty]
        given = " or ".join(f"{name}=..." for name in empty)
        return f"give --set {given}" + (f" ({'; '.join(reasons)})" if reasons else "")

    def _value(self, reference: str, keys: list[str | int]) -> Any:
        name, dot, item = reference.partition(".")
        if name not in self.values:
            raise self.file.error(keys, f"no variable {name!r} here, {nearest(name, list(self.values), 'variables')}")
        value = self.values[name]
        if not dot or _or_none(value) is None:
            return None if dot else value
        if name not in SECTIONS:
            raise self.file.error(keys, f"${{{reference}}}: only {', '.join(SECTIONS)} are looked up in the catalog")
        try:
            entry = getattr(self.find_catalog(), SECTIONS[name])(str(value))
        except MissingError as missing:
            self._unknown = str(missing)
            return None
        fields = [known for known in type(entry).model_fields if known not in ("name", "origin")]
        if item not in fields:
            raise self.file.error(keys, f"${{{reference}}}: unknown key, {nearest(item, fields, 'keys')}")
        found = getattr(entry, item)
        self._unknown = f"the catalog's {name} {value!r} has no {item}"
        return list(found) if isinstance(found, tuple) else found

    def add(self, name: str, default: Any, given: Mapping[str, Any]) -> None:
        """Take in the next variable: what was given, else its default, which may refer to those before it."""
        keys: list[str | int] = ["variables", name]
        self._unknown = ""
        if name in given:
            self.values[name] = _read(name, given[name], default)
            return
        self.values[name] = self.filled(default, keys)
        if _or_none(self.values[name]) is None and self._unknown:
            self.why_empty[name] = self._unknown


def resolve(
    file: YamlFile,
    declared: Mapping[str, Any],
    lake: str,
    given: Mapping[str, Any],
    find_catalog: Callable[[], Catalog],
) -> Variables:
    """Return the variables of a recipe.

    Parameters
    ----------
    declared : mapping
        Its block `variables`: names and defaults.
    lake : str
        The default of the variable `lake`, which every recipe has.
    given : mapping
        Values for this run. Texts are taken as they are where the default is a text, else read as YAML, and so are
        those that begin with a bracket.
    find_catalog : callable
        Called when the catalog is first asked.

    Raises
    ------
    InputError
        A name that is none, is not declared, or looks like that of a secret; a value that cannot be read.
    """
    found = Variables(file, find_catalog)
    for name in declared:
        keys: list[str | int] = ["variables", name]
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise file.error(keys, f"{name!r} cannot name a variable; use small letters, digits and _")
        if name == LAKE:
            raise file.error(keys, "every recipe has the variable lake; its default is the key lake at the top")
        if SECRET.search(name):
            raise file.error(keys, f"{name} looks like a secret, which never stands in a recipe; {_REMEDY}")
    for name, value in given.items():
        if name not in (LAKE, *declared):
            raise InputError(
                f"{file.path} has no variable {name!r}, {nearest(name, [LAKE, *declared], 'variables')}; "
                "set one of them with --set NAME=VALUE"
            )
        _refuse_secrets(name, value)
    found.add(LAKE, lake, given)
    for name, default in declared.items():
        found.add(name, default, given)
    return found


_REMEDY = "set the environment variable that the store reads, or use the cloud's own credential chain"


def _refuse_secrets(name: str, value: Any) -> None:
    if not isinstance(value, str) or "://" not in value:
        return
    parts = urlsplit(value)
    if parts.password or any(SECRET.search(key) for key, _ in parse_qsl(parts.query)):
        raise InputError(f"the URL given for {name!r} holds a secret; {_REMEDY}")


def _read(name: str, value: Any, default: Any) -> Any:
    """Return a given value: of texts, what they say in YAML unless the default is a text."""
    if not isinstance(value, str) or not value or (isinstance(default, str) and value[0] not in "[{"):
        return value
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        raise InputError(f"{name}={value} cannot be read; write texts, numbers or lists as in YAML, '[a, b]'") from None


def _or_none(value: Any) -> Any:
    return None if value in ("", [], ()) else value


def _text(value: Any) -> str:
    return "" if value is None else str(value)
