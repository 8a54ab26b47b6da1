"""Pruning: a view of the units that are active, strong and selective, chosen by statistics over one split."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from saestore.analysis.truth import Truth
from saestore.analysis.unit_figures import UnitFigures, figures_of
from saestore.code_rows import integers
from saestore.codes import Codes
from saestore.errors import HoleError, InputError, MissingError
from saestore.layout import check_name
from saestore.unit_stats import ALL
from saestore.views import View, write_view

if TYPE_CHECKING:
    from saestore._entries import AdaptivePruning, FixedPruning


@dataclass(frozen=True)
class Criteria:
    """What a unit must meet to be kept; None leaves a criterion out.

    dead : it is active in at least so many rows
    ubiquitous : it is active in at most this part of the rows
    strength_percentile : its 99th percentile is at least this percentile (0 to 100, linear) of those of the units that
        are left by `dead` and `ubiquitous`
    min_selectivity : its lifetime sparseness is at least this
    target : it is among so many of what is left, strongest first, ties by unit
    """

    dead: int | None = None
    ubiquitous: float | None = None
    strength_percentile: float | None = None
    min_selectivity: float | None = None
    target: int | None = None

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("dead", self.dead, 0, None),
            ("ubiquitous", self.ubiquitous, 0, 1),
            ("strength_percentile", self.strength_percentile, 0, 100),
            ("min_selectivity", self.min_selectivity, 0, 1),
            ("target", self.target, 1, None),
        ):
            if value is not None and not (value >= low and (high is None or value <= high)):
                bounds = f"at least {low}" if high is None else f"between {low} and {high}"
                raise InputError(f"{name} {value} cannot be met; give a number of {bounds}")

    @property
    def given(self) -> dict[str, float]:
        """Those that are not left out."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, eq=False)
class Choice:
    """What criteria left of units.

    kept : (m,) bool
    removed : by criterion in the order in which they are applied, how many units of those before
    strength : the least 99th percentile that is kept; None where strength is no criterion
    """

    kept: NDArray[np.bool_]
    removed: Mapping[str, int]
    strength: float | None


def prune(
    codes: Codes,
    *,
    name: str,
    rule: FixedPruning | AdaptivePruning | None = None,
    criteria: Criteria | None = None,
    positives: Mapping[str, int] | None = None,
    split: str = "cal",
    special: bool = False,
    units: Sequence[int] | NDArray[np.integer[Any]] | None = None,
    legacy: bool = False,
) -> View:
    """Choose units by their statistics over one split, and store the choice as a view.

    The start are the units that are active in some counted row, of all units or of those of the view that the codes
    are looked at through. Without any criterion these are kept, which is what is done with pooled codes.

    Parameters
    ----------
    codes : Codes
        All rows of them. Their statistics are computed first where they are not stored.
    name : str
        What the view is to be called.
    rule : FixedPruning or AdaptivePruning, optional
        A rule of a parameter set of the catalog.
    criteria : Criteria, optional
        What is given here goes before the rule.
    positives : mapping of str to int, optional
        Rows of the split that have each concept, which an adaptive rule needs; see `concept_rows`.
    split : str
        `train`, `cal` or `test`, or `all`: whose rows count.
    special : bool
        Whether rows of special tokens count.
    units : sequence of int, optional
        Choose from these units only.
    legacy : bool
        Count the rows that earlier code counted, with its 99th percentile; see `saestore.analysis.legacy`.

    Returns
    -------
    View
        With the figures `count`, `fraction`, `p99` and `selectivity` of its units, and a `report`: counted `rows`,
        `active` units, the `criteria` in numbers, the least `strength` kept, and the units that each `removed`.

    Raises
    ------
    InputError
        A selection of rows, an unknown split or one without samples, criteria that leave no unit, or concepts without
        a positive row; the message says which.
    ConflictError
        There is a view of this name that was made differently.
    MissingError, HoleError
        There are no postings, or not of all rows.
    """
    check_name(name, "view")
    if codes.is_selection:
        raise InputError(f"{codes!r} is a selection of rows; prune counts those of a split, give the codes without it")
    lineage = _lineage(codes)
    if legacy:
        figures = _legacy_figures(codes, split, special=special)
    else:
        figures = _figures(codes, split, special=special)
    if units is not None:
        asked = integers(units, "units")
        codes.check_units(asked)
        figures = figures.at(np.isin(figures.units, asked))
    active = figures.at(figures.count > 0)
    wanted = resolved(rule, criteria or Criteria(), positives=positives, rows=figures.rows, legacy=legacy)
    choice = choose(active, wanted)
    over = f"{'the legacy rows of ' if legacy else ''}split {split!r} of {codes.key.path}"
    if not choice.kept.any():
        raise InputError(_nothing_left(over, active, wanted, choice))
    kept = active.at(choice.kept)
    parameters = {
        "rule": None if rule is None else rule.model_dump(mode="json"),
        "criteria": (criteria or Criteria()).given,
        "split": split,
        "special": special,
        "of_units": None if units is None else len(units),
        "legacy": legacy,
    }
    report = {
        "rows": figures.rows,
        "active": len(active.units),
        "kept": len(kept.units),
        "criteria": wanted.given,
        "strength": choice.strength,
        "removed": dict(choice.removed),
    }
    view = View(name, kept.units, kept.stored(), parameters, report, lineage)
    return write_view(codes.group.storage, codes.key, codes.run, view)


def choose(figures: UnitFigures, criteria: Criteria) -> Choice:
    """Apply criteria to active units, one after the other.

    Parameters
    ----------
    figures : UnitFigures
        Of units with a count of at least 1.
    """
    removed: dict[str, int] = {}
    left = np.ones(len(figures.units), dtype=bool)

    def keep(criterion: str, fit: NDArray[np.bool_]) -> None:
        removed[criterion] = int(np.count_nonzero(left & ~fit))
        np.logical_and(left, fit, out=left)

    strengths = figures.p99.astype(np.float64)
    strength = None
    # Both of these look at all units, not at what the other has left.
    if criteria.dead is not None:
        keep("dead", figures.count >= criteria.dead)
    if criteria.ubiquitous is not None:
        keep("ubiquitous", ~(figures.fraction > criteria.ubiquitous))
    if criteria.strength_percentile is not None and left.any():
        strength = float(np.percentile(strengths[left], criteria.strength_percentile))
        keep("strength", strengths >= strength)
    if criteria.min_selectivity is not None:
        keep("selectivity", figures.selectivity >= criteria.min_selectivity)
    if criteria.target is not None:
        places = np.flatnonzero(left)
        strongest = places[np.argsort(-strengths[places], kind="stable")[: criteria.target]]
        fit = np.zeros_like(left)
        fit[strongest] = True
        keep("target", fit)
    return Choice(left, removed, strength)


def resolved(
    rule: FixedPruning | AdaptivePruning | None,
    criteria: Criteria,
    *,
    positives: Mapping[str, int] | None,
    rows: int,
    legacy: bool = False,
) -> Criteria:
    """Return a rule's criteria in numbers, with those that were given in their place.

    Of an adaptive rule, with c_min and c_max the positive rows of the rarest and the commonest concept: a unit is dead
    below max(floor, int(fraction c_min)) rows, ubiquitous above min(1, factor c_max / rows), and the strength
    percentile is that of the first step with at least as many concepts as there are.

    Parameters
    ----------
    positives : mapping of str to int, optional
        Rows that have each concept.
    rows : int
        Counted rows.
    legacy : bool
        Concepts without a positive row are not counted, where else they are refused.

    Raises
    ------
    InputError
        The rule needs concepts and there are none, or one has no positive row.
    """
    if rule is None:
        return criteria
    if rule.rule == "fixed":
        own = Criteria(rule.dead_threshold, rule.ubiquitous_threshold, rule.strength_percentile)
    else:
        counts = {} if positives is None else dict(positives)
        if legacy:
            counts = {concept: count for concept, count in counts.items() if count}
        if not counts:
            raise InputError(
                "an adaptive rule follows from the rows that have the concepts, and there are none; give the dataset "
                "labels, or the criteria as numbers (--dead, --ubiquitous, --strength-percentile)"
            )
        without = [concept for concept, count in counts.items() if not count]
        if without:
            others = f" and {len(without) - 1} more" if len(without) > 1 else ""
            raise InputError(
                f"concept {without[0]!r}{others} has no positive row in the split, from which an adaptive rule "
                "follows; name those that have some with --concepts"
            )
        rarest, commonest = min(counts.values()), max(counts.values())
        steps = (step for bound, step in rule.strength_steps if bound is None or len(counts) <= bound)
        own = Criteria(
            max(rule.dead_floor, int(rule.dead_fraction * rarest)),
            min(1.0, rule.ubiquitous_factor * commonest / rows),
            next(steps),
        )
    return Criteria(**{**own.given, **criteria.given})  # type: ignore[arg-type]


def concept_rows(truth: Truth, split: str) -> dict[str, int]:
    """Return in how many counted rows of a split each concept is.

    Where positions are not labelled, every row of a sample that has the concept counts.
    """
    inside = truth.rows_of(split)
    concepts = truth.options.concepts
    return {
        concept: int(np.count_nonzero((truth.row_labels(place) == 1) & inside))
        for place, concept in enumerate(concepts)
    }


def _figures(codes: Codes, split: str, *, special: bool) -> UnitFigures:
    """Return what the statistics of a split say; they are computed where they are not stored."""
    over = None if split == ALL else split
    if over is not None:
        codes.samples.of_split(over)  # which has its own error for a split without samples
    try:
        figures = figures_of(codes.stats(split=over, special=special))
    except (MissingError, HoleError):
        from saestore.indexing.stats import write_stats

        write_stats(codes.group.storage, [codes.key], special=special, quiet=True)
        figures = figures_of(codes.stats(split=over, special=special))
    if not figures.rows:
        raise InputError(f"the samples in split {split!r} of {codes.key.path} have no rows; prune by another --split")
    return figures


def _legacy_figures(codes: Codes, split: str, *, special: bool) -> UnitFigures:
    from saestore.analysis.legacy import span_figures, split_span

    samples = codes.samples.of_split(split)
    return span_figures(codes, split_span(samples, codes.key.sample_type, codes.group.grid.rows), special=special)


def _lineage(codes: Codes) -> tuple[str, ...]:
    """Return the views that come before one that is made of these codes."""
    parent = codes.view_name
    if parent is None:
        return ()
    if "&" in parent:
        raise InputError(f"{codes!r} is looked at through several views; prune one of them")
    return (*View.open(codes.group.storage, codes.key, codes.run, parent).lineage, parent)


def _nothing_left(over: str, active: UnitFigures, criteria: Criteria, choice: Choice) -> str:
    """Say which criterion removed the last units."""
    if not len(active.units):
        return f"no unit is active in {over}; choose another split with --split, or another view"
    totals = zip(choice.removed, itertools.accumulate(choice.removed.values()), strict=True)
    criterion = next(criterion for criterion, total in totals if total == len(active.units))
    told = ", ".join(f"{name} {count:,}" for name, count in choice.removed.items() if count)
    name = {"selectivity": "min_selectivity", "strength": "strength_percentile"}.get(criterion, criterion)
    return (
        f"no unit of {len(active.units):,} that are active in {over} is left: {criterion} ({criteria.given[name]:g}) "
        f"removed the last; removed: {told}; widen it with --{name.replace('_', '-')}"
    )
