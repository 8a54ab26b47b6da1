"""The verb index: postings for stored codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from saestore.errors import MissingError
from saestore.lake import layer_name
from saestore.layout import check_sample_type
from saestore.verbs.names import LakeLike, Say, listed, open_lake

if TYPE_CHECKING:
    from saestore.catalogs import Catalog
    from saestore.indexing.writer import IndexResult


def index(
    lake: LakeLike,
    *,
    datasets: str | Sequence[str] | None = None,
    saes: str | Sequence[str] | None = None,
    layers: str | int | Sequence[str | int] | None = None,
    sample_type: str | Sequence[str] | None = None,
    model: str | None = None,
    memory: str | int | None = None,
    scheduler: str | None = None,
    quiet: bool = False,
    say: Say | None = None,
    catalog: Catalog | None = None,
) -> list[IndexResult]:
    """Build the postings of codes, which unit queries read; what is built already is left alone.

    `encode` and `import` do this by themselves unless told not to.

    Parameters
    ----------
    lake : Lake, str or path
    datasets, saes, layers, sample_type, model
        Which codes; default all of the lake.
    memory : str or int, optional
        The most this process may use, such as `4GiB`; default what it uses now and 60 % of the free memory.
    scheduler : str, optional
        Address of a Dask scheduler.

    Returns
    -------
    list of IndexResult
        One per group of codes, with the reason where codes are incomplete.

    Raises
    ------
    MissingError
        No codes fit.
    BudgetError
        The memory does not suffice; the message names what does.

    Examples
    --------
    >>> index("demo/lake", saes="minilm-topk-4096", memory="2GiB")  # doctest: +SKIP
    """
    from saestore.indexing.writer import index as write

    opened = open_lake(lake, catalog=catalog)
    names = [saes] if isinstance(saes, str) else saes
    datasets = [datasets] if isinstance(datasets, str) else datasets
    layers = [layers] if isinstance(layers, str | int) else layers
    types = [sample_type] if isinstance(sample_type, str) else sample_type
    for name in datasets or ():
        opened.samples(name)  # a dataset that is not there is its own error
    for name in types or ():
        check_sample_type(name)
    wanted = {
        "dataset": datasets,
        "sae": names,
        "layer": [layer_name(layer) for layer in layers or ()],
        "sample_type": types,
        "model": None if model is None else [model],
    }
    stored = list(opened.code_keys())
    keys = [key for key in stored if all(not given or getattr(key, field) in given for field, given in wanted.items())]
    if not keys:
        raise MissingError(f"no codes in {opened.url} fit; there are {listed(stored)}")
    return write(opened.storage, keys, memory=memory, scheduler=scheduler, quiet=quiet, say=say)
