"""Tables of a report of probes: what there is in short, each data set with its figures, and what was not probed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pandas as pd

from saestore._natural_order import natural
from saestore.lake import Lake
from saestore.probing.tasks import Refusal, read_task
from saestore.report.page import Cell, Section, missing, number, paragraph, table, whole
from saestore.report.probe_part import SETTING_NAMES, Part, frame_data, several
from saestore.report.probed import QUIVER_SETTINGS, SETTINGS, Probed, baselines_of, mean_over_tasks


def summary_section(probeds: Sequence[Probed]) -> Section:
    """Return the means of each setting of all results, one below the other."""
    lines: list[tuple[Any, ...]] = []
    for probed in probeds:
        for setting in probed.settings:
            rows = probed.rows(setting)
            baseline, sae = probed.single(setting)
            means = [
                mean_over_tasks(rows[rows["probe"] == name], "test_auc").mean if name else float("nan")
                for name in (baseline, sae)
            ]
            arms = probed.quivers(setting)
            means += [
                mean_over_tasks(arms, name).mean if setting in QUIVER_SETTINGS else float("nan")
                for name in ("without", "with")
            ]
            tasks, probes = rows["dataset"].nunique(), len(rows)
            unconverged = int(rows["unconverged"].fillna(0).sum())
            of = (probed.key, setting, probed.layer, tasks, probes)
            lines.append((*of, *means, baseline, sae, unconverged))
    columns = ["results", "setting", "layer", "datasets", "probes", "baseline_auc", "sae_auc", "quiver_auc"]
    columns += ["quiver_with_saes_auc", "baseline", "sae_probe", "unconverged_fits"]
    found = pd.DataFrame(lines, columns=columns)
    headers = [("results", ""), ("setting", ""), ("layer", ""), ("data sets", ""), ("probes", "that were fitted")]
    headers += [("baseline", "its mean test AUC"), ("SAE probe", "its mean test AUC")]
    headers += [("quiver", "mean test AUC of the quiver without SAE probes")]
    headers += [("with SAEs", "mean test AUC of the quiver with SAE probes"), ("baseline is", ""), ("SAE probe is", "")]
    headers += [("unconverged", "fits that stopped at their limit of iterations")]
    cells: list[list[Cell | str]] = [
        [
            *(line[0], SETTING_NAMES[line[1]], line[2], whole(line[3]), whole(line[4])),
            *(number(value, ".4f") for value in line[5:9]),
            *(line[9] or "", line[10] or "", whole(line[11])),
        ]
        for line in lines
    ]
    words = "Means over data sets, each probe over what it was fitted on; the figures below pair them."
    body = paragraph(words) + table("table-summary", headers, cells)
    return Section("in-short", "In short", body, (frame_data("", "summary", found),))


def tasks_part(probed: Probed) -> Part:
    """Return a table with a line for each data set: its rows, what leaks, and the test AUC of each method."""
    found = task_figures(probed)
    key, title = f"tasks-{probed.number}", "Each data set"
    if found.empty:
        return Part(Section(key, title, missing("No data set was probed in the normal setting.")))
    methods = [str(name).removeprefix("auc ") for name in found if str(name).startswith("auc ")]
    headers = [("data set", ""), ("samples", ""), ("0", "the value that the label 0 stands for")]
    headers += [("1", "the value that the label 1 stands for"), ("train", "rows"), ("test", "rows")]
    headers += [("leak", "part of the test rows whose text is that of a training row")]
    headers += [(name, "test AUC in the normal setting") for name in methods]
    headers += [("best", "of these by test AUC, which no choice may use")]
    rows: list[list[Cell | str]] = [
        [
            *(line["dataset"], _count(line["n"]), line["class 0"] or "", line["class 1"] or ""),
            *(_count(line["num_train"]), _count(line["num_test"]), _percent(line["leak"])),
            *(number(line[f"auc {name}"], ".4f") for name in methods),
            line["best"],
        ]
        for line in found.to_dict("records")
    ]
    words = "Test AUC in the normal setting. Press a header to sort."
    if probed.sae_probe:
        words += f" The column SAE probe is {probed.sae_probe}."
    body = paragraph(words) + table(f"table-{key}", headers, rows)
    return Part(Section(key, title, body, (frame_data(probed.key, "tasks", found),)))


def task_figures(probed: Probed) -> pd.DataFrame:
    """Return a line for each data set of the normal setting.

    Columns: dataset, n, class 0, class 1, num_train, num_test, leak, `auc METHOD` of each method, and best.
    """
    rows = probed.rows("normal")
    sae = probed.single("normal")[1]
    columns = {name: name for name in baselines_of(rows)}
    if sae is not None:
        columns["SAE probe"] = sae
    wide = rows.pivot(index="dataset", columns="probe", values="test_auc")
    arms = probed.quivers("normal").set_index("dataset")
    lines = []
    for dataset in sorted(set(rows["dataset"]), key=natural):
        of = rows[rows["dataset"] == dataset]
        n = probed.sizes.get(dataset)
        aucs = {name: float(wide.loc[dataset, probe]) for name, probe in columns.items()}
        known = {name: value for name, value in aucs.items() if not np.isnan(value)}
        for name, arm in (("quiver", "without"), ("quiver with SAEs", "with")):
            aucs[name] = float(arms.loc[dataset, arm]) if dataset in arms.index else float("nan")
        classes = probed.classes.get(dataset, (None, None))
        num_train, num_test, shared = (of[name].max() for name in ("num_train", "num_test", "shared"))
        lines.append(
            {
                **{"dataset": dataset, "n": n, "class 0": classes[0], "class 1": classes[1]},
                **{"num_train": num_train, "num_test": num_test, "leak": shared / num_test},
                **{f"auc {name}": value for name, value in aucs.items()},
                "best": max(known, key=lambda name: known[name]) if known else "",
            }
        )
    return pd.DataFrame(lines)


def mean_leak(probed: Probed) -> tuple[float, int]:
    """Return the mean part of test rows that are among the training rows, and of how many data sets it is known."""
    found = task_figures(probed)
    known = found["leak"].dropna() if len(found) else pd.Series(dtype=float)
    return (float(known.mean()) if len(known) else float("nan")), len(known)


def skipped_part(probed: Probed) -> Part:
    """Return the tasks and training sets without a probe, and those with fewer than were asked for, and why."""
    key, title = f"skipped-{probed.number}", "What was not probed"
    found = skipped(probed)
    if found.empty:
        return Part(Section(key, title, missing(_nothing_skipped(probed))))
    headers = [("data set", ""), ("setting", ""), ("methods", ""), ("training sets", "of each method"), ("reason", "")]
    rows: list[list[Cell | str]] = [
        [line["dataset"], SETTING_NAMES[line["setting"]], line["methods"], whole(line["cells"]), line["reason"]]
        for line in found.to_dict("records")
    ]
    told = f"Some training sets or probes of {several(len(set(found['dataset'])), 'data set')} are not there."
    body = paragraph(told) + table(f"table-{key}", headers, rows)
    return Part(Section(key, title, body, (frame_data(probed.key, "skipped", found),)))


def skipped(probed: Probed) -> pd.DataFrame:
    """Return reasons: dataset, setting, methods, the most training sets of a method that it holds of, and reason."""
    rows = probed.table[probed.table["reason"] != ""]
    rows = rows.drop_duplicates(["dataset", "setting", "layer", "sae", "view", "method", "cell", "num_train", "reason"])
    lines = []
    for (dataset, setting, reason), of in rows.groupby(["dataset", "setting", "reason"], sort=False):
        cells = int(of.drop_duplicates(["method", "cell", "num_train"]).groupby("method").size().max())
        lines.append((dataset, setting, ", ".join(sorted(set(of["method"]))), cells, reason))
    lines.sort(key=lambda line: (natural(str(line[0])), SETTINGS.index(str(line[1])), str(line[4])))
    return pd.DataFrame(lines, columns=["dataset", "setting", "methods", "cells", "reason"])


def unprobed(lake: Lake, probed: Collection[str]) -> pd.DataFrame:
    """Return the data sets of a lake that no result is of: dataset, and the reason why it is no task, if it is none."""
    names = [name for name in sorted(lake.datasets(), key=natural) if name not in probed]
    tasks = [read_task(lake.samples(name)) for name in names]
    reasons = [task.reason if isinstance(task, Refusal) else "no result of it is stored" for task in tasks]
    return pd.DataFrame({"dataset": names, "reason": reasons})


def unprobed_section(found: pd.DataFrame) -> Section:
    """Return the data sets of a lake without any result, and why they are no tasks."""
    title = "Data sets of the lake without results"
    if found.empty:
        return Section("never-probed", title, missing("Every data set of the lake has results."))
    headers = [("data set", ""), ("reason", "why it is no task of two classes, or that it was not probed")]
    rows: list[list[Cell | str]] = [[str(name), str(reason)] for name, reason in found.itertuples(index=False)]
    words = "A data set that only tests others out of distribution has no results of its own."
    return Section(
        "never-probed",
        title,
        paragraph(words) + table("table-unprobed", headers, rows),
        (frame_data("", "unprobed", found),),
    )


def _nothing_skipped(probed: Probed) -> str:
    if probed.source == "published":
        return "Published tables do not say what was skipped."
    return "Nothing of these results was skipped."


def _count(value: float | None) -> Cell:
    return whole(None if value is None or pd.isna(value) else int(value))


def _percent(value: float) -> Cell:
    return Cell(None, "") if pd.isna(value) else Cell(float(value), f"{value:.1%}")
