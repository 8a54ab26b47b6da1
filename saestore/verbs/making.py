"""The verbs that write a lake: init, extract, import and encode."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saestore.errors import InputError, MissingError
from saestore.extraction.tokens import TruncationSide
from saestore.layout import CodesKey
from saestore.verbs.names import Columns, LakeLike, Say, create_lake, model_spec, open_lake, sample_tables

if TYPE_CHECKING:
    from saestore._sample_limits import TokenLimit
    from saestore.catalogs import Catalog
    from saestore.encoding.writer import EncodeResult
    from saestore.extraction.writer import ExtractResult, ModelSpec
    from saestore.formats.importer import ImportResult
    from saestore.lake import Lake
    from saestore.samples import SampleTable


def init(lake: LakeLike, *, storage_options: Mapping[str, Any] | None = None, catalog: Catalog | None = None) -> Lake:
    """Make an empty lake, or open the one that is there.

    Parameters
    ----------
    lake : Lake, str or path
        A path, a URL, or the name of a lake in the catalog.
    storage_options : mapping, optional
        As for `saestore.open`.

    Raises
    ------
    InputError
        The place cannot be written, or holds something else.

    Examples
    --------
    >>> init("memory://example").datasets()
    []
    """
    return create_lake(lake, storage_options=storage_options, catalog=catalog)


def extract(
    lake: LakeLike,
    datasets: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Mapping[str, Any],
    *,
    model: str | os.PathLike[str],
    layers: Sequence[str | int],
    sample_type: str | Sequence[str] | None = None,
    dtype: str = "float16",
    limit: int | None = None,
    max_tokens: int | None = None,
    name: str | None = None,
    text: str | None = None,
    image: str | None = None,
    text_path: str | None = None,
    id: str | None = None,
    split: str | None = None,
    splits: Mapping[str, float] | None = None,
    labels: Sequence[str] | None = None,
    root: str | os.PathLike[str] | None = None,
    max_length: int | None = None,
    truncation_side: TruncationSide = "right",
    device: str = "auto",
    model_dtype: str = "float32",
    scheduler: str | None = None,
    dry_run: bool = False,
    quiet: bool = False,
    say: Say | None = None,
    catalog: Catalog | None = None,
) -> list[ExtractResult]:
    """Run a model over datasets and store the activations of several layers, all from one pass.

    What is stored already is left alone; a killed run goes on where it stopped.

    Parameters
    ----------
    lake : Lake, str or path
    datasets
        Catalog names, table files, files of texts (`.txt`, one a line), folders of images, or `-` for lines from
        standard input; or a mapping of names to lists or iterators of texts, DataFrames, paths or `SampleTable`.
    model : str or path
        A name in the catalog, a folder, or a hub id `org/name`.
    layers : sequence of str or int
        Such as `3`, `layer_3.mlp_out`, `module.encoder.layer.3.attention`.
    sample_type : str or sequence of str, optional
        `token`, `patch`, `cls`, `mean`, `max`, `last`; default `token` for text and `patch` for images.
    dtype : {"float16", "bfloat16", "float32"}
        Stored precision.
    limit : int, optional
        Only the first samples of each dataset, as the table orders them; concepts that are then all yes or all no
        are told.
    max_tokens : int, optional
        Only the first samples of each dataset that together have at most so many tokens of this model, special tokens
        included; samples are whole. They are counted before the model runs, and files and iterators of texts are read
        no further. As with `limit`, what is stored is the samples: more tokens later add those that follow, fewer are
        a conflict, and so are other samples because of another tokenizer.
    name : str, optional
        The dataset's name in the lake, when there is one dataset.
    text, image, text_path, id, split, labels, root
        Columns of a table file; see `saestore.samples.read_samples`.
    splits : mapping of str to float, optional
        For samples without splits: which parts of them are `train`, `cal` and `test`; see `saestore.splitting`.
    max_length : int, optional
        Most tokens of a text.
    truncation_side : {"right", "left"}
        Which end of a longer text is cut off; `left` keeps its last token.
    device, model_dtype : str
        Where and in what precision the model runs.
    scheduler : str, optional
        Address of a Dask scheduler.
    dry_run : bool
        Lay out samples and positions, say what would be extracted, and stop.

    Returns
    -------
    list of ExtractResult

    Raises
    ------
    MissingError, InputError, ConflictError
        As `saestore.extraction.writer.extract`.

    Examples
    --------
    >>> extract("lake", {"weather": ["It rains.", "It does not."]}, model="MiniLM", layers=[3])  # doctest: +SKIP
    """
    from saestore.extraction.writer import extract as write

    opened = open_lake(lake, catalog=catalog)
    if name is not None and (isinstance(datasets, Mapping) or _count(datasets) != 1):
        raise InputError(f"--name {name} is for one dataset; leave it out, or extract them one by one")
    if not layers:
        raise InputError("no layer was named; give at least one with --layers, such as 3 or layer_3.mlp_out")
    spec = model_spec(
        model, dtype=model_dtype, device=device, max_length=max_length, truncation_side=truncation_side, catalog=catalog
    )
    columns = Columns(text=text, image=image, text_path=text_path, id=id, split=split, labels=labels, root=root)
    tokens = None if max_tokens is None else _token_limit(spec, max_tokens)
    tables = sample_tables(datasets, name=name, columns=columns, limit=limit, tokens=tokens, catalog=catalog)
    if max_tokens is not None and say is not None:
        for dataset, table in tables.items():
            say(f"{dataset}: its first {len(table):,} samples have at most {max_tokens:,} tokens; no more are taken")
    if splits is not None:
        tables = {dataset: _split(dataset, table, splits, say) for dataset, table in tables.items()}
    if (limit, max_tokens) != (None, None) and say is not None:
        for dataset, table in tables.items():
            _tell_one_sided(dataset, table, say)
    return write(
        opened,
        tables,
        model=spec,
        layers=layers,
        sample_type=sample_type or None,
        dtype=dtype,
        scheduler=scheduler,
        dry_run=dry_run,
        quiet=quiet,
        say=say,
    )


def _token_limit(spec: ModelSpec, most: int) -> TokenLimit:
    """Count tokens as the model will get them, with its tokenizer alone."""
    from saestore._sample_limits import TokenLimit
    from saestore.extraction.model import load_tokenizer
    from saestore.extraction.tokens import tokenize

    tokenizer, longest = load_tokenizer(spec.source, revision=spec.revision, max_length=spec.max_length)
    return TokenLimit(most, lambda texts: tokenize(tokenizer, texts, max_length=longest).lengths)


def _split(dataset: str, table: SampleTable, parts: Mapping[str, float], say: Say | None) -> SampleTable:
    """Draw the splits of a table that has none."""
    from saestore.splitting import with_splits

    try:
        drawn = with_splits(table, parts)
    except InputError as error:
        raise InputError(f"{dataset}: {error}") from None
    if say is not None:
        counts = ", ".join(f"{drawn.split.count(name):,} {name}" for name in parts)
        say(f"{dataset}: splits are drawn by the hash of each {'text' if table.kind == 'text' else 'id'}: {counts}")
    return drawn


def _tell_one_sided(dataset: str, table: SampleTable, say: Say) -> None:
    """Tell of concepts without a yes or without a no among the first samples: a sorted table gives one class."""
    concepts = table.concepts
    varied = (concepts == 1).any(axis=0) & (concepts == 0).any(axis=0)
    names = [name for name, both in zip(table.concept_names, varied, strict=True) if not both]
    if names:
        say(
            f"{dataset}: in its first {len(table):,} samples {', '.join(names[:3])}{' ...' if names[3:] else ''} "
            f"({len(names)} of {len(varied)} concepts) are all yes or all no; if the table is sorted, shuffle it or "
            "take more samples"
        )


def import_(
    lake: LakeLike,
    path: str | os.PathLike[str],
    *,
    dataset: str,
    model: str,
    layer: str | int,
    sample_type: str,
    sae: str | None = None,
    d_sae: int | None = None,
    key: str | None = None,
    per_sample: int | None = None,
    offsets: Any = None,
    samples: Any = None,
    splits: Mapping[str, float] | None = None,
    append: bool = False,
    hook_name: str | None = None,
    dtype: str | None = None,
    postings: bool = True,
    quiet: bool = False,
    say: Say | None = None,
    catalog: Catalog | None = None,
) -> ImportResult:
    """Store activations, or with `sae` codes, that other tools wrote to files.

    Parameters
    ----------
    lake : Lake, str or path
    path : str or path
        A `.pt`, `.npy`, `.npz` or safetensors file, a folder of chunks, or for codes a sparse_topk file.
    dataset, model, layer, sample_type
        Where the rows belong in the lake.
    sae : str, optional
        The SAE that made the codes; without it the file holds activations.
    d_sae : int, optional
        Units of that SAE, where the file does not say.
    key : str, optional
        Which array of a file that holds several.
    per_sample : int, optional
        Rows of each sample, where all have the same number.
    offsets : array or path of a .npy, optional
        First row of each sample, and the number of rows: (n_samples + 1,).
    samples : str, path, DataFrame or SampleTable, optional
        The samples of the dataset: a catalog name, a table, a folder. Images and texts that the table of a catalog
        entry names need not be on this machine.
    splits : mapping of str to float, optional
        For samples without splits, as for `extract`.
    append : bool
        The rows are of samples that follow those of the dataset and become a part of it; `samples` is then a table of
        the new ones, or of all.
    hook_name : str, optional
        SAELens' name of the hook point.
    dtype : str, optional
        Stored precision; default that of the file.
    postings : bool
        Build the postings of codes too, which unit queries read.

    Returns
    -------
    ImportResult

    Raises
    ------
    MissingError, InputError, ConflictError
        No such file; rows that do not fit the samples; or the place holds something else.
    """
    from saestore.formats.importer import import_activations, import_codes

    opened = open_lake(lake, catalog=catalog)
    axis, table = _offsets(offsets), _table(samples, catalog)
    if splits is not None:
        if table is None:
            raise InputError("--splits are of samples; name their table with --samples")
        table = _split(dataset, table, splits, say)
    if sae is None:
        if d_sae is not None:
            raise InputError("--d-sae says how wide the SAE of codes is; name it with --sae, or leave --d-sae out")
        return import_activations(
            opened,
            Path(path),
            dataset=dataset,
            model=model,
            layer=layer,
            sample_type=sample_type,
            key=key,
            per_sample=per_sample,
            offsets=axis,
            samples=table,
            append=append,
            hook_name=hook_name,
            dtype=dtype,
            quiet=quiet,
            say=say,
        )
    for option, value in {"key": key, "hook-name": hook_name, "dtype": dtype}.items():
        if value is not None:
            raise InputError(f"--{option} is for activations; leave it out when importing codes")
    result = import_codes(
        opened,
        Path(path),
        dataset=dataset,
        model=model,
        layer=layer,
        sae=sae,
        sample_type=sample_type,
        d_sae=d_sae,
        per_sample=per_sample,
        offsets=axis,
        samples=table,
        append=append,
        quiet=quiet,
        say=say,
    )
    if postings:
        from saestore.indexing.writer import index as build

        assert isinstance(result.key, CodesKey)
        build(opened.storage, [result.key], quiet=quiet, say=say)
    return result


def encode(
    lake: LakeLike,
    saes: str | Sequence[str],
    *,
    datasets: Sequence[str] | None = None,
    layers: Sequence[str | int] | None = None,
    sample_type: str | Sequence[str] | None = None,
    model: str | None = None,
    k: int | None = None,
    dtype: str = "float16",
    device: str = "auto",
    precision: str = "fp32",
    memory: str | int | None = None,
    scheduler: str | None = None,
    postings: bool = True,
    force: bool = False,
    dry_run: bool = False,
    quiet: bool = False,
    say: Say | None = None,
    catalog: Catalog | None = None,
) -> list[EncodeResult]:
    """Turn stored activations into codes with SAEs of the lake, and index them.

    See `saestore.encoding.writer.encode` for all options but `postings`, which says whether the postings are built too.

    Examples
    --------
    >>> encode("demo/lake", "minilm-topk-4096")  # doctest: +SKIP
    """
    from saestore.encoding.writer import encode as write

    if not saes:
        raise InputError("no SAE was named; give at least one with --saes (saestore sae list shows them)")
    opened = open_lake(lake, catalog=catalog)
    results = write(
        opened,
        saes,
        datasets=datasets or None,
        layers=layers or None,
        sample_type=sample_type or None,
        model=model,
        k=k,
        dtype=dtype,
        device=device,
        precision=precision,
        memory=memory,
        scheduler=scheduler,
        force=force,
        dry_run=dry_run,
        quiet=quiet,
        say=say,
    )
    if postings and not dry_run:
        from saestore.indexing.writer import index as build

        keys = [result.key for result in results if result.state == "done" and result.key is not None]
        build(opened.storage, keys, memory=memory, scheduler=scheduler, quiet=quiet, say=say)
    return results


def _count(datasets: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> int:
    return 1 if isinstance(datasets, str | os.PathLike) else len(datasets)


def _offsets(offsets: Any) -> Any:
    """Return offsets, read from a .npy file if a path was given."""
    if not isinstance(offsets, str | os.PathLike):
        return offsets
    import numpy as np

    path = Path(offsets).expanduser()
    try:
        return np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise MissingError(f"{path}: no such file; expected offsets as a .npy of (n_samples + 1,) integers") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as .npy ({str(error).splitlines()[0][:100]})") from None


def _table(samples: Any, catalog: Catalog | None) -> Any:
    from saestore.samples import SampleTable

    if samples is None or isinstance(samples, SampleTable):
        return samples
    if isinstance(samples, str | os.PathLike):
        return next(iter(sample_tables(samples, files=False, catalog=catalog).values()))
    return next(iter(sample_tables({"samples": samples}).values()))
