"""The verb stats: statistics of units, computed once, sorted and filtered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from saestore.errors import InputError
from saestore.unit_stats import Bounds
from saestore.verbs.names import LakeLike, Say, matching_codes, open_lake

if TYPE_CHECKING:
    from saestore.catalogs import Catalog


@dataclass(frozen=True)
class UnitTable:
    """Statistics of the units of one group of codes.

    over, n_rows : which rows are counted, and how many
    d_sae : units of the SAE, or of the view
    dead, always_on : units that are active in none of them, or in nine of ten
    columns : by name, the chosen units in order
    """

    dataset: str
    sae: str
    layer: str
    sample_type: str
    over: str
    n_rows: int
    d_sae: int
    dead: int
    always_on: int
    columns: Mapping[str, NDArray[Any]]


def stats(
    lake: LakeLike,
    datasets: str | Sequence[str] | None = None,
    *,
    split: str | None = None,
    where: str | None = None,
    special: bool = False,
    sort: str = "fraction",
    ascending: bool = False,
    only: Mapping[str, Bounds] | Sequence[str] | None = None,
    limit: int | None = 20,
    sae: str | None = None,
    layer: str | int | None = None,
    sample_type: str | None = None,
    model: str | None = None,
    view: str | None = None,
    memory: str | int | None = None,
    scheduler: str | None = None,
    quiet: bool = False,
    say: Say | None = None,
    catalog: Catalog | None = None,
) -> list[UnitTable]:
    """Return statistics of units, from those that are stored; what is not stored yet is computed first and kept.

    Parameters
    ----------
    lake : Lake, str or path
    datasets : str or sequence of str, optional
        Default: all that have the codes.
    split : str, optional
        `train`, `cal`, `test`, or `none` for samples without a split; default all rows.
    where : str, optional
        An expression on samples and positions; such statistics are computed and not kept.
    special : bool
        Count the rows of special tokens too.
    sort : str
        A column of the table, such as `count`, `fraction`, `mean`, `max` or `p99`.
    ascending : bool
        Smallest first.
    only : mapping of str to (low, high), or sequence of str, optional
        Only units whose value in these columns lies between both, None for no bound; or written as
        ``fraction=0.001:0.1`` and ``count=10:``.
    limit : int, optional
        The most units; None for all.
    sae, layer, sample_type, model
        Which codes; what is unique in the lake may be left out.
    view : str, optional
        Only the units that this view keeps.
    memory : str or int, optional
        The most this process may use, such as `4GiB`.

    Returns
    -------
    list of UnitTable
        One per dataset.

    Raises
    ------
    MissingError
        No such codes, or they have no postings.
    InputError
        An unknown split or column, or an expression that cannot be read.

    Examples
    --------
    >>> stats("demo/lake", "5_hist_fig_ismale", sort="mean", limit=5)  # doctest: +SKIP
    """
    from saestore.indexing.stats import write_stats

    bounds = only if isinstance(only, Mapping) or only is None else _bounds(only)
    opened = open_lake(lake, catalog=catalog)
    found = matching_codes(
        opened, datasets=datasets, sae=sae, layer=layer, sample_type=sample_type, model=model, view=view
    )
    if where is None:
        keys = [codes.key for codes in found]
        write_stats(opened.storage, keys, special=special, memory=memory, scheduler=scheduler, quiet=quiet, say=say)
    tables = []
    for codes in found:
        chosen = codes if where is None else codes.where(where)
        of_units = chosen.stats(split=split, special=special)
        key = codes.key
        tables.append(
            UnitTable(
                dataset=key.dataset,
                sae=key.sae,
                layer=key.layer,
                sample_type=key.sample_type,
                over=of_units.over,
                n_rows=of_units.n_rows,
                d_sae=len(of_units),
                dead=int(of_units.is_dead.sum()),
                always_on=int(of_units.is_always_on.sum()),
                columns=of_units.table(sort, descending=not ascending, limit=limit, where=bounds),
            )
        )
    return tables


def _bounds(only: Sequence[str]) -> dict[str, Bounds]:
    """Read bounds of columns as people write them: `fraction=0.001:0.1`, `count=10:`.

    Raises
    ------
    InputError
        One is written otherwise.
    """
    bounds: dict[str, Bounds] = {}
    for text in only:
        column, equals, between = text.partition("=")
        low, colon, high = between.partition(":")
        try:
            bounds[column] = (float(low) if low.strip() else None, float(high) if high.strip() else None)
        except ValueError:
            colon = ""
        if not (column and equals and colon):
            raise InputError(
                f"{text!r} cannot be read; write a column and its bounds like fraction=0.001:0.1 or count=10:"
            )
    return bounds
