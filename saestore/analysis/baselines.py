"""What the units of an SAE are compared with: one score per sample, of a linear direction or of one unit.

A sample's score is the maximum, mean, last or one random value over its rows; its threshold is a quantile of the scores
of samples, where `detect` takes quantiles of rows. What there is to choose (the ridge, the unit, the percentile) is
chosen on the split that the thresholds were learned on, and reported once on the test split.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeVar, cast

import numpy as np
import psutil
from numpy.typing import NDArray

from saestore.activations import Activations
from saestore.analysis.counted_rows import CountedRows
from saestore.analysis.detection import same_truth, scores_in
from saestore.analysis.directions import LabelledRows
from saestore.analysis.single_units import choose_units
from saestore.analysis.thresholds import Thresholds
from saestore.analysis.truth import Truth, check_splits
from saestore.budget import parse_memory, require_memory
from saestore.codes import Codes
from saestore.errors import InputError, MissingError
from saestore.kernels.baselines import (
    REDUCTIONS,
    SampleReduction,
    counts_at,
    cuts_and_counts,
)
from saestore.kernels.confusion import Scores, bootstrap_f1, f1_of
from saestore.progress import Progress
from saestore.rows import group_exists

if TYPE_CHECKING:
    import pandas as pd

BaselineKind = Literal["direction", "unit"]
KINDS: tuple[BaselineKind, ...] = ("direction", "unit")

RIDGES = (1e-4, 1e-2, 1.0)
"""Penalties of directions, as parts of the mean variance of activations; see `saestore.kernels.linear_direction`."""

FIT_SPLIT = "train"

_ROW_BYTES = 24  # of marks and numbers of a row of the axis
_NAMED = 5
_RESAMPLES = 1_000

Name = TypeVar("Name", bound=str)


@dataclass(frozen=True)
class Baseline:
    """How well one score per sample detects a concept.

    kind, reduction : what the score is of, and how rows are reduced to samples
    unit : original id, of `unit` alone
    ridge : of `direction` alone
    percentile, threshold : None, and scores NaN, where there is nothing to learn from
    n_pos : samples that the threshold rests on
    calibration, test : scores over the samples of the split; NaN where none of them has the concept
    counts : TP, FP, FN, TN over the samples of the test split
    f1_low, f1_high : 95 % of F1 over resampled test samples
    always_yes_f1 : F1 on the test split of firing everywhere
    """

    concept: str
    kind: BaselineKind
    reduction: SampleReduction
    unit: int | None
    ridge: float | None
    percentile: float | None
    threshold: float | None
    n_pos: int
    calibration: Scores
    test: Scores
    counts: tuple[int, int, int, int] | None
    f1_low: float
    f1_high: float
    always_yes_f1: float


@dataclass(frozen=True)
class Baselines:
    """Baselines of all concepts, concept by concept.

    splits : the split that decides, and the split that is only reported
    """

    results: tuple[Baseline, ...]
    splits: tuple[str, str]

    def table(self) -> pd.DataFrame:
        """Return one line per concept, kind and reduction.

        Returns
        -------
        DataFrame
            `concept`, `baseline`, `reduction`, `unit`, `ridge`, `percentile`, `threshold`, `n_pos`, `calibration_f1`,
            and of the test split `tp`, `fp`, `fn`, `tn`, `precision`, `recall`, `f1`, `f1_low`, `f1_high`, `accuracy`,
            `always_yes_f1`.
        """
        import pandas as pd

        lines = []
        for one in self.results:
            counts = one.counts or (None,) * 4
            lines.append(
                {"concept": one.concept, "baseline": one.kind, "reduction": one.reduction}
                | {name: getattr(one, name) for name in ("unit", "ridge", "percentile", "threshold", "n_pos")}
                | {"calibration_f1": one.calibration.f1}
                | dict(zip(("tp", "fp", "fn", "tn"), counts, strict=True))
                | {name: getattr(one.test, name) for name in ("precision", "recall", "f1")}
                | {"f1_low": one.f1_low, "f1_high": one.f1_high, "accuracy": one.test.accuracy}
                | {"always_yes_f1": one.always_yes_f1}
            )
        whole = dict.fromkeys(("unit", "tp", "fp", "fn", "tn"), "Int64")
        return pd.DataFrame(lines).astype(whole | dict.fromkeys(("ridge", "percentile", "threshold"), "float64"))


def baselines(
    codes: Codes,
    *,
    thresholds: Thresholds,
    which: Sequence[BaselineKind] | None = None,
    reductions: Sequence[SampleReduction] = REDUCTIONS,
    ridges: Sequence[float] = RIDGES,
    seed: int = 42,
    test: str = "test",
    memory: str | int | None = None,
    quiet: bool = False,
    say: Callable[[str], None] | None = None,
) -> Baselines:
    """Detect concepts with one score per sample; nothing is stored.

    Parameters
    ----------
    codes : Codes
        All units, or a view.
    thresholds : Thresholds
        Of these codes: whose concepts, labels, percentiles and split are taken.
    which : sequence of {"direction", "unit"}, optional
        Linear directions of the activations, fitted on the rows of split `train`, and single units. Default: both,
        without `direction` where the activations or the split are not there, which is said.
    reductions : sequence of {"max", "mean", "last", "random"}
        How a sample's score comes from its rows, without special tokens unless the thresholds count them. Where rows
        are samples all are the same, and `max` alone is made.
    ridges : sequence of float
        Penalties to choose from, as parts of the activations' mean variance (`saestore.kernels.linear_direction`).
    seed : int
        Of the random rows, and of the resampling.
    test : str
        The split that is only reported.
    memory, quiet, say
        As for `index`.

    Returns
    -------
    Baselines
        Undefined where a concept has no sample in the deciding split, no unit is active in one, or it has no row in
        split `train`, or no row without it.

    Raises
    ------
    InputError
        No samples in a split, splits that are the same, a baseline, reduction or ridge that is unknown, or activations
        that are not finite.
    MissingError
        `direction` was named and the activations are not in the lake, or the codes have no postings.
    ConflictError
        The labels have changed since the thresholds were learned.
    BudgetError
        The work does not fit the memory.

    Notes
    -----
    Activations of split `train` are read once, those of the other two once too where the scores of all samples fit the
    memory; the postings once.

    Of single units only positive scores count: thresholds are quantiles of these, so that no threshold is 0 and no unit
    fires where it is silent. Directions have scores of both signs, and quantiles of them all.

    References
    ----------
    docs/concepts.md (T).
    """
    if codes.is_selection:
        raise InputError("baselines are of all rows of the codes; leave the selection out, and name a split instead")
    decide = thresholds.split
    check_splits(codes.axis, decide, test)
    if test == decide:
        raise InputError(
            f"split {test!r} has decided the thresholds already and cannot be the test; give another with --test"
        )
    kinds = KINDS if which is None else _known(which, KINDS, "baselines")
    wanted = _known(reductions, REDUCTIONS, "reductions")
    penalties = sorted({float(ridge) for ridge in ridges})
    if not penalties or not all(ridge > 0 and math.isfinite(ridge) for ridge in penalties):
        raise InputError(f"ridges {list(ridges)} cannot be used; give numbers above 0, such as 0.0001 0.01 1")
    if codes.axis.positions is None:
        wanted = ["max"]
    truth = same_truth(codes, thresholds)
    tell = say or _silent
    if "direction" in kinds:
        absent = _why_no_direction(codes, decide, test)
        if absent is not None and which is not None:
            raise absent
        if absent is not None:
            tell(f"{absent.args[0]}, so the baseline of directions is left out")
            kinds = [kind for kind in kinds if kind != "direction"]
    run = _Run(codes, truth, decide, test, wanted, thresholds.pairs.percentiles, seed, memory, quiet)
    run.tell(tell)
    # Units first, of which little is read before postings or memory are found wanting.
    of_units = [run.units()] if "unit" in kinds else []
    of_directions = [run.directions(penalties, tell)] if "direction" in kinds else []
    results = [
        one for of_concept in zip(*of_directions, *of_units, strict=True) for of_kind in of_concept for one in of_kind
    ]
    return Baselines(tuple(results), (decide, test))


@dataclass(frozen=True)
class _Choice:
    """Places of the best ridge and percentile, the threshold, what it rests on, and TP, FP, FN, TN that it gives."""

    ridge: int
    level: int
    cut: np.float32
    n_pos: int
    counts: NDArray[np.int64]


class _Run:
    """The baselines of all concepts."""

    def __init__(
        self,
        codes: Codes,
        truth: Truth,
        decide: str,
        test: str,
        reductions: Sequence[SampleReduction],
        percentiles: NDArray[np.float64],
        seed: int,
        memory: str | int | None,
        quiet: bool,
    ) -> None:
        self.codes = codes
        self.truth = truth
        self.reductions = reductions
        self.percentiles = percentiles
        self.seed = seed
        self.memory = memory
        self.quiet = quiet
        used = psutil.Process().memory_info().rss
        self._budget = parse_memory(memory) + (used if memory is None else 0)
        n = truth.axis.n_rows
        require_memory(
            used + n * _ROW_BYTES,
            budget=self._budget,
            what=f"baselines of {n:,} rows",
            remedy="give more with --memory",
        )
        self.deciding, self.reporting = (CountedRows.of(truth, split, seed) for split in (decide, test))
        self.labels = {split: truth.labels_in(split) for split in (decide, test)}

    @property
    def concepts(self) -> tuple[str, ...]:
        """Names of the concepts."""
        return self.truth.options.concepts

    def tell(self, say: Callable[[str], None]) -> None:
        """Say which concepts nothing can be said of."""
        for split, labels in self.labels.items():
            empty = [name for name, each in zip(self.concepts, labels, strict=True) if not (each == 1).any()]
            self._tell(say, empty, f"have no sample in split {split}; their baselines there are undefined")

    def directions(self, ridges: Sequence[float], say: Callable[[str], None]) -> list[list[Baseline]]:
        """Fit directions, choose ridge and percentile for each reduction, and report."""
        activations = Activations.open(self.codes.group.storage, self.codes.key.activations)
        source = LabelledRows(activations, self.truth, memory=self.memory, quiet=self.quiet)
        fitted = source.fit(CountedRows.of(self.truth, FIT_SPLIT, self.seed), ridges)
        undefined = [name for name, defined in zip(self.concepts, fitted.defined, strict=True) if not defined]
        self._tell(say, undefined, f"have no direction: rows with and without them are needed in split {FIT_SPLIT}")
        places = np.flatnonzero(fitted.defined)
        splits = self.deciding, self.reporting
        at_once = source.concepts_at_once(splits, len(ridges), len(self.reductions))
        groups = [places[at : at + at_once] for at in range(0, len(places), at_once)]
        found = self._nothing("direction")
        total = len(groups) * sum(len(split.rows) for split in splits)
        with Progress(f"scores {activations.key.path}", total=total, unit="rows", quiet=self.quiet) as progress:
            for group in groups:

                def scores(split: CountedRows, group: NDArray[np.int64] = group) -> NDArray[np.float32]:
                    weights, intercepts = fitted.weights[:, group], fitted.intercepts[:, group]
                    flat = weights.reshape(-1, activations.d_in), intercepts.ravel()
                    found = source.scores(split, *flat, self.reductions, progress)
                    return found.reshape(*found.shape[:2], len(ridges), len(group))

                # What decides is gone before the test split is scored.
                chosen = self._chosen(scores(self.deciding), group)
                self._report(chosen, scores(self.reporting), group, ridges, found)
        return found

    def _report(
        self,
        chosen: dict[tuple[int, int], _Choice],
        scores: NDArray[np.float32],
        group: NDArray[np.int64],
        ridges: Sequence[float],
        found: list[list[Baseline]],
    ) -> None:
        """Put what was chosen of some concepts, and what it does on the test split, among the results."""
        for (column, r), one in chosen.items():
            place = int(group[column])
            labels = self.labels[self.reporting.split][place, self.reporting.samples]
            found[place][r] = self._reported(
                found[place][r],
                place,
                unit=None,
                ridge=ridges[one.ridge],
                level=one.level,
                cut=one.cut,
                n_pos=one.n_pos,
                calibration=one.counts,
                test=counts_at(scores[r, :, one.ridge, column], labels, np.array([one.cut]))[:, 0],
            )

    def _chosen(self, scores: NDArray[np.float32], group: NDArray[np.int64]) -> dict[tuple[int, int], _Choice]:
        """Return what is best for each concept of some and each reduction.

        Of equal F1 the smallest percentile is taken, and then the smallest ridge.
        """
        found = {}
        for column, place in enumerate(group.tolist()):
            labels = self.labels[self.deciding.split][place, self.deciding.samples]
            for r in range(len(self.reductions)):
                tried = [cuts_and_counts(each, labels, self.percentiles) for each in scores[r, :, :, column].T]
                if not tried[0][1]:
                    continue
                by_percentile = np.stack([f1_of(counts) for _, _, counts in tried], axis=1)
                level, ridge = (int(at) for at in np.unravel_index(int(np.argmax(by_percentile)), by_percentile.shape))
                cuts, n_pos, counts = tried[ridge]
                found[column, r] = _Choice(ridge, level, cuts[level], n_pos, counts[:, level])
        return found

    def units(self) -> list[list[Baseline]]:
        """Choose unit and percentile for each concept and reduction, and report."""
        best, tests = choose_units(
            self.codes,
            self.truth,
            self.deciding,
            self.reporting,
            self.reductions,
            self.percentiles,
            budget=self._budget,
            quiet=self.quiet,
        )
        found = self._nothing("unit")
        for r, place in zip(*(axis.tolist() for axis in np.nonzero(best.f1 >= 0)), strict=True):
            tp, fp = best.tp[r, place], best.fp[r, place]
            has, has_not = self._totals(place, self.deciding.split)
            found[place][r] = self._reported(
                found[place][r],
                place,
                unit=int(best.unit[r, place]),
                ridge=None,
                level=int(best.level[r, place]),
                cut=best.threshold[r, place],
                n_pos=int(best.n_pos[r, place]),
                calibration=np.array([tp, fp, has - tp, has_not - fp]),
                test=tests[r, place],
            )
        return found

    def _reported(
        self,
        undefined: Baseline,
        place: int,
        *,
        unit: int | None,
        ridge: float | None,
        level: int,
        cut: np.float32,
        n_pos: int,
        calibration: NDArray[np.int64],
        test: NDArray[np.int64],
    ) -> Baseline:
        # Each from the same seed, so that an interval does not depend on which other baselines are asked for.
        low, high = bootstrap_f1(test, np.random.default_rng(self.seed), _RESAMPLES)
        if not self._totals(place, self.reporting.split)[0]:
            low = high = float("nan")
        return replace(
            undefined,
            unit=unit,
            ridge=ridge,
            percentile=float(self.percentiles[level]),
            threshold=float(cut),
            n_pos=n_pos,
            calibration=scores_in(calibration),
            test=scores_in(test),
            counts=cast(tuple[int, int, int, int], tuple(test.tolist())),
            f1_low=low,
            f1_high=high,
        )

    def _nothing(self, kind: BaselineKind) -> list[list[Baseline]]:
        """Return undefined results for each concept and reduction."""
        nan, none = float("nan"), Scores.undefined()
        return [
            [
                Baseline(
                    name, kind, how, None, None, None, None, 0, none, none, None, nan, nan, self._always_yes(place)
                )
                for how in self.reductions
            ]
            for place, name in enumerate(self.concepts)
        ]

    def _always_yes(self, place: int) -> float:
        always: float = scores_in(np.array([*self._totals(place, self.reporting.split), 0, 0])).f1
        return always

    def _totals(self, place: int, split: str) -> tuple[int, int]:
        """Return the samples of a split that have a concept, and those that have not."""
        labels = self.labels[split][place]
        return int(np.count_nonzero(labels == 1)), int(np.count_nonzero(labels == 0))

    def _tell(self, say: Callable[[str], None], names: Sequence[str], what: str) -> None:
        if names:
            listed = ", ".join(map(repr, names[:_NAMED])) + (", ..." if len(names) > _NAMED else "")
            say(f"{self.codes.key.path}: {len(names)} concepts ({listed}) {what}")


def _why_no_direction(codes: Codes, decide: str, test: str) -> InputError | MissingError | None:
    """Return why directions cannot be fitted, or None."""
    source = codes.key.activations
    if not group_exists(codes.group.storage, source.path):
        return MissingError(f"{source.path}: the activations are not in the lake; extract or import them")
    if FIT_SPLIT in (decide, test):
        return InputError(
            f"{codes.key.path}: directions are fitted on split {FIT_SPLIT!r}, which the thresholds or the test use; "
            "give these other splits"
        )
    if not (codes.samples.split == FIT_SPLIT).any():
        return InputError(
            f"dataset {codes.key.dataset!r} has no sample in split {FIT_SPLIT!r}, on which directions are fitted; give "
            "its table some"
        )
    return None


def _known(names: Sequence[Name], known: Sequence[Name], what: str) -> list[Name]:
    """Return names in the order of those that there are, refusing others (InputError)."""
    asked = [names] if isinstance(names, str) else list(names)
    if not asked or not set(asked) <= set(known):
        raise InputError(f"{what} {asked} cannot be used; choose from {', '.join(known)}")
    return [name for name in known if name in asked]


def _silent(_: str) -> None:
    """Say nothing."""
