"""Heat maps of a feature graph: all correlations of the units with most edges, those below the threshold too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from saestore.bridges.packages import imported
from saestore.budget import require_memory
from saestore.graphing.options import GraphOptions
from saestore.graphing.pairs import DensePairsTask
from saestore.graphing.plan import dense_bytes
from saestore.report.drawing import FAINT, Picture
from saestore.report.graph_subject import GraphSubject
from saestore.report.page import Data, Section, missing, paragraph, text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_UNITS = 100
"""Units of each end that are drawn, those with most edges."""

_COLOURS = ("#17498a", "#7fa9d6", "#ffffff", "#eba27c", "#b8420c")  # -1 to 1
_NAMED = 40  # units whose ids are written along an axis


@dataclass(frozen=True, eq=False)
class Maps:
    """Correlations of chosen units.

    units : of each end, original ids in clustered order
    r : (units of a, units of b) float64 of each pair of ends, by their numbers
    complete : whether those below the threshold are there too
    reason : why they are not
    """

    units: Mapping[int, NDArray[np.int64]]
    r: Mapping[tuple[int, int], NDArray[np.float64]]
    complete: bool
    reason: str = ""


def chosen_maps(subject: GraphSubject, budget: int) -> Maps:
    """Compute the correlations of the most connected units of each end, and put these in clustered order.

    Raises
    ------
    BudgetError
        They do not fit the memory.
    """
    chosen: dict[int, NDArray[np.int64]] = {}
    places, ends = subject.most_connected, subject.units["end"].to_numpy()
    for number, end in enumerate(subject.graph.ends):
        own = places[ends[places] == end.name][:MOST_UNITS]
        if len(own) > 1:
            chosen[number] = np.sort(subject.units["unit"].to_numpy()[own])
    given = {(int(a), int(b)) for a, b in subject.graph.identity["pairs"]}
    pairs = [pair for pair in sorted(given | {(number, number) for number in chosen}) if set(pair) <= set(chosen)]
    reasons = [one.reason for number, one in enumerate(subject.reopened) if number in chosen and one.end is None]
    r = _from_edges(subject, chosen, pairs) if reasons else _from_rows(subject, chosen, pairs, budget)
    order = {number: clustered_order(r[number, number]) for number in chosen}
    return Maps(
        units={number: units[order[number]] for number, units in chosen.items()},
        r={(a, b): found[np.ix_(order[a], order[b])] for (a, b), found in r.items()},
        complete=not reasons,
        reason="; ".join(dict.fromkeys(reasons)),
    )


def clustered_order(r: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the order of units in which those that are correlated stand together.

    Leaves of the tree of average linkage with the distance 1 - r, turned so that neighbours are as near as can be
    (Bar-Joseph, Gifford, Jaakkola 2001, "Fast optimal leaf ordering for hierarchical clustering").

    Parameters
    ----------
    r : (m, m) float64
        Symmetric, of two units at least.
    """
    hierarchy = imported("scipy.cluster.hierarchy", "the order of units in a heat map")
    distances = (1 - (r + r.T) / 2)[np.triu_indices(len(r), 1)]
    tree = hierarchy.linkage(np.maximum(distances, 0), "average", optimal_ordering=True)
    order: NDArray[np.int64] = hierarchy.leaves_list(tree).astype(np.int64)
    return order


def maps_section(subject: GraphSubject, maps: Maps) -> tuple[Section, list[Picture]]:
    """Return the heat maps of each layer and of each two layers, and their pictures."""
    key, title = "maps-section", "Heat maps"
    if not maps.r:
        return Section(key, title, missing("No layer has two units with edges, so there is nothing to draw.")), []
    words = [
        f"Pearson's r of the {MOST_UNITS} units of each layer with most edges, or of all that have edges; within a "
        "layer units stand in clustered order, and in the same order between layers. Rest the pointer on a map to read "
        "its numbers.",
        "All correlations are drawn, those below the threshold too."
        if maps.complete
        else f"Only the edges are drawn, all else as 0: {maps.reason}.",
    ]
    names = [end.name for end in subject.graph.ends]
    figures, pictures, data = [], [], []
    for (a, b), r in sorted(maps.r.items(), key=lambda item: (item[0][0] != item[0][1], item[0])):
        what = f"within {names[a]}" if a == b else f"{names[a]} and {names[b]}"
        block = Data("", map_name(names[a], names[b]), _columns(maps, a, b, r))
        data.append(block)
        picture = Picture(
            block.name,
            (5.4, 4.8),
            "correlations " + text(what),
            partial(_draw, maps=maps, names=names, pair=(a, b)),
        )
        pictures.append(picture)
        figures.append(
            f'<figure class="heat" data-of="{text(block.key)}"><h4>{text(what)}</h4><div class="plot">{picture.svg()}'
            '</div><p class="note reading" aria-live="polite">&nbsp;</p></figure>'
        )
    body = "".join(map(paragraph, words)) + f'<div class="grid heats">{"".join(figures)}</div>'
    return Section(key, title, body, tuple(data)), pictures


def map_name(a: str, b: str) -> str:
    """Return the name of the numbers of a pair of ends, which can be a file's."""
    return f"correlation_{a}_{b}".replace("/", ".")


def _from_rows(
    subject: GraphSubject, chosen: Mapping[int, NDArray[np.int64]], pairs: Sequence[tuple[int, int]], budget: int
) -> dict[tuple[int, int], NDArray[np.float64]]:
    """Compute all correlations of chosen units from the rows of the graph."""
    ends = []
    for number, units in chosen.items():
        end = subject.reopened[number].end
        assert end is not None
        ends.append(replace(end, units=units))
    if not ends:
        return {}
    widths = [len(end.units) for end in ends]
    require_memory(
        dense_bytes(
            widths, sum(len(chosen[a]) * len(chosen[b]) for a, b in pairs), min(end.block_rows for end in ends)
        ),
        budget=budget,
        what=f"the correlations of {len(pairs)} pairs of ends with {max(widths)} units at most",
        remedy="give more --memory",
    )
    places = list(chosen)
    task = DensePairsTask(
        storage=subject.graph.storage,
        graph="",
        run_id="",
        numbers={number: (places.index(a), places.index(b)) for number, (a, b) in enumerate(pairs)},
        ends=tuple(ends),
        takes_part=tuple(np.ones(width, dtype=bool) for width in widths),  # units with edges do
        options=GraphOptions(),
        is_null=False,
        device="cpu",
    )
    return {pairs[number]: r for number, r in task.correlations()}


def _from_edges(
    subject: GraphSubject, chosen: Mapping[int, NDArray[np.int64]], pairs: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], NDArray[np.float64]]:
    found = {(a, b): np.zeros((len(chosen[a]), len(chosen[b]))) for a, b in pairs}
    edges, names = subject.edges, [end.name for end in subject.graph.ends]
    for (a, b), r in found.items():
        of = edges[(edges["end_a"] == names[a]) & (edges["end_b"] == names[b])]
        kept = of[of["unit_a"].isin(chosen[a]) & of["unit_b"].isin(chosen[b])]
        rows = np.searchsorted(chosen[a], kept["unit_a"].to_numpy())
        columns = np.searchsorted(chosen[b], kept["unit_b"].to_numpy())
        r[rows, columns] = kept["r"]
        if a == b:
            r[columns, rows] = kept["r"]
            np.fill_diagonal(r, 1.0)
    return found


def _columns(maps: Maps, a: int, b: int, r: NDArray[np.float64]) -> dict[str, Any]:
    """Return a map as columns: the units of a, and of each unit of b its correlations."""
    rounded = np.round(r, 6)
    of_b = {f"unit_{unit}": rounded[:, column] for column, unit in enumerate(maps.units[b].tolist())}
    return {"unit": maps.units[a], **of_b}


def _draw(figure: Figure, *, maps: Maps, names: Sequence[str], pair: tuple[int, int]) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    axes = figure.subplots()
    a, b = pair
    colours = LinearSegmentedColormap.from_list("r", _COLOURS)
    image = axes.imshow(maps.r[pair], cmap=colours, vmin=-1, vmax=1, interpolation="none", aspect="auto")
    axes.grid(visible=False)
    axes.spines[:].set(visible=True, color=FAINT)
    for axis, number in ((axes.yaxis, a), (axes.xaxis, b)):
        units = maps.units[number]
        axis.set_ticks(np.arange(len(units)), units.tolist()) if len(units) <= _NAMED else axis.set_ticks([])
        axis.set_label_text(f"{len(units)} units of {names[number]}")
        axis.set_tick_params(labelsize=6 if len(units) > 16 else 8, length=0)
    axes.xaxis.set_tick_params(rotation=90)
    figure.colorbar(image, ax=axes, label="r", shrink=0.8, pad=0.02)
