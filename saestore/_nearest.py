"""What a name that does not exist may have been meant to be."""

from __future__ import annotations

import bisect
import difflib
import itertools
from collections.abc import Sequence

# Comparing two names takes some 10 microseconds.
_COMPARED = 5_000
_SHOWN = 8


def nearest(name: str, known: Sequence[str], what: str) -> str:
    """Return the end of an error message: how many names there are, and those nearest to an unknown one.

    Parameters
    ----------
    name : str
        What was asked for.
    known : sequence of str
        What there is.
    what : str
        What the names are, in the plural.
    """
    close = difflib.get_close_matches(name[:200], _candidates(name, known), n=3, cutoff=0.5)
    if close:
        return f"nearest of {len(known):,} {what}: {', '.join(map(repr, close))}"
    if len(known) <= _SHOWN:
        return f"its {len(known)} {what}: {', '.join(map(repr, known))}" if known else f"it has no {what}"
    return f"it has {len(known):,} {what}, the first {', '.join(map(repr, known[:3]))}"


def _candidates(name: str, known: Sequence[str]) -> Sequence[str]:
    """Return the names to compare: of very many, those that begin as the given one does."""
    if len(known) <= _COMPARED:
        return known
    # A beginning that some name has is one whose every shorter one some name has.
    lengths = range(1, min(len(name), 200) + 1)
    shared = bisect.bisect_left(lengths, True, key=lambda length: not _beginning(name[:length], known, 1))
    return _beginning(name[:shared], known, _COMPARED) if shared else ()


def _beginning(prefix: str, known: Sequence[str], most: int) -> list[str]:
    return list(itertools.islice((one for one in known if one.startswith(prefix)), most))
