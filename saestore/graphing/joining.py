"""Make a graph of codes and activations that are open already: what `Lake.graph` does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from saestore.activations import Activations
from saestore.budget import parse_memory
from saestore.codes import Codes
from saestore.errors import InputError
from saestore.graphing.build import joined_pairs, make_graph, plan_graph
from saestore.graphing.ends import End, Pooling, selection_of
from saestore.graphing.measuring import measured
from saestore.graphing.options import GraphOptions
from saestore.graphs import FeatureGraph
from saestore.storage import Storage

Source = Codes | Activations


def graph_of(
    storage: Storage,
    a: Source | Sequence[Source],
    b: Source | Sequence[Source] | None,
    *,
    name: str,
    options: GraphOptions,
    pooling: Pooling | None,
    memory: str | int | None,
    device: str,
    scheduler: str | None,
    quiet: bool,
) -> FeatureGraph:
    """Make a graph, or open it if it is there; see `saestore.lake.Lake.graph`."""
    ends, pairs = joined_pairs(_ends(a, pooling), None if b is None else _ends(b, pooling))
    known = measured(ends, options, quiet=quiet)
    _, blocks = plan_graph(known, pairs, parse_memory(memory))
    return make_graph(storage, name, known, pairs, blocks, options, device=device, scheduler=scheduler, quiet=quiet)


def _ends(given: Source | Sequence[Source], pooling: Pooling | None) -> list[End]:
    sources = [given] if isinstance(given, Codes | Activations) else list(given)
    ends = []
    for source in sources:
        if isinstance(source, Codes):
            ends.append(End((source,), (selection_of(source),), source.kept_units, pooling))
        elif pooling is None:
            ends.append(End((source,), (selection_of(source),), np.arange(source.d_in)))
        else:
            raise InputError("activations are not pooled here; extract them with --sample-type mean or max")
    return ends
