"""Order statistics of values in groups: exact percentiles of many small lists, and of one too long to be held.

Lists are of keys, numbers of 16 or 32 bits, so that short lists are sorted by digits and long ones are counted. A
percentile is a value of the list: the smallest that at least this part of the list does not exceed, numpy's method
`inverted_cdf`. Level 0 is the minimum, level 1 the maximum.

A word is a key above the two bits of its group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

GROUP_BITS = 2
MAX_GROUPS = 1 << GROUP_BITS

_SHORT = 24  # words that are sorted by insertion
_BINS = 1 << 18
_HALF = 16  # bits of a key that are counted at once


def word_dtype(values: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype of words of stored values."""
    return np.dtype(np.uint32 if values.itemsize == 2 else np.uint64)


def select_short(
    words: NDArray[Any],
    edges: NDArray[np.int64],
    ends: NDArray[np.int64],
    counts: NDArray[np.int64],
    levels: NDArray[np.float64],
) -> NDArray[np.int64]:
    """Return the keys of order statistics of many lists.

    Parameters
    ----------
    words : (e,) uint32 or uint64
        List i is `words[edges[i]:ends[i]]`; sorted in place.
    counts : (m, g) int64
        Words of each group in each list.
    levels : (p,) float64
        Ascending, between 0 and 1.

    Returns
    -------
    (m, g + 1, p) int64
        Of each group, then of all; they mean nothing where there is no word.
    """
    m, groups = counts.shape
    found = np.zeros((m, groups + 1, len(levels)), dtype=np.int64)
    longest = int((ends - edges[: len(ends)]).max(initial=0))
    _select(words, edges, ends, counts, levels, np.empty(longest, dtype=words.dtype), found)
    return found


def select_long(
    pieces: Callable[[], Iterable[NDArray[Any]]], counts: NDArray[np.int64], levels: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Return the keys of order statistics of one list that comes in pieces; see `select_short`.

    Parameters
    ----------
    pieces : callable
        Gives the words; called a second time where a key has 32 bits.
    counts : (g,) int64
        Words of each group; read when all pieces have gone by.

    Returns
    -------
    (g + 1, p) int64
    """
    groups = len(counts)
    bins = np.zeros((groups, 1 << _HALF), dtype=np.int64)
    low_bits = 0
    for words in pieces():
        low_bits = 0 if words.dtype == np.uint32 else _HALF
        _count(words, low_bits, bins)
    found, below = (np.zeros((groups + 1, len(levels)), dtype=np.int64) for _ in range(2))
    _locate(bins, counts, levels, found, below)
    if not low_bits:
        return found
    # Which upper halves of keys hold what is looked for is known now: of these the lower halves are counted.
    place = np.full((groups + 1, 1 << _HALF), -1, dtype=np.int16)
    held = np.flatnonzero(np.append(counts, counts.sum()))
    wanted = [(group, half) for group in held for half in np.unique(found[group])]
    for slot, (group, half) in enumerate(wanted):
        place[group, half] = slot
    fine = np.zeros((len(wanted), 1 << _HALF), dtype=np.int64)
    for words in pieces():
        _count_fine(words, place, fine)
    for slot, (group, half) in enumerate(wanted):
        seen = np.cumsum(fine[slot])
        here = found[group] == half
        found[group, here] = half << _HALF | np.searchsorted(seen, below[group, here], side="right")
    return found


@numba.njit(nogil=True, inline="always")
def _rank(count: int, level: float) -> int:
    # The product is rounded as numpy rounds it.
    return max(0, math.ceil(count * level - 1.0))


@numba.njit(nogil=True, cache=True)
def _select(words: Any, edges: Any, ends: Any, counts: Any, levels: Any, spare: Any, found: Any) -> None:
    groups = counts.shape[1]
    digits = np.empty(1 << 11, dtype=np.int64)
    bins = np.empty(_BINS, dtype=np.int32)
    for i in range(len(ends)):
        held = words[edges[i] : ends[i]]
        n = len(held)
        if n == 0:
            continue
        least, most = held[0], held[0]
        for j in range(n):
            least = min(least, held[j])
            most = max(most, held[j])
        low = np.int64(least) >> GROUP_BITS
        span = (np.int64(most) >> GROUP_BITS) - low + 1
        if n > _SHORT and span * groups <= min(n, _BINS):
            _select_counted(held, low, span, counts[i], levels, bins[: span * groups].reshape(groups, span), found[i])
            continue
        other = spare[:n]
        if n <= _SHORT:
            _insertion_sort(held)
        elif _radix_sort(held, other, low, span, digits):
            held, other = other, held
        for p in range(len(levels)):
            found[i, groups, p] = np.int64(held[_rank(n, levels[p])]) >> GROUP_BITS
        _split(held, other, counts[i])
        first = 0
        for g in range(groups):
            count = counts[i, g]
            if count:
                for p in range(len(levels)):
                    found[i, g, p] = np.int64(other[first + _rank(count, levels[p])]) >> GROUP_BITS
            first += count


@numba.njit(nogil=True, cache=True)
def _insertion_sort(words: Any) -> None:
    for j in range(1, len(words)):
        word = words[j]
        place = j
        while place > 0 and words[place - 1] > word:
            words[place] = words[place - 1]
            place -= 1
        words[place] = word


@numba.njit(nogil=True, cache=True)
def _radix_sort(words: Any, other: Any, low: Any, span: Any, digits: Any) -> bool:
    """Sort by key, whatever the group; return whether the sorted words are in `other`."""
    n = len(words)
    bits = 0
    while (span - 1) >> bits:
        bits += 1
    widest = 8 if n < 4096 else 11
    passes = (bits + widest - 1) // widest
    width = (bits + passes - 1) // passes if passes else 0
    mask = (1 << width) - 1
    source, target = words, other
    for number in range(passes):
        shift = number * width
        digits[: mask + 1] = 0
        for j in range(n):
            digits[(((np.int64(source[j]) >> GROUP_BITS) - low) >> shift) & mask] += 1
        before = np.int64(0)
        for digit in range(mask + 1):
            before += digits[digit]
            digits[digit] = before - digits[digit]
        for j in range(n):
            word = source[j]
            place = (((np.int64(word) >> GROUP_BITS) - low) >> shift) & mask
            target[digits[place]] = word
            digits[place] += 1
        source, target = target, source
    return passes % 2 == 1


@numba.njit(nogil=True, cache=True)
def _split(words: Any, other: Any, counts: Any) -> None:
    """Put the words of each group together, in the order that they have."""
    places = np.zeros(MAX_GROUPS, dtype=np.int64)
    for g in range(1, len(counts)):
        places[g] = places[g - 1] + counts[g - 1]
    for j in range(len(words)):
        word = words[j]
        group = np.int64(word) & (MAX_GROUPS - 1)
        other[places[group]] = word
        places[group] += 1


@numba.njit(nogil=True, cache=True)
def _select_counted(words: Any, low: Any, span: Any, counts: Any, levels: Any, bins: Any, found: Any) -> None:
    bins[:] = 0
    for j in range(len(words)):
        word = np.int64(words[j])
        bins[word & (MAX_GROUPS - 1), (word >> GROUP_BITS) - low] += 1
    _locate(bins, counts, levels, found, np.empty_like(found))
    found += low


@numba.njit(nogil=True, cache=True)
def _locate(bins: Any, counts: Any, levels: Any, found: Any, below: Any) -> None:
    """Find the bin of each order statistic, of each group and of all, and how many of the bin precede it."""
    groups = len(bins)
    for g in range(groups + 1):
        count = counts.sum() if g == groups else counts[g]
        p = place = 0
        seen = np.int64(0)
        while count and p < len(levels):
            rank = _rank(count, levels[p])
            while True:
                here = bins[:, place].sum() if g == groups else np.int64(bins[g, place])
                if rank < seen + here:
                    break
                seen += here
                place += 1
            found[g, p] = place
            below[g, p] = rank - seen
            p += 1


@numba.njit(nogil=True, cache=True)
def _count(words: Any, low_bits: int, bins: Any) -> None:
    for j in range(len(words)):
        word = np.int64(words[j])
        bins[word & (MAX_GROUPS - 1), word >> (GROUP_BITS + low_bits)] += 1


@numba.njit(nogil=True, cache=True)
def _count_fine(words: Any, place: Any, fine: Any) -> None:
    for j in range(len(words)):
        word = np.int64(words[j])
        key = word >> GROUP_BITS
        for group in (word & (MAX_GROUPS - 1), len(place) - 1):
            slot = place[group, key >> _HALF]
            if slot >= 0:
                fine[slot, key & ((1 << _HALF) - 1)] += 1
