"""A choice of rows by split, concept, sample, special tokens or an expression, found when it is first asked for.

Conditions on samples are met first and become ranges of rows; what is stored of positions is then read for those
ranges alone, in blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saestore._axis_columns import SAMPLE, AxisColumns, Block
from saestore._expression_tree import Column, Condition, Level, Not, OneOf
from saestore._expression_values import truth
from saestore._expressions import parse
from saestore._nearest import nearest
from saestore.axis import RowAxis
from saestore.errors import InputError, MissingError
from saestore.kernels.ramps import ramps
from saestore.kernels.ranges import Ranges, merged, part, runs
from saestore.labels import Labels, label_names
from saestore.layout import SPLITS

SampleChoice = str | int | Sequence[str] | Sequence[int] | NDArray[Any]

# Samples or rows whose columns are in memory at a time.
_BLOCK = {"sample": 65_536, "position": 262_144}


@dataclass(frozen=True, eq=False, repr=False)
class Selection:
    """Rows of an axis that meet all of some conditions, ascending.

    Get one from `all`, and narrow it with `where`. The rows are found on first use, and an InputError then says which
    condition left none.

    Examples
    --------
    >>> tests = Selection.all(codes.axis).where(split="test", special=False)  # doctest: +SKIP
    >>> tests.where("cube == 1 and position < 20").rows(0, 5)  # doctest: +SKIP
    array([5121, 5122, 5123, 5124, 5125])
    """

    axis: RowAxis
    conditions: tuple[Condition, ...] = ()

    @classmethod
    def all(cls, axis: RowAxis) -> Selection:
        """Return all rows of an axis, special tokens included."""
        return cls(axis)

    def where(
        self,
        expression: str | None = None,
        *,
        split: str | Sequence[str] | None = None,
        concept: str | Sequence[str] | None = None,
        samples: SampleChoice | None = None,
        special: bool | None = None,
    ) -> Selection:
        """Return the rows of this selection that meet further conditions, all of them.

        Parameters
        ----------
        expression : str, optional
            Such as ``length > 20 and not special and token_id in [101, 102]``, in Python's syntax. Names are columns of
            the sample table (`id`, `split`, `text` or `path`, further columns, concepts) and of positions (`special`;
            `position`, the place in the sample from 0; `token_id`, `char_start`, `char_end` of texts; `box_x0`,
            `box_y0`, `box_x1`, `box_y1` of images). Names that are no Python names stand in backticks. A concept alone
            is true where its label is 1, and ``not`` it where the label is 0: unlabelled samples (255) are neither.
        split : str or sequence of str, optional
            One of these: train, cal, test.
        concept : str or sequence of str, optional
            Labelled 1 for all of these in the sample table; labels of positions are not asked.
        samples : str, int, or sequence of either, optional
            Ids, or places in the sample table.
        special : bool, optional
            Only special tokens, or only others.

        Raises
        ------
        InputError
            An unknown split, an expression with a syntax error, a sample that does not exist by its place.
        MissingError
            An unknown name, concept or sample id; the nearest are named.
        """
        columns = AxisColumns(self.axis)
        further: list[Condition] = []
        if split is not None:
            further.append(_of_splits(_names(split, "split")))
        if concept is not None:
            for one in _names(concept, "concept"):
                self._refuse_concept_of_positions(one)
                further.append(Condition(f"concept {one}", columns.concept(one)))
        if samples is not None:
            further.append(self._of_samples(samples))
        if special is not None:
            if not isinstance(special, (bool, np.bool_)):
                raise InputError(f"special={special!r} is not True or False; leave it out to choose both")
            is_special = columns.special
            further.append(
                Condition("special tokens", is_special) if special else Condition("no special tokens", Not(is_special))
            )
        if expression is not None:
            further += parse(expression, columns.named)
        return Selection(self.axis, (*self.conditions, *further))

    def __repr__(self) -> str:
        return f"<Selection: {self.words}>"

    def __len__(self) -> int:
        return int(self._before[-1])

    @property
    def words(self) -> str:
        """The conditions in words."""
        return _joined(self.conditions) or "all rows"

    @cached_property
    def without_special(self) -> Selection:
        """The same without special tokens, which analyses leave out."""
        return self.where(special=False)

    @property
    def starts(self) -> NDArray[np.int64]:
        """First row of each range of chosen rows: (m,), ascending; no range touches the next."""
        return self._ranges[0]

    @property
    def stops(self) -> NDArray[np.int64]:
        """The row after each range: (m,)."""
        return self._ranges[1]

    @cached_property
    def sample_offsets(self) -> NDArray[np.int64]:
        """How many chosen rows lie before each sample, and in all: (n_samples + 1,)."""
        positions = self.axis.positions
        edges = np.arange(self.axis.n_rows + 1) if positions is None else positions.offsets
        at = np.searchsorted(self.starts, edges, side="right") - 1
        inside = np.minimum(edges, self.stops[at]) - self.starts[at]
        return np.where(at < 0, 0, self._before[at] + inside)

    def rows(self, first: int = 0, stop: int | None = None) -> NDArray[np.int64]:
        """Return the numbers of chosen rows, `first` to `stop` counted among them."""
        starts, stops = self.ranges(first, stop)
        return ramps(starts, stops - starts)

    def rows_at(self, places: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """Return the numbers of the rows at places among the chosen ones, in any order: (n,)."""
        at = np.searchsorted(self._before, places, side="right") - 1
        return self.starts[at] + places - self._before[at]

    def ranges(self, first: int = 0, stop: int | None = None) -> Ranges:
        """Return starts and stops of the ranges of chosen rows, `first` to `stop` counted among them.

        Raises
        ------
        InputError
            There are not so many.
        """
        stop = len(self) if stop is None else stop
        if not 0 <= first <= stop <= len(self):
            raise InputError(f"rows {first}:{stop} of {self!r} do not exist; it has {len(self):,} rows")
        return part(*self._ranges, self._before, first, stop)

    def mask(self, start: int = 0, stop: int | None = None) -> NDArray[np.bool_]:
        """Return which rows of the axis are chosen: (stop - start,) bool.

        Raises
        ------
        InputError
            `start:stop` is not within the axis.
        """
        stop = self.axis.n_rows if stop is None else stop
        if not 0 <= start <= stop <= self.axis.n_rows:
            raise InputError(f"rows {start}:{stop} do not exist; the axis has {self.axis.n_rows:,} rows")
        chosen = np.zeros(stop - start, dtype=bool)
        first, last = np.searchsorted(self.stops, start, side="right"), np.searchsorted(self.starts, stop)
        starts = np.maximum(self.starts[first:last] - start, 0)
        chosen[ramps(starts, np.minimum(self.stops[first:last] - start, stop - start) - starts)] = True
        return chosen

    def contains(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
        """Return which of some rows are chosen: (n,) bool."""
        return self.places(rows) >= 0

    def places(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """Return the place of each row among the chosen ones, -1 where it is not chosen: (n,)."""
        numbers = np.asarray(rows, dtype=np.int64)
        at = np.searchsorted(self.starts, numbers, side="right") - 1
        chosen = (at >= 0) & (numbers < self.stops[at])
        return np.where(chosen, self._before[at] + numbers - self.starts[at], -1)

    @cached_property
    def _before(self) -> NDArray[np.int64]:
        return np.append(0, np.cumsum(self.stops - self.starts))

    @cached_property
    def _ranges(self) -> Ranges:
        n_rows = self.axis.n_rows
        if n_rows == 0:
            raise InputError(f"dataset {self.axis.samples.dataset!r} has no rows to choose from; extract its positions")
        of_samples = [condition for condition in self.conditions if condition.level == "sample"]
        of_positions = [condition for condition in self.conditions if condition.level == "position"]
        if of_samples:
            everything = np.array([0]), np.array([len(self.axis.samples)])
            ranges = _rows_of(self.axis, *self._narrowed("sample", *everything, of_samples, []))
        else:
            ranges = np.array([0]), np.array([n_rows])
        if not len(ranges[0]):
            raise self._empty(f"the samples left by {_joined(of_samples)} have no rows")
        return self._narrowed("position", *ranges, of_positions, of_samples) if of_positions else ranges

    def _narrowed(
        self,
        level: Level,
        starts: NDArray[np.int64],
        stops: NDArray[np.int64],
        conditions: Sequence[Condition],
        met: Sequence[Condition],
    ) -> Ranges:
        """Return the ranges of samples or rows that meet conditions, reading their columns block by block.

        `met` are the conditions that the ranges come from, for the error when nothing is left.
        """
        before = np.append(0, np.cumsum(stops - starts))
        left = np.zeros(len(conditions), dtype=np.int64)
        found: list[Ranges] = []
        for first in range(0, int(before[-1]), _BLOCK[level]):
            last = min(first + _BLOCK[level], int(before[-1]))
            block = Block(self.axis, level, *part(starts, stops, before, first, last))
            chosen = np.ones(last - first, dtype=bool)
            for number, condition in enumerate(conditions):
                chosen &= truth(condition.test, block.read)
                left[number] += np.count_nonzero(chosen)
                if not chosen.any():  # the columns of further conditions need not be read
                    break
            found.append(runs(block.numbers[chosen]))
        if not left.all():
            last_met = int(np.flatnonzero(left == 0)[0])
            count = int(left[last_met - 1]) if last_met else int(before[-1])
            earlier = _joined([*met, *conditions[:last_met]])
            things = "samples" if level == "sample" else "rows"
            raise self._empty(
                f"none of the {count:,} {things}{' left by ' + earlier if earlier else ''} meets "
                f"{conditions[last_met].words}"
            )
        return merged(*(np.concatenate(parts) for parts in zip(*found, strict=True)))

    def _refuse_concept_of_positions(self, concept: str) -> None:
        """Refuse a concept that labels of positions have and the sample table has not (MissingError)."""
        samples, positions = self.axis.samples, self.axis.positions
        if positions is None or concept in samples.concept_names:
            return
        storage, key = positions.group.storage, positions.key
        for name in label_names(storage, key):
            if concept in Labels.open_part(storage, key.at(0), name).concept_names:
                raise MissingError(
                    f"concept {concept!r} of dataset {samples.dataset!r} is labelled at positions alone (labels "
                    f"{name!r}), and concept= chooses samples; take the rows where lake.labels("
                    f"{samples.dataset!r}, {name!r}).concept({concept!r}) is 1"
                )

    def _of_samples(self, samples: SampleChoice) -> Condition:
        table = self.axis.samples
        given = np.atleast_1d(np.asarray(samples, dtype=object)).ravel().tolist()
        if not given:
            raise InputError("samples= names no sample; leave it out to choose all")
        words = ("sample " if len(given) == 1 else "samples ") + ", ".join(str(one)[:40] for one in given[:3])
        words += f" and {len(given) - 3:,} more" if len(given) > 3 else ""
        wanted = {one for one in given if isinstance(one, str)}
        known = np.fromiter((one in wanted for one in table.ids), bool, len(table)) if wanted else np.zeros(0, bool)
        places = np.flatnonzero(known).tolist()
        if len(places) < len(wanted):
            unknown = next(iter(wanted - set(table.ids[places])))
            raise MissingError(
                f"dataset {table.dataset!r} has no sample {unknown[:80]!r}; "
                f"{nearest(unknown, table.ids.tolist(), 'samples')}"
            )
        for one in given:
            if isinstance(one, str):
                continue
            if not isinstance(one, (int, np.integer)) or isinstance(one, bool):
                raise InputError(
                    f"samples= holds {str(one)[:40]!r}, a {type(one).__name__}; give ids or places, for a mask: "
                    "np.flatnonzero(mask)"
                )
            if not 0 <= one < len(table):
                raise InputError(
                    f"sample {one} does not exist: dataset {table.dataset!r} has samples 0 to {len(table) - 1}"
                )
            places.append(int(one))
        return Condition(words, OneOf(SAMPLE, tuple(places)))

    def _empty(self, why: str) -> InputError:
        return InputError(f"the selection is empty: {why}; leave out a condition, or widen one")


def _rows_of(axis: RowAxis, starts: NDArray[np.int64], stops: NDArray[np.int64]) -> Ranges:
    """Return the rows of ranges of samples."""
    if axis.positions is None:
        return starts, stops
    offsets = axis.positions.offsets
    return merged(offsets[starts], offsets[stops])


def _of_splits(splits: Sequence[str]) -> Condition:
    for split in splits:
        if split not in SPLITS:
            raise InputError(f"split {split!r} is unknown; {nearest(str(split), SPLITS, 'splits')}")
    return Condition(f"split {' or '.join(splits)}", OneOf(Column("split", "text", "sample", "split"), tuple(splits)))


def _names(given: str | Sequence[str], what: str) -> list[str]:
    names = [given] if isinstance(given, str) else list(given)
    if not names:
        raise InputError(f"{what}= names no {what}; leave it out to choose all")
    return names


def _joined(conditions: Sequence[Condition]) -> str:
    words = " and ".join(condition.words for condition in conditions)
    return words if len(words) <= 200 else words[:197] + "..."
