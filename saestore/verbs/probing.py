"""The verb of the probing benchmark."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saestore.kernels.class_sums import Normalisation
from saestore.probe_results import TABLE_COLUMNS, table_rows
from saestore.verbs.names import LakeLike, open_lake

if TYPE_CHECKING:
    import pandas as pd

    from saestore.catalogs import Catalog
    from saestore.probing.jobs import Planned


@dataclass(frozen=True)
class ProbedTask:
    """What there is of one method in one setting of one dataset.

    state : `done`, `todo` (of a dry run), or `missing` where it cannot be done
    reason : why it cannot
    cells, skipped : training and test sets, and those of them without a probe
    """

    dataset: str
    layer: str
    sample_type: str
    sae: str | None
    setting: str
    method: str
    state: str
    reason: str
    cells: int
    skipped: int


@dataclass(frozen=True)
class Probes:
    """What `probe` found.

    tasks : one for each dataset, activations or SAE, setting and method
    rows : the tidy table, each with the keys of `saestore.probe_results.TABLE_COLUMNS`; one with a reason where a task
        is `missing`
    files : tables that were written
    """

    tasks: tuple[ProbedTask, ...]
    rows: tuple[dict[str, Any], ...]
    files: tuple[Path, ...] = field(default=())

    def table(self) -> pd.DataFrame:
        """Return the tidy table."""
        import pandas as pd

        return pd.DataFrame(list(self.rows), columns=list(TABLE_COLUMNS))


def probe(
    lake: LakeLike,
    datasets: str | Sequence[str] | None = None,
    *,
    settings: str | Sequence[str] | None = None,
    methods: str | Sequence[str] | None = None,
    saes: str | Sequence[str] | None = None,
    layers: str | int | Sequence[str | int] | None = None,
    sample_type: str | None = None,
    model: str | None = None,
    view: str | None = None,
    label: str | None = None,
    ks: Sequence[int] | None = None,
    normalisation: Normalisation = "mean",
    seed: int = 42,
    test_dataset: str = "{dataset}_OOD",
    name: str = "default",
    device: str = "cpu",
    memory: str | int | None = None,
    dry_run: bool = False,
    out: str | os.PathLike[str] | None = None,
    scheduler: str | None = None,
    quiet: bool = False,
    catalog: Catalog | None = None,
) -> Probes:
    """Probe labelled datasets with activations and with SAE codes; what is stored already is left alone.

    Parameters
    ----------
    lake : Lake, str or path
    datasets : str or sequence of str, optional
        Names, with * and ?; default all, but for those that only test others.
    settings : str or sequence of str, optional
        `normal` (default), `scarcity`, `imbalance`, `label_noise`, `ood`, `multi_token`.
    methods : str or sequence of str, optional
        `logreg`, `pca`, `knn`, `xgboost`, `mlp`, `sae-l1`, `sae-l2`; of tokens `concat`, `attention`, `sae-mean`,
        `sae-max`. Default: those of the benchmark in the setting, SAE probes with L1; with `saes`, SAE probes alone.
    saes : str or sequence of str, optional
        Names, with * and ?; default all that have codes.
    layers : optional
        Default: all that are stored.
    sample_type, model, view
        Which activations and codes. Default: `last`, or the only sample type of a row a sample.
    label : str, optional
        Column or concept of the sample tables; default `label` or `target`.
    ks : sequence of int, optional
        Numbers of units of SAE probes; default 1 to 512 in the normal setting, 128 on several tokens, else 16 and 128.
    normalisation : {"mean", "none"}
        Of the difference of means that ranks units; on several tokens none, whatever is given.
    seed : int
        Of everything that is drawn.
    test_dataset : str
        Name of the dataset that tests out of distribution, with {dataset} for that which trains.
    name : str
        Of the results.
    device : str
        Of attention probes: `auto`, `cpu`, `cuda` or `mps`.
    memory : str or int, optional
        The most that rows which are probed may take, such as `4GiB`; default 60 % of the free memory.
    dry_run : bool
        Say what there is to do, and what is missing.
    out : path, optional
        A folder for the tidy table as Parquet and CSV.

    Returns
    -------
    Probes

    Raises
    ------
    MissingError, InputError
        Nothing fits, or there is no such setting or method. What is missing of single datasets is a row with a reason.
    ConflictError
        A result of this name was made differently.

    Examples
    --------
    >>> probe("lake", "5_hist_fig_*", methods=["logreg", "sae-l1"]).table()  # doctest: +SKIP
    """
    from saestore.probing.choice import Choice, chosen_jobs
    from saestore.probing.jobs import ProbeOptions, plan
    from saestore.probing.runner import run_jobs

    opened = open_lake(lake, catalog=catalog)
    choice = Choice(
        datasets=_listed(datasets),
        settings=_listed(settings) or ["normal"],
        methods=_listed(methods),
        saes=_listed(saes),
        layers=[layers] if isinstance(layers, str | int) else layers,
        sample_type=sample_type,
        model=model,
        view=view,
    )
    options = ProbeOptions(
        name=name,
        label=label,
        ks=None if ks is None else tuple(ks),
        normalisation=normalisation,
        seed=seed,
        test_dataset=test_dataset,
        device=device,
    )
    jobs = chosen_jobs(opened, choice, options)
    found = plan(opened, jobs) if dry_run else run_jobs(opened, jobs, memory=memory, scheduler=scheduler, quiet=quiet)
    rows = tuple(row for one in found for row in _rows(one))
    probes = Probes(tuple(_task(one) for one in found), rows)
    if out is None:
        return probes
    from saestore.formats.tables import write_table

    frame = probes.table()
    files = tuple(write_table(Path(out) / f"probes.{kind}", frame) for kind in ("parquet", "csv"))
    return Probes(probes.tasks, probes.rows, files)


def _rows(one: Planned) -> Iterator[dict[str, Any]]:
    if one.result is not None:
        yield from table_rows(one.result)
    elif one.reason:
        key, options = one.job.key, one.job.options
        yield dict.fromkeys(TABLE_COLUMNS) | {
            **{name: getattr(key, name, None) for name in ("dataset", "model", "layer", "sample_type", "sae")},
            **{name: getattr(options, name) for name in ("name", "label", "seed")},
            **{name: getattr(one.job, name) for name in ("view", "setting", "method")},
            "reason": one.reason,
        }


def _task(one: Planned) -> ProbedTask:
    key, cells = one.job.key, () if one.result is None else one.result.cells
    return ProbedTask(
        dataset=key.dataset,
        layer=key.layer,
        sample_type=key.sample_type,
        sae=getattr(key, "sae", None),
        setting=one.job.setting,
        method=one.job.method,
        state="missing" if one.reason else "todo" if one.result is None else "done",
        reason=one.reason,
        cells=len(cells),
        skipped=sum(not cell.probes for cell in cells),
    )


def _listed(given: str | Sequence[str] | None) -> list[str] | None:
    return [given] if isinstance(given, str) else list(given) if given else None
