"""Splits for samples that come without: drawn once, by what the samples are, so that they never move."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import replace

from saestore.errors import InputError
from saestore.samples import SPLITS, SampleTable


def with_splits(table: SampleTable, parts: Mapping[str, float]) -> SampleTable:
    """Give each sample a split.

    The number u = sha256(s)[:8] / 2^64 in [0, 1) decides, where s is the text, or the id of an image: the split is the
    first, in the order train, cal, test, with which the parts add up to more than u. So samples keep their splits when
    others are added or left out, and samples of the same text have the same one.

    Parameters
    ----------
    table : SampleTable
        Without splits.
    parts : mapping of str to float
        Of `train`, `cal` and `test`, which add up to 1.

    Raises
    ------
    InputError
        The table has splits, or texts that are not there; parts that are none.

    Examples
    --------
    >>> table = SampleTable(ids=("a", "b", "c"), kind="text", contents=("One.", "Snow.", "Two."))
    >>> with_splits(table, {"train": 0.5, "test": 0.5}).split
    ('train', 'test', 'train')
    """
    unknown = [name for name in parts if name not in SPLITS]
    shares = {name: parts[name] for name in SPLITS if name in parts}
    if unknown:
        raise InputError(f"split {unknown[0]!r} is unknown; choose from {', '.join(SPLITS)}")
    total = math.fsum(shares.values())
    if not all(0 <= share <= 1 for share in shares.values()) or not math.isclose(total, 1):
        given = " ".join(f"{name}={share:g}" for name, share in shares.items()) or "nothing"
        raise InputError(f"the parts {given} do not add up to 1; give them like train=0.6 cal=0.2 test=0.2")
    if any(table.split):
        raise InputError("the table has splits already; leave the parts out, or remove its column")
    if table.kind == "text" and not any(table.contents):
        raise InputError("the texts are not there, and texts decide the splits; give the table a column of splits")
    drawn = table.contents if table.kind == "text" else table.ids
    return replace(table, split=[_split_of(content, shares) for content in drawn])


def _split_of(content: str, shares: Mapping[str, float]) -> str:
    place = int.from_bytes(hashlib.sha256(content.encode()).digest()[:8], "big") / 2**64
    end = 0.0
    for name, share in shares.items():
        end += share
        if place < end:
            return name
    return [name for name, share in shares.items() if share][-1]  # what rounding leaves of the end
