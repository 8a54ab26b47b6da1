"""The report of concept detection: one page over chosen datasets, made from what the lake holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from saestore import provenance
from saestore.codes import Codes
from saestore.lake import Lake
from saestore.report.best import best_section, curves_section
from saestore.report.costs import costs_section
from saestore.report.drawing import require_matplotlib
from saestore.report.maps import maps_section
from saestore.report.page import Chapter, Data, page
from saestore.report.status import status_section
from saestore.report.subject import Subject, open_subject
from saestore.report.units import units_section


@dataclass(frozen=True, eq=False)
class ConceptReport:
    """A page, and the numbers of all that is drawn on it.

    data : the same numbers as in the page's own blocks
    """

    html: str
    data: tuple[Data, ...]


def concept_report(
    lake: Lake, codes: Sequence[Codes], *, detection: str, maps: int, seed: int, stamp: str | None
) -> ConceptReport:
    """Make the page; the same lake and parameters give the same bytes.

    Parameters
    ----------
    codes : sequence of Codes
        One of each dataset: all units, or a view.
    detection : str
        Name of the detection.
    maps : int
        Concepts of each dataset whose units are shown inside of samples.
    seed : int
        Of the interval of F1.
    stamp : str, optional
        A text for the page's foot, such as the date.

    Raises
    ------
    MissingError
        There are detections, and none of that name.
    DependencyError
        matplotlib is not installed.
    """
    require_matplotlib()
    groups = lake.status()
    subjects = [open_subject(each, number, groups, detection, seed=seed) for number, each in enumerate(codes, start=1)]
    chapters = [Chapter("data", "Data and results", "", [status_section(subjects)])]
    for subject in subjects:
        sections = [
            units_section(subject),
            curves_section(subject),
            best_section(subject),
            maps_section(subject, maps),
        ]
        chapters.append(Chapter(f"dataset-{subject.number}", subject.dataset, _of(subject, detection), sections))
    chapters.append(Chapter("size", "Size and time", "", [costs_section(subjects, lake.runs())]))
    software = ", ".join(f"{package} {version}" for package, version in provenance.stamp().items())
    foot = f"Made with {software}. Everything on this page is in this one file."
    html = page(
        "Concept detection",
        _lead(codes, detection),
        chapters,
        foot=f"{foot} {stamp}" if stamp else foot,
    )
    data = [data for chapter in chapters for section in chapter.sections for data in section.data]
    return ConceptReport(html, tuple(data))


def _lead(codes: Sequence[Codes], detection: str) -> str:
    key = codes[0].key
    view = "all units" if codes[0].view_name is None else f"view {codes[0].view_name}"
    return f"SAE {key.sae} over {key.layer} of {key.model}, {key.sample_type} rows, {view}, detection {detection!r}."


def _of(subject: Subject, detection: str) -> str:
    codes = subject.codes
    units = f"{len(codes.kept_units):,} of {codes.d_sae:,} units"
    told = f"{codes.n_rows:,} rows of {len(codes.samples):,} samples, {units}"
    if subject.detection is None:
        return f"{told}; no detection {detection!r}."
    by = subject.detection.thresholds.by
    labels = "labels of positions" if by == "position" else "labels of samples"
    count = len(subject.best)
    return f"{told}; {count} concept{'' if count == 1 else 's'}, {labels}."
