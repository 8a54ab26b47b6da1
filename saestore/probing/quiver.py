"""A quiver of arrows: of the probes that compete for a task, choose one by validation AUC and report its test AUC.

Ties are common, above all where few rows train, and the mean over tasks depends on how they are broken as much as on
what is compared. Here, among equal validation AUC the earliest in a fixed order is chosen: logreg, pca, knn, xgboost,
mlp, then other methods without an SAE by name, then SAE probes by the SAE's name in natural order, k, method and view.
A probe without a validation AUC is chosen only where no probe of its task has one.

Validation AUC is optimistic, and not to the same degree for every method: scalers, PCA and the ranking of units see the
rows that validate. Where at most three rows train it is the AUC on the training rows themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from saestore._natural_order import natural

BASELINES = ("logreg", "pca", "knn", "xgboost", "mlp")
"""Methods without an SAE, in the order that breaks ties."""

CANDIDATE = ("method", "sae", "view", "k")
"""The columns of the tidy table that tell probes of one task apart."""

Order = tuple[bool, int, tuple[tuple[bool, int, str], ...], float, str, str]


def candidate_order(method: str, sae: str | None, view: str | None, k: float | None) -> Order:
    """Return the key of a probe in the order that breaks ties."""
    place = BASELINES.index(method) if method in BASELINES else len(BASELINES)
    return sae is not None, place, natural(sae or ""), k or 0, method, view or ""


def choose(frame: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Return of each group of rows the one with the highest validation AUC.

    Parameters
    ----------
    frame : pandas.DataFrame
        Rows of the tidy table (`saestore.probe_results.TABLE_COLUMNS`). Rows without a test AUC are no candidates.
    by : sequence of str
        Columns whose values make a group; what is missing in them is equal.

    Returns
    -------
    pandas.DataFrame
        One row of each group, in the order in which they are in `frame`.

    Examples
    --------
    >>> rows = {"dataset": ["a", "a"], "method": ["pca", "logreg"], "val_auc": [0.9, 0.9], "test_auc": [0.7, 0.8]}
    >>> frame = pd.DataFrame({**rows, "sae": None, "view": None, "k": None})
    >>> choose(frame, ["dataset"])["test_auc"].tolist()
    [0.8]
    """
    fitted = frame[frame["test_auc"].notna()]
    ranked = fitted.assign(
        _place=tie_places(fitted), _val=pd.to_numeric(fitted["val_auc"]), _row=range(len(fitted))
    ).sort_values(["_val", "_place"], ascending=[False, True], kind="stable", na_position="last")
    return ranked.drop_duplicates(list(by)).sort_values("_row").drop(columns=["_place", "_val", "_row"])


def tie_places(frame: pd.DataFrame) -> pd.Series[int]:
    """Return the place of each row's probe in the order that breaks ties, from 0."""
    number = frame.groupby(list(CANDIDATE), dropna=False, sort=False).ngroup()
    each = frame.loc[~number.duplicated(), list(CANDIDATE)]
    orders = [
        candidate_order(method, _given(sae), _given(view), _given(k))
        for method, sae, view, k in each.itertuples(index=False)
    ]
    places = {order: place for place, order in enumerate(sorted(orders))}
    return number.map({group: places[order] for group, order in enumerate(orders)}).astype("int64")


def _given(value: Any) -> Any:
    return None if pd.isna(value) else value
