"""What a report is of: codes of one dataset, or a view of them, with the results that are stored for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from saestore.analysis.detection import BestUnit, Detection
from saestore.analysis.localisation import Localisation
from saestore.analysis.pairs import Kind, result_path, stored_results
from saestore.codes import Codes
from saestore.errors import ConflictError, HoleError, MissingError
from saestore.lake import GroupStatus
from saestore.rows import RowGroup
from saestore.storage import read_document

KINDS: tuple[Kind, ...] = ("thresholds", "detection", "localisation")


@dataclass(frozen=True)
class ResultState:
    """State of one stored result.

    state : `done`, or `partial` where it was not computed to its end
    pairs, written_pairs : rows of the result, and those in its ledger
    version : of saestore that wrote it, empty where it is not recorded
    """

    kind: Kind
    name: str
    state: Literal["done", "partial"]
    pairs: int
    written_pairs: int
    stored_bytes: int
    version: str


@dataclass(frozen=True, eq=False)
class Subject:
    """One dataset of a report.

    number : its place on the page, from 1
    codes : all units, or a view
    groups : what the lake holds of the dataset that the codes rest on
    results : what is stored of the codes or the view, whatever its name
    detection, localisation : None where there is none that can be read
    best : the best unit of each concept; empty without a detection
    remarks : by kind of result why it cannot be shown
    """

    number: int
    codes: Codes
    groups: tuple[GroupStatus, ...]
    results: tuple[ResultState, ...]
    detection: Detection | None
    localisation: Localisation | None
    best: tuple[BestUnit, ...]
    remarks: dict[Kind, str] = field(default_factory=dict)

    @property
    def dataset(self) -> str:
        """Name of the dataset."""
        return self.codes.key.dataset

    @property
    def is_mappable(self) -> bool:
        """Whether rows are positions of samples."""
        return self.codes.positions is not None


def open_subject(codes: Codes, number: int, groups: list[GroupStatus], detection: str, *, seed: int) -> Subject:
    """Open what there is of codes; what cannot be read is remarked.

    Parameters
    ----------
    codes : Codes
    number : int
        Place on the page, from 1.
    groups : list of GroupStatus
        Of the whole lake.
    detection : str
        Name of the detection.
    seed : int
        Of the interval of F1.

    Raises
    ------
    MissingError
        There are detections, and none of that name.
    """
    remarks: dict[Kind, str] = {}
    found: Detection | None = None
    best: list[BestUnit] = []
    try:
        found = Detection.open(codes, detection)
        best = found.best(seed=seed)
    except (MissingError, HoleError) as error:
        if isinstance(error, MissingError) and stored_results(codes, "detection"):
            raise
        remarks["detection"], found = str(error), None
    where: Localisation | None = None
    if found is not None:
        try:
            where = Localisation.of(codes, detection)
            where.best()
        except (MissingError, HoleError, ConflictError) as error:
            remarks["localisation"], where = str(error), None
            if found.thresholds.by == "sample":  # localise would refuse, so that its command is no advice
                remarks["localisation"] = "the labels are those of whole samples, which do not say where a concept is"
    return Subject(
        number=number,
        codes=codes,
        groups=tuple(group for group in groups if _belongs(group, codes)),
        results=tuple(_states(codes)),
        detection=found,
        localisation=where,
        best=tuple(best),
        remarks=remarks,
    )


def _states(codes: Codes) -> Iterator[ResultState]:
    for kind in KINDS:
        for name in stored_results(codes, kind):
            path = result_path(codes, kind, name)
            document = read_document(codes.group.storage, path)
            if document is None:
                continue
            group = RowGroup.from_document(codes.group.storage, path, document)
            written = group.written_rows()
            yield ResultState(
                kind=kind,
                name=name,
                state="done" if written == group.grid.rows else "partial",
                pairs=group.grid.rows,
                written_pairs=written,
                stored_bytes=group.stored_bytes(),
                version=str(group.attributes.get("provenance", {}).get("saestore", "")),
            )


def _belongs(group: GroupStatus, codes: Codes) -> bool:
    """Whether the codes rest on a group, or it on them."""
    key = codes.key
    if group.kind == "sae":
        return group.sae == key.sae
    if group.dataset != key.dataset:
        return False
    own = {"model": key.model, "layer": key.layer, "sample_type": key.sample_type, "sae": key.sae}
    return all(getattr(group, name) in ("", value) for name, value in own.items())
