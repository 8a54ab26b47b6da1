"""The verbs for SAEs: import one, list them, train one on stored activations."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from saestore.activations import Activations
from saestore.errors import ConflictError, InputError, MissingError
from saestore.lake import Lake, layer_name
from saestore.layout import POSITION_TYPES, check_name, check_sample_type, sae_path
from saestore.progress import Progress
from saestore.rows import RowGroup, group_exists
from saestore.tables import Positions
from saestore.verbs.names import LakeLike, Say, named_sae, open_lake, open_named

if TYPE_CHECKING:
    from saestore.catalogs import Catalog

TRAINING_NAME = "training.json"

_BUFFER_ROWS = 65_536
_BUFFER_BYTES = 256 << 20


@dataclass(frozen=True)
class SAESummary:
    """One SAE of a lake.

    imported : whether this call wrote it; False when it was there, or was only listed
    """

    name: str
    architecture: str
    d_in: int
    d_sae: int
    k: int | None
    dtype: str
    hook_name: str | None
    model_name: str | None
    content_hash: str
    stored_bytes: int
    imported: bool = False


@dataclass(frozen=True)
class Training:
    """A trained SAE in a folder of SAELens' layout.

    rows : rows there were to train on, without special tokens
    samples : rows seen in training
    trained : whether this call trained it; False when the same training was there
    """

    out: Path
    layer: str
    hook_name: str | None
    d_in: int
    d_sae: int
    k: int
    rows: int
    samples: int
    seconds: float
    trained: bool


def sae_import(
    lake: LakeLike,
    source: str | os.PathLike[str],
    *,
    name: str | None = None,
    hook_name: str | None = None,
    model_name: str | None = None,
    norm_scaling_factor: float | None = None,
    link: bool = False,
    quiet: bool = False,
    say: Say | None = None,
    catalog: Catalog | None = None,
) -> SAESummary:
    """Copy an SAE into the lake; the same one under the same name is left alone.

    Parameters
    ----------
    lake : Lake, str or path
    source : str or path
        A name in the catalog, a file or folder in any layout that `saestore.saes.open_sae` knows, or `release:sae_id`
        of SAELens' registry.
    name : str, optional
        Its name in the lake; default the catalog's, or that of the folder or file.
    hook_name, model_name : str, optional
        Where the SAE belongs, if its source does not say so.
    norm_scaling_factor : float, optional
        Folds a normalisation that the weights do not contain yet.
    link : bool
        Leave the matrices in their files, which must stay where they are; saves the space of a copy.

    Raises
    ------
    MissingError
        No such SAE.
    ConflictError
        Another SAE has that name.

    Examples
    --------
    >>> sae_import("demo/lake", "demo/sae/minilm", name="minilm-topk-4096")  # doctest: +SKIP
    """
    from saestore.provenance import stamp
    from saestore.saes.lake import write_sae

    storage = open_lake(lake, catalog=catalog).storage
    found = named_sae(source, catalog=catalog)
    own = check_name(name or found.name, "SAE")
    path = sae_path(own)
    there = group_exists(storage, path) and RowGroup.open(storage, path).is_complete
    weights = open_named(found, hook_name=hook_name, model_name=model_name, norm_scaling_factor=norm_scaling_factor)
    write_sae(storage, own, weights, link=link, provenance={**stamp(), "source": found.source}, quiet=quiet)
    summary = _summary(RowGroup.open(storage, path), imported=not there)
    if say is not None and summary.hook_name is None:
        say(f"SAE {own} does not say where it belongs; give --hook-name, or name --layers when you encode")
    return summary


def sae_list(lake: LakeLike, *, catalog: Catalog | None = None) -> list[SAESummary]:
    """List the SAEs of a lake."""
    opened = open_lake(lake, catalog=catalog)
    return [_summary(RowGroup.open(opened.storage, sae_path(name))) for name in opened.saes()]


def _summary(group: RowGroup, *, imported: bool = False) -> SAESummary:
    config = group.attributes["config"]
    return SAESummary(
        name=group.path.rsplit("/", 1)[1],
        **{name: config.get(name) for name in ("architecture", "d_in", "d_sae", "k", "dtype")},
        **{name: config.get(name) for name in ("hook_name", "model_name")},
        content_hash=str(group.attributes["identity"]["hash"]),
        stored_bytes=group.stored_bytes(),
        imported=imported,
    )


def sae_train(
    lake: LakeLike,
    *,
    out: str | os.PathLike[str],
    layer: str | int,
    datasets: Sequence[str] | None = None,
    sample_type: str = "token",
    model: str | None = None,
    d_sae: int = 4096,
    k: int = 32,
    samples: int = 200_000,
    lr: float = 3e-3,
    batch_size: int = 1024,
    seed: int = 0,
    quiet: bool = False,
    say: Say | None = None,
    catalog: Catalog | None = None,
) -> Training:
    """Train a Top-K SAE with SAELens on activations of the lake, without special tokens.

    Rows of all splits are taken, also those of `test`; no label is looked at. They are streamed and shuffled in
    bounded memory. The folder has SAELens' own layout, and `training.json` with what the training was a function of:
    the same training again does nothing.

    Parameters
    ----------
    lake : Lake, str or path
    out : str or path
        The folder to make.
    layer : str or int
        Whose activations, such as 3 or `layer_3.mlp_out`.
    datasets : sequence of str, optional
        Default: all that have the layer.
    sample_type, model : str
    d_sae, k : int
        Number of units, and how many are active per row.
    samples : int
        Rows seen in all; rows are seen again when there are fewer.
    lr, batch_size, seed
        As in `saestore.saes.train.train`.

    Raises
    ------
    MissingError
        No activations of the layer.
    ConflictError
        The folder holds another SAE.
    InputError
        k is larger than d_sae, or the activations are not usable.

    Examples
    --------
    >>> sae_train("demo/lake", out="demo/sae/minilm", layer=4, d_sae=4096, k=32)  # doctest: +SKIP
    """
    from saestore.saes.train import check_training, train

    check_training(d_sae=d_sae, k=k, samples=samples, batch_size=batch_size, lr=lr)
    opened = open_lake(lake, catalog=catalog)
    sources = _sources(opened, layer, check_sample_type(sample_type), datasets, model)
    first = sources[0].activations
    hook, model_name = first.group.attributes.get("saelens_hook_name"), sources[0].model_id
    identity = {
        "activations": {source.activations.key.path: source.activations.group.content_hash() for source in sources},
        "special_tokens": False,
        "hook_name": hook,
        "model_name": model_name,
        **{"d_sae": d_sae, "k": k, "samples": samples, "lr": lr, "batch_size": batch_size, "seed": seed},
    }
    rows = sum(source.rows for source in sources)
    folder = Path(out).expanduser()
    result = Training(
        out=folder,
        layer=first.key.layer,
        hook_name=hook,
        d_in=first.d_in,
        d_sae=d_sae,
        k=k,
        rows=rows,
        samples=max(1, samples // batch_size) * batch_size,
        seconds=0.0,
        trained=False,
    )
    if _trained_before(folder, identity):
        return result
    if say is not None:
        say(f"training on {rows:,} rows of {len(sources)} datasets at {first.key.layer}, without special tokens")
    begun = time.monotonic()
    with Progress(f"train SAE {folder.name}", total=result.samples, unit="rows", quiet=quiet) as progress:
        train(
            lambda epoch: _shuffled(sources, epoch),
            d_sae=d_sae,
            k=k,
            out=folder,
            samples=samples,
            lr=lr,
            batch_size=batch_size,
            seed=seed,
            hook_name=hook,
            model_name=model_name,
            progress=lambda seen, total: progress.advance(seen - progress.done),
            record={TRAINING_NAME: identity},
        )
    return Training(**{**vars(result), "seconds": time.monotonic() - begun, "trained": True})


@dataclass(frozen=True)
class _Source:
    """Activations to train on, and which of their rows are special tokens."""

    activations: Activations
    special: NDArray[np.bool_] | None
    model_id: str | None

    @property
    def rows(self) -> int:
        """Rows that are trained on."""
        return self.activations.n_rows - (0 if self.special is None else int(self.special.sum()))

    def read(self, start: int) -> NDArray[np.float32]:
        """Read one stored chunk, without special tokens."""
        stop = min(start + self.activations.group.grid.chunk_rows, self.activations.n_rows)
        block = self.activations.read(start, stop)
        return block if self.special is None else block[~self.special[start:stop]]


def _sources(
    lake: Lake, layer: str | int, sample_type: str, datasets: Sequence[str] | None, model: str | None
) -> list[_Source]:
    for dataset in datasets or ():
        lake.samples(dataset)  # a dataset that is not there is its own error
    stored = list(lake.activation_keys())
    keys = [
        key
        for key in stored
        if key.layer == layer_name(layer)
        and key.sample_type == sample_type
        and (datasets is None or key.dataset in datasets)
        and (model is None or key.model == model)
    ]
    if not keys:
        there = ", ".join(sorted({f"{key.layer}/{key.sample_type}" for key in stored})[:8]) or "none"
        raise MissingError(
            f"no stored activations fit layer {layer}, sample type {sample_type}; there are {there}; extract them first"
        )
    without = sorted(set(datasets or ()) - {key.dataset for key in keys})
    if without:
        raise MissingError(f"dataset {without[0]!r} has no {sample_type} activations of {layer}; extract them first")
    models = sorted({key.model for key in keys})
    if len(models) > 1:
        raise InputError(f"layer {layer} is stored for the models {', '.join(models)}; name one with --model")
    found = []
    for key in keys:
        activations = Activations.open(lake.storage, key)
        positions = Positions.open(lake.storage, key.model_key) if sample_type in POSITION_TYPES else None
        about = {} if positions is None else positions.group.attributes
        found.append(_Source(activations, None if positions is None else positions.special(), about.get("model_id")))
    return found


def _shuffled(sources: Sequence[_Source], seed: int) -> Iterator[NDArray[np.float32]]:
    """Yield all rows of one epoch in blocks, each shuffled over chunks that are drawn from everywhere.

    A block holds the rows of many stored chunks in random order, so neighbours in a text are far apart, and no more
    than one block is in memory.
    """
    rng = np.random.default_rng(seed)
    places = [
        (source, start)
        for source in sources
        for start in range(0, source.activations.n_rows, source.activations.group.grid.chunk_rows)
    ]
    most = min(_BUFFER_ROWS, _BUFFER_BYTES // (4 * sources[0].activations.d_in))
    held: list[NDArray[np.float32]] = []
    rows = 0
    for place in rng.permutation(len(places)):
        source, start = places[place]
        held.append(source.read(start))
        rows += len(held[-1])
        if rows >= most:
            yield _mixed(held, rng)
            held, rows = [], 0
    if rows:
        yield _mixed(held, rng)


def _mixed(blocks: Sequence[NDArray[np.float32]], rng: np.random.Generator) -> NDArray[np.float32]:
    joined = np.concatenate(blocks)
    rng.shuffle(joined)
    return joined


def _trained_before(folder: Path, identity: dict[str, Any]) -> bool:
    """Whether the folder holds the result of this very training.

    Raises
    ------
    ConflictError
        It holds that of another one.
    """
    record = folder / TRAINING_NAME
    try:
        stored = json.loads(record.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return False  # `train` refuses a folder that holds something else
    except (OSError, ValueError):
        raise ConflictError(f"{record} cannot be read; give another folder with --out, or remove {folder}") from None
    wanted = json.loads(json.dumps(identity))
    if stored == wanted:
        return True
    changed = [name for name in wanted if not isinstance(stored, dict) or stored.get(name) != wanted[name]]
    raise ConflictError(
        f"{folder} holds an SAE that was trained differently (other {', '.join(changed) or 'settings'}); "
        f"give another folder with --out, or remove {folder} to train again"
    )
