"""The ends of a graph that is stored, opened again: the codes or activations and the rows that it was made of."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from saestore.activations import Activations
from saestore.codes import Codes
from saestore.errors import SaestoreError
from saestore.graphing.ends import End, rows_identity, selection_of
from saestore.graphs import FeatureGraph, GraphEnd
from saestore.lake import Lake
from saestore.layout import SPLITS, ActivationsKey, CodesKey
from saestore.selection import Selection

_SPLIT = re.compile(rf"split (?:{'|'.join(SPLITS)})(?: or (?:{'|'.join(SPLITS)}))*")


@dataclass(frozen=True, eq=False)
class ReopenedEnd:
    """An end of a stored graph.

    described : as the graph stores it
    end : None where it cannot be opened as it was
    reason : why not, in words; else empty
    """

    described: GraphEnd
    end: End | None
    reason: str = ""


def reopened_ends(lake: Lake, graph: FeatureGraph) -> list[ReopenedEnd]:
    """Open what the ends of a graph are of, with the rows that it is over.

    An end is not opened whose codes or activations are gone or were written anew, whose data set has grown, or whose
    rows were chosen in a way that the graph's own words do not tell.
    """
    paths = {path for end in graph.ends for path in end.paths}
    keys: list[ActivationsKey | CodesKey] = [*lake.code_keys(), *lake.activation_keys()]
    known = {key.path: key for key in keys if key.path in paths}
    found = []
    for place, described in enumerate(graph.ends):
        gone = [path for path in described.paths if path not in known]
        if gone:
            found.append(ReopenedEnd(described, None, f"{gone[0]} is not in the lake any more"))
            continue
        try:
            sources = tuple(_sources(lake, described, known))
            selections = [
                _selection(source, rows) for source, rows in zip(sources, graph.identity["rows"], strict=False)
            ]
        except SaestoreError as error:
            found.append(ReopenedEnd(described, None, str(error)))
            continue
        found.append(_reopened(graph, place, sources, selections))
    return found


def _sources(
    lake: Lake, described: GraphEnd, known: Mapping[str, ActivationsKey | CodesKey]
) -> Iterator[Codes | Activations]:
    for path in described.paths:
        key = known[path]
        if isinstance(key, ActivationsKey):
            yield Activations.open(lake.storage, key)
        else:
            codes = Codes.open(lake.storage, key)
            yield codes if described.view is None else codes.view(described.view)


def _reopened(
    graph: FeatureGraph, place: int, sources: tuple[Codes | Activations, ...], selections: list[Selection | None]
) -> ReopenedEnd:
    described, identity = graph.ends[place], graph.identity["ends"][place]
    for source, run in zip(sources, identity["runs"], strict=True):
        if source.group.attributes["run"] != run:
            reason = f"{source.key.path} was written anew since the graph was made"
            return ReopenedEnd(described, None, reason)
    chosen = tuple(selection for selection in selections if selection is not None)
    if len(chosen) == len(sources):
        units = np.concatenate([np.arange(first, stop) for first, stop in identity["units"]])
        return ReopenedEnd(described, End(sources, chosen, units, identity["pooling"]))  # type: ignore[arg-type]
    return ReopenedEnd(
        described, None, f"the rows of the graph ({graph.summary['rows']['what']}) cannot be chosen again"
    )


def _selection(source: Codes | Activations, identity: str) -> Selection | None:
    """Choose the rows that a graph names; None where the words of their conditions do not lead to the same rows.

    Words have no brackets around conditions, and long ones are cut.
    """
    words = identity.split(" ", 2)[2]
    parts = words.split(" and ")
    splits = [part for part in parts if _SPLIT.fullmatch(part)]
    rest = " and ".join(part for part in parts if part not in (*splits, "no special tokens", "all rows"))
    split = splits[0].removeprefix("split ").split(" or ") if splits else None
    try:
        found = selection_of(source, rest or None, split)
        return found if rows_identity(found) == identity else None
    except SaestoreError:
        return None
