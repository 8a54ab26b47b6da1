"""The result tables that the benchmark's authors published, read into the tidy table of results in a lake.

Whatever exists of these is read, in or below a folder, with `m` the name of a model and `L` a layer:

```text
baseline_probes_m/normal_settings/layerL_results.csv
baseline_probes_m/{scarcity,scarcity/summary,imbalance,corrupt,ood}/all_results.csv
sae_probes_m/{normal,scarcity,class_imbalance,label_noise,OOD,ood}_setting/all_metrics.csv
```
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from saestore.errors import InputError, MissingError
from saestore.lake import layer_name
from saestore.probe_results import TABLE_COLUMNS

NAME = "published"
"""The name that published results have in the table."""

_METRICS = ("test_f1", "test_acc", "test_auc", "val_auc")
_MODEL_LAYERS = {"gemma-2-9b": "layer_20", "llama-3.1-8b": "layer_16", "gemma-2-2b": "layer_12"}
"""The layer of tables without one: that whose SAEs were probed in all settings."""

_OOD_SAES = {"gemma-2-9b": "width_131k-average_l0_114"}
_OOD_K = 128
"""What the column of an SAE probe in the baselines' table out of distribution was made with, which it does not say."""

_INDEX = re.compile(r"Unnamed: \d+|index")
_FRACTION_DIGITS = 6
_SAME = 1e-5


@dataclass(frozen=True)
class _Table:
    """A kind of table.

    needed : columns that it must have
    known : columns that it may have
    fraction, metrics : which of them hold the fraction and the figures
    """

    setting: str
    needed: tuple[str, ...]
    known: tuple[str, ...] = ()
    fraction: str | None = None
    metrics: tuple[str, ...] = _METRICS


_METHOD = ("dataset", "method", *_METRICS)
_SAE = ("dataset", "layer", "sae_id", "reg_type", "k", *_METRICS)
_SAE_KNOWN = ("binarize", "num_train", "sae_l0", "seed")

_BASELINE_TABLES = {
    "normal_settings/layer*_results.csv": _Table("normal", _METHOD, ("num_train", "layer")),
    "scarcity/summary/all_results.csv": _Table("scarcity", (*_METHOD, "num_train"), ("layer",)),
    "scarcity/all_results.csv": _Table("scarcity", (*_METHOD, "num_train"), ("layer",)),
    "imbalance/all_results.csv": _Table("imbalance", (*_METHOD, "ratio"), ("num_train", "layer"), "ratio"),
    "corrupt/all_results.csv": _Table("label_noise", (*_METHOD, "ratio"), ("num_train", "layer"), "ratio"),
    "ood/all_results.csv": _Table("ood", ("dataset", "test_auc_baseline"), ("test_auc_sae",), metrics=()),
}
_SAE_TABLES = {
    "normal_setting": _Table("normal", _SAE, _SAE_KNOWN),
    "scarcity_setting": _Table("scarcity", (*_SAE, "num_train"), _SAE_KNOWN),
    "class_imbalance_setting": _Table("imbalance", (*_SAE, "frac"), _SAE_KNOWN, "frac"),
    "label_noise_setting": _Table("label_noise", (*_SAE, "corrupt_frac"), _SAE_KNOWN, "corrupt_frac"),
    "ood_setting": _Table("ood", _SAE, _SAE_KNOWN),
}


@dataclass(frozen=True, eq=False)
class Published:
    """Published results.

    table : with the columns of `saestore.probe_results.TABLE_COLUMNS`
    files : that were read
    notes : what was left out of them, and why
    """

    table: pd.DataFrame
    files: tuple[Path, ...]
    notes: tuple[str, ...]


def read_published(folder: Path) -> Published:
    """Read the published tables in or below a folder.

    A fraction is rounded to 6 digits, since the tables of baselines have 0.4 where those of SAE probes have
    0.39999999999999997. An SAE's name is its id without the layer and with `-` for `/`; that of a tuple is its parts
    with `-` between. Probes on binarised codes are left out, and so are SAE probes out of distribution whose figures
    are those of the ordinary test rows.

    Raises
    ------
    MissingError
        There is no such folder, or no table in it.
    InputError
        A table lacks a column, has an unknown one, or a value that is none of its column; the message names the file.
    """
    if not folder.is_dir():
        raise MissingError(f"there is no folder {folder}; give that of the benchmark's result tables")
    found: list[tuple[Path, pd.DataFrame]] = []
    notes: list[str] = []
    for place in sorted({folder, *folder.glob("**/baseline_probes_*"), *folder.glob("**/sae_probes_*")}):
        kind, model = _kind_and_model(place)
        if kind == "baseline":
            found += _baselines(place, model, notes)
        elif kind == "sae":
            found += _saes(place, model, notes)
    if not found:
        raise MissingError(
            f"there is no result table in {folder}; expected such as baseline_probes_MODEL/normal_settings/"
            "layer20_results.csv or sae_probes_MODEL/normal_setting/all_metrics.csv"
        )
    table = pd.concat([frame for _, frame in found if len(frame)] or [found[0][1]], ignore_index=True)
    table, misnamed = _without_ordinary_tests(table)
    return Published(table, tuple(path for path, _ in found), (*notes, *misnamed))


def sae_name(sae_id: str) -> str:
    """Return the name of an SAE, given its id as the tables write it.

    Examples
    --------
    >>> sae_name("layer_20/width_16k/average_l0_408"), sae_name("('topk', 'trainer_0', 20.5)")
    ('width_16k-average_l0_408', 'topk-trainer_0-20.5')
    """
    name = sae_id.strip()
    if name.startswith(("(", "[")):
        try:
            parts = ast.literal_eval(name)
        except (ValueError, SyntaxError):
            parts = None
        if isinstance(parts, tuple | list) and parts:
            name = "/".join(map(str, parts))
    name = re.sub(r"^layer_\d+/", "", name)
    return re.sub(r"[^A-Za-z0-9._:+@=,()-]+", "_", name.replace("/", "-")).strip("_-")


def _kind_and_model(folder: Path) -> tuple[str, str]:
    for kind in ("baseline", "sae"):
        prefix = f"{kind}_probes_"
        if folder.is_dir() and folder.name.startswith(prefix) and folder.name != prefix:
            return kind, folder.name.removeprefix(prefix)
    return "", ""


def _baselines(folder: Path, model: str, notes: list[str]) -> Iterator[tuple[Path, pd.DataFrame]]:
    settings: dict[str, Path] = {}
    for pattern, kind in _BASELINE_TABLES.items():
        for path in sorted(folder.glob(pattern)):
            if kind.setting == "scarcity" and "scarcity" in settings:
                notes.append(f"{path} was not read: {settings['scarcity']} is the same table")
                continue
            settings[kind.setting] = path
            raw = _read(path, kind)
            yield path, (_ood_rows(path, raw, model) if kind.setting == "ood" else _rows(path, raw, kind, model))


def _saes(folder: Path, model: str, notes: list[str]) -> Iterator[tuple[Path, pd.DataFrame]]:
    # Both OOD_setting and ood_setting are written; on some file systems they are one folder.
    for place in sorted(each for each in folder.iterdir() if each.name.lower() in _SAE_TABLES):
        path, kind = place / "all_metrics.csv", _SAE_TABLES[place.name.lower()]
        if not path.is_file():
            continue
        raw = _read(path, kind)
        if "binarize" in raw:
            binarised = raw["binarize"].str.strip().str.lower().isin(["true", "1", "1.0"])
            if binarised.any():
                notes.append(f"{path}: {int(binarised.sum()):,} probes on binarised codes were left out")
            raw = raw[~binarised]
        yield path, _rows(path, raw, kind, model)


def _read(path: Path, kind: _Table) -> pd.DataFrame:
    """Return a table as texts, with the columns of its kind."""
    try:
        raw = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:  # what pandas cannot parse is a ValueError
        raise InputError(f"{path} cannot be read as a table ({str(error).splitlines()[0]}); copy it again") from None
    raw = raw[[name for name in raw.columns if not _INDEX.fullmatch(str(name))]]
    lacking = [name for name in kind.needed if name not in raw]
    unknown = [str(name) for name in raw if name not in (*kind.needed, *kind.known)]
    for problem, names in (("lacks", lacking), ("has the unknown", unknown)):
        if names:
            what = f"column{'s' if len(names) > 1 else ''} {', '.join(names)}"
            expected = ", ".join(kind.needed)
            raise InputError(
                f"{path} {problem} {what}; a published table of the {kind.setting.replace('_', ' ')} setting has "
                f"{expected}"
            )
    if (raw["dataset"].str.strip() == "").any():
        raise InputError(f"{path}: a row names no dataset; expected such as 5_hist_fig_ismale in the column dataset")
    return raw


def _rows(path: Path, raw: pd.DataFrame, kind: _Table, model: str) -> pd.DataFrame:
    """Return rows of the tidy table."""
    columns: dict[str, Any] = {"dataset": raw["dataset"], "setting": kind.setting}
    columns |= {name: _numbers(path, raw, name) for name in kind.metrics}
    columns["layer"] = _layers(path, raw, model)
    if kind.fraction is not None:
        columns["fraction"] = _numbers(path, raw, kind.fraction).round(_FRACTION_DIGITS)
    if "num_train" in raw:
        columns["num_train"] = _numbers(path, raw, "num_train")
    if "method" in raw:
        columns["method"] = raw["method"]
    else:
        penalties = raw["reg_type"].str.strip().str.lower()
        _check(path, "reg_type", raw["reg_type"], penalties.isin(["l1", "l2"]), "l1 or l2")
        ks = _numbers(path, raw, "k")
        _check(path, "k", raw["k"], ks.ge(1) & (ks == ks.round()), "a positive whole number")
        names = {sae_id: sae_name(sae_id) for sae_id in raw["sae_id"].unique()}
        _check(path, "sae_id", raw["sae_id"], raw["sae_id"].map(names) != "", "the id of an SAE")
        columns |= {"method": "sae-" + penalties, "k": ks, "sae": raw["sae_id"].map(names)}
    return _tidy(pd.DataFrame(columns, index=raw.index), model)


def _ood_rows(path: Path, raw: pd.DataFrame, model: str) -> pd.DataFrame:
    """Return the rows of the table that has a baseline and an SAE probe side by side."""
    own = {"dataset": raw["dataset"], "setting": "ood", "layer": _MODEL_LAYERS.get(model, "")}
    frames = [pd.DataFrame({**own, "method": "logreg", "test_auc": _numbers(path, raw, "test_auc_baseline")})]
    if "test_auc_sae" in raw:
        sae = {"method": "sae-l1", "sae": _OOD_SAES.get(model, "unnamed"), "k": float(_OOD_K)}
        frames.append(pd.DataFrame({**own, **sae, "test_auc": _numbers(path, raw, "test_auc_sae")}))
    return _tidy(pd.concat(frames, ignore_index=True), model)


def _tidy(frame: pd.DataFrame, model: str) -> pd.DataFrame:
    filled = frame.assign(model=model, name=NAME, sample_type="last")
    return filled.reindex(columns=list(TABLE_COLUMNS)).astype({"sae": object, "view": object, "reason": object})


def _layers(path: Path, raw: pd.DataFrame, model: str) -> Any:
    """Return the layer of each row: of its column, of the file's name, or of the model."""
    if "layer" in raw:
        return raw["layer"].map(lambda given: layer_name(re.sub(r"\.0$", "", given.strip())))
    named = re.fullmatch(r"layer(.+)_results\.csv", path.name)
    return layer_name(named[1]) if named is not None else _MODEL_LAYERS.get(model, "")


def _numbers(path: Path, raw: pd.DataFrame, name: str) -> pd.Series[float]:
    """Return a column as numbers, to the last bit; a metric that is empty is NaN."""
    texts = raw[name].str.strip()
    empty = texts.str.lower().isin(["", "nan", "none"]) & (name in _METRICS)
    numbers: pd.Series[float] = texts.map(_number).astype("float64")
    _check(path, name, raw[name], empty | np.isfinite(numbers), "a number")
    return numbers


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _check(path: Path, name: str, given: pd.Series[str], is_right: Any, expected: str) -> None:
    wrong: Sequence[str] = given[~np.asarray(is_right)].tolist()
    if wrong:
        raise InputError(f"{path}: {wrong[0]!r} in the column {name}; expected {expected}")


def _without_ordinary_tests(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Leave out SAE probes out of distribution that were tested on rows of the dataset that trained them.

    Of one model the published table is that of label noise without noise, number by number.
    """
    notes = []
    probe = ["dataset", "layer", "sae", "method", "k"]
    for model, of in table[table["sae"].notna()].groupby("model"):
        ood = of[(of["setting"] == "ood") & of["val_auc"].notna()]  # the column of the baselines' table has none
        for ordinary in (of[of["setting"] == "normal"], of[(of["setting"] == "label_noise") & (of["fraction"] == 0)]):
            both = ood.reset_index().merge(ordinary, on=probe, suffixes=("", "_ordinary"))
            same = (both["test_auc"] - both["test_auc_ordinary"]).abs() < _SAME
            if len(both) and same.all():
                table = table[~table.index.isin(both["index"])]
                notes.append(
                    f"{len(both):,} SAE probes of {model} out of distribution were left out: their figures are those "
                    "of the ordinary test rows"
                )
                break
    return table.reset_index(drop=True), notes
