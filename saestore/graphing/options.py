"""How a graph is made: which pairs are kept."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from saestore.errors import InputError

MOST_EDGES = 10_000_000


@dataclass(frozen=True)
class GraphOptions:
    """Which pairs are kept.

    min_r : least absolute correlation
    min_support : least rows where both units are active, or where chance would have both so, whichever is more
    max_base_rate : units that are active in a larger part of the rows are left out, and listed as always on
    top : how many of its strongest edges count for a unit; an edge stays that counts for either of its units. None: all
    max_q : largest q-value; 1 keeps every pair
    max_edges : more are refused, before the work where a sample of the units predicts it
    null : make the graph once more with rows of one end of each pair in random order, and count what is found
    seed : of that order, and of the sample
    """

    min_r: float = 0.3
    min_support: int = 5
    max_base_rate: float = 0.9
    top: int | None = None
    max_q: float = 1.0
    max_edges: int = MOST_EDGES
    null: bool = False
    seed: int = 42

    def __post_init__(self) -> None:
        for name in ("min_r", "max_base_rate", "max_q"):
            value = getattr(self, name)
            if not (math.isfinite(value) and 0 < value <= 1):
                raise InputError(f"{name.replace('_', ' ')} {value} is out of range; give a number above 0, up to 1")
        for name, least in (("min_support", 0), ("max_edges", 1), ("top", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name.replace('_', ' ')} {value} is out of range; give {least} or more")

    @property
    def identity(self) -> dict[str, Any]:
        """What determines the graph, as JSON values; how many edges are too many does not."""
        return {name: value for name, value in asdict(self).items() if name != "max_edges"}
