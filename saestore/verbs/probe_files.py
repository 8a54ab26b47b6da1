"""The verbs for the files of the sparse-probing benchmark: into a lake and out of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from saestore.errors import InputError, MissingError
from saestore.lake import layer_name
from saestore.layout import check_name
from saestore.verbs.names import LakeLike, Say, open_lake

if TYPE_CHECKING:
    from saestore.catalogs import Catalog
    from saestore.lake import Lake
    from saestore.probing.file_imports import BenchmarkFile
    from saestore.samples import SampleTable

SAMPLES = ("sae-probes/{name}", "sae-probes-ood/{name}_OOD")
WHAT = ("activations", "codes", "tables")


def probes_import(
    lake: LakeLike,
    folder: str | os.PathLike[str],
    *,
    model: str,
    sae: str | None = None,
    layer: str | int | None = None,
    datasets: str | Sequence[str] | None = None,
    samples: str | Sequence[str] | None = None,
    files: str | None = None,
    seed: int = 42,
    postings: bool = True,
    quiet: bool = False,
    say: Say | None = None,
    catalog: Catalog | None = None,
) -> list[BenchmarkFile]:
    """Store activations of the sparse-probing benchmark, and with `sae` codes of one SAE; what is stored is left alone.

    Activations are files `DATASET_HOOK.pt` and become rows of sample type `last`. Codes are those of the normal
    setting, from which all others choose rows; each data set has one row that is in none of these files, and it is
    encoded with the SAE of that name from the activations of the lake, so that both must be there. Labels in the files
    are checked against the split. Nothing that is wrong with a file stops the others.

    Parameters
    ----------
    lake : Lake, str or path
    folder : str or path
        The benchmark's folder of data, or one with files of activations or codes.
    model : str
        The model's name in the lake.
    sae : str, optional
        Name in the lake of the SAE whose codes are stored too.
    layer : str or int, optional
        Only this layer; default all, and for codes that which the SAE or its files name.
    datasets : str or sequence of str, optional
        Names in the lake, with * and ?; default all of `samples`.
    samples : str or sequence of str, optional
        Entries of the catalog that hold the texts: patterns with {name}, or names with * and ?. Default: those of the
        package sae-probes, `sae-probes/{name}` and `sae-probes-ood/{name}_OOD`.
    files : str, optional
        The SAE's name in the files, such as `20_width_16k_average_l0_408`, where there are codes of several.
    seed : int
        Of the split.
    postings : bool
        Build the postings of codes too.

    Returns
    -------
    list of BenchmarkFile
        What became of each file that is there or should be.

    Raises
    ------
    MissingError, InputError
        There is no such folder, nothing of the benchmark in it, or it holds files of several models or SAEs.

    Examples
    --------
    >>> probes_import("lake", "data", model="gemma-2-9b", layer=20)  # doctest: +SKIP
    """
    from saestore.probing.file_imports import BenchmarkFile, import_activation_files, import_code_files
    from saestore.probing.file_names import find_files

    opened = open_lake(lake, catalog=catalog)
    check_name(model, "model")
    place = Path(folder).expanduser()
    texts = _listed(samples) or list(SAMPLES)
    known = _tables(texts, catalog)
    wanted = {name: table for name, table in known.items() if _fits(name, _listed(datasets))}
    if not wanted:
        raise MissingError(f"no data set of {', '.join(texts)} fits {datasets}; see saestore catalog")
    found = find_files(place, list(known), model)
    if not found.activations and not found.codes:
        raise MissingError(f"{place} holds no files of the benchmark, such as DATASET_HOOK.pt of a data set of samples")
    name = layer_name(layer)
    rows = list(import_activation_files(opened, found, wanted, model=model, layer=name, quiet=quiet, say=say))
    if sae is not None:
        of, of_layer = _sae_files(opened, list(found.codes), place, sae, name, files)
        rows += import_code_files(
            opened,
            found.codes[of],
            wanted,
            name=of,
            model=model,
            layer=of_layer,
            sae=sae,
            seed=seed,
            quiet=quiet,
            say=say,
        )
        if postings:
            _index(opened, rows, model, quiet=quiet, say=say)
    elif files is not None:
        raise InputError(f"--files {files} are codes; name their SAE with --sae")
    reason = "its name begins with no known data set and goes on with a hook or an SAE; rename it, or see --samples"
    rows += [BenchmarkFile("", "", "", "", path.name, 0, "left out", reason) for path in found.unknown]
    if not rows:
        raise MissingError(f"{place} holds no files of {name or 'these data sets'}; leave --layer or --datasets out")
    return rows


def _sae_files(
    lake: Lake, found: Sequence[str], folder: Path, sae: str, layer: str | None, named: str | None
) -> tuple[str, str]:
    """Return the name of an SAE in the files, and the layer in the lake that it is of."""
    from saestore.probing.file_names import chosen_sae, layer_of_hook, layer_of_sae, name_in_files
    from saestore.saes.lake import open_lake_sae

    check_name(sae, "SAE")
    config = open_lake_sae(lake.storage, sae).config if sae in lake.saes() else None
    likely = [sae, *([name_in_files(config.sae_id)] if config is not None and config.sae_id else [])]
    name = chosen_sae(found, folder, named=named, likely=likely, layer=layer)
    hook = None if config is None else config.hook_name
    of_layer = layer or (layer_of_hook(hook) if hook else layer_of_sae(name))
    if of_layer is None:
        raise InputError(f"neither SAE {sae!r} nor {name} says which layer it is of; name it with --layer")
    return name, of_layer


def _index(lake: Lake, rows: Sequence[BenchmarkFile], model: str, *, quiet: bool, say: Say | None) -> None:
    from saestore.indexing.writer import index
    from saestore.layout import CodesKey
    from saestore.probing.file_imports import SAMPLE_TYPE

    keys: list[CodesKey] = [
        CodesKey(row.dataset, model, row.layer, row.sae, SAMPLE_TYPE)
        for row in rows
        if row.kind == "codes" and row.state != "left out"
    ]
    index(lake.storage, keys, quiet=quiet, say=say)


def _tables(samples: Sequence[str], catalog: Catalog | None) -> dict[str, Callable[[], SampleTable]]:
    """Return what reads the samples of each data set, by its name in a lake."""
    from saestore.catalogs import load_catalog
    from saestore.samples import samples_from_entry

    known = load_catalog() if catalog is None else catalog
    tables: dict[str, Callable[[], SampleTable]] = {}
    for word in samples:
        if word in known.datasets and known.datasets[word].is_pattern:
            names = known.matches(word)
        else:
            names = known.fitting(word) if set(word) & set("*?") else [word]
        if not names:
            raise MissingError(f"no data set of the catalog fits {word}; see saestore catalog")
        for name in names:
            entry = known.dataset(name)
            if entry.lake_name in tables:
                raise InputError(f"two data sets of {', '.join(samples)} are called {entry.lake_name!r}; name one")
            tables[entry.lake_name] = partial(samples_from_entry, entry, check_files=False)
    return tables


def probes_export(
    lake: LakeLike,
    folder: str | os.PathLike[str],
    *,
    datasets: str | Sequence[str] | None = None,
    what: str | Sequence[str] | None = None,
    model: str | None = None,
    layers: str | int | Sequence[str | int] | None = None,
    saes: str | Sequence[str] | None = None,
    name: str = "default",
    seed: int = 42,
    quiet: bool = False,
    say: Say | None = None,
    catalog: Catalog | None = None,
) -> list[BenchmarkFile]:
    """Write activations, codes and results of a lake as files that the sparse-probing benchmark's own code reads.

    Activations and codes are those of sample type `last`. The files lie in the folders that the benchmark has in its
    folder of data, and tables below `results`; each is written whole or not at all, over one that is there.

    Parameters
    ----------
    lake : Lake, str or path
    folder : str or path
        Made where it is not there.
    datasets : str or sequence of str, optional
        Names, with * and ?; default all.
    what : str or sequence of str, optional
        `activations`, `codes` (the normal setting's four files), `tables`; default all.
    model, layers, saes : optional
        Only these; names of SAEs with * and ?.
    name : str
        Of the results in tables.
    seed : int
        Of the split of codes.

    Returns
    -------
    list of BenchmarkFile

    Raises
    ------
    MissingError
        Nothing fits.
    InputError
        There is no such kind of files, or the folder cannot be written.

    Examples
    --------
    >>> probes_export("lake", "data", what="activations")  # doctest: +SKIP
    """
    from saestore.probing.file_exports import export_activations, export_codes, export_tables
    from saestore.probing.file_imports import SAMPLE_TYPE

    opened = open_lake(lake, catalog=catalog)
    kinds = _listed(what) or list(WHAT)
    for kind in kinds:
        if kind not in WHAT:
            raise InputError(f"--what {kind} is unknown; choose from {', '.join(WHAT)}")
    place = Path(folder).expanduser()
    of = [layers] if isinstance(layers, str | int) else layers
    layer_names = None if of is None else [layer_name(layer) for layer in of]
    chosen, fitting = _listed(datasets), _listed(saes)

    def is_wanted(dataset: str, its_model: str, layer: str) -> bool:
        return _fits(dataset, chosen) and model in (None, its_model) and (layer_names is None or layer in layer_names)

    rows: list[BenchmarkFile] = []
    if "activations" in kinds:
        keys = [key for key in opened.activation_keys() if key.sample_type == SAMPLE_TYPE]
        keys = [key for key in keys if is_wanted(key.dataset, key.model, key.layer)]
        rows += export_activations(opened, keys, place, quiet=quiet)
    if "codes" in kinds:
        code_keys = [
            key
            for key in opened.code_keys()
            if key.sample_type == SAMPLE_TYPE
            and is_wanted(key.dataset, key.model, key.layer)
            and _fits(key.sae, fitting)
        ]
        rows += export_codes(opened, code_keys, place, seed=seed, quiet=quiet, say=say)
    if "tables" in kinds:
        results = [
            result
            for dataset in opened.datasets()
            if _fits(dataset, chosen)
            for result in opened.probes(dataset)
            if result.name == name
            and result.view is None
            and result.key.sample_type == SAMPLE_TYPE
            and is_wanted(dataset, result.key.model, result.key.layer)
            and (result.sae is None or _fits(result.sae, fitting))
        ]
        rows += export_tables(opened, results, place)
    if not rows:
        raise MissingError(
            f"{opened.url} holds no {' or '.join(kinds)} of sample type {SAMPLE_TYPE} that fit what was asked; "
            "saestore status lists what there is"
        )
    return rows


def _fits(name: str, patterns: Sequence[str] | None) -> bool:
    return patterns is None or any(name == pattern or fnmatchcase(name, pattern) for pattern in patterns)


def _listed(given: str | Sequence[str] | None) -> list[str] | None:
    return [given] if isinstance(given, str) else list(given) if given else None
