"""The report of the probing benchmark: one page over the results in a lake and over published ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from saestore import provenance
from saestore.errors import MissingError
from saestore.lake import Lake
from saestore.probe_results import TABLE_COLUMNS, ProbeResult, table_rows
from saestore.probing.published import Published
from saestore.report.drawing import Picture, require_matplotlib
from saestore.report.page import Chapter, Data, Section, page, paragraph
from saestore.report.probe_bars import ood_part, settings_part
from saestore.report.probe_curves import cells_part, k_part, layers_part
from saestore.report.probe_part import SETTING_NAMES, several
from saestore.report.probe_quiver import quiver_part
from saestore.report.probe_scatter import scatter_part
from saestore.report.probe_tables import (
    mean_leak,
    skipped_part,
    summary_section,
    tasks_part,
    unprobed,
    unprobed_section,
)
from saestore.report.probed import Probed, open_probed

_PARTS = (
    settings_part,
    k_part,
    scatter_part,
    cells_part,
    quiver_part,
    ood_part,
    layers_part,
    tasks_part,
    skipped_part,
)


@dataclass(frozen=True, eq=False)
class ProbeReport:
    """A page, the numbers of all that is drawn on it, and the drawings.

    results : names of the results on the page
    data : the same numbers as in the page's own blocks
    """

    html: str
    results: tuple[str, ...]
    data: tuple[Data, ...]
    pictures: tuple[Picture, ...]


def probe_report(lake: Lake, published: Published | None, *, stamp: str | None) -> ProbeReport:
    """Make the page; the same results give the same bytes.

    Parameters
    ----------
    lake : Lake
    published : Published, optional
        Results of the benchmark's authors, which get chapters of their own.
    stamp : str, optional
        A text for the page's foot, such as the date.

    Raises
    ------
    MissingError
        There is no result of a probe, neither in the lake nor published.
    DependencyError
        matplotlib is not installed.
    """
    require_matplotlib()
    results = lake.probes()
    probeds = _of_lake(lake, results)
    if published is not None:
        probeds += open_probed(published.table, "published", first=len(probeds) + 1)
    if not probeds:
        raise MissingError(
            f"the lake {lake.url} has no results of probes; make some with: saestore probe, or give published ones "
            "with --published"
        )
    overview = [summary_section(probeds), _caveats(probeds, published)]
    if results:
        overview.append(unprobed_section(unprobed(lake, {result.key.dataset for result in results})))
    chapters = [Chapter("overview", "Overview", "", overview)]
    pictures: list[Picture] = []
    for probed in probeds:
        parts = [make(probed) for make in _PARTS]
        pictures += [picture for part in parts for picture in part.pictures]
        sections = [part.section for part in parts]
        chapters.append(Chapter(f"results-{probed.number}", _title(probed), _of(probed), sections))
    software = ", ".join(f"{package} {version}" for package, version in provenance.stamp().items())
    foot = f"Made with {software}. Everything on this page is in this one file."
    html = page(
        "Sparse probing",
        "Probes on activations and on SAE codes: how well each tells the two classes of labelled data sets apart.",
        chapters,
        foot=f"{foot} {stamp}" if stamp else foot,
    )
    data = [data for chapter in chapters for section in chapter.sections for data in section.data]
    return ProbeReport(html, tuple(probed.key for probed in probeds), tuple(data), tuple(pictures))


def _of_lake(lake: Lake, results: Sequence[ProbeResult]) -> list[Probed]:
    rows = [row for result in results for row in table_rows(result)]
    table = pd.DataFrame(rows, columns=list(TABLE_COLUMNS))
    sizes = {name: len(lake.samples(name)) for name in {result.key.dataset for result in results}}
    classes = {result.key.dataset: result.classes for result in results}
    return open_probed(table, "lake", first=1, classes=classes, sizes=sizes)


def _title(probed: Probed) -> str:
    if probed.source == "published":
        return f"Published results of {probed.model}"
    other = "" if probed.name == "default" else f", results {probed.name}"
    return f"Results of {probed.model}{other}, {probed.sample_type}"


def _of(probed: Probed) -> str:
    settings = ", ".join(SETTING_NAMES[name] for name in probed.settings) or "nothing"
    layers = probed.table["layer"].nunique()
    told = f"{several(len(probed.datasets), 'data set')}; {probed.layer or 'a layer that is not told'}"
    if layers > 1:
        told += f", which of {layers} layers has most SAE probes (their comparison is below)"
    return f"{told}; fitted: {settings}."


def _caveats(probeds: Sequence[Probed], published: Published | None) -> Section:
    words = [
        "A quiver chooses by validation AUC, which is optimistic: scalers, PCA and the ranking of units see the rows "
        "that validate, and SAE probes rank by the labels of those rows too; so it is too high by a different amount "
        "for each method, and the quiver with SAE probes has more candidates. Where at most 3 rows train there is no "
        "validation: validation AUC is the AUC on the training rows themselves.",
        "Ties in validation AUC are common where few rows train, and the mean depends on how they are broken; here the "
        "first in a fixed order is taken, as the figures of quivers say.",
    ]
    for probed in probeds:
        leak, known = mean_leak(probed)
        if known:
            words.append(
                f"{_title(probed)}: in the mean over {several(known, 'data set')} {leak:.1%} of the test rows have the "
                "text of a training row. They are counted and not left out, so AUC is too high there for every method."
            )
        else:
            words.append(f"{_title(probed)}: how many test rows have the text of a training row is not recorded.")
    if published is not None:
        words += [f"Of the published tables: {note}." for note in published.notes]
    return Section("caveats", "How to read the numbers", "".join(map(paragraph, words)))
