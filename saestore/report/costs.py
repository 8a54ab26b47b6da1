"""What codes and results take on disk, what they would take dense, and how long runs took where that was recorded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from saestore.budget import readable_bytes
from saestore.progress import clock
from saestore.report.page import Cell, Data, Section, missing, number, paragraph, table, whole
from saestore.report.subject import Subject

_DENSE_BYTES = 4

Line = tuple[str, str, int | None, float | None, str]
"""Dataset, what, bytes, bytes per row, and how the number came to be."""


def costs_section(subjects: Sequence[Subject], runs: Sequence[Mapping[str, Any]]) -> Section:
    """Return the bytes of each dataset's codes and results, and the runs that are on record.

    Parameters
    ----------
    runs : sequence of mapping
        Of `Lake.runs`.
    """
    lines = [line for subject in subjects for line in _sizes(subject)]
    headers = [
        ("dataset", ""),
        ("what", ""),
        ("size", "bytes on disk"),
        ("bytes per row", "of the codes"),
        ("note", ""),
    ]
    rows: list[list[Cell | str]] = [
        [dataset, what, _size(size), number(per_row, ",.1f"), note] for dataset, what, size, per_row, note in lines
    ]
    names = ("dataset", "what", "bytes", "bytes_per_row", "note")
    sizes = Data("", "sizes", dict(zip(names, map(list, zip(*lines, strict=True)), strict=True)))
    body, data = table("table-sizes", headers, rows), [sizes]
    recorded = [run for subject in subjects for run in _runs(subject, runs)]
    body += paragraph(
        "Times are those of the runs of encode that the lake has on record; those of other steps are not recorded."
    )
    if recorded:
        columns = ("dataset", "run", "state", "begun", "ended", "seconds", "encoded_rows")
        headers = [(name.replace("_", " "), "") for name in columns]
        headers[5] = ("time", "of the whole run, which may have encoded more than this dataset")
        body += table("table-runs", headers, [_run_cells(line) for line in recorded])
        data.append(Data("", "runs", dict(zip(columns, map(list, zip(*recorded, strict=True)), strict=True))))
    else:
        body += missing("No run on record has encoded these codes.")
    return Section("costs", "Storage and time", body, data)


def _sizes(subject: Subject) -> Iterator[Line]:
    codes, rows = subject.codes, subject.codes.n_rows
    for group in subject.groups:
        if group.kind in ("codes", "postings"):
            per_row = group.stored_bytes / group.written_rows if group.written_rows else None
            yield subject.dataset, group.kind, group.stored_bytes, per_row, "measured"
    for result in subject.results:
        yield subject.dataset, f"{result.kind} {result.name}", result.stored_bytes, None, "measured"
    whole_size = rows * codes.d_sae * _DENSE_BYTES
    note = "calculated: rows x units x 4 bytes"
    yield subject.dataset, f"dense float32, all {codes.d_sae:,} units", whole_size, codes.d_sae * 4.0, note
    if codes.view_name is not None:
        kept = len(codes.kept_units)
        size = rows * kept * _DENSE_BYTES
        yield subject.dataset, f"dense float32, {kept:,} units of the view", size, kept * 4.0, note


def _runs(subject: Subject, runs: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Any, ...]]:
    """Yield the runs that wrote some of the codes of a dataset, or of one of its parts."""
    paths = {part.key.path for part in subject.codes.parts}
    for run in runs:
        encoded = [made for made in run.get("outcome", []) if made.get("codes") in paths]
        count = sum(made.get("encoded_rows", 0) for made in encoded)
        if not count:
            continue
        begun, ended = run.get("begun"), run.get("ended")
        seconds = None
        if begun and ended:
            seconds = (datetime.fromisoformat(ended) - datetime.fromisoformat(begun)).total_seconds()
        name = f"{run.get('verb', '')} {run['name']}"
        yield subject.dataset, name, run.get("state", ""), begun or "", ended or "", seconds, count


def _run_cells(line: tuple[Any, ...]) -> list[Cell | str]:
    *words, seconds, count = line
    return [*words, Cell(seconds, "" if seconds is None else clock(seconds)), whole(count)]


def _size(size: int | None) -> Cell:
    return Cell(size, "" if size is None else readable_bytes(size))
