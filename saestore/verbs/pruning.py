"""The verb prune: views of the units that are active, strong and selective over one split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from saestore.analysis.pruning import Criteria, concept_rows
from saestore.analysis.pruning import prune as prune_codes
from saestore.analysis.truth import Truth, open_labels, truth_options
from saestore.codes import Codes
from saestore.errors import InputError
from saestore.labels import DEFAULT_NAME
from saestore.layout import POSITION_TYPES
from saestore.unit_stats import ALL
from saestore.verbs.names import LakeLike, Say, chosen_concepts, matching_codes, open_lake

if TYPE_CHECKING:
    from saestore._entries import AdaptivePruning, FixedPruning
    from saestore.catalogs import Catalog


@dataclass(frozen=True)
class Pruned:
    """A view that `prune` made of one group of codes.

    view, parent : its name, and that of the view it was chosen from
    rows : counted rows of the split
    active : units that are active in some of them, from which it was chosen
    kept : units of the view
    criteria : by name, in numbers
    strength : the least 99th percentile that was kept; None where strength was no criterion
    removed : by criterion, in the order in which they were applied
    legacy : whether rows and percentiles were those of earlier code
    """

    dataset: str
    sae: str
    layer: str
    sample_type: str
    view: str
    parent: str | None
    split: str
    rows: int
    d_sae: int
    active: int
    kept: int
    criteria: Mapping[str, float]
    strength: float | None
    removed: Mapping[str, int]
    legacy: bool


def prune(
    lake: LakeLike,
    datasets: str | Sequence[str] | None = None,
    *,
    name: str,
    parameters: str | None = None,
    dead: int | None = None,
    ubiquitous: float | None = None,
    strength_percentile: float | None = None,
    min_selectivity: float | None = None,
    target: int | None = None,
    split: str = "cal",
    special: bool = False,
    units: Sequence[int] | None = None,
    view: str | None = None,
    concepts: Sequence[str] | None = None,
    labels: str = DEFAULT_NAME,
    legacy: bool = False,
    sae: str | None = None,
    layer: str | int | None = None,
    sample_type: str | None = None,
    model: str | None = None,
    memory: str | int | None = None,
    scheduler: str | None = None,
    quiet: bool = False,
    say: Say | None = None,
    catalog: Catalog | None = None,
) -> list[Pruned]:
    """Choose units by their statistics over one split, and keep the choice as a view under a name.

    A view is a list of units, never a copy of codes. Statistics that are not stored are computed first and kept.
    Criteria are applied in the order of the parameters below, `strength_percentile` to what `dead` and `ubiquitous`
    leave. Pooled codes (cls, mean, max, last) may go without any: then all active units are kept.

    Parameters
    ----------
    lake : Lake, str or path
    datasets : str or sequence of str, optional
        Default: all that have the codes; each gets a view of its own.
    name : str
        Name of the view.
    parameters : str, optional
        A parameter set of the catalog with a pruning rule; numbers given here go before it.
    dead : int, optional
        Keep units that are active in at least so many rows.
    ubiquitous : float, optional
        Keep units that are active in at most this part of the rows.
    strength_percentile : float, optional
        Keep units whose 99th percentile is at least this percentile, from 0 to 100, of those of the units left.
    min_selectivity : float, optional
        Keep units of at least this lifetime sparseness, from 0 to 1.
    target : int, optional
        Keep at most so many units, the strongest by their 99th percentile.
    split : str
        `train`, `cal`, `test` or `all`: whose rows count.
    special : bool
        Count the rows of special tokens too.
    units : sequence of int, optional
        Choose from these units only.
    view : str, optional
        Choose from the units of this view.
    concepts : sequence of str, optional
        The concepts that an adaptive rule follows from; names, `*` and `?` match several; default those that the
        catalog names for the dataset, else all that are labelled.
    labels : str
        Name of the labels of positions that it follows from, where there are such; else labels of samples.
    legacy : bool
        Count rows and take percentiles as earlier code did, for comparison with its results.
    sae, layer, sample_type, model
        Which codes; what is unique in the lake may be left out.
    memory : str or int, optional
        The most that computing statistics may use, such as `4GiB`.

    Returns
    -------
    list of Pruned
        One per dataset.

    Raises
    ------
    MissingError
        No such codes, view or parameter set, or codes without postings.
    InputError
        No criteria for codes of positions, or such as leave no unit; no samples in the split; concepts without a row.
    ConflictError
        There is a view of this name that was made differently.

    Examples
    --------
    >>> prune("demo/lake", "5_hist_fig_ismale", name="strong", dead=10, strength_percentile=75)  # doctest: +SKIP
    """
    from saestore.indexing.stats import write_stats

    criteria = Criteria(dead, ubiquitous, strength_percentile, min_selectivity, target)
    rule = None if parameters is None else _rule(parameters, catalog)
    opened = open_lake(lake, catalog=catalog)
    found = matching_codes(
        opened, datasets=datasets, sae=sae, layer=layer, sample_type=sample_type, model=model, view=view
    )
    for codes in found:
        if rule is None and not criteria.given and units is None and codes.key.sample_type in POSITION_TYPES:
            raise InputError(
                f"nothing says which units of {codes.key.path} to keep; name a parameter set with --parameters "
                f"({', '.join(_rules(catalog))}), or give --dead, --ubiquitous, --strength-percentile, "
                "--min-selectivity or --target"
            )
        if split != ALL:
            codes.samples.of_split(split)  # which has its own error for a split without samples
    if legacy and say is not None:
        say("legacy: rows and 99th percentiles are those of earlier code, for comparison with its results only")
    if not legacy:
        keys = [codes.key for codes in found]
        write_stats(opened.storage, keys, special=special, memory=memory, scheduler=scheduler, quiet=quiet, say=say)
    pruned = []
    for codes in found:
        positives = None
        if rule is not None and rule.rule == "adaptive":
            named = chosen_concepts(codes, concepts, labels, catalog)
            positives = _positives(codes, split, concepts=named, labels=labels, special=special)
        made = prune_codes(
            codes,
            name=name,
            rule=rule,
            criteria=criteria,
            positives=positives,
            split=split,
            special=special,
            units=None if units is None else list(units),
            legacy=legacy,
        )
        key, report = codes.key, made.report
        pruned.append(
            Pruned(
                dataset=key.dataset,
                sae=key.sae,
                layer=key.layer,
                sample_type=key.sample_type,
                view=made.name,
                parent=made.parent,
                split=split,
                rows=report["rows"],
                d_sae=codes.d_sae,
                active=report["active"],
                kept=len(made),
                criteria=report["criteria"],
                strength=report["strength"],
                removed=report["removed"],
                legacy=legacy,
            )
        )
    return pruned


def _positives(
    codes: Codes, split: str, *, concepts: Sequence[str] | None, labels: str, special: bool
) -> dict[str, int]:
    """Return in how many rows of the split each concept is."""
    if split == ALL:
        raise InputError("an adaptive rule follows from the concepts of a split; give --split cal, train or test")
    stored = open_labels(codes.group.storage, codes.key.activations, labels)
    options = truth_options(codes.axis, stored, concepts=concepts, by=None, name=labels, special=special)
    return concept_rows(Truth(codes.axis, stored, options), split)


def _rule(parameters: str, catalog: Catalog | None) -> FixedPruning | AdaptivePruning:
    from saestore.catalogs import load_catalog

    rule = (catalog or load_catalog()).parameter_set(parameters).prune
    if rule is None:
        raise InputError(
            f"parameter set {parameters!r} has no pruning rule; those that have one: {', '.join(_rules(catalog))}"
        )
    return rule


def _rules(catalog: Catalog | None) -> list[str]:
    from saestore.catalogs import load_catalog

    return [name for name, entry in (catalog or load_catalog()).parameters.items() if entry.prune is not None]
