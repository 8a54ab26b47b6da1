"""What users name (lakes, datasets, models, SAEs, rows) becomes what the writers and readers take."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from saestore.codes import Codes
from saestore.errors import InputError, MissingError
from saestore.extraction.tokens import TruncationSide
from saestore.lake import Lake, layer_name
from saestore.layout import DATA, POSITION_TYPES, CodesKey, check_name

if TYPE_CHECKING:
    from saestore._sample_limits import TokenLimit
    from saestore.catalogs import Catalog, DatasetEntry, LakeEntry, SAEEntry
    from saestore.extraction.writer import ModelSpec
    from saestore.saes.weights import SAEWeights
    from saestore.samples import SampleTable

LakeLike = Lake | str | os.PathLike[str]
Say = Callable[[str], None]

_TABLE_ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".txt")
_PACKED_ENDINGS = (".zst", ".gz")


@dataclass(frozen=True)
class Columns:
    """Which columns of a table file hold what; None takes the usual names. See `saestore.samples.read_samples`."""

    text: str | None = None
    image: str | None = None
    text_path: str | None = None
    id: str | None = None
    split: str | None = None
    labels: Sequence[str] | None = None
    root: str | os.PathLike[str] | None = None

    def given(self) -> dict[str, Any]:
        """The columns that the user named."""
        return {name: value for name, value in vars(self).items() if value is not None}


def open_lake(
    lake: LakeLike, *, storage_options: Mapping[str, Any] | None = None, catalog: Catalog | None = None
) -> Lake:
    """Open a lake by URL, by path, or by the name of a lake in the catalog.

    Raises
    ------
    MissingError
        There is no such lake.

    Examples
    --------
    >>> open_lake("demo/lake").datasets()[:1]  # doctest: +SKIP
    ['139_news_class_Politics']
    """
    if isinstance(lake, Lake):
        return lake
    entry = _lake_entry(lake, catalog)
    if entry is None:
        return Lake.open(lake, storage_options=storage_options)
    return Lake.open(entry.resolved_url(), storage_options={**entry.storage_options, **(storage_options or {})})


def create_lake(
    lake: LakeLike, *, storage_options: Mapping[str, Any] | None = None, catalog: Catalog | None = None
) -> Lake:
    """Make a lake, or open the one that is there."""
    if isinstance(lake, Lake):
        return lake
    entry = _lake_entry(lake, catalog)
    if entry is None:
        return Lake.create(lake, storage_options=storage_options)
    return Lake.create(entry.resolved_url(), storage_options={**entry.storage_options, **(storage_options or {})})


def _lake_entry(lake: str | os.PathLike[str], catalog: Catalog | None) -> LakeEntry | None:
    """Return the catalog's entry of a lake name; a path that exists is a path."""
    name = os.fspath(lake)
    if not isinstance(lake, str) or "/" in name or os.sep in name or name.startswith(".") or Path(name).exists():
        return None
    return _catalog(catalog).lakes.get(name)


def sample_tables(
    datasets: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Mapping[str, Any],
    *,
    name: str | None = None,
    columns: Columns | None = None,
    limit: int | None = None,
    tokens: TokenLimit | None = None,
    files: bool = True,
    catalog: Catalog | None = None,
) -> dict[str, SampleTable]:
    """Read the samples of datasets, by the name each has in the lake.

    Parameters
    ----------
    datasets
        Names of the catalog, with * and ? for several, table files, files of texts, folders of images, or `-` for lines
        from standard input; or a mapping of names to sample tables, lists or iterators of texts, DataFrames or paths.
    name
        The name in the lake, where there is one dataset; default the catalog's name after the last slash, or the
        file's name without its ending.
    limit, tokens
        See `saestore.samples.read_samples`.
    files
        False: of a catalog entry, the images or text files that its table names need not be there.

    Raises
    ------
    MissingError
        No such dataset, file or column.
    InputError
        Two datasets get one name, or columns were named for a catalog entry.
    """
    from saestore.samples import SampleTable, read_samples

    columns = columns or Columns()
    if isinstance(datasets, Mapping):
        given = {
            check_name(key, "dataset"): read_samples(
                value, limit=limit, tokens=tokens, **({} if isinstance(value, SampleTable) else columns.given())
            )
            for key, value in datasets.items()
        }
    else:
        sources = _without_patterns([datasets] if isinstance(datasets, str | os.PathLike) else datasets, catalog)
        given = {}
        for source in sources:
            own, table = _samples_of(source, columns, limit, tokens, files, _catalog(catalog))
            key = check_name(name or own, "dataset")
            if key in given:
                raise InputError(
                    f"two datasets would be called {key!r} in the lake; extract them one by one with --name"
                )
            given[key] = table
    if not given:
        raise InputError("no dataset was named; give at least one with --datasets")
    return given


def _without_patterns(
    sources: Sequence[str | os.PathLike[str]], catalog: Catalog | None
) -> list[str | os.PathLike[str]]:
    """Return sources with the names of the catalog that patterns fit in their place."""
    found: list[str | os.PathLike[str]] = []
    for source in sources:
        if not isinstance(source, str) or not set(source) & set("*?") or Path(source).expanduser().exists():
            found.append(source)
            continue
        fitting = _catalog(catalog).fitting(source)
        if not fitting:
            raise MissingError(f"no dataset of the catalog fits {source}; see saestore catalog")
        found += [name for name in fitting if name not in found]
    return found


def _samples_of(
    source: str | os.PathLike[str],
    columns: Columns,
    limit: int | None,
    tokens: TokenLimit | None,
    files: bool,
    catalog: Catalog,
) -> tuple[str, SampleTable]:
    from saestore.samples import read_samples, samples_from_entry, standard_input

    if source == "-":
        return "stdin", read_samples(standard_input(), limit=limit, tokens=tokens, **columns.given())
    try:
        if not isinstance(source, str):
            raise MissingError(os.fspath(source))
        entry = catalog.dataset(source)
    except MissingError as unknown:
        path = Path(source).expanduser()
        if not path.exists() and not _is_table(path):
            raise MissingError(f"{unknown}; or give a table file or a folder of images") from None
        return _stem(path), read_samples(path, limit=limit, tokens=tokens, **columns.given())
    if columns.given():
        raise InputError(
            f"--{next(iter(columns.given())).replace('_', '-')} names a column of a file, and {source} is a catalog "
            f"entry that says so itself ({entry.where}); leave it out"
        )
    table = samples_from_entry(entry, limit=limit, tokens=tokens, check_files=files or _has_files(entry))
    return entry.lake_name, table


def _has_files(entry: DatasetEntry) -> bool:
    """Whether the folder that a table's paths start from is on this machine."""
    try:
        root = entry.root_path()
    except InputError:
        return False  # a variable that names it is not set
    return root is None or root.is_dir()


def _is_table(path: Path) -> bool:
    return _without_packing(path).suffix.lower() in _TABLE_ENDINGS


def _stem(path: Path) -> str:
    return _without_packing(path).stem if path.suffix and not path.is_dir() else path.name


def _without_packing(path: Path) -> Path:
    return path.with_suffix("") if path.suffix.lower() in _PACKED_ENDINGS else path


def model_spec(
    model: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    device: str = "auto",
    max_length: int | None = None,
    truncation_side: TruncationSide = "right",
    catalog: Catalog | None = None,
) -> ModelSpec:
    """Find a model by its catalog name, as a local folder, or as a hub id `org/name`."""
    from saestore.extraction.writer import ModelSpec
    from saestore.model_files import resolve_model

    if max_length is not None and max_length < 1:
        raise InputError(f"max_length is {max_length}; it must be at least 1 token")
    entry = _catalog(catalog).model_entry(model if isinstance(model, str) else Path(model))
    return ModelSpec(
        name=check_name(entry.name, "model"),
        source=resolve_model(entry),
        revision=entry.revision if entry.package is None else None,
        dtype=dtype,
        device=device,
        max_length=max_length,
        truncation_side=truncation_side,
    )


@dataclass(frozen=True)
class NamedSAE:
    """Where an SAE comes from, and what is known of it beside its own files.

    name : its default name in a lake
    source : what `open_sae` takes
    entry : the catalog's entry, where it has one
    """

    name: str
    source: str
    entry: SAEEntry | None = None
    known: Mapping[str, str] = field(default_factory=dict)


def named_sae(source: str | os.PathLike[str], *, catalog: Catalog | None = None) -> NamedSAE:
    """Find an SAE by its catalog name, as a path, or as `release:sae_id` of SAELens' registry.

    Raises
    ------
    MissingError
        None of these; the nearest catalog names are in the message.
    """
    text = os.fspath(source)
    path = Path(text).expanduser()
    if path.exists():
        place = path.resolve()
        return NamedSAE(place.parent.name if place.name in _WEIGHT_FILES else place.stem, str(path))
    known = _catalog(catalog)
    entry = known.saes.get(text)
    if entry is None:
        release, colon, sae_id = text.partition(":")
        if colon and release and sae_id and not text.startswith((".", "~", "/")):
            return NamedSAE(text.replace("/", "_"), text)
        try:
            known.sae(text)
        except MissingError as missing:
            raise MissingError(f"{missing}; or give a folder, a file or release:sae_id of SAELens") from None
        raise AssertionError(text)
    local = entry.local_path()
    if local is not None:
        where = str(local)
    elif entry.release is not None:
        where = f"{entry.release}:{entry.sae_id}"
    else:
        where = _from_hub(entry)
    hook = f"blocks.{entry.layer}.hook_{entry.hook}"
    return NamedSAE(entry.name, where, entry, {"hook_name": hook, "model_name": entry.model})


_WEIGHT_FILES = ("sae_weights.safetensors", "params.npz", "cfg.json")


def open_named(
    sae: NamedSAE,
    *,
    hook_name: str | None = None,
    model_name: str | None = None,
    norm_scaling_factor: float | None = None,
) -> SAEWeights:
    """Open the weights; where they do not say where they belong, the catalog does."""
    from saestore.saes.sources import open_sae

    weights = open_sae(sae.source, hook_name=hook_name, model_name=model_name, norm_scaling_factor=norm_scaling_factor)
    missing = {field: value for field, value in sae.known.items() if getattr(weights.config, field) is None}
    if missing:
        weights = open_sae(
            sae.source,
            hook_name=hook_name or missing.get("hook_name"),
            model_name=model_name or missing.get("model_name"),
            norm_scaling_factor=norm_scaling_factor,
        )
    if sae.entry is not None:
        for width in ("d_in", "d_sae"):
            found = getattr(weights.config, width)
            if found != getattr(sae.entry, width):
                raise sae.entry.error(
                    width, f"the weights at {sae.source} have {width} {found:,}; correct the entry or the source"
                )
    return weights


def _from_hub(entry: SAEEntry) -> str:
    """Return the path of a file of a hub repository, fetched once into the hub's own cache."""
    from saestore.errors import DependencyError

    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise DependencyError(
            f"SAE {entry.name} lies on the Hugging Face hub: pip install 'saestore[models]'"
        ) from None
    try:
        return str(hf_hub_download(repo_id=str(entry.repo), filename=str(entry.file)))
    except Exception as error:  # the hub's client and its HTTP library each have their own errors
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        raise MissingError(
            f"{entry.repo}/{entry.file} is not in the hub's cache and cannot be downloaded ({reason}); "
            "check the network, or give a local file"
        ) from None


def matching_codes(
    lake: Lake,
    *,
    datasets: str | Sequence[str] | None = None,
    sae: str | None = None,
    layer: str | int | None = None,
    sample_type: str | None = None,
    model: str | None = None,
    view: str | None = None,
) -> list[Codes]:
    """Open the codes of one SAE over one layer, for chosen datasets or, where none is named, for all that have them.

    Without a sample type those of positions are taken where there are any, as encode does; with a view, its units.

    Raises
    ------
    MissingError
        Nothing fits, codes of several SAEs, layers or sample types do, or some have no such view.
    """
    datasets = [datasets] if isinstance(datasets, str) else datasets or None
    for dataset in datasets or ():
        lake.samples(dataset)  # a dataset that is not there is its own error
    wanted = {"sae": sae, "layer": layer_name(layer), "sample_type": sample_type, "model": model}
    stored = [key for key in lake.code_keys() if datasets is None or key.dataset in datasets]
    keys = [
        key for key in stored if all(value is None or getattr(key, name) == value for name, value in wanted.items())
    ]
    if sample_type is None:  # as encode does: rows of positions where there are any
        keys = [key for key in keys if key.sample_type in POSITION_TYPES] or keys
    asked = ", ".join(f"{name} {value}" for name, value in wanted.items() if value is not None) or "the question"
    if not keys:
        raise MissingError(
            f"no codes{f' of {datasets[0]}' if datasets else ''} in {lake.url} fit {asked}; there are "
            f"{listed(stored)}; make them with: saestore encode {lake.url} --saes NAME"
        )
    kinds = sorted({(key.model, key.layer, key.sae, key.sample_type) for key in keys})
    if len(kinds) > 1:
        named = "; ".join("/".join(kind) for kind in kinds[:4]) + ("; ..." if len(kinds) > 4 else "")
        raise MissingError(f"codes of {len(kinds)} kinds fit {asked}: {named}; name --sae, --layer or --sample-type")
    without = sorted(set(datasets or ()) - {key.dataset for key in keys})
    if without:
        raise MissingError(f"dataset {without[0]!r} has no codes of {keys[0].sae}; make them with: saestore encode")
    order = {dataset: place for place, dataset in enumerate(datasets or ())}
    keys.sort(key=lambda key: order.get(key.dataset, 0))
    opened = [Codes.open(lake.storage, key) for key in keys]
    return opened if view is None else [codes.view(view) for codes in opened]


def chosen_concepts(
    codes: Codes, given: Sequence[str] | None, labels: str, catalog: Catalog | None
) -> list[str] | None:
    """Return the concepts that are meant: patterns among those that there are; None for all.

    Parameters
    ----------
    given : sequence of str, optional
        Names, `*` and `?` match several; default those that the catalog names for the dataset.
    labels : str
        Name of the labels of positions.
    """
    from saestore.analysis.truth import open_labels

    patterns = given or _catalog(catalog).concepts_of(codes.key.dataset)
    if not patterns:
        return None
    stored = open_labels(codes.group.storage, codes.key.activations, labels)
    known = codes.samples.concept_names if stored is None else stored.concept_names
    found: list[str] = []
    for pattern in patterns:
        fitting = [concept for concept in known if fnmatchcase(concept, pattern)]
        # What the user gave and fits nothing is refused by name; the catalog's may be of other labels.
        found += fitting or ([pattern] if given else [])
    return list(dict.fromkeys(found)) or None


def listed(keys: Sequence[CodesKey]) -> str:
    """Name the first of some codes, for a message."""
    return "; ".join(key.path.removeprefix(f"{DATA}/") for key in keys[:4]) or "none"


def row_choice(rows: str | int | slice | Sequence[int]) -> slice | list[int]:
    """Read a choice of rows as people write it: `0:5`, `:100`, `7`, or `3,8,21`.

    Raises
    ------
    InputError
        It is none of these.
    """
    if isinstance(rows, slice):
        return rows
    if not isinstance(rows, str):
        return list(np.atleast_1d(np.asarray(rows)))  # a mask stays one, which readers of rows refuse
    start, colon, stop = rows.strip().partition(":")
    try:
        if colon:
            return slice(int(start) if start.strip() else None, int(stop) if stop.strip() else None)
        return [int(row) for row in rows.split(",")]
    except ValueError:
        raise InputError(f"rows {rows!r} cannot be read; write them like 0:5, :100, 7 or 3,8,21") from None


def _catalog(catalog: Catalog | None) -> Catalog:
    if catalog is not None:
        return catalog
    from saestore.catalogs import load_catalog

    return load_catalog()
