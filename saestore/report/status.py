"""Which data a report rests on, and which results there are: done, partial or missing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from saestore.budget import readable_bytes
from saestore.layout import SPLITS
from saestore.report.page import Cell, Data, Section, missing, number, table, whole
from saestore.report.subject import KINDS, Subject

_NEEDED = ("samples", "positions", "labels", "activations", "codes", "postings", "view")


def status_section(subjects: Sequence[Subject]) -> Section:
    """Return the samples of each split, and the state of every group and result of each dataset."""
    return Section("status", "Status", f"{_splits(subjects)}{_states(subjects)}", (_split_data(subjects),))


def _counts(subject: Subject) -> dict[str, int]:
    split = subject.codes.samples.split
    return {name or "none": int(np.count_nonzero(split == name)) for name in (*SPLITS, "")}


def _splits(subjects: Sequence[Subject]) -> str:
    headers = [("dataset", ""), ("samples", "")]
    headers += [(name, f"samples in split {name}") for name in (*SPLITS, "no split")]
    headers += [("rows", "rows of the codes"), ("units", "units that are looked at"), ("concepts", "that are detected")]
    rows: list[list[Cell | str]] = [
        [
            subject.dataset,
            whole(len(subject.codes.samples)),
            *(whole(count) for count in _counts(subject).values()),
            whole(subject.codes.n_rows),
            whole(len(subject.codes.kept_units)),
            whole(len(subject.best) if subject.detection else None),
        ]
        for subject in subjects
    ]
    return table("table-splits", headers, rows)


def _states(subjects: Sequence[Subject]) -> str:
    headers = [("dataset", ""), ("what", ""), ("name", ""), ("state", ""), ("written", ""), ("of", ""), ("", "")]
    headers += [("size", "bytes on disk"), ("note", "")]
    rows: list[list[Cell | str]] = []
    for subject in subjects:
        for kind in _NEEDED:
            groups = [group for group in subject.groups if group.kind == kind]
            unit = {"samples": "samples", "view": "units"}.get(kind, "rows")
            for group in groups:
                name = "" if kind in ("samples", "positions") else group.path.rpartition("/")[2]
                rows.append(
                    [
                        subject.dataset,
                        kind,
                        name if kind in ("labels", "view") else "",
                        group.state,
                        whole(group.written_rows),
                        whole(group.rows),
                        unit,
                        Cell(group.stored_bytes, readable_bytes(group.stored_bytes)),
                        "" if group.note == name else group.note,
                    ]
                )
            if not groups and (kind != "positions" or subject.is_mappable):
                rows.append([subject.dataset, kind, "", "missing", number(None), number(None), "", number(None), ""])
        for kind in KINDS:
            results = [result for result in subject.results if result.kind == kind]
            for result in results:
                rows.append(
                    [
                        subject.dataset,
                        kind,
                        result.name,
                        result.state,
                        whole(result.written_pairs),
                        whole(result.pairs),
                        "concepts" if kind == "localisation" else "pairs",
                        Cell(result.stored_bytes, readable_bytes(result.stored_bytes)),
                        f"written by saestore {result.version}" if result.version else "",
                    ]
                )
            if not results:
                remark = subject.remarks.get(kind, "")
                rows.append(
                    [subject.dataset, kind, "", "missing", number(None), number(None), "", number(None), remark]
                )
    return table("table-states", headers, rows) if rows else missing("the lake holds nothing of these datasets")


def _split_data(subjects: Sequence[Subject]) -> Data:
    counts = [_counts(subject) for subject in subjects]
    columns: dict[str, list[str] | list[int]] = {"dataset": [subject.dataset for subject in subjects]}
    columns |= {f"samples_{name}": [each[name] for each in counts] for name in (*SPLITS, "none")}
    columns |= {"rows": [s.codes.n_rows for s in subjects], "units": [len(s.codes.kept_units) for s in subjects]}
    return Data("", "datasets", columns)
