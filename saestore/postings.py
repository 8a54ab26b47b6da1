"""Postings: the unit-major copy of codes, for each unit its rows and values (docs/format.md, section 4.5).

The row axis is cut into segments of fixed length, each a row group of its own along its entries, so that what is built
stays as it is when more rows are encoded. The path names the run of the codes, so that postings of other codes are
never read in their place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from saestore.cuts import cuts
from saestore.errors import HoleError, MissingError
from saestore.kernels.quantize import as_float32
from saestore.kernels.ramps import ramps
from saestore.layout import CodesKey
from saestore.prefetch import prefetch, together
from saestore.rows import ArraySpec, Grid, RowGroup
from saestore.storage import Storage, read_document

SEGMENT_ROWS = 1 << 22
"""Rows of a segment: few enough to be sorted in a laptop's memory, many enough that a query reads few of them."""

SHARD_ENTRIES = 1 << 22
CHUNK_ENTRIES = 1 << 14


@dataclass(frozen=True)
class UnitEntries:
    """Where units are active, unit by unit.

    units : (m,) int64
    offsets : (m + 1,) int64
        The entries of `units[i]` are `offsets[i]:offsets[i + 1]`.
    rows : (e,) int64
        Ascending for each unit.
    values : (e,) float32
    """

    units: NDArray[np.int64]
    offsets: NDArray[np.int64]
    rows: NDArray[np.int64]
    values: NDArray[np.float32]

    def of(self, places: range) -> UnitEntries:
        """Return the entries of the units at consecutive places."""
        edges = self.offsets[places.start : places.stop + 1]
        held = slice(edges[0], edges[-1])
        units = self.units[places.start : places.stop]
        return UnitEntries(units, edges - edges[0], self.rows[held], self.values[held])


@dataclass(frozen=True)
class CodesPart:
    """The codes over one part of a dataset, of which postings are made.

    first_row : the place of its first row on the axis of the whole dataset
    """

    key: CodesKey
    group: RowGroup
    first_row: int = 0

    @property
    def run(self) -> str:
        """The run of the codes as they are stored now."""
        return cast(str, self.group.attributes["run"])

    @property
    def k(self) -> int:
        """Slots per row."""
        return cast(int, self.group.attributes["k"])

    @property
    def d_sae(self) -> int:
        """Units of the SAE."""
        return cast(int, self.group.attributes["d_sae"])

    @property
    def segment_paths(self) -> list[str]:
        """Where the segments of the postings lie."""
        return [self.key.segment_path(self.run, number) for number in range(n_segments(self.group.grid.rows))]


class Segment:
    """The postings of one run of rows.

    base : the place of the first row of their part on the axis of the whole dataset
    """

    def __init__(self, group: RowGroup, base: int = 0) -> None:
        self.group = group
        identity = group.attributes["identity"]
        self.first_row: int = base + identity["first_row"]
        self.stop_row: int = base + identity["stop_row"]

    @cached_property
    def indptr(self) -> NDArray[np.int64]:
        """Where the entries of each unit begin, and the number of all: (d_sae + 1,)."""
        return self.group.whole("indptr").astype(np.int64)

    def check(self, starts: NDArray[np.int64], stops: NDArray[np.int64]) -> None:
        """Refuse ranges of entries that were never written.

        Raises
        ------
        HoleError
            The rows of the segment are named.
        """
        try:
            self.group.check_ranges(starts, stops)
        except HoleError as error:
            raise HoleError(
                f"the postings of rows {self.first_row} to {self.stop_row - 1} in {self.group.path} are not complete; "
                "build the rest with saestore index"
            ) from error

    def rows(self, gaps: NDArray[np.uint32], counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows of units that follow each other, from their gaps and the number of entries of each."""
        rows = np.cumsum(gaps, dtype=np.int64)
        held = counts > 0
        firsts = (np.cumsum(counts) - counts)[held]
        # The first gap of a unit counts from the segment's first row: what the sum had come to before is taken off.
        rows += self.first_row - np.repeat(rows[firsts] - gaps[firsts], counts[held])
        return rows


class Postings:
    """The unit-major copy of one group of codes."""

    def __init__(self, segments: Sequence[Segment], d_sae: int) -> None:
        self.segments = tuple(segments)
        self.d_sae = d_sae

    @classmethod
    def open(cls, storage: Storage, parts: Sequence[CodesPart], *, d_sae: int) -> Postings:
        """Open the postings of codes over all parts of a dataset.

        Raises
        ------
        MissingError
            The codes have no postings, or there are only those of older codes.
        HoleError
            Postings of some rows were never built.
        """
        places = [(part, number, path) for part in parts for number, path in enumerate(part.segment_paths)]
        documents = together(lambda place: read_document(storage, place[2]), places)
        missing = [place for place, document in zip(places, documents, strict=True) if document is None]
        key = parts[0].key
        if len(missing) == len(places):
            older = [name for name in storage.names(key.units_path) if name != parts[0].run]
            raise MissingError(
                f"{key.path} has {'only the postings of older codes' if older else 'no postings'}, which unit queries "
                f"read; build them: saestore index --datasets {key.dataset}"
            )
        if missing:
            part, number, _ = missing[0]
            rows = segment_rows(number, part.group.grid.rows)
            raise HoleError(
                f"rows {part.first_row + rows.start} to {part.first_row + rows.stop - 1} of {key.path} have no "
                f"postings; build them: saestore index --datasets {key.dataset}"
            )
        segments = [
            Segment(RowGroup.from_document(storage, path, document), part.first_row)
            for (part, _, path), document in zip(places, documents, strict=True)
            if document is not None
        ]
        return cls(segments, d_sae)

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """Rows in which each unit is active: (d_sae,)."""
        counts = np.zeros(self.d_sae, dtype=np.int64)
        for segment in self.segments:
            counts += np.diff(segment.indptr)
        return counts

    def check_complete(self) -> None:
        """Refuse postings of which a part was never written (HoleError)."""
        for segment in self.segments:
            segment.check(np.array([0]), np.array([segment.group.grid.rows]))

    def check(self, units: NDArray[np.int64]) -> None:
        """Refuse units that do not exist.

        Raises
        ------
        MissingError
            The first of them is named.
        """
        outside = (units < 0) | (units >= self.d_sae)
        if outside.any():
            raise MissingError(f"unit {units[outside][0]} does not exist: this SAE has units 0 to {self.d_sae - 1}")

    def read(self, units: Sequence[int] | NDArray[np.integer[Any]]) -> UnitEntries:
        """Return the rows and values of units; entries that lie near each other are fetched together.

        Raises
        ------
        MissingError
            A unit does not exist.
        HoleError, IntegrityError
            Some of the postings were never written, or are damaged.
        """
        asked = np.asarray(units, dtype=np.int64)
        wanted, order = np.unique(asked, return_inverse=True)
        starts, stops = self._entries_of(wanted)
        counts = stops - starts
        held = counts > 0
        ranges = [(starts[number, held[number]], stops[number, held[number]]) for number in range(len(counts))]
        # The ledger first, so that the two arrays do not each read its entries.
        self._check_written(ranges)
        groups = [segment.group for segment in self.segments]
        reads = [(number, name) for number in range(len(groups)) for name in ("row_gaps", "values")]
        parts = together(lambda one: groups[one[0]].read_ranges(one[1], *ranges[one[0]]), reads)
        offsets = np.append(0, np.cumsum(counts.sum(axis=0)))
        rows = np.empty(offsets[-1], dtype=np.int64)
        values = np.empty(offsets[-1], dtype=np.float32)
        begins = offsets[:-1] + np.cumsum(counts, axis=0) - counts
        for number, segment in enumerate(self.segments):
            places = slice(None) if len(self.segments) == 1 else ramps(begins[number], counts[number])
            rows[places] = segment.rows(parts[2 * number], counts[number])
            values[places] = as_float32(parts[2 * number + 1])
        if np.array_equal(asked, wanted):
            return UnitEntries(asked, offsets, rows, values)
        lengths = np.diff(offsets)[order]
        places = ramps(offsets[order], lengths)
        return UnitEntries(asked, np.append(0, np.cumsum(lengths)), rows[places], values[places])

    def blocks(self, units: NDArray[np.int64], most: int) -> Iterator[tuple[slice, UnitEntries]]:
        """Yield the entries of units in blocks of at most so many, or of one unit, reading one block ahead.

        Parameters
        ----------
        units : (m,) int64
            Original unit ids.
        most : int
            Entries of a block.

        Yields
        ------
        (places, entries)
            Places among `units`, and the entries of the units there.

        Raises
        ------
        MissingError, HoleError, IntegrityError
            As for `read`.
        """
        places = [slice(*edges) for edges in pairwise(cuts(self.counts[units], most).tolist())]
        return prefetch(lambda part: self.read(units[part]), places)

    def check_written(self, units: NDArray[np.int64]) -> None:
        """Refuse units of which some entries were never written (HoleError)."""
        self._check_written(list(zip(*self._entries_of(np.unique(units)), strict=True)))

    def _entries_of(self, units: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return where the entries of units begin and end in each segment: (n_segments, m) each."""
        self.check(units)
        indptrs = together(lambda segment: segment.indptr, self.segments)
        starts, stops = (np.stack([indptr[units + edge] for indptr in indptrs]) for edge in (0, 1))
        return starts, stops

    def _check_written(self, ranges: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]]) -> None:
        together(lambda number: self.segments[number].check(*ranges[number]), range(len(ranges)))


def n_segments(rows: int) -> int:
    """Return the number of segments that so many rows have."""
    return -(-rows // SEGMENT_ROWS)


def segment_rows(number: int, rows: int) -> slice:
    """Return the rows of a segment, of so many in all."""
    return slice(number * SEGMENT_ROWS, min((number + 1) * SEGMENT_ROWS, rows))


def create_segment(
    codes: CodesPart, number: int, *, counts: NDArray[np.int64], attributes: Mapping[str, Any]
) -> Segment:
    """Create the row group of a segment, or open it if it is there.

    Parameters
    ----------
    counts : (d_sae,) int64
        Entries of each unit in its rows.
    """
    total = int(counts.sum())
    rows = segment_rows(number, codes.group.grid.rows)
    indptr = np.append(0, np.cumsum(counts)).astype(np.uint32 if total < 2**32 else np.uint64)
    dtype = str(codes.group.attributes["dtype"])
    group = RowGroup.create(
        codes.group.storage,
        codes.segment_paths[number],
        kind="postings",
        axis="entry",
        # An axis cannot be empty: where no unit is active there is one entry that belongs to none.
        grid=Grid.plan(max(1, total), shard_rows=SHARD_ENTRIES, chunk_rows=CHUNK_ENTRIES),
        arrays=[
            ArraySpec("row_gaps", "uint32", codec="bitshuffle", level=1),  # level 3 takes half as long again for 0.3 %
            ArraySpec(
                "values", str(codes.group.dtype("values")), codec="bitshuffle", attributes={"saestore_dtype": dtype}
            ),
        ],
        identity={"codes": codes.run, "first_row": rows.start, "stop_row": rows.stop},
        whole={"indptr": (indptr, ("unit_edge",))},
        attributes={"d_sae": len(counts), "dtype": dtype, **attributes},
    )
    return Segment(group)
