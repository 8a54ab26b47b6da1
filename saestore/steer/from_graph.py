"""A steering bundle from a graph in a lake: which units, and where in which model they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from saestore.activations import Activations
from saestore.budget import parse_memory, require_memory
from saestore.codes import Codes
from saestore.errors import InputError, MissingError
from saestore.extraction.hooks import parse_layers
from saestore.layout import CodesKey
from saestore.parts import RowParts, parts_of
from saestore.rows import RowGroup, group_exists
from saestore.saes.lake import open_lake_sae
from saestore.steer.bundle import Bundle, GraphPlace, ModelPlace, Places
from saestore.steer.making import make_bundle
from saestore.steer.neighbourhood import neighbourhood
from saestore.tables import Positions

if TYPE_CHECKING:
    import pandas as pd

    from saestore.graphs import FeatureGraph, GraphEnd
    from saestore.lake import Lake
    from saestore.saes.config import SAEConfig
    from saestore.saes.lake import LakeWeights

Say = Callable[[str], None]

_NUMBER_BYTES = 16
"""Of each number of an encoder or decoder row at the most, while it is folded in float64. Measured 15.7."""


def bundle_from_graph(
    lake: Lake,
    graph: str = "default",
    units: Sequence[int] | None = None,
    *,
    end: str | None = None,
    depth: int = 1,
    top: int | None = None,
    memory: str | int | None = None,
    say: Say | None = None,
) -> Bundle:
    """Make a bundle of units of a graph and their neighbourhood, all of one end: one SAE at one place of one model.

    Parameters
    ----------
    lake : Lake
        Of the graph, the SAE and the codes that the graph was made from.
    graph : str
        Its name.
    units : sequence of int, optional
        Original ids. Default: every unit that has an edge within the end.
    end : str, optional
        ``LAYER/SAE`` as the graph has it; default the only one.
    depth : int
        How many edges away from one of `units` a unit may be.
    top : int, optional
        At most so many neighbours are taken in for each unit, the strongest. An edge between two units of the bundle
        stays if it is among so many strongest of one of them. Default: all.
    memory : str or int, optional
        The most to use, such as ``8GiB``.
    say : callable, optional
        Takes a line where something cannot be checked.

    Raises
    ------
    MissingError
        There is no such graph, end or unit, the SAE or the codes are no longer in the lake, or a transcoder does not
        say where it writes.
    InputError
        The end is of activations, the graph was made with another version of the SAE or of the codes, its data sets
        are of several models, or an option is out of range.
    BudgetError
        The units' rows are too large.
    """
    for name, value, least in (("depth", depth, 0), ("top", top, 1)):
        if value is not None and value < least:
            raise InputError(f"{name} {value} is out of range; give {least} or more")
    stored = lake.open_graph(graph)
    of = stored.end(end)
    if of.sae is None:
        others = [one.name for one in stored.ends if one.sae is not None]
        there = f"choose an end of codes: {', '.join(others)}" if others else "make a graph of codes (graph --saes)"
        raise InputError(f"end {of.name} of graph {graph!r} is of activations, which no decoder writes; {there}")
    weights = open_lake_sae(lake.storage, of.sae)
    codes = _codes_of(lake, stored, of, weights, say)
    table = stored.units()
    table = table[table["end"] == of.name].reset_index(drop=True)
    edges = _edges_within(stored, of)
    numbers = table["unit"].to_numpy(np.int64)
    a, b = (np.searchsorted(numbers, edges[f"unit_{side}"].to_numpy(np.int64)) for side in "ab")
    r = edges["r"].to_numpy(np.float64)
    seeds = _places(numbers, units, stored, of) if units is not None else np.unique(np.concatenate([a, b]))
    if not len(seeds):
        raise InputError(
            f"graph {graph!r} has no edge within {of.name}; name the units (--units), or make it with others"
        )
    nodes, kept = neighbourhood(a, b, r, seeds, n=len(numbers), depth=depth, top=top)
    config = weights.config
    require_memory(
        len(nodes) * (config.d_in + config.d_out) * _NUMBER_BYTES,
        budget=parse_memory(memory),
        what=f"a steering bundle of {len(nodes):,} units of SAE {of.sae}",
        remedy="choose fewer units (--units, --depth, --top), or give more --memory",
    )
    chosen = table.iloc[nodes]
    return make_bundle(
        weights,
        numbers[nodes],
        mean=chosen["mean"].to_numpy(np.float64),
        deviation=chosen["deviation"].to_numpy(np.float64),
        maximum=chosen["maximum"].to_numpy(np.float64),
        a=np.searchsorted(nodes, a[kept]),
        b=np.searchsorted(nodes, b[kept]),
        r=r[kept],
        model=_model_place(codes, config, of),
        sae_name=of.sae,
        graph=GraphPlace(name=graph, identity=graph_identity(stored)),
    )


def graph_identity(graph: FeatureGraph) -> str:
    """Return the sha256 of what a graph was made from and how, in hex."""
    return hashlib.sha256(json.dumps(graph.identity, sort_keys=True).encode()).hexdigest()


def _edges_within(graph: FeatureGraph, end: GraphEnd) -> pd.DataFrame:
    edges = graph.edges()
    return edges[(edges["end_a"] == end.name) & (edges["end_b"] == end.name)]


def _places(numbers: Places, units: Sequence[int], graph: FeatureGraph, end: GraphEnd) -> Places:
    wanted = np.unique(np.asarray(list(units), dtype=np.int64))
    if not wanted.size:
        raise InputError("no unit was named; name at least one, or leave units out to take all that have an edge")
    found = np.searchsorted(numbers, wanted).clip(0, len(numbers) - 1)
    absent = wanted[numbers[found] != wanted]
    if absent.size:
        raise MissingError(
            f"graph {graph.name!r} has no unit {absent[0]} of {end.name}, of which it holds {len(numbers):,} from "
            f"{numbers[0]} to {numbers[-1]}; choose others, or make a graph with it"
        )
    return found.astype(np.int64)


def _codes_of(lake: Lake, graph: FeatureGraph, end: GraphEnd, weights: LakeWeights, say: Say | None) -> list[Codes]:
    """Open the codes that an end was made from, if they are still those, and of the SAE as it is in the lake now."""
    known = {key.path: key for key in lake.code_keys()}
    (made_from,) = [one for one in graph.identity["ends"] if one["name"] == end.name]
    found = []
    for path, run in zip(made_from["paths"], made_from["runs"], strict=True):
        if path not in known:
            raise MissingError(
                f"graph {graph.name!r} was made from {path}, which the lake {lake.url} no longer has, so that its SAE "
                "cannot be checked; encode again, and make the graph anew under another name"
            )
        codes = Codes.open(lake.storage, known[path])
        if run not in _runs(codes):
            raise InputError(
                f"{path} was made again after graph {graph.name!r}, which is of what was there before; make the graph "
                "anew under another name"
            )
        _check_sae(codes, weights, graph, say)
        found.append(codes)
    return found


def _check_sae(codes: Codes, weights: LakeWeights, graph: FeatureGraph, say: Say | None) -> None:
    encoded, name = codes.group.attributes["identity"].get("sae"), weights.name
    if codes.d_sae != weights.config.d_sae:
        raise InputError(
            f"{codes.key.path} is of {codes.d_sae:,} units and SAE {name} of the lake has {weights.config.d_sae:,}; "
            "import the SAE that the codes are of"
        )
    if encoded is None and say is not None:
        say(f"{codes.key.path} was imported and does not say which version of SAE {name} made it; the lake's is taken")
    if encoded is not None and encoded != weights.content_hash():
        raise InputError(
            f"graph {graph.name!r} is of codes of another version of SAE {name} ({encoded[:12]}) than the lake has now "
            f"({weights.content_hash()[:12]}); encode again and make the graph anew, or import that version"
        )


def _runs(codes: Codes) -> list[str]:
    """Return what names the codes now, and as they were before their data set grew."""
    parts = parts_of(codes.group)
    first = [part.attributes["run"] for part in parts[:1] if isinstance(part, RowGroup)]
    return [*first, *(RowParts(parts[:stop]).attributes["run"] for stop in range(2, len(parts) + 1))]


def _model_place(codes: Sequence[Codes], config: SAEConfig, end: GraphEnd) -> ModelPlace:
    """Return where the decoder writes: at the layer of the codes, or where a transcoder says."""
    keys = [one.key for one in codes]
    told = [_told(one, key) for one, key in zip(codes, keys, strict=True)]
    known = {
        name: _only([one.get(name) for one in told], name, end, keys) for name in ("model_id", "revision", "module")
    }
    layer, hook = end.layer, known["module"]
    if config.is_transcoder:
        if config.hook_name_out is None:
            raise MissingError(
                f"transcoder {end.sae} does not say at which hook it writes, so that nothing can be steered with it; "
                "use an SAE of the layer to steer"
            )
        layer, hook = config.hook_name_out, None
    (point,) = parse_layers([layer])
    return ModelPlace(
        model_id=known["model_id"] or keys[0].model,
        revision=known["revision"],
        d_model=config.d_out,
        layer=point.name,
        hook=hook,
    )


def _told(codes: Codes, key: CodesKey) -> dict[str, Any]:
    """Return what the lake knows of the model that rows were read from; imported rows know little."""
    told: dict[str, Any] = {}
    storage = codes.group.storage
    if group_exists(storage, key.activations.model_key.positions_path):
        told |= Positions.open_part(storage, key.activations.model_key).group.attributes
    if group_exists(storage, key.activations.path):
        told |= Activations.open_part(storage, key.activations).group.attributes["identity"]
    return told


def _only(values: Sequence[str | None], name: str, end: GraphEnd, keys: Sequence[CodesKey]) -> str | None:
    """Return what all that is known agrees on."""
    known = {value: key for value, key in zip(values, keys, strict=True) if value is not None}
    if len(known) > 1:
        (one, here), (other, there) = list(known.items())[:2]
        raise InputError(
            f"{end.name} is of several models: {name.replace('_', ' ')} {one} in {here.dataset} and {other} in "
            f"{there.dataset}; make a graph of data sets of one model"
        )
    return next(iter(known), None)
