"""The quiver against a search through every group in plain Python."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saestore._natural_order import natural
from saestore.probing.quiver import candidate_order, choose, tie_places

BASELINES = ["logreg", "pca", "knn", "xgboost", "mlp"]
SAES = ["s2", "s10", "S2", "s2b"]
IN_ORDER = [
    *((name, None, None) for name in BASELINES),
    ("attention", None, None),
    ("concat", None, None),
    *(("sae-l1", "S2", k) for k in (1, 16, 128)),
    *(("sae-l1", "s2", k) for k in (1, 16, 128)),
    *(("sae-l1", "s2b", k) for k in (1, 16, 128)),
    *(("sae-l1", "s10", k) for k in (1, 16, 128)),
]
"""Every probe of these tests, in the order that the module promises."""


def brute_force(rows: list[dict[str, Any]]) -> dict[Any, int]:
    """The number of the chosen row of each group: the first, in the order of ties, of the highest validation AUC."""
    chosen: dict[Any, int] = {}
    for group in {(row["dataset"], row["cell"]) for row in rows}:
        mine = [
            n for n, row in enumerate(rows) if (row["dataset"], row["cell"]) == group and row["test_auc"] is not None
        ]
        validated = [n for n in mine if rows[n]["val_auc"] is not None]
        if validated:
            best = max(rows[n]["val_auc"] for n in validated)
            validated = [n for n in validated if rows[n]["val_auc"] == best]
        for probe in IN_ORDER:
            found = [n for n in validated or mine if (rows[n]["method"], rows[n]["sae"], rows[n]["k"]) == probe]
            if found:
                chosen[group] = found[0]
                break
    return chosen


@st.composite
def tables(draw: st.DrawFn) -> list[dict[str, Any]]:
    auc = st.sampled_from([None, 0.5, 0.75, 1.0])
    rows = [
        {"dataset": dataset, "cell": cell, "method": method, "sae": sae, "k": k, "view": None}
        | {"val_auc": draw(auc), "test_auc": draw(auc)}
        for dataset, cell in itertools.product(["a", "b"], [0.1, None])
        for method, sae, k in draw(st.lists(st.sampled_from(IN_ORDER), unique=True, max_size=7))
    ]
    return draw(st.permutations(rows))


@given(tables())
def test_the_quiver_is_a_search_through_every_group(rows: list[dict[str, Any]]) -> None:
    columns = ["dataset", "cell", "method", "sae", "k", "view", "val_auc", "test_auc"]
    frame = pd.DataFrame(rows, columns=columns)
    for name in ("k", "val_auc", "test_auc"):
        frame[name] = frame[name].astype("float64")
    found = choose(frame.assign(number=range(len(frame))), ["dataset", "cell"])
    assert sorted(found["number"]) == sorted(brute_force(rows).values())
    assert list(found["number"]) == sorted(found["number"])
    assert list(found.columns) == [*columns, "number"]


def test_ties_are_broken_in_the_documented_order() -> None:
    frame = pd.DataFrame(IN_ORDER, columns=["method", "sae", "k"]).assign(view=None, dataset="d", val_auc=0.5)
    frame["test_auc"] = np.linspace(0, 1, len(frame))
    for start in range(len(frame)):
        of = frame.iloc[start:].sample(frac=1, random_state=start)
        assert choose(of, ["dataset"]).index.tolist() == [start]
    assert tie_places(frame).tolist() == list(range(len(frame)))
    shuffled = frame.sample(frac=1, random_state=3)
    assert tie_places(shuffled).tolist() == shuffled.index.tolist()


def test_a_probe_that_was_not_validated_is_the_last_resort() -> None:
    def frame(vals: list[float | None]) -> pd.DataFrame:
        rows = {"dataset": "d", "method": ["logreg", "pca"], "sae": None, "k": None, "view": None}
        return pd.DataFrame({**rows, "val_auc": vals, "test_auc": [0.9, 0.1]})

    assert choose(frame([None, 0.0]), ["dataset"])["method"].tolist() == ["pca"]
    assert choose(frame([None, None]), ["dataset"])["method"].tolist() == ["logreg"]
    assert choose(frame([math.nan, 0.2]).assign(test_auc=[0.9, math.nan]), ["dataset"])["method"].tolist() == ["logreg"]


@pytest.mark.parametrize(
    "names", [["5_x", "41_x", "113_x"], ["layer_2", "layer_10"], ["1", "2", "10", "a"], ["w-l0_9", "w-l0_10"]]
)
def test_numbers_in_names_are_sorted_by_size(names: list[str]) -> None:
    assert sorted(reversed(names), key=natural) == names


def test_penalties_and_views_of_one_sae_have_an_order_too() -> None:
    first = candidate_order("sae-l1", "s", None, 16)
    assert first < candidate_order("sae-l1", "s", "v", 16) < candidate_order("sae-l2", "s", None, 16)
    assert candidate_order("sae-l2", "s", "v", 16) < candidate_order("sae-l1", "s", None, 128)
