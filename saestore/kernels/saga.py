"""Logistic regression with an L1 penalty by SAGA, for designs with many zeros and for several strengths at once.

For rows x_i, labels y_i in {0, 1} and beta = 1 / (C n) it minimises over weights w and the intercept b, which is not
penalised,

    (1 / n) sum_i log(1 + exp(-s_i (x_i . w + b)))  +  beta |w|_1,        s_i = 2 y_i - 1.

**Steps** (Defazio, Bach and Lacoste-Julien 2014, equations 1 and 2). The slope of row i is
r_i = sigmoid(x_i . w + b) - y_i and its gradient r_i x_i. The slope that a row had when last drawn is kept, and G is
the sum of these gradients; m is the number of rows drawn so far. A step draws row i, takes its new slope into G and
moves

    w <- w - gamma (r_i - kept r_i) (1 - 1 / m) x_i        towards row i,
    w <- S(w - (gamma / m) G, gamma beta)                  the drift of every weight,

where S(v, p) = v - min(max(v, -p), p) is soft thresholding; both together are the step of the paper, whose G is that
before the step. The intercept moves alike, as the weight of a column of ones, without S. Of the paper's step sizes
gamma = 1 / (2 L) is taken, with L = (max_i |x_i|^2 + 1) / 4, the bound on the curvature of a row. That m is not n as
long as some rows were not drawn is a rule of Schmidt, Le Roux and Bach (2017) for SAG. A fit ends after an epoch, n
steps, in which no weight changed by more than `tolerance` times the largest weight, or at the limit of epochs.

Step size, m and stopping rule are those of scikit-learn's solver "saga", and so is the order of rows: Marsaglia's
xorshift generator of 32 bits (2003, shifts 13, 17, 5), whose lower 31 bits modulo n are the row, from a seed that
numpy's legacy generator draws. So the steps are the same, and weights differ by rounding only.

**Two ways to take the same steps**; `l1_logistic` picks the quicker one.

Plain: every step reads all columns. What row i brings, the drift and the product with the next row are one pass over
the weights, eight columns at a time.

Delayed (the paper's section 4, "just-in-time"): a drift can wait until a row with a number in its column is drawn, so
that a step reads the columns of its row alone. Candidates of one grid draw the same rows, and up to eight of them go
side by side, each in a lane of a vector. With A the sum of gamma / m, and P that of gamma beta, over the steps that
waited, in exact arithmetic the weight v of column j becomes

    S(v - A G_j, P),

unless it is pulled across 0, which is v G_j > 0, A |G_j| > P and |v| < A |G_j| + P. For: m does not shrink, so that
|G_j| gamma / m is above gamma beta in the first steps or in none. A weight that G_j pulls away from 0, or not as far as
0, gets all steps in full; and where A |G_j| <= P a weight that came to 0 ends there. A weight pulled across shrinks on
the way to 0 and against the pull beyond; the step that crosses is found by bisection. That is rare, about once in 10^5
columns drawn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from saestore.kernels.lanes import bits, exp, fabs, lane, larger, load, of, smaller, store, total

MAX_EPOCHS = 1_000
TOLERANCE = 1e-4

_WIDTHS = (2, 4, 8)
_ZEROS = (0.0,) * _WIDTHS[-1]
# Numbers in a cache line.
_LINE = 8
# Nanoseconds as measured on a processor of 2022, of which only the ratios matter: a plain step of one lane and each of
# its columns; a delayed step, each number of its row, and what a lane adds to that.
_PLAIN_STEP, _PLAIN_COLUMN = 36, 0.21
_DELAYED_STEP, _DELAYED_NUMBER, _DELAYED_LANE = 30, 3, 0.3


@dataclass(frozen=True)
class Fits:
    """Logistic regressions, one for each candidate.

    coefficients : (c, d) float64
    intercepts : (c,) float64
    epochs : (c,) int64
        As many as the limit where a fit did not converge before.
    """

    coefficients: NDArray[np.float64]
    intercepts: NDArray[np.float64]
    epochs: NDArray[np.int64]


def l1_logistic(
    x: NDArray[np.float64],
    y: NDArray[np.integer[Any]],
    inverse_strengths: NDArray[np.float64],
    *,
    seed: int,
    max_epochs: int = MAX_EPOCHS,
    tolerance: float = TOLERANCE,
) -> Fits:
    """Fit logistic regressions with an L1 penalty, from weights 0; see the module.

    Parameters
    ----------
    x : (n, d) float64
        At least one row, finite.
    y : (n,) integers
        0 or 1.
    inverse_strengths : (c,) float64
        C of each candidate, above 0.
    seed : int
        Of the order of rows, which is the same for all candidates.
    max_epochs, tolerance : int, float
        See the module.

    Examples
    --------
    >>> import numpy as np
    >>> x, y = np.array([[0.0, 1.0], [0.0, 0.0], [2.0, 1.0], [3.0, 0.0]]), np.array([0, 0, 1, 1])
    >>> fits = l1_logistic(x, y, np.array([1.0, 0.1]), seed=42)
    >>> fits.coefficients.round(2).tolist(), fits.epochs.tolist()
    ([[1.06, 0.0], [0.0, 0.0]], [93, 1])
    """
    (n, d), c = x.shape, len(inverse_strengths)
    assert y.shape == (n,)
    fits = Fits(np.zeros((c, d)), np.zeros(c), np.zeros(c, np.int64))
    design = _Design(x, y.astype(np.float64))
    limits = max_epochs, tolerance
    for first in range(0, c, _WIDTHS[-1]):
        live = np.arange(first, min(first + _WIDTHS[-1], c))
        state = _State.start(n, d, len(live), seed)
        while len(live):
            shrinkage = design.step / (inverse_strengths[live] * n)
            if _plain_is_quicker(design, len(live)):
                ends = [_plain(design, state, place, shrinkage[place], *limits) for place in range(len(live))]
                done = np.ones(len(live), np.bool_)
            else:
                state, done = _delayed(design, state, shrinkage, *limits)
                ends = [state.epoch] * len(live)
            for place in np.flatnonzero(done):
                fits.coefficients[live[place]] = state.weights[:, 0, place]
                fits.intercepts[live[place]] = state.intercept[0, place]
                fits.epochs[live[place]] = ends[place]
            live, state = live[~done], state.of(np.flatnonzero(~done))
    return fits


class _Design:
    """Rows and labels, and what the ways to fit need of them."""

    def __init__(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
        self.x, self.y = x, y
        self.step = 2 / (float(np.einsum("ij,ij->i", x, x).max(initial=0)) + 1)
        self.numbers_per_row = np.count_nonzero(x) / len(x)

    @cached_property
    def sparse(self) -> tuple[NDArray[np.int64], NDArray[np.uint32], NDArray[np.float64]]:
        """Where each row begins, (n + 1,), and the columns and numbers that are not 0."""
        rows, columns = np.nonzero(self.x)
        return np.searchsorted(rows, np.arange(len(self.x) + 1)), columns.astype(np.uint32), self.x[rows, columns]

    @cached_property
    def padded(self) -> NDArray[np.float64]:
        """Rows with columns of zeros, up to whole vectors."""
        padded = _aligned(len(self.x), -(-self.x.shape[1] // len(_ZEROS)) * len(_ZEROS))
        padded[:, : self.x.shape[1]] = self.x
        return padded


@dataclass
class _State:
    """Where fits side by side stand after an epoch; lanes are the last axis.

    epoch : int
    random : (1,) uint32
        Of the generator of rows.
    drawn : (n,) uint8
        1 for rows that were drawn before.
    weights : (d, 2, lanes) float64
        w and G.
    previous : (d, lanes) float64
        w an epoch before.
    slopes : (n, lanes) float64
    intercept : (2, lanes) float64
        b and the sum of slopes.
    """

    epoch: int
    random: NDArray[np.uint32]
    drawn: NDArray[np.uint8]
    weights: NDArray[np.float64]
    previous: NDArray[np.float64]
    slopes: NDArray[np.float64]
    intercept: NDArray[np.float64]

    @classmethod
    def start(cls, n: int, d: int, lanes: int, seed: int) -> _State:
        random = np.random.RandomState(seed).randint(1, np.iinfo(np.int32).max, size=1).astype(np.uint32)
        zeros = np.zeros((d, 2, lanes)), np.zeros((d, lanes)), np.zeros((n, lanes)), np.zeros((2, lanes))
        return cls(0, random, np.zeros(n, np.uint8), *zeros)

    def of(self, lanes: NDArray[np.intp]) -> _State:
        """Return a copy with these lanes."""
        by_lane = (self.weights, self.previous, self.slopes, self.intercept)
        copies = [_aligned(*array.shape[:-1], len(lanes)) for array in by_lane]
        for copy, array in zip(copies, by_lane, strict=True):
            copy[...] = array[..., lanes]
        return _State(self.epoch, self.random.copy(), self.drawn.copy(), *copies)


def _aligned(*shape: int) -> NDArray[np.float64]:
    """Zeros whose vectors lie within one cache line each, which numpy does not see to."""
    buffer = np.zeros(math.prod(shape) + _LINE)
    first = -(buffer.ctypes.data // buffer.itemsize) % _LINE
    return buffer[first : first + math.prod(shape)].reshape(shape)


def _plain_is_quicker(design: _Design, lanes: int) -> bool:
    """Whether all lanes, one after the other, take fewer nanoseconds by plain steps than together by delayed ones."""
    plain = lanes * (_PLAIN_STEP + _PLAIN_COLUMN * design.x.shape[1])
    delayed = _DELAYED_STEP + (_DELAYED_NUMBER + _DELAYED_LANE * lanes) * design.numbers_per_row
    return bool(plain < delayed)


def _delayed(
    design: _Design, state: _State, shrinkage: NDArray[np.float64], max_epochs: int, tolerance: float
) -> tuple[_State, NDArray[np.bool_]]:
    """Take delayed steps until a lane is done; returns where the lanes stand then, and which are done."""
    lanes = len(shrinkage)
    width = next(width for width in _WIDTHS if width >= lanes)
    at = np.minimum(np.arange(width), lanes - 1)  # lanes to spare repeat the last one
    wide = state.of(at)
    done = np.zeros(width, np.bool_)
    starts, columns, values = design.sparse
    epoch: int = _run_delayed(
        starts,
        columns,
        values,
        design.y,
        design.step,
        tuple(shrinkage[at].tolist()),
        state.epoch,
        max_epochs,
        tolerance,
        wide.random,
        wide.drawn,
        wide.weights.ravel(),
        wide.previous.ravel(),
        wide.slopes.ravel(),
        wide.intercept.ravel(),
        done,
    )
    wide.epoch = epoch
    return wide.of(np.arange(lanes)), done[:lanes] | (epoch >= max_epochs)


def _plain(design: _Design, state: _State, place: int, shrinkage: float, max_epochs: int, tolerance: float) -> int:
    """Take plain steps with one lane until it is done; returns the epoch."""
    rows, one = design.padded, state.of(np.array([place]))
    d = state.previous.shape[0]
    weights = _aligned(3, rows.shape[1])
    weights[:2, :d], weights[2, :d] = one.weights[:, :, 0].T, one.previous[:, 0]
    epoch: int = _run_plain(
        rows.ravel(),
        design.y,
        design.step,
        shrinkage,
        state.epoch,
        max_epochs,
        tolerance,
        one.random,
        one.drawn,
        weights[0],
        weights[1],
        weights[2],
        one.slopes[:, 0],
        one.intercept[:, 0],
    )
    state.weights[:, 0, place], state.intercept[0, place] = weights[0, :d], one.intercept[0, 0]
    return epoch


@numba.njit(inline="always")
def _next(random: Any) -> Any:
    random = np.uint32(random ^ np.uint32(random << np.uint32(13)))
    random = np.uint32(random ^ np.uint32(random >> np.uint32(17)))
    return np.uint32(random ^ np.uint32(random << np.uint32(5)))


@numba.njit(inline="always")
def _row(random: Any, n: Any) -> Any:
    return np.int64(np.uint32(random & np.uint32(0x7FFFFFFF)) % np.uint32(n))


@numba.njit(inline="always")
def _slope(y: Any, product: Any) -> Any:
    # No 1 is taken from a number near 1, so that small slopes are exact to rounding.
    inverse_odds = exp(0.0 - product)
    return (0.0 - inverse_odds if y > 0.5 else inverse_odds * 0.0 + 1.0) / (inverse_odds + 1.0)


@numba.njit(inline="always")
def _shrunk(v: Any, shrinkage: Any) -> Any:
    return v - smaller(larger(v, 0.0 - shrinkage), shrinkage)


@numba.njit(inline="always")
def _has_converged(change: Any, largest: Any, tolerance: Any) -> Any:
    return change <= tolerance * largest if largest > 0 else change == 0


@numba.njit(inline="always")
def _drifted(w: Any, gradient: Any, drift: Any, shrinkage: Any) -> Any:
    """The weights after the steps that waited, and those of them, as bits, that were pulled across 0 and are wrong."""
    pull = gradient * drift
    strength = fabs(pull)
    crossed = (strength > shrinkage) & (w * gradient > 0.0) & (fabs(w) - strength < shrinkage)
    return _shrunk(w - pull, shrinkage), bits(crossed)


@numba.njit(nogil=True, cache=True)
def _across(w: Any, gradient: Any, shrinkage: Any, drifts: Any, start: Any, now: Any) -> Any:
    """A weight pulled across 0 by steps ``start`` to ``now``; step t has the drift drifts[t + 1] - drifts[t]."""
    sign = 1.0 if gradient > 0 else -1.0
    v, pull = w * sign, gradient * sign
    before, after = start, now  # above 0, and not
    while after - before > 1:
        middle = (before + after) >> 1
        if v < (drifts[middle] - drifts[start]) * pull + (middle - start) * shrinkage:
            after = middle
        else:
            before = middle
    v -= (drifts[before] - drifts[start]) * pull + (before - start) * shrinkage
    v = min(0.0, v - (drifts[after] - drifts[before]) * pull + shrinkage)
    return sign * min(0.0, v - (drifts[now] - drifts[after]) * pull + (now - after) * shrinkage)


@numba.njit(nogil=True, cache=True)
def _repair(weights: Any, at: Any, w: Any, crossed: Any, shrinkage: Any, drifts: Any, start: Any, now: Any) -> None:
    for place in range(len(shrinkage)):
        if (crossed >> np.uint64(place)) & np.uint64(1):
            gradient = weights[at + len(shrinkage) + place]
            weights[at + place] = _across(lane(w, place), gradient, shrinkage[place], drifts, start, now)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _run_delayed(
    starts: Any,
    columns: Any,
    values: Any,
    y: Any,
    step: Any,
    shrinkages: Any,
    epoch: Any,
    max_epochs: Any,
    tolerance: Any,
    random_state: Any,
    drawn: Any,
    weights: Any,
    previous: Any,
    slopes: Any,
    intercept: Any,
    done: Any,
) -> Any:
    n, width = len(y), len(shrinkages)
    d = len(previous) // width
    shrinkage = of(shrinkages)
    random, n_drawn = random_state[0], 0
    for row in range(n):
        n_drawn += drawn[row]
    b, slope_sum = load(intercept, 0, shrinkage), load(intercept, width, shrinkage)
    drifts = np.zeros(n + 1)  # those of the epoch's steps, summed up to each
    settled = np.zeros(d, np.uint32)  # by column: how many of the steps its weight has drifted with
    any_done = False
    while epoch < max_epochs and not any_done:
        epoch += 1
        for t in range(n):
            random = _next(random)
            row = _row(random, n)
            if drawn[row] == 0:
                drawn[row] = 1
                n_drawn += 1
            product = b
            # Unsigned, so that no place counts from the end of an array.
            first, end = np.uint64(starts[row]), np.uint64(starts[row + 1])
            now = drifts[t]
            for place in range(first, end):
                column = columns[place]
                start = settled[column]
                settled[column] = t
                at = column * 2 * width
                before = load(weights, at, shrinkage)
                gradient = load(weights, at + width, shrinkage)
                waited = np.float64(t - np.int64(start))
                w, crossed = _drifted(before, gradient, now - drifts[start], shrinkage * waited)
                store(weights, at, w)
                if crossed != 0:
                    _repair(weights, at, before, crossed, shrinkages, drifts, start, t)
                    w = load(weights, at, shrinkage)
                product = product + w * values[place]
            slope = _slope(y[row], product)
            change = slope - load(slopes, row * width, shrinkage)
            store(slopes, row * width, slope)
            towards = change * (step * (1 - 1.0 / n_drawn))
            for place in range(first, end):
                at = columns[place] * 2 * width
                value = values[place]
                store(weights, at, load(weights, at, shrinkage) - towards * value)
                store(weights, at + width, load(weights, at + width, shrinkage) + change * value)
            drift = step / n_drawn
            slope_sum = slope_sum + change
            b = b - (slope_sum * drift + towards)
            drifts[t + 1] = now + drift
        largest, largest_change = shrinkage * 0.0, shrinkage * 0.0
        for column in range(d):
            start = settled[column]
            settled[column] = 0
            at = column * 2 * width
            before = load(weights, at, shrinkage)
            gradient = load(weights, at + width, shrinkage)
            waited = np.float64(n - np.int64(start))
            w, crossed = _drifted(before, gradient, drifts[n] - drifts[start], shrinkage * waited)
            store(weights, at, w)
            if crossed != 0:
                _repair(weights, at, before, crossed, shrinkages, drifts, start, n)
                w = load(weights, at, shrinkage)
            largest = larger(fabs(w), largest)
            largest_change = larger(fabs(w - load(previous, column * width, shrinkage)), largest_change)
            store(previous, column * width, w)
        for place in range(width):
            done[place] = _has_converged(lane(largest_change, place), lane(largest, place), tolerance)
            any_done |= done[place]
    random_state[0] = random
    store(intercept, 0, b)
    store(intercept, width, slope_sum)
    return epoch


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _run_plain(
    rows: Any,
    y: Any,
    step: Any,
    shrinkage: Any,
    epoch: Any,
    max_epochs: Any,
    tolerance: Any,
    random_state: Any,
    drawn: Any,
    weights: Any,
    gradients: Any,
    previous: Any,
    slopes: Any,
    intercept: Any,
) -> Any:
    n, d = len(y), len(weights)
    zeros = of(_ZEROS)
    width = len(_ZEROS)
    random, n_drawn = random_state[0], 0
    for row in range(n):
        n_drawn += drawn[row]
    b, slope_sum = intercept[0], intercept[1]
    row = 0
    has_converged = False
    while epoch < max_epochs and not has_converged:
        epoch += 1
        change = towards = drift = shrink = 0.0  # of the step before, which the pass over the weights takes along
        for _ in range(n):
            old = row * d
            random = _next(random)
            row = _row(random, n)
            if drawn[row] == 0:
                drawn[row] = 1
                n_drawn += 1
            new = row * d
            products = zeros
            for at in range(0, d, width):
                x = load(rows, old + at, zeros)
                gradient = load(gradients, at, zeros) + x * change
                w = load(weights, at, zeros) - x * towards
                w = _shrunk(w - gradient * drift, zeros + shrink)
                store(gradients, at, gradient)
                store(weights, at, w)
                products = products + w * load(rows, new + at, zeros)
            slope = lane(_slope(y[row], zeros + (total(products) + b)), 0)
            change = slope - slopes[row]
            slopes[row] = slope
            towards = change * (step * (1 - 1.0 / n_drawn))
            drift = step / n_drawn
            shrink = shrinkage
            slope_sum += change
            b -= slope_sum * drift + towards
        largest, largest_change = zeros, zeros
        for at in range(0, d, width):
            x = load(rows, row * d + at, zeros)
            gradient = load(gradients, at, zeros) + x * change
            w = load(weights, at, zeros) - x * towards
            w = _shrunk(w - gradient * drift, zeros + shrink)
            store(gradients, at, gradient)
            store(weights, at, w)
            largest = larger(fabs(w), largest)
            largest_change = larger(fabs(w - load(previous, at, zeros)), largest_change)
            store(previous, at, w)
        widest, widest_change = 0.0, 0.0
        for place in range(width):
            widest = max(widest, lane(largest, place))
            widest_change = max(widest_change, lane(largest_change, place))
        has_converged = _has_converged(widest_change, widest, tolerance)
    random_state[0] = random
    intercept[0], intercept[1] = b, slope_sum
    return epoch
