"""Feature graphs in a lake: units as nodes, correlated pairs as edges (docs/format.md, section 4.12).

The tables are Parquet, the rest attributes of Zarr groups without arrays.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from saestore import provenance
from saestore._nearest import nearest
from saestore.bridges.packages import imported
from saestore.errors import ConflictError, IntegrityError, MissingError
from saestore.layout import (
    ATTRIBUTE,
    FORMAT_VERSION,
    GRAPHS,
    graph_path,
    graph_summary_path,
    graph_table_path,
    graph_work_path,
    is_name,
    parents,
)
from saestore.rows import shortened
from saestore.storage import Storage, claim_document, group_document, put_document, read_document

if TYPE_CHECKING:
    import pandas as pd
    import scipy.sparse

KIND = "graph"
SUMMARY_KIND = "graph summary"

EDGE_COLUMNS = (
    "end_a", "unit_a", "end_b", "unit_b", "r", "n_a", "n_b", "n_ab", "lift", "mutual_information", "jaccard", "p", "q",
)  # fmt: skip
"""Columns of the edges: end_a and end_b are names of ends, units original ids; counts are null where an end is not of
codes. An edge stands once, of two ends in their order, of one with the smaller unit first; the strongest come first."""

UNIT_COLUMNS = (
    "end", "unit", "active", "base_rate", "mean", "deviation", "maximum", "state", "degree", "component", "community",
)  # fmt: skip
"""Columns of the units: `state` is `used`, `dead`, `constant` or `always on`; the last three are of no edge and have
neither component nor community, as units without edges have."""

USED, DEAD, CONSTANT, ALWAYS_ON = "used", "dead", "constant", "always on"


@dataclass(frozen=True)
class GraphEnd:
    """What the units of a graph are of.

    name : in the tables
    layer, sae, view : names; of activations the last two are None
    paths : of the codes or activations, dataset by dataset
    """

    name: str
    layer: str
    sae: str | None
    view: str | None
    paths: tuple[str, ...]


class FeatureGraph:
    """A feature graph of a lake.

    Examples
    --------
    >>> graph = saestore.open("lake").open_graph()  # doctest: +SKIP
    >>> graph.neighbours(812, end="layer_3/topk-4k").head()  # doctest: +SKIP
    >>> graph.adjacency(signed=False)  # doctest: +SKIP
    """

    def __init__(self, storage: Storage, name: str, content: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
        self.storage = storage
        self.name = name
        self.path = graph_path(name)
        self.identity: Mapping[str, Any] = content["identity"]
        self.provenance: Mapping[str, Any] = content["provenance"]
        self.ends = tuple(GraphEnd(**{**end, "paths": tuple(end["paths"])}) for end in content["ends"])
        self.summary: Mapping[str, Any] = summary["summary"]
        self._checksums: Mapping[str, Any] = summary["tables"]

    def __repr__(self) -> str:
        counts = self.summary["counts"]
        return f"<FeatureGraph {self.name}: {counts['edges']:,} edges of {counts['units']:,} units>"

    @classmethod
    def open(cls, storage: Storage, name: str) -> FeatureGraph:
        """Open a graph that is complete.

        Raises
        ------
        MissingError
            There is none of this name, or it is not complete.
        IntegrityError
            Its documents are damaged.
        """
        content, summary = (read_document(storage, path) for path in (graph_path(name), graph_summary_path(name)))
        if content is None or summary is None:
            known = graph_names(storage)
            if name in known:
                raise MissingError(f"graph {name!r} of {storage.url} is not complete; run saestore graph again")
            raise MissingError(
                f"the lake {storage.url} has no graph {name!r} ({nearest(name, known, 'graphs')}); make it with: "
                "saestore graph"
            )
        try:
            return cls(storage, name, _own(content, KIND), _own(summary, SUMMARY_KIND))
        except (KeyError, TypeError) as error:
            raise IntegrityError(f"{graph_path(name)} in {storage.url} is damaged ({error!r}); make it again") from None

    @property
    def stored_bytes(self) -> int:
        """Size of the tables."""
        return sum(int(table["bytes"]) for table in self._checksums.values())

    @property
    def n_rows(self) -> int:
        """Rows that the graph is over."""
        return int(self.summary["rows"]["n"])

    def end(self, name: str | None = None) -> GraphEnd:
        """Return the end of a name, or the only one (MissingError where there is none of it)."""
        if name is None and len(self.ends) == 1:
            return self.ends[0]
        names = [end.name for end in self.ends]
        if name is None:
            raise MissingError(f"graph {self.name!r} has {len(names)} ends ({', '.join(names)}); name one")
        if name not in names:
            raise MissingError(f"graph {self.name!r} has no end {name!r} ({nearest(name, names, 'ends')})")
        return self.ends[names.index(name)]

    def edges(self) -> pd.DataFrame:
        """Return the edges, the strongest first, with the columns `EDGE_COLUMNS`.

        Raises
        ------
        IntegrityError
            The table is lost or damaged.
        DependencyError
            pyarrow is not installed.
        """
        return self._edges.copy()

    def units(self) -> pd.DataFrame:
        """Return the units, end after end and by id, with the columns `UNIT_COLUMNS`; errors as of `edges`."""
        return self._units.copy()

    @cached_property
    def _edges(self) -> pd.DataFrame:
        return self._table("edges")

    @cached_property
    def _units(self) -> pd.DataFrame:
        return self._table("units")

    def neighbours(self, unit: int, end: str | None = None) -> pd.DataFrame:
        """Return the edges of a unit, the strongest first.

        Parameters
        ----------
        unit : int
            Original id.
        end : str, optional
            Name of its end, where there are several.

        Returns
        -------
        DataFrame
            `end` and `unit` of the other node, `r`, and the other columns of the edges, of which `n_a` is of the unit
            and `n_b` of the other.

        Raises
        ------
        MissingError
            There is no such unit in the graph.
        """
        import pandas as pd

        own = self.end(end).name
        units = self._units
        if not ((units["end"] == own) & (units["unit"] == unit)).any():
            raise MissingError(f"graph {self.name!r} has no unit {unit} of {own}; units() lists them")
        edges = self._edges
        parts = []
        for this, other in (("a", "b"), ("b", "a")):
            found = edges[(edges[f"end_{this}"] == own) & (edges[f"unit_{this}"] == unit)]
            names = {f"end_{other}": "end", f"unit_{other}": "unit", f"n_{this}": "n_a", f"n_{other}": "n_b"}
            parts.append(found.drop(columns=[f"end_{this}", f"unit_{this}"]).rename(columns=names))
        joined = pd.concat([parts[0], parts[1][parts[0].columns]])
        return joined.sort_values("r", key=np.abs, ascending=False, kind="stable").reset_index(drop=True)

    def adjacency(self, *, signed: bool = True, weighted: bool = True) -> scipy.sparse.csr_array:
        """Return the symmetric adjacency of all units, in the order of `units`, without loops.

        Parameters
        ----------
        signed : bool
            Keep the sign of r.
        weighted : bool
            r as weights; else 1, and -1 where signed.

        Returns
        -------
        (m, m) scipy.sparse.csr_array of float64
        """
        sparse = imported("scipy.sparse", "an adjacency matrix")
        edges, m = self._edges, len(self._units)
        values = edges["r"].to_numpy(np.float64, copy=True)
        if not signed:
            values = np.abs(values)
        if not weighted:
            values = np.sign(values)
        first, second = self.edge_places()
        rows, columns = np.concatenate([first, second]), np.concatenate([second, first])
        found: scipy.sparse.csr_array = sparse.csr_array(
            (np.concatenate([values, values]), (rows, columns)), shape=(m, m)
        )
        return found

    def edge_places(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the places among `units` of both nodes of each edge: two (e,) int64."""
        units, edges = self._units, self._edges
        first, second = edge_places(units, edges)
        return first, second

    def _table(self, table: str) -> pd.DataFrame:
        import pandas as pd

        key = graph_table_path(self.name, table)
        imported("pyarrow", "reading a graph")
        content = self.storage.get(key)
        expected = self._checksums[table]
        if content is None or len(content) != expected["bytes"] or google_crc32c.value(content) != expected["crc32c"]:
            raise IntegrityError(f"{key} in {self.storage.url} is lost or damaged; restore it, or make the graph again")
        return pd.read_parquet(io.BytesIO(content))


def edge_places(units: pd.DataFrame, edges: pd.DataFrame) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the places among units, ordered by end and unit, of both nodes of edges: two (e,) int64."""
    ends = list(dict.fromkeys(units["end"].tolist()))
    numbers = units["unit"].to_numpy(np.int64)
    of_end = units["end"].to_numpy()
    found = []
    for side in ("a", "b"):
        places = np.empty(len(edges), dtype=np.int64)
        names, wanted = edges[f"end_{side}"].to_numpy(), edges[f"unit_{side}"].to_numpy(np.int64)
        for end in ends:
            here = np.flatnonzero(of_end == end)
            chosen = np.flatnonzero(names == end)
            places[chosen] = here[np.searchsorted(numbers[here], wanted[chosen])]
        found.append(places)
    return found[0], found[1]


def graph_names(storage: Storage) -> list[str]:
    """Return the names of all graphs, complete or not."""
    return [name for name in storage.names(GRAPHS) if is_name(name)]


def check_free(storage: Storage, name: str, identity: Mapping[str, Any]) -> bool:
    """Whether a graph of this identity is complete.

    Raises
    ------
    ConflictError
        A graph of this name was made differently.
    """
    path = graph_path(name)
    document = read_document(storage, path)
    if document is None:
        return False
    stored = _own(document, KIND)["identity"]
    differing = [key for key in identity if stored.get(key) != identity[key]]
    if differing:
        changes = "; ".join(
            f"{key}: {shortened(repr(stored.get(key)))} is stored, {shortened(repr(identity[key]))} was asked"
            for key in differing[:3]
        )
        raise ConflictError(f"graph {name!r} of {storage.url} was made differently ({changes}); give another --name")
    return read_document(storage, graph_summary_path(name)) is not None


def write_graph(
    storage: Storage,
    name: str,
    identity: Mapping[str, Any],
    ends: Sequence[GraphEnd],
    summary: Mapping[str, Any],
    tables: Mapping[str, pd.DataFrame],
) -> None:
    """Write a graph, its summary last, and remove what was kept until then.

    Raises
    ------
    ConflictError
        Another one was written meanwhile.
    """
    path = graph_path(name)
    for parent in parents(path):
        if read_document(storage, parent) is None:
            claim_document(storage, parent, group_document())
    content = {
        "format": FORMAT_VERSION,
        "kind": KIND,
        "identity": identity,
        "ends": [vars(end) | {"paths": list(end.paths)} for end in ends],
        "provenance": provenance.stamp(),
    }
    claim_document(storage, path, group_document({ATTRIBUTE: content}))
    check_free(storage, name, identity)
    written = {table: write_table(storage, graph_table_path(name, table), frame) for table, frame in tables.items()}
    about = {"format": FORMAT_VERSION, "kind": SUMMARY_KIND, "summary": summary, "tables": written}
    put_document(storage, graph_summary_path(name), group_document({ATTRIBUTE: about}))
    for run in storage.names(graph_work_path(name)):
        for part in storage.names(graph_work_path(name, run)):
            storage.remove(graph_work_path(name, run, part.removesuffix(".parquet")))


def write_table(storage: Storage, key: str, frame: pd.DataFrame) -> dict[str, int]:
    """Write a Parquet table as one object, and return its size and checksum."""
    imported("pyarrow", "a graph")
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False, compression="zstd")
    content = buffer.getbuffer()
    storage.put(key, content)
    return {"bytes": len(content), "crc32c": google_crc32c.value(bytes(content))}


def _own(document: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    content: Mapping[str, Any] = document.get("attributes", {}).get(ATTRIBUTE, {})
    if content.get("kind") != kind:
        raise IntegrityError(f"expected a {kind} document, found {content.get('kind')!r}; make the graph again")
    return content
