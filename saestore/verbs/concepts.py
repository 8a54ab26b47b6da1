"""The verbs of concept detection: thresholds, detect, localise, compare."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from saestore.analysis.localisation import Method
from saestore.analysis.truth import By
from saestore.codes import Codes
from saestore.verbs.names import LakeLike, Say, chosen_concepts, matching_codes, open_lake
from saestore.verbs.result_tables import TableFolder

if TYPE_CHECKING:
    import pandas as pd

    from saestore.analysis.baselines import Baseline
    from saestore.analysis.dense_baseline import Comparison
    from saestore.analysis.detection import BestUnit, Detection
    from saestore.analysis.localisation import Localised
    from saestore.catalogs import Catalog


@dataclass(frozen=True)
class Analysed:
    """What was analysed: a group of codes, or a view of them, and the name of the result."""

    dataset: str
    sae: str
    layer: str
    sample_type: str
    view: str | None
    name: str
    units: int


@dataclass(frozen=True)
class LearnedConcept:
    """One concept's thresholds: how many units they are of, and on how many rows the best founded one rests."""

    concept: str
    units: int
    most_rows: int


@dataclass(frozen=True)
class LearnedThresholds:
    """What `thresholds` learned for one group of codes.

    by : `position`, or `sample` where all rows of a sample counted as having its concepts
    """

    of: Analysed
    split: str
    by: str
    percentiles: tuple[float, ...]
    concepts: tuple[LearnedConcept, ...]


@dataclass(frozen=True)
class DetectedConcepts:
    """What `detect` found for one group of codes.

    splits : the one that decided, and the one that is reported
    files : tables that were written
    """

    of: Analysed
    splits: tuple[str, str]
    best: tuple[BestUnit, ...]
    baselines: tuple[Baseline, ...] = ()
    files: tuple[Path, ...] = field(default=())


@dataclass(frozen=True)
class LocalisedConcepts:
    """What `localise` found for one group of codes."""

    of: Analysed
    splits: tuple[str, str]
    best: tuple[Localised, ...]
    files: tuple[Path, ...] = field(default=())


@dataclass(frozen=True)
class ComparedConcepts:
    """How stored results agree with the dense pipeline, for one group of codes."""

    of: Analysed
    numbers: tuple[Comparison, ...]

    @property
    def is_equal(self) -> bool:
        """Whether everything is the same."""
        return all(one.is_equal for one in self.numbers)


def thresholds(
    lake: LakeLike,
    datasets: str | Sequence[str] | None = None,
    *,
    view: str | None = None,
    name: str = "default",
    concepts: Sequence[str] | None = None,
    percentiles: Sequence[float] | None = None,
    split: str = "cal",
    by: By | None = None,
    labels: str = "concepts",
    special: bool = False,
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
) -> list[LearnedThresholds]:
    """Learn from which value on each unit speaks for each concept; what is stored already is left alone.

    Parameters
    ----------
    lake : Lake, str or path
    datasets : str or sequence of str, optional
        Default: all that have the codes.
    view : str, optional
        A view that `prune` made; default all units.
    name : str
        Of the result.
    concepts : sequence of str, optional
        Names, `*` and `?` match several; default those that the catalog names for the dataset, else all.
    percentiles : sequence of float, optional
        Ascending parts of one: which part of the active rows of a concept reaches the threshold.
    split : str
        What is learned from.
    by : {"position", "sample"}, optional
        Whose labels rows have; default the positions' where they are labelled.
    labels : str
        Name of the labels of positions.
    special : bool
        Whether rows of special tokens count.
    legacy : bool
        As earlier code did, for comparison with its results; detection and localisation with such thresholds are legacy
        too.
    sae, layer, sample_type, model
        Which codes; what is unique in the lake may be left out.
    memory : str or int, optional
        The most this process may use, such as `4GiB`.

    Returns
    -------
    list of LearnedThresholds
        One per dataset.

    Raises
    ------
    MissingError, InputError, ConflictError
        No such codes, view, concept or split; nothing to learn from; another result of this name.

    Examples
    --------
    >>> thresholds("lake", "CLEVR", view="pruned")  # doctest: +SKIP
    """
    from saestore.analysis.thresholds import PERCENTILES, write_thresholds

    found = []
    for codes in _codes(lake, datasets, view, sae, layer, sample_type, model, catalog):
        learned = write_thresholds(
            codes,
            name=name,
            concepts=chosen_concepts(codes, concepts, labels, catalog),
            percentiles=PERCENTILES if percentiles is None else percentiles,
            split=split,
            by=by,
            labels=labels,
            special=special,
            legacy=legacy,
            memory=memory,
            scheduler=scheduler,
            quiet=quiet,
            say=say,
        )
        n_pos = learned.pairs.read("n_pos")
        each = tuple(
            LearnedConcept(concept, int((n_pos[:, place] > 0).sum()), int(n_pos[:, place].max(initial=0)))
            for place, concept in enumerate(learned.pairs.concepts)
        )
        levels = tuple(learned.pairs.percentiles.tolist())
        found.append(LearnedThresholds(_analysed(codes, name), learned.split, learned.by, levels, each))
    return found


def detect(
    lake: LakeLike,
    datasets: str | Sequence[str] | None = None,
    *,
    view: str | None = None,
    name: str = "default",
    thresholds: str = "default",
    test: str = "test",
    baselines: bool = False,
    seed: int = 42,
    out: str | os.PathLike[str] | None = None,
    sae: str | None = None,
    layer: str | int | None = None,
    sample_type: str | None = None,
    model: str | None = None,
    memory: str | int | None = None,
    scheduler: str | None = None,
    quiet: bool = False,
    say: Say | None = None,
    catalog: Catalog | None = None,
) -> list[DetectedConcepts]:
    """Find the unit that detects each concept best: chosen on the split of the thresholds, reported once on the test.

    Parameters
    ----------
    lake : Lake, str or path
    datasets, view, sae, layer, sample_type, model
        Which codes, as for `thresholds`.
    name : str
        Of the result.
    thresholds : str
        Name of the thresholds.
    test : str
        The split that is only reported.
    baselines : bool
        Also score the activations' best linear direction and single units by max, mean, last and random position.
    seed : int
        Of the resampling that gives the interval of F1, and of the random positions.
    out : path, optional
        A folder for the tables as Parquet and CSV, one folder for each dataset in it, with a `run.json` that says what
        they are of. Tables that an earlier call wrote of the same run are replaced, those of another run refused.
    memory : str or int, optional
        The most this process may use, such as `4GiB`.

    Returns
    -------
    list of DetectedConcepts
        One per dataset.

    Raises
    ------
    MissingError, InputError, ConflictError
        No such codes, view or thresholds; splits without samples; another result of this name, or tables of another run
        in the folder.

    Examples
    --------
    >>> detect("lake", "CLEVR", view="pruned", out="tables")  # doctest: +SKIP
    """
    from saestore.analysis.detection import write_detection

    found = []
    for codes in _codes(lake, datasets, view, sae, layer, sample_type, model, catalog):
        detection = write_detection(
            codes,
            name=name,
            thresholds=thresholds,
            test=test,
            memory=memory,
            scheduler=scheduler,
            quiet=quiet,
            say=say,
        )
        folder = None if out is None else _folder(out, codes, detection, "detect", {"seed": seed})
        compared: tuple[Baseline, ...] = ()
        tables: dict[str, pd.DataFrame] = {}
        if baselines:
            from saestore.analysis.baselines import baselines as compute

            others = compute(
                codes, thresholds=detection.thresholds, seed=seed, test=test, memory=memory, quiet=quiet, say=say
            )
            compared = others.results
            tables["baselines"] = others.table()
        best = detection.best(seed=seed)
        files: list[Path] = []
        if folder is not None:
            import pandas as pd

            flat = [{name: value for name, value in _flat(one).items()} for one in best]
            tables["best"] = pd.DataFrame(flat)
            tables |= {f"counts_{split}": detection.table(split) for split in detection.splits}
            files = folder.write(tables)
        found.append(DetectedConcepts(_analysed(codes, name), detection.splits, tuple(best), compared, tuple(files)))
    return found


def localise(
    lake: LakeLike,
    datasets: str | Sequence[str] | None = None,
    *,
    view: str | None = None,
    name: str = "default",
    detection: str = "default",
    methods: Sequence[Method] | None = None,
    out: str | os.PathLike[str] | None = None,
    sae: str | None = None,
    layer: str | int | None = None,
    sample_type: str | None = None,
    model: str | None = None,
    memory: str | int | None = None,
    quiet: bool = False,
    say: Say | None = None,
    catalog: Catalog | None = None,
) -> list[LocalisedConcepts]:
    """Say where in detected samples each concept is, against the labels of positions.

    Parameters
    ----------
    lake : Lake, str or path
    datasets, view, sae, layer, sample_type, model
        Which codes, as for `thresholds`.
    name : str
        Of the result.
    detection : str
        Name of the detection.
    methods : sequence of {"direct", "two_stage"}, optional
        Default: both; `two_stage` needs the activations in the lake.
    out : path, optional
        A folder for the table as Parquet and CSV, as for `detect`, whose folder it may share.
    memory : str or int, optional
        The most this process may use, such as `4GiB`.

    Returns
    -------
    list of LocalisedConcepts
        One per dataset.

    Raises
    ------
    MissingError, InputError, ConflictError
        No such codes, view or detection; positions without labels; another result of this name, or tables of another
        run in the folder.

    Examples
    --------
    >>> localise("lake", "CLEVR", view="pruned")  # doctest: +SKIP
    """
    from saestore.analysis.localisation import write_localisation

    found = []
    for codes in _codes(lake, datasets, view, sae, layer, sample_type, model, catalog):
        result = write_localisation(
            codes, name=name, detection=detection, methods=methods, memory=memory, quiet=quiet, say=say
        )
        files: list[Path] = []
        if out is not None:
            of = {"name": name, "result": result.group.attributes["run"], "methods": list(result.methods)}
            files = _folder(out, codes, result.detection, "localise", of).write({"localisation": result.table()})
        found.append(LocalisedConcepts(_analysed(codes, name), result.splits, tuple(result.best()), tuple(files)))
    return found


def compare(
    lake: LakeLike,
    datasets: str | Sequence[str] | None = None,
    *,
    view: str | None = None,
    detection: str = "default",
    sae: str | None = None,
    layer: str | int | None = None,
    sample_type: str | None = None,
    model: str | None = None,
    memory: str | int | None = None,
    catalog: Catalog | None = None,
) -> list[ComparedConcepts]:
    """Compute thresholds, detection and localisation anew from the dense matrix, and say where stored ones differ.

    Parameters
    ----------
    lake : Lake, str or path
    datasets, view, sae, layer, sample_type, model
        Which codes, as for `thresholds`; their dense matrix must fit the memory.
    detection : str
        Name of the detection; the localisation that was made from it is compared too.
    memory : str or int, optional
        The most the dense matrix may take, such as `4GiB`.

    Raises
    ------
    MissingError
        No such codes, view or detection.
    BudgetError
        The dense matrix does not fit.

    Examples
    --------
    >>> compare("lake", "CLEVR", view="pruned")[0].is_equal  # doctest: +SKIP
    True
    """
    from saestore.analysis.dense_baseline import compare as compute

    return [
        ComparedConcepts(_analysed(codes, detection), tuple(compute(codes, detection=detection, memory=memory)))
        for codes in _codes(lake, datasets, view, sae, layer, sample_type, model, catalog)
    ]


def _codes(
    lake: LakeLike,
    datasets: str | Sequence[str] | None,
    view: str | None,
    sae: str | None,
    layer: str | int | None,
    sample_type: str | None,
    model: str | None,
    catalog: Catalog | None,
) -> list[Codes]:
    return matching_codes(
        open_lake(lake, catalog=catalog),
        datasets=datasets,
        sae=sae,
        layer=layer,
        sample_type=sample_type,
        model=model,
        view=view,
    )


def _analysed(codes: Codes, name: str) -> Analysed:
    key = codes.key
    return Analysed(key.dataset, key.sae, key.layer, key.sample_type, codes.view_name, name, len(codes.kept_units))


def _flat(best: BestUnit) -> dict[str, object]:
    """Return one line of the table of best units."""
    line: dict[str, object] = {}
    for name, value in vars(best).items():
        if hasattr(value, "precision"):
            line |= {f"{name}_{score}": number for score, number in vars(value).items()}
        else:
            line[name] = value
    return line


def _folder(
    out: str | os.PathLike[str], codes: Codes, detection: Detection, verb: str, settings: Mapping[str, object]
) -> TableFolder:
    """Return the folder of a dataset's tables, refused where it holds those of other codes, views or detections."""
    attributes = detection.pairs.group.attributes
    run = {
        "dataset": codes.key.dataset,
        "codes": codes.key.path,
        "codes_run": codes.run,
        "view": codes.view_name,
        "thresholds": attributes["thresholds"],
        "detection": detection.pairs.group.path.rpartition("/")[2],
        "detection_run": attributes["run"],
        "splits": list(detection.splits),
        "percentiles": detection.pairs.percentiles.tolist(),
    }
    return TableFolder(Path(out) / codes.key.dataset, verb, run, settings)
