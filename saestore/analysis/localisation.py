"""The verb `localise`: where in detected samples a concept is, against the labels of positions.

Directly: the rows of a detected sample where the concept's unit reaches a laxer threshold. In two stages: the rows of a
detected sample that point the way of the concept's superdetectors, the rows where its unit is so strong that the sample
is detected. The second threshold is chosen on the split that decided everything before, and reported once on the test.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import psutil
from numpy.typing import NDArray

from saestore import provenance
from saestore.activations import ARRAY, Activations
from saestore.analysis.detection import BestUnit, Detection, same_truth, scores_in
from saestore.analysis.legacy_concepts import LEAST_COSINE
from saestore.analysis.pairs import (
    BLOCK_ENTRIES,
    ENTRY_BYTES,
    missing_result,
    result_path,
    stored_results,
    truth_bytes,
)
from saestore.analysis.thresholds import DEFAULT
from saestore.analysis.truth import Truth
from saestore.budget import parse_memory, require_memory
from saestore.codes import Codes
from saestore.errors import ConflictError, InputError, MissingError
from saestore.kernels.confusion import Scores, f1_of
from saestore.prefetch import prefetch
from saestore.progress import Progress
from saestore.rows import ArraySpec, Grid, RowGroup, group_exists

if TYPE_CHECKING:
    import pandas as pd

Method = Literal["direct", "two_stage"]
METHODS: tuple[Method, ...] = ("direct", "two_stage")

_BLOCK_BYTES = 8 << 20
_BLOCK_COPIES = 16  # two that are read ahead and put in order, chunks they come from, a float64 copy. Measured 14
_KERNEL_BYTES = 64 << 20  # of compiled kernels when they are first called. Measured 58
_HELD_ENTRY_BYTES = 12
_ROW_BYTES = 48  # of a row of the axis: its number, sample and marks, and the scores of one concept that are ordered
_COUNTS = ("tp", "fp", "fn", "tn")


@dataclass(frozen=True)
class Localised:
    """What one method finds of one concept.

    unit, detect_percentile : of the detection; None where the concept has no unit
    percentile : of the second threshold, chosen on the calibration split; None where there is none
    threshold : the second threshold: of activations, or of cosines
    calibration, test : scores over the labelled positions of the split; NaN where none of them has the concept
    """

    concept: str
    method: Method
    unit: int | None
    detect_percentile: float | None
    percentile: float | None
    threshold: float | None
    calibration: Scores
    test: Scores


@dataclass(frozen=True)
class Localisation:
    """Stored position counts of each concept's best unit, for both methods."""

    group: RowGroup
    detection: Detection

    @classmethod
    def open(cls, codes: Codes, name: str = DEFAULT) -> Localisation:
        """Open a localisation (MissingError where there is none of that name)."""
        path = result_path(codes, "localisation", name)
        if not group_exists(codes.group.storage, path):
            raise MissingError(missing_result(codes, "localisation", name))
        group = RowGroup.open(codes.group.storage, path)
        return cls(group, Detection.open(codes, str(group.attributes["detection"])))

    @classmethod
    def of(cls, codes: Codes, detection: str = DEFAULT) -> Localisation:
        """Open the localisation that was made from a detection; of several that of the detection's name, if it is one.

        Raises
        ------
        MissingError
            There is none, or no such detection.
        """
        known = Detection.open(codes, detection)
        names = stored_results(codes, "localisation")
        for name in sorted(names, key=lambda name: (name != detection, name)):
            group = RowGroup.open(codes.group.storage, result_path(codes, "localisation", name))
            if group.attributes["identity"]["detection"] == known.pairs.group.attributes["run"]:
                return cls(group, known)
        if not names:
            raise MissingError(missing_result(codes, "localisation", detection))
        view = "" if codes.view_name is None else f" --view {codes.view_name}"
        raise MissingError(
            f"{codes.key.path} has no localisation of detection {detection!r}, but of others ({', '.join(names[:6])}); "
            f"compute it: saestore localise LAKE --datasets {codes.key.dataset}{view} --detection {detection} "
            "--name NAME"
        )

    @property
    def concepts(self) -> tuple[str, ...]:
        """Names of the concepts."""
        return tuple(self.group.attributes["concepts"])

    @property
    def methods(self) -> tuple[Method, ...]:
        """`direct`, and `two_stage` where the activations were in the lake."""
        return tuple(self.group.attributes["methods"])

    @property
    def splits(self) -> tuple[str, str]:
        """The split that decides, and the split that is only reported."""
        return self.detection.splits

    def counts(self, method: Method, split: str) -> NDArray[np.int64]:
        """Return TP, FP, FN, TN over positions, for each concept and percentile: (4, concepts, percentiles)."""
        return np.stack([self.group.read(f"{method}_{split}_{count}") for count in _COUNTS])

    def vectors(self) -> NDArray[np.float32]:
        """Return the superdetector direction of each concept, of length 1: (concepts, d_in)."""
        vectors: NDArray[np.float32] = self.group.read("vectors")
        return vectors

    def thresholds(self, method: Method) -> NDArray[np.float32]:
        """Return the second thresholds: (concepts, percentiles); NaN where a percentile was not allowed."""
        cuts: NDArray[np.float32] = self.group.read(f"{method}_thresholds")
        return cuts

    def best(self) -> list[Localised]:
        """Return each concept's scores at the percentile that is best on the calibration split, method by method."""
        decide, report = self.splits
        levels = self.detection.pairs.percentiles
        units = self.group.read("unit").tolist()
        detects = self.group.read("detect_level").tolist()
        legacy = self.detection.thresholds.is_legacy
        found = []
        for method in self.methods:
            cuts = self.thresholds(method)
            deciding, reporting = self.counts(method, decide), self.counts(method, report)
            for place, concept in enumerate(self.concepts):
                usable = ~np.isnan(cuts[place])
                if units[place] < 0 or not usable.any():
                    none = Scores.undefined()
                    unit, level = (None, None) if units[place] < 0 else (units[place], float(levels[detects[place]]))
                    found.append(Localised(concept, method, unit, level, None, None, none, none))
                    continue
                chosen = int(np.argmax(np.where(usable, f1_of(deciding[:, place]), -1.0)))
                found.append(
                    Localised(
                        concept,
                        method,
                        units[place],
                        float(levels[detects[place]]),
                        float(levels[chosen]),
                        float(cuts[place, chosen]),
                        scores_in(deciding[:, place, chosen], legacy=legacy),
                        scores_in(reporting[:, place, chosen], legacy=legacy),
                    )
                )
        return found

    def table(self) -> pd.DataFrame:
        """Return the counts of both splits at the chosen percentiles, one line per concept, method and split."""
        import pandas as pd

        lines = []
        for one in self.best():
            for split, scores in zip(self.splits, (one.calibration, one.test), strict=True):
                counts = dict.fromkeys(_COUNTS, 0)
                if one.percentile is not None:
                    place = self.concepts.index(one.concept)
                    level = int(np.flatnonzero(self.detection.pairs.percentiles == one.percentile)[0])
                    counts = dict(zip(_COUNTS, self.counts(one.method, split)[:, place, level].tolist(), strict=True))
                chosen = {name: getattr(one, name) for name in ("detect_percentile", "percentile", "threshold")}
                ratios = {name: getattr(scores, name) for name in ("precision", "recall", "f1", "accuracy", "iou")}
                lines.append(
                    {"concept": one.concept, "method": one.method, "split": split, "unit": one.unit}
                    | chosen
                    | counts
                    | ratios
                )
        return pd.DataFrame(lines)


def write_localisation(
    codes: Codes,
    *,
    name: str = DEFAULT,
    detection: str = DEFAULT,
    methods: Sequence[Method] | None = None,
    memory: str | int | None = None,
    quiet: bool = False,
    say: Callable[[str], None] | None = None,
) -> Localisation:
    """Localise each concept with its best unit, and store the counts; what is stored already is left alone.

    Parameters
    ----------
    codes : Codes
        All units, or a view; of positions.
    name : str
        Of the result.
    detection : str
        Name of the detection.
    methods : sequence of {"direct", "two_stage"}, optional
        Default: both, or `direct` alone where the activations are not in the lake.
    memory, quiet, say
        As for `index`.

    Raises
    ------
    InputError
        A method is unknown, the positions have no labels of the concepts, rows are samples or a selection, or
        activations are not finite.
    MissingError
        No detection of that name, or no activations for the second method.
    ConflictError
        Another localisation has the name.
    BudgetError
        Labels and the entries of the best units do not fit the memory, or the cosines of one concept beside them.

    References
    ----------
    docs/concepts.md: the second threshold of `direct` is never stricter than the first; superdetectors are rows with
    a >= threshold and a > 0 of the deciding split, which is also where the quantiles of cosines come from.
    """
    for method in methods or ():
        if method not in METHODS:
            raise InputError(f"method {method!r} is unknown; choose from {', '.join(METHODS)}")
    if codes.is_selection:
        raise InputError("localisation is of all rows of the codes; leave the selection out, and name a split instead")
    known = Detection.open(codes, detection)
    truth = same_truth(codes, known.thresholds)
    if truth.options.by != "position":
        raise InputError(
            f"{codes.key.path} was detected with labels of samples, which do not say where a concept is; label its "
            "positions (saestore label) and compute thresholds --by position"
        )
    source = codes.key.activations
    held = group_exists(codes.group.storage, source.at(0).path)
    if methods is None:
        methods = METHODS if held else ("direct",)
        if not held and say is not None:
            say(f"{codes.key.path}: the activations are not in the lake, so two_stage is left out")
    elif "two_stage" in methods and not held:
        raise MissingError(f"two_stage needs the activations {source.path}; extract or import them, or give direct")
    methods = [method for method in METHODS if method in methods]
    path = result_path(codes, "localisation", name)
    best = known.best(resamples=0)
    activations = Activations.open(codes.group.storage, source) if "two_stage" in methods else None
    nonfinite = 0 if activations is None else activations.group.flagged(ARRAY)
    if nonfinite:
        raise InputError(
            f"{source.path} holds {nonfinite:,} values that are not finite, which have no cosine; "
            "extract the layer in float32 or bfloat16, or give --methods direct"
        )
    identity = {
        "detection": known.pairs.group.attributes["run"],
        "methods": methods,
        "activations": None if activations is None else activations.group.content_hash(),
    }
    _refuse_other_methods(codes, name, methods)
    run = _Run(codes, known, truth, best, activations, memory=memory, quiet=quiet)
    width = 0 if activations is None else activations.d_in
    p = len(known.pairs.percentiles)
    arrays = [ArraySpec("unit", "int64"), ArraySpec("detect_level", "int32")]
    for method in methods:
        arrays.append(ArraySpec(f"{method}_thresholds", "float32", p, width_axis="percentile"))
        arrays += [
            ArraySpec(f"{method}_{split}_{count}", "int64", p, width_axis="percentile")
            for split in known.splits
            for count in _COUNTS
        ]
    if width:
        arrays.append(ArraySpec("vectors", "float32", width, width_axis="d_in"))
    group = RowGroup.create(
        codes.group.storage,
        path,
        kind="localisation",
        axis="concept",
        grid=Grid.plan(len(best), shard_rows=len(best), chunk_rows=len(best)),
        arrays=arrays,
        identity=identity,
        attributes={
            "concepts": truth.options.concepts,
            "detection": detection,
            "methods": methods,
            "percentiles": known.pairs.percentiles.tolist(),
            "view": codes.view_name,
            "provenance": provenance.stamp(),
        },
    )
    if group.missing_shards():
        run.read()
        levels = [_level_of(known, one) for one in best]
        content: dict[str, NDArray[Any]] = {
            "unit": np.array([-1 if one.unit is None else one.unit for one in best], dtype=np.int64),
            "detect_level": np.array(levels, dtype=np.int32),
        }
        content |= run.direct() if "direct" in methods else {}
        content |= run.two_stage() if "two_stage" in methods else {}
        group.write_shard(0, {spec.name: content[spec.name] for spec in arrays})
    return Localisation(group, known)


def _refuse_other_methods(codes: Codes, name: str, methods: Sequence[Method]) -> None:
    path = result_path(codes, "localisation", name)
    if not group_exists(codes.group.storage, path):
        return
    stored = RowGroup.open(codes.group.storage, path).attributes["methods"]
    if stored != list(methods):
        raise ConflictError(
            f"localisation {name!r} of {codes.key.path} is stored with {' and '.join(stored)}, and "
            f"{' and '.join(methods)} was asked; give this one another --name, or delete {path} first"
        )


class _Run:
    """The counts of all concepts; `read` comes first."""

    def __init__(
        self,
        codes: Codes,
        detection: Detection,
        truth: Truth,
        best: Sequence[BestUnit],
        activations: Activations | None,
        *,
        memory: str | int | None,
        quiet: bool,
    ) -> None:
        import saestore.kernels.localisation  # noqa: F401 - what it loads is in use when the rest is reckoned

        self.codes = codes
        self.detection = detection
        self.truth = truth
        self.best = best
        self.activations = activations
        self.levels = detection.pairs.percentiles
        self.splits = detection.splits
        self.quiet = quiet
        self.legacy = detection.thresholds.is_legacy
        self.units = np.unique([one.unit for one in best if one.unit is not None]).astype(np.int64)
        counts = codes.postings.counts[self.units]
        held, most = int(counts.sum()), int(counts.max(initial=0))
        n = truth.axis.n_rows
        reading = 2 * max(most, min(BLOCK_ENTRIES, held)) * ENTRY_BYTES
        used = psutil.Process().memory_info().rss
        budget = parse_memory(memory) + (used if memory is None else 0)
        fixed = used + _KERNEL_BYTES + truth_bytes(truth) + held * _HELD_ENTRY_BYTES
        require_memory(
            fixed + max(reading, n * _ROW_BYTES),
            budget=budget,
            what=f"localising {len(best):,} concepts in {n:,} rows, whose units have {held:,} entries,",
            remedy="give more with --memory",
        )
        if activations is not None:
            blocks = _BLOCK_COPIES * _BLOCK_BYTES + n * _ROW_BYTES
            require_memory(
                fixed + blocks + n * 4,
                budget=budget,
                what=f"the cosines of {n:,} rows with one concept",
                remedy="give more with --memory, or --methods direct",
            )
            self._at_once = max(1, (budget - fixed - blocks) // (n * 4))

    def read(self) -> None:
        """Read which rows count, and the entries of the units."""
        self.rows_of = {split: self.truth.rows_of(split) for split in self.splits}
        entries = {}
        for places, found in self.codes.postings.blocks(self.units, BLOCK_ENTRIES):
            for at, unit in enumerate(self.units[places].tolist()):
                one = found.of(range(at, at + 1))
                entries[unit] = one.rows, one.values
        self.entries = [_NOTHING if one.unit is None else entries[one.unit] for one in self.best]

    def detected(self, place: int, split: str) -> NDArray[np.bool_]:
        """Return the samples of a split in which a concept's unit fires."""
        from saestore.kernels.localisation import detected_samples

        threshold = self.best[place].threshold
        assert threshold is not None
        rows, values = self.entries[place]
        counted, samples = self.rows_of[split], self.truth.sample_of_row
        if self.legacy and threshold <= 0:  # which every value reaches
            found = np.zeros(len(self.truth.axis.samples), dtype=bool)
            found[samples[counted]] = True
            return found
        return detected_samples(rows, values, counted, samples, len(self.truth.axis.samples), threshold)

    def direct(self) -> dict[str, NDArray[Any]]:
        """Count rows of detected samples where the unit reaches a threshold that is not stricter."""
        from saestore.kernels.localisation import counts_above

        out = self._empty("direct")
        pairs = self.detection.thresholds.pairs
        for place, one in enumerate(self.best):
            labels = self.truth.row_labels(place)
            cuts = np.full(len(self.levels), np.nan, dtype=np.float32)
            if one.unit is not None and one.percentile is not None:
                at = pairs.place_of_unit(one.unit)
                cuts[:] = pairs.read("thresholds", slice(at, at + 1))[0, place]
                cuts[self.levels < one.percentile] = np.nan
            out["direct_thresholds"][place] = cuts
            rows, values = self.entries[place]
            for split in self.splits:
                if one.unit is None:
                    self._put(out, "direct", split, place, labels, *(np.zeros((2, len(cuts)), np.int64)))
                    continue
                fires = self.detected(place, split)
                if self.legacy:  # thresholds of 0 are reached where the unit is not active too
                    scores = np.zeros(len(labels), dtype=np.float32)
                    scores[rows] = np.maximum(values, 0)
                    inside = self.rows_of[split] & fires[self.truth.sample_of_row]
                    hits = counts_above(scores[inside], labels[inside], cuts)
                else:
                    inside = self.rows_of[split][rows] & fires[self.truth.sample_of_row[rows]] & (values > 0)
                    hits = counts_above(values[inside], labels[rows[inside]], cuts)
                self._put(out, "direct", split, place, labels, *hits)
        return out

    def two_stage(self) -> dict[str, NDArray[Any]]:
        """Count rows of detected samples whose cosine with the superdetectors' direction reaches a quantile of them."""
        from saestore.kernels.localisation import cosines, counts_above

        decide, _ = self.splits
        activations = self.activations
        assert activations is not None
        directions = np.zeros((len(self.best), activations.d_in), dtype=np.float32)
        for place, one in enumerate(self.best):
            if one.unit is None:
                continue
            rows, values = self.entries[place]
            if self.legacy:  # rows of every split, the test included, that are stricter than the threshold
                strong = values > np.float32(one.threshold)
            else:
                strong = self.rows_of[decide][rows] & (values > 0) & (values >= np.float32(one.threshold))
            if strong.any():
                directions[place] = self._direction(activations, rows[strong], values[strong])
        out = self._empty("two_stage") | {"vectors": directions}
        groups = [range(at, min(at + self._at_once, len(self.best))) for at in range(0, len(self.best), self._at_once)]
        step = _step(activations)
        work = len(groups) * sum(int(rows.sum()) for rows in self.rows_of.values())
        cuts = out["two_stage_thresholds"]
        with Progress(f"localise {self.codes.key.path}", total=work, unit="rows", quiet=self.quiet) as progress:
            for group in groups:
                for split in self.splits:  # the deciding one first: its quantiles are the thresholds of both
                    wanted = np.flatnonzero(self.rows_of[split])
                    similar = np.empty((len(wanted), len(group)), dtype=np.float32)
                    blocks = [slice(at, min(at + step, len(wanted))) for at in range(0, len(wanted), step)]
                    for block, x in prefetch(lambda block: activations.take(wanted[block]), blocks):  # noqa: B023
                        similar[block] = cosines(x, directions[group.start : group.stop])
                        progress.advance(len(x))
                    samples = self.truth.sample_of_row[wanted]
                    for column, place in enumerate(group):
                        labels = self.truth.row_labels(place)
                        hits = np.zeros((2, len(self.levels)), dtype=np.int64)
                        if self.best[place].unit is not None and directions[place].any():
                            inside = self.detected(place, split)[samples]
                            scores = similar[inside, column]
                            pool = scores[scores > LEAST_COSINE] if self.legacy else scores
                            here = cuts[place]
                            if len(pool) and (self.legacy or split == decide):
                                here = np.quantile(pool.astype(np.float64), self.levels).astype(np.float32)
                            if split == decide:
                                cuts[place] = here
                            hits = np.stack(counts_above(scores, labels[wanted[inside]], here))
                        self._put(out, "two_stage", split, place, labels, *hits)
        return out

    def _direction(
        self, activations: Activations, rows: NDArray[np.int64], values: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Return the direction of superdetectors, whose activations are read in blocks of a fixed size."""
        from saestore.kernels.localisation import softmax, unit_length

        shares, mean = softmax(values), np.zeros(activations.d_in)
        step = _step(activations)
        blocks = [slice(at, at + step) for at in range(0, len(rows), step)]
        for block, x in prefetch(lambda block: activations.take(rows[block]), blocks):
            mean += shares[block] @ x.astype(np.float64)
        return unit_length(mean)

    def _empty(self, method: Method) -> dict[str, NDArray[Any]]:
        shape = len(self.best), len(self.levels)
        names = [f"{method}_{split}_{count}" for split in self.splits for count in _COUNTS]
        return {f"{method}_thresholds": np.full(shape, np.nan, dtype=np.float32)} | {
            name: np.zeros(shape, dtype=np.int64) for name in names
        }

    def _put(
        self,
        out: dict[str, NDArray[Any]],
        method: Method,
        split: str,
        place: int,
        labels: NDArray[np.uint8],
        tp: NDArray[np.int64],
        fp: NDArray[np.int64],
    ) -> None:
        counted = labels[self.rows_of[split]]
        has, has_not = np.count_nonzero(counted == 1), np.count_nonzero(counted == 0)
        for count, values in zip(_COUNTS, (tp, fp, has - tp, has_not - fp), strict=True):
            out[f"{method}_{split}_{count}"][place] = values


def _step(activations: Activations) -> int:
    """Return the rows of a block: as many whatever the memory, so that sums do not depend on it."""
    return max(1, _BLOCK_BYTES // (4 * activations.d_in))


_NOTHING = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)


def _level_of(detection: Detection, one: BestUnit) -> int:
    if one.percentile is None:
        return -1
    return int(np.flatnonzero(detection.pairs.percentiles == one.percentile)[0])
