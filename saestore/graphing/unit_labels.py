"""Labels of the units of a graph from a table: what somebody, or a model, has said that units are."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saestore._table_files import Columns, is_missing, read_table
from saestore.errors import InputError
from saestore.graphs import FeatureGraph, GraphEnd
from saestore.lake import layer_name

_UNIT = ("unit", "index", "feature")
_LABEL = ("label", "description", "explanation")
_NUMBER = re.compile(r"\s*(\d+)(?:\.0)?\s*")
_LAYER = re.compile(r"(\d+)(?:-.*)?")
"""A layer by its number, or by its number and what was hooked there, as `4-res`."""


@dataclass(frozen=True)
class UnitLabels:
    """What units are called.

    texts : by name of the end, and unit
    unused : rows of the file that are of no unit of the graph
    """

    texts: Mapping[tuple[str, int], str]
    unused: int = 0

    def of(self, end: str, unit: int) -> str:
        """Return the label of a unit; empty where it has none."""
        return self.texts.get((end, unit), "")


NO_LABELS = UnitLabels({})


def read_unit_labels(path: str | os.PathLike[str], graph: FeatureGraph) -> UnitLabels:
    """Read the labels of a graph's units from CSV, TSV, JSON, JSON Lines or Parquet, of which text may be compressed.

    The file has a column of units (`unit`, `index` or `feature`) and one of labels (`label`, `description` or
    `explanation`, in this order), and where the graph has several ends one that tells them apart: `end`, `sae` or
    `layer`. A layer is its name, its number, or as exports of explanations have it, `4-res`. Where a unit has several
    labels the first counts.

    Raises
    ------
    MissingError
        There is no such file.
    InputError
        It is no table, a column is lacking, a unit is no whole number, or no row is of a unit of the graph.
    """
    path = Path(path).expanduser()
    columns = read_table(path)
    units, labels = _column(path, columns, _UNIT, "units"), _column(path, columns, _LABEL, "labels")
    by: list[str] = [name for name in ("end", "sae", "layer") if name in columns]
    if not by and len(graph.ends) > 1:
        names = ", ".join(end.name for end in graph.ends)
        raise InputError(
            f"{path} does not say of which end its units are, and graph {graph.name!r} has {names}; add a column end, "
            "sae or layer"
        )
    known = graph.units()
    ids = {end.name: set(known.loc[known["end"] == end.name, "unit"].tolist()) for end in graph.ends}
    texts: dict[tuple[str, int], str] = {}
    unused = 0
    for row, (given, label) in enumerate(zip(columns[units], columns[labels], strict=True)):
        unit = _unit(path, row, units, given)
        text = "" if is_missing(label) else " ".join(str(label).split())
        where = {name: columns[name][row] for name in by}
        fitting = [end.name for end in graph.ends if _is_of(end, where) and unit in ids[end.name]]
        unused += not fitting
        for name in fitting:
            if text:
                texts.setdefault((name, unit), text)
    if not texts:
        told = f" by its {' and '.join(by)}" if by else ""
        raise InputError(
            f"{path} has no label of a unit of graph {graph.name!r}{told}; its ends are "
            f"{', '.join(end.name for end in graph.ends)}"
        )
    return UnitLabels(texts, unused)


def _column(path: Path, columns: Columns, names: tuple[str, ...], what: str) -> str:
    for name in names:
        if name in columns:
            return name
    raise InputError(
        f"{path} has no column of {what}: expected {', '.join(names[:-1])} or {names[-1]}, found "
        f"{', '.join(list(columns)[:8])}; rename one"
    )


def _unit(path: Path, row: int, column: str, given: Any) -> int:
    found = _NUMBER.fullmatch(str(given)) if not isinstance(given, bool) else None
    if found is None:
        raise InputError(
            f"{path}: row {row} has {column} {str(given)[:40]!r}, expected the number of a unit; correct it"
        )
    return int(found[1])


def _is_of(end: GraphEnd, where: Mapping[str, Any]) -> bool:
    """Whether what a row says of its end is true of an end; what is missing says nothing."""
    told = {name: str(value) for name, value in where.items() if not is_missing(value)}
    layer = told.pop("layer", None)
    if layer is not None:
        short = _LAYER.fullmatch(layer)
        if end.layer not in (layer, layer_name(short[1]) if short else layer):
            return False
    return told.get("end", end.name) == end.name and told.get("sae", end.sae) == end.sae
