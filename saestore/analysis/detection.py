"""The verb `detect`: in which samples units fire, against the samples that have a concept, and which unit is best.

A unit fires in a sample where its largest value there reaches the threshold of the concept. Unit and percentile are
chosen together on the split that the thresholds were learned on, and reported once on the test split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from saestore.analysis.legacy_concepts import always_yes
from saestore.analysis.pairs import Pairs, compute, result_path, truth_of
from saestore.analysis.thresholds import DEFAULT, Thresholds
from saestore.analysis.truth import Truth, TruthOptions, check_splits
from saestore.codes import Codes
from saestore.errors import ConflictError, InputError
from saestore.kernels.confusion import Scores, bootstrap_f1, f1_of
from saestore.postings import UnitEntries
from saestore.rows import ArraySpec, RowGroup
from saestore.unit_stats import ALL
from saestore.views import View, view_names

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class BestUnit:
    """The unit and percentile that detect a concept best on the calibration split, and what they do on the test split.

    unit, percentile, threshold : None, and scores NaN, where no unit is active on rows of the concept
    n_pos : rows that the threshold rests on
    calibration, test : scores over the samples of the split; NaN where none of them has the concept, as are then all
        others of the test split
    f1_low, f1_high : 95 % of F1 over resampled test samples
    always_yes_f1 : F1 on the test split of firing everywhere
    oracle_unit, oracle_f1 : the best unit on the test split itself, which no choice may use
    """

    concept: str
    unit: int | None
    percentile: float | None
    threshold: float | None
    n_pos: int
    calibration: Scores
    test: Scores
    f1_low: float
    f1_high: float
    always_yes_f1: float
    oracle_unit: int | None
    oracle_f1: float


@dataclass(frozen=True)
class Detection:
    """Stored confusion counts of the units of codes or of a view, for each concept and percentile."""

    pairs: Pairs
    thresholds: Thresholds

    @classmethod
    def open(cls, codes: Codes, name: str = DEFAULT) -> Detection:
        """Open a detection (MissingError where there is none of that name)."""
        pairs = Pairs.open(codes, "detection", name)
        return cls(pairs, Thresholds.open(codes, str(pairs.group.attributes["thresholds"])))

    @property
    def splits(self) -> tuple[str, str]:
        """The split that decides, and the split that is only reported."""
        decide, report = self.pairs.group.attributes["splits"]
        return decide, report

    def totals(self, split: str) -> NDArray[np.int64]:
        """Return the samples of a split that have each concept, and those that have not: (2, concepts)."""
        return np.array(self.pairs.group.attributes["totals"][split], dtype=np.int64)

    def counts(self, split: str) -> NDArray[np.int64]:
        """Return TP, FP, FN, TN for each unit, concept and percentile: (4, units, concepts, percentiles)."""
        if split not in self.splits:
            raise InputError(f"{self.pairs.group.path} was counted on {' and '.join(self.splits)}, not on {split!r}")
        tp, fp = (self.pairs.read(f"{split}_{name}").astype(np.int64) for name in ("tp", "fp"))
        has, has_not = self.totals(split)[:, None, :, None]
        return np.stack([tp, fp, has - tp, has_not - fp])

    def best(self, *, seed: int = 42, resamples: int = 1_000) -> list[BestUnit]:
        """Return the best unit for each concept; of equal ones that of the smallest percentile, then the smallest id.

        Pairs that rest on no row are left out. Of a concept that no sample of a split has, nothing is chosen or said
        there. Where the thresholds are legacy, as earlier code did: the unit is the best on the test split, and the
        percentile the best on the other for whichever unit.

        References
        ----------
        docs/concepts.md.
        """
        decide, report = self.splits
        deciding, reporting = self.counts(decide), self.counts(report)
        legacy = self.thresholds.is_legacy
        n_pos = self.thresholds.pairs.read("n_pos")[:, : len(self.pairs.concepts)]
        cuts = self.thresholds.pairs.read("thresholds")
        rng = np.random.default_rng(seed)
        found = []
        for place, concept in enumerate(self.pairs.concepts):
            has, has_not = self.totals(report)[:, place].tolist()
            usable = (n_pos[:, place] > 0) | legacy
            usable &= legacy or self.totals(decide)[0, place] > 0
            chosen = _argmax(f1_of(deciding[:, :, place]), usable)
            oracle = _argmax(f1_of(reporting[:, :, place]), usable)
            if legacy and chosen is not None and oracle is not None:
                chosen = oracle[0], chosen[1]
            always = scores_in(np.array([has, has_not, 0, 0]), legacy=legacy).f1
            if chosen is None or oracle is None:
                none = Scores.undefined()
                found.append(
                    BestUnit(concept, None, None, None, 0, none, none, np.nan, np.nan, always, None, float("nan"))
                )
                continue
            unit, level = chosen
            test = reporting[:, unit, place, level]
            low, high = bootstrap_f1(test, rng, resamples)
            known = has > 0 or legacy
            if not known:
                low = high = float("nan")
            found.append(
                BestUnit(
                    concept,
                    int(self.pairs.units[unit]),
                    float(self.pairs.percentiles[level]),
                    float(cuts[unit, place, level]),
                    int(n_pos[unit, place]),
                    Scores.of(deciding[:, unit, place, level]),
                    scores_in(test, legacy=legacy),
                    low,
                    high,
                    always,
                    int(self.pairs.units[oracle[0]]) if known else None,
                    scores_in(reporting[:, oracle[0], place, oracle[1]], legacy=legacy).f1,
                )
            )
        return found

    def table(self, split: str, *, concept: str | None = None) -> pd.DataFrame:
        """Return all counts and scores of a split as a long table, one line per concept, unit and percentile.

        Returns
        -------
        DataFrame
            `concept`, `unit`, `percentile`, `threshold`, `n_pos`, `tp`, `fp`, `fn`, `tn`, `precision`, `recall`, `f1`,
            `accuracy`.
        """
        import pandas as pd

        places = range(len(self.pairs.concepts)) if concept is None else [self.pairs.place_of(concept)]
        counts = self.counts(split)
        cuts, n_pos = self.thresholds.pairs.read("thresholds"), self.thresholds.pairs.read("n_pos")
        u, p = len(self.pairs.units), len(self.pairs.percentiles)
        frames = []
        for place in places:
            tp, fp, fn, tn = counts[:, :, place].reshape(4, -1)
            scores = Scores.of(np.stack([tp, fp, fn, tn]))
            columns: dict[str, Any] = {
                "concept": pd.Categorical.from_codes(np.full(u * p, place).tolist(), pd.Index(self.pairs.concepts)),
                "unit": np.repeat(self.pairs.units, p),
                "percentile": np.tile(self.pairs.percentiles, u),
                "threshold": cuts[:, place].ravel(),
                "n_pos": np.repeat(n_pos[:, place], p),
                **{"tp": tp, "fp": fp, "fn": fn, "tn": tn},
                **{name: getattr(scores, name) for name in ("precision", "recall", "f1", "accuracy")},
            }
            frames.append(pd.DataFrame(columns))
        return pd.concat(frames, ignore_index=True)


def write_detection(
    codes: Codes,
    *,
    name: str = DEFAULT,
    thresholds: str = DEFAULT,
    test: str = "test",
    memory: str | int | None = None,
    scheduler: str | None = None,
    quiet: bool = False,
    say: Callable[[str], None] | None = None,
) -> Detection:
    """Count in how many samples units fire, on the split of the thresholds and on another; see `Detection`.

    Parameters
    ----------
    codes : Codes
        All units, or a view.
    name : str
        Of the result.
    thresholds : str
        Name of the thresholds.
    test : str
        The split that is only reported.
    memory, scheduler, quiet, say
        As for `index`.

    Raises
    ------
    MissingError
        There are no thresholds of that name, or they were learned from older codes.
    InputError
        No samples in a split, both splits are the same, or the units of the view were chosen on the split that is only
        to be reported.
    ConflictError
        Another detection has the name, or the labels have changed since the thresholds were learned.
    """
    known = Thresholds.open(codes, thresholds)
    decide = known.split
    check_splits(codes.axis, decide, test)
    if test == decide:
        raise InputError(
            f"split {test!r} has decided the thresholds already and cannot be the test; give another with --test"
        )
    if not known.is_legacy:
        _refuse_leak(codes, test)
    truth = same_truth(codes, known)
    labels = {split: truth.labels_in(split) for split in (decide, test)}
    totals = {
        split: [np.count_nonzero(each == 1, axis=1).tolist(), np.count_nonzero(each == 0, axis=1).tolist()]
        for split, each in labels.items()
    }
    if say is not None:
        for split in (decide, test):
            absent = [concept for concept, n in zip(truth.options.concepts, totals[split][0], strict=True) if not n]
            if absent:
                say(
                    f"{codes.key.path}: {len(absent)} of {len(totals[split][0])} concepts have no sample in split "
                    f"{split}: {', '.join(map(repr, absent[:5]))}; their scores there are undefined"
                )
    arrays = [
        ArraySpec(f"{split}_{count}", "int32", len(known.pairs.percentiles), width_axis="percentile")
        for split in (decide, test)
        for count in ("tp", "fp")
    ]
    pairs = compute(
        codes,
        "detection",
        name,
        truth=truth,
        per_unit=len(truth.options.concepts),
        arrays=arrays,
        identity={"thresholds": known.pairs.group.attributes["run"], "splits": [decide, test]},
        attributes={
            "splits": [decide, test],
            "thresholds": thresholds,
            "thresholds_path": result_path(codes, "thresholds", thresholds),
            "percentiles": known.pairs.percentiles.tolist(),
            "totals": totals,
        },
        work=_work,
        memory=memory,
        scheduler=scheduler,
        quiet=quiet,
    )
    return Detection(pairs, known)


def scores_in(counts: NDArray[Any], *, legacy: bool = False) -> Scores:
    """Return the scores of TP, FP, FN, TN in a split; undefined where it has no positive, but for legacy results.

    Earlier code took F1 as 0 there (docs/concepts.md, 9).
    """
    return Scores.of(counts) if legacy or counts[0] + counts[2] else Scores.undefined()


def same_truth(codes: Codes, thresholds: Thresholds) -> Truth:
    """Open the labels that thresholds were learned from, refusing others of the same name."""
    identity = thresholds.pairs.group.attributes["identity"]
    options = TruthOptions(
        tuple(identity["concepts"]),
        identity["by"],
        str(thresholds.pairs.group.attributes["labels"]),
        bool(identity["special"]),
    )
    truth = truth_of(codes, options)
    if truth.digest != identity["truth"]:
        raise ConflictError(
            f"the labels have changed since {thresholds.pairs.group.path} was learned; compute thresholds anew under "
            "another name (saestore thresholds --name)"
        )
    return truth


def _work(
    group: RowGroup, truth: Truth, codes: Codes, mine: slice
) -> Callable[[slice, UnitEntries], Mapping[str, NDArray[Any]]]:
    from saestore.kernels.detection import confusion

    known = Thresholds.open(codes, str(group.attributes["thresholds"]))
    cuts = known.pairs.read("thresholds", mine)[:, : len(truth.options.concepts)]
    cuts = np.ascontiguousarray(cuts)
    splits: Sequence[str] = group.attributes["splits"]
    counted = {split: truth.rows_of(split) for split in splits}
    labels = {split: truth.labels_in(split) for split in splits}

    def make(units: slice, entries: UnitEntries) -> Mapping[str, NDArray[Any]]:
        out = {}
        for split in splits:
            out[f"{split}_tp"], out[f"{split}_fp"] = confusion(
                entries.offsets,
                entries.rows,
                entries.values,
                counted[split],
                truth.sample_of_row,
                labels[split],
                cuts[units],
            )
            if known.is_legacy:
                always_yes(out[f"{split}_tp"], out[f"{split}_fp"], cuts[units], labels[split])
        return out

    return make


def _refuse_leak(codes: Codes, test: str) -> None:
    """Refuse a view whose units, or those it was chosen from, were chosen by rows of the split that is reported."""
    if codes.view_name is None:
        return
    storage, key, run = codes.group.storage, codes.key, codes.run
    view = View.open(storage, key, run, codes.view_name)
    stored = view_names(storage, key, run)  # those before it may have been deleted
    before = [View.open(storage, key, run, name) for name in view.lineage if name in stored]
    for one in (*before, view):
        split = one.parameters.get("split")
        legacy = bool(one.parameters.get("legacy"))  # all rows between the first and the last sample of a split
        if legacy or split in (test, ALL):
            whose = "rows of all splits" if legacy or split == ALL else f"split {split}"
            raise InputError(
                f"units of view {one.name!r} of {key.path} were chosen on {whose}, so that split {test} is no test of "
                "them; prune on another --split, or report another with --test"
            )


def _argmax(f1: NDArray[np.float64], usable: NDArray[np.bool_]) -> tuple[int, int] | None:
    """Return unit and percentile of the best F1 among usable units, the smallest percentile first; None without any."""
    if not usable.any():
        return None
    by_percentile = np.where(usable[:, None], f1, -1.0).T
    level, unit = np.unravel_index(int(np.argmax(by_percentile)), by_percentile.shape)
    return int(unit), int(level)
