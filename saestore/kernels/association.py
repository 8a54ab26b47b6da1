"""How strongly two units go together, from counts of rows and from r: information, lift, overlap and significance.

All of n rows, of which a unit a is active in n_a, a unit b in n_b, and both in n_ab. Pure numpy; counts and r may be
arrays of any shapes that broadcast.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

_ERFC = np.frompyfunc(math.erfc, 1, 1)


def mutual_information(n: int, n_a: ArrayLike, n_b: ArrayLike, n_ab: ArrayLike) -> NDArray[np.float64]:
    """Return the mutual information of the firing of two units, in bits.

    Of the four cells of active and not, with 0 log 0 = 0: sum of p(x, y) log2(p(x, y) / (p(x) p(y))). Never negative.

    References
    ----------
    Shannon (1948), "A mathematical theory of communication".
    """
    n_a, n_b, n_ab = (np.asarray(each, dtype=np.float64) for each in (n_a, n_b, n_ab))
    cells = [
        (n_ab, n_a, n_b),
        (n_a - n_ab, n_a, n - n_b),
        (n_b - n_ab, n - n_a, n_b),
        (n - n_a - n_b + n_ab, n - n_a, n - n_b),
    ]
    total = np.zeros(np.broadcast_shapes(n_a.shape, n_b.shape, n_ab.shape))
    for joint, first, second in cells:
        # One logarithm of a quotient of counts: it is exactly 0 where the two are independent.
        chance = np.where((joint > 0) & (first * second > 0), first * second, 1.0)
        total += joint * np.log2(np.where(joint > 0, joint, 1.0) * n / chance)
    return np.maximum(total / n, 0.0)


def lift(n: int, n_a: ArrayLike, n_b: ArrayLike, n_ab: ArrayLike) -> NDArray[np.float64]:
    """Return how many times as often as by chance two units are active together: n_ab n / (n_a n_b).

    Its logarithm is the pointwise mutual information. 0 where a unit is never active.

    References
    ----------
    Church and Hanks (1990), "Word association norms, mutual information, and lexicography", Computational Linguistics
    16(1).
    """
    n_a, n_b, n_ab = (np.asarray(each, dtype=np.float64) for each in (n_a, n_b, n_ab))
    return _quotient(n_ab * n, n_a * n_b)


def jaccard(n_a: ArrayLike, n_b: ArrayLike, n_ab: ArrayLike) -> NDArray[np.float64]:
    """Return the part of the rows with either unit that have both: n_ab / (n_a + n_b - n_ab), 0 where there are none.

    References
    ----------
    Jaccard (1912), "The distribution of the flora in the alpine zone", New Phytologist 11(2).
    """
    n_a, n_b, n_ab = (np.asarray(each, dtype=np.float64) for each in (n_a, n_b, n_ab))
    return _quotient(n_ab, n_a + n_b - n_ab)


def fisher_p(r: ArrayLike, n: int) -> NDArray[np.float64]:
    """Return the two-sided p-values of correlations over n rows: 0 where |r| is 1, or too small for float64.

    atanh(r) sqrt(n - 3) is taken as standard normal if the two are not correlated. Rows are taken as independent and
    the two as normal; codes are neither, which a shuffled null shows better.

    Raises
    ------
    ValueError
        There are fewer than 4 rows.

    References
    ----------
    Fisher (1921), "On the 'probable error' of a coefficient of correlation deduced from a small sample", Metron 1.
    """
    if n < 4:
        raise ValueError(f"{n} rows have no p-value: at least 4 are needed")
    size = np.abs(np.asarray(r, dtype=np.float64))
    z = np.arctanh(np.where(size < 1, size, 0.0)) * math.sqrt(n - 3)
    return np.where(size < 1, _erfc(z / math.sqrt(2)), 0.0)


def benjamini_hochberg(p: NDArray[np.float64], tests: int) -> NDArray[np.float64]:
    """Return the q-values of the known p-values of so many tests.

    q_i = min over j >= i of p_(j) tests / j, at most 1, for p_(1) <= p_(2) <= ... The minimum is over the known ones:
    p-values that were left out, all of them larger, could only lower it. So q is never too small, and is exact where
    nothing was left out.

    Parameters
    ----------
    p : (m,) float64
        In any order.
    tests : int
        All tests made, of which these have the smallest p-values.

    Returns
    -------
    (m,) float64
        In the order of `p`.

    Raises
    ------
    ValueError
        There are more p-values than tests.

    References
    ----------
    Benjamini and Hochberg (1995), "Controlling the false discovery rate", Journal of the Royal Statistical Society B
    57(1).
    """
    if len(p) > tests:
        raise ValueError(f"{len(p)} p-values are more than {tests} tests")
    order = np.argsort(p, kind="stable")
    raw = p[order] * (tests / np.arange(1, len(p) + 1))
    q = np.empty(len(p))
    q[order] = np.minimum(np.minimum.accumulate(raw[::-1])[::-1], 1.0)
    return q


def _quotient(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    shape = np.broadcast_shapes(above.shape, below.shape)
    return np.divide(above, below, out=np.zeros(shape), where=below > 0)


def _erfc(x: NDArray[np.float64]) -> NDArray[Any]:
    return np.asarray(_ERFC(x), dtype=np.float64)
