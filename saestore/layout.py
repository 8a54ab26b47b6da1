"""The names and paths of the on-disk format, version 1: the only place where a path inside a lake is spelled.

The normative description is `docs/format.md`; the section numbers in this module's docstrings are its.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal, get_args

from saestore.errors import InputError

FORMAT_VERSION = 1
ATTRIBUTE = "saestore"
LEDGER = "ledger"

SampleType = Literal["token", "patch", "cls", "mean", "max", "last"]
SAMPLE_TYPES: tuple[str, ...] = get_args(SampleType)
POSITION_TYPES = ("token", "patch")
SPLITS = ("train", "cal", "test")

SAES = "saes"
DATA = "data"
RUNS = "runs"
GRAPHS = "graphs"
SAMPLES = "samples"
PARTS = "parts"
POSITIONS = "positions"
ACTIVATIONS = "activations"
CODES = "codes"
UNITS = "units"
STATS = "stats"
LABELS = "labels"
VIEWS = "views"
RESULTS = ("thresholds", "detection", "localisation")
PROBES = "probes"
"""Kinds of what was found with a view."""

ALL_UNITS = "all"
"""What stands in the place of a view's name where there is none."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._:+@=,()-]*")
_RESERVED_COLUMNS = {"id", "split", "text", "path", "concepts", "concept", "sample", LEDGER}


def is_path_part(name: object) -> bool:
    """Whether a name from anywhere can be one part of a path that stays where it is."""
    return isinstance(name, str) and name not in ("", ".", "..", "zarr.json") and not set("/\\\0") & set(name)


def is_name(name: str) -> bool:
    """Whether a name can be that of a dataset, model, layer or SAE; others in a folder are not the format's."""
    return (
        isinstance(name, str)
        and 0 < len(name) <= 120
        and _NAME.fullmatch(name) is not None
        and ".." not in name
        and name[-1] not in " ."
        and name != "zarr.json"
    )


def check_name(name: str, what: str) -> str:
    """Return a user's name for a dataset, model, layer or SAE if it can be one path part, else refuse it.

    Raises
    ------
    InputError
        The name is empty, longer than 120 characters, holds a path separator or `..`, or begins or ends in a way that
        some file system or Zarr itself gives a meaning to.
    """
    if not is_name(name):
        raise InputError(
            f"{what} name {name!r} cannot be used: give 1 to 120 letters, digits, spaces or ._:+@=,()- "
            "beginning with a letter or digit, without '..' and '/'"
        )
    return name


def check_column(name: str) -> str:
    """Return the name of an extra sample column if it can be the name of an array, else refuse it."""
    usable = (
        is_path_part(name)
        and name.isprintable()
        and len(name.encode()) <= 200  # file systems allow 255 bytes
        and not name.startswith((".", "__"))
        and name not in _RESERVED_COLUMNS
    )
    if not usable:
        raise InputError(
            f"column name {name!r} cannot be used: it must be printable, at most 200 bytes, without '/', not "
            f"begin with '.' or '__', and not be one of {', '.join(sorted(_RESERVED_COLUMNS))}; rename the column"
        )
    return name


def check_sample_type(sample_type: str) -> str:
    """Return a sample type if the format knows it, else refuse it."""
    if sample_type not in SAMPLE_TYPES:
        raise InputError(f"sample type {sample_type!r} is unknown; choose from {', '.join(SAMPLE_TYPES)}")
    return sample_type


@dataclass(frozen=True, order=True)
class ModelKey:
    """A model's place under a dataset, or under one part of it.

    part : 0 for the first part, and for the dataset as a whole
    """

    dataset: str
    model: str
    part: int = 0

    def __post_init__(self) -> None:
        check_name(self.dataset, "dataset")
        check_name(self.model, "model")
        if self.model.lower() in (SAMPLES, PARTS):  # some file systems do not tell cases apart
            raise InputError(f"model name {self.model!r} is taken by the format; choose another")

    def at(self, part: int) -> ModelKey:
        """Return the same place under another part."""
        return replace(self, part=part)

    @property
    def path(self) -> str:
        """Path of the group."""
        return f"{dataset_path(self.dataset, self.part)}/{self.model}"

    @property
    def positions_path(self) -> str:
        """Path of the position axis that all layers of the model share."""
        return f"{self.path}/{POSITIONS}"

    @property
    def labels_root(self) -> str:
        """Path below which the concept labels of the positions lie."""
        return f"{self.path}/{LABELS}"

    def activations_root(self, layer: str) -> str:
        """Return the path below which the activations of a layer lie, by their sample types."""
        return f"{self.path}/{layer}/{ACTIVATIONS}"

    def codes_root(self, layer: str) -> str:
        """Return the path below which the codes of a layer's activations lie, by SAE."""
        return f"{self.path}/{layer}/{CODES}"

    def probes_root(self, layer: str) -> str:
        """Return the path below which results of probing the activations of a layer lie, by sample type."""
        return f"{self.path}/{layer}/{PROBES}"

    def sae_codes_root(self, layer: str, sae: str) -> str:
        """Return the path below which the codes of one SAE lie, by sample type."""
        return f"{self.codes_root(layer)}/{sae}"

    def labels_path(self, name: str) -> str:
        """Return the path of concept labels of the positions."""
        return f"{self.labels_root}/{check_name(name, 'labels')}"


@dataclass(frozen=True, order=True)
class ActivationsKey:
    """Where one layer's activations of one sample type lie."""

    dataset: str
    model: str
    layer: str
    sample_type: str
    part: int = 0

    def __post_init__(self) -> None:
        ModelKey(self.dataset, self.model)
        check_name(self.layer, "layer")
        if self.layer.lower() in (POSITIONS, LABELS):
            raise InputError(f"layer name {self.layer!r} is taken by the format; choose another")
        check_sample_type(self.sample_type)

    def at(self, part: int) -> ActivationsKey:
        """Return the same place under another part of the dataset."""
        return replace(self, part=part)

    @property
    def model_key(self) -> ModelKey:
        """The model the layer belongs to."""
        return ModelKey(self.dataset, self.model, self.part)

    @property
    def path(self) -> str:
        """Path of the group."""
        return f"{self.model_key.activations_root(self.layer)}/{self.sample_type}"

    @property
    def probes_path(self) -> str:
        """Path below which results of probing these activations lie, by name."""
        return f"{self.model_key.probes_root(self.layer)}/{self.sample_type}"


@dataclass(frozen=True, order=True)
class CodesKey:
    """Where the codes of one SAE over one layer's activations lie."""

    dataset: str
    model: str
    layer: str
    sae: str
    sample_type: str
    part: int = 0

    def __post_init__(self) -> None:
        ActivationsKey(self.dataset, self.model, self.layer, self.sample_type)
        check_name(self.sae, "SAE")

    @classmethod
    def of(cls, source: ActivationsKey, sae: str) -> CodesKey:
        """Return where the codes that an SAE makes of activations lie."""
        return cls(source.dataset, source.model, source.layer, sae, source.sample_type, source.part)

    def at(self, part: int) -> CodesKey:
        """Return the same place under another part of the dataset."""
        return replace(self, part=part)

    @property
    def activations(self) -> ActivationsKey:
        """The activations that the codes were made from."""
        return ActivationsKey(self.dataset, self.model, self.layer, self.sample_type, self.part)

    @property
    def path(self) -> str:
        """Path of the group."""
        return f"{self.activations.model_key.sae_codes_root(self.layer, self.sae)}/{self.sample_type}"

    @property
    def units_path(self) -> str:
        """Path below which the postings of these codes lie."""
        return f"{self.path}/{UNITS}"

    def segment_path(self, run: str, number: int) -> str:
        """Return the path of a segment of the postings of the codes that a run has written."""
        return f"{self.units_path}/{run}/{number}"

    @property
    def stats_root(self) -> str:
        """Path below which the statistics of units of these codes lie."""
        return f"{self.path}/{STATS}"

    def stats_run_path(self, run: str) -> str:
        """Return the path below which those of the codes that a run has written lie."""
        return f"{self.stats_root}/{run}"

    def stats_path(self, run: str, split: str, *, special: bool = False) -> str:
        """Return the path of the statistics over one split; `special`: those that count special tokens too."""
        return f"{self.stats_run_path(run)}/{split}{'+special' if special else ''}"

    @property
    def views_root(self) -> str:
        """Path below which the views of units of these codes lie."""
        return f"{self.path}/{VIEWS}"

    def views_path(self, run: str) -> str:
        """Return the path below which the views of the codes that a run has written lie."""
        return f"{self.views_root}/{run}"

    def view_path(self, run: str, name: str) -> str:
        """Return the path of a view; what was found with it lies below."""
        return f"{self.views_path(run)}/{check_name(name, 'view')}"

    def results_path(self, run: str, view: str, kind: str) -> str:
        """Return the path below which the results of a kind, of `RESULTS` or `PROBES`, found with a view lie."""
        return f"{self.view_path(run, view)}/{kind}"

    def result_path(self, run: str, view: str, kind: str, name: str) -> str:
        """Return the path of a result found with a view."""
        return f"{self.results_path(run, view, kind)}/{check_name(name, 'result')}"


RowsKey = ActivationsKey | CodesKey
"""What rows are of."""


def dataset_path(dataset: str, part: int = 0) -> str:
    """Return the path of a dataset's group, or of what was appended to it as one part."""
    path = f"{DATA}/{check_name(dataset, 'dataset')}"
    return f"{path}/{PARTS}/{part}" if part else path


def parts_path(dataset: str) -> str:
    """Return the path below which the appended parts of a dataset lie, by their numbers from 1."""
    return f"{dataset_path(dataset)}/{PARTS}"


def samples_path(dataset: str, part: int = 0) -> str:
    """Return the path of the sample table of a dataset, or of one part of it."""
    return f"{dataset_path(dataset, part)}/{SAMPLES}"


def sae_path(sae: str) -> str:
    """Return the path of an imported SAE."""
    return f"{SAES}/{check_name(sae, 'SAE')}"


def run_path(run: str) -> str:
    """Return the path of the record of a run."""
    return f"{RUNS}/{check_name(run, 'run')}"


def probe_path(root: str, name: str, result: str) -> str:
    """Return the path of the result of one method in one setting, below what was probed.

    Parameters
    ----------
    root : str
        `ActivationsKey.probes_path`, or `CodesKey.results_path` of `PROBES`.
    name : str
        Of the results.
    result : str
        The setting and the method, as `normal-logreg`.
    """
    return f"{probe_names_path(root, name)}/{check_name(result, 'result')}"


def probe_names_path(root: str, name: str) -> str:
    """Return the path below which the results of probes of one name lie."""
    return f"{root}/{check_name(name, 'result')}"


def parents(path: str) -> list[str]:
    """Return the paths of all groups above a node, from the root (the empty path) down."""
    parts = path.split("/")[:-1]
    return ["/".join(parts[:depth]) for depth in range(len(parts) + 1)] if path else []


def graph_path(name: str) -> str:
    """Return the path of a feature graph."""
    return f"{GRAPHS}/{check_name(name, 'graph')}"


def graph_table_path(name: str, table: str) -> str:
    """Return the path of a Parquet table of a graph: `edges` or `units`."""
    return f"{graph_path(name)}/{table}.parquet"


def graph_summary_path(name: str) -> str:
    """Return the path of the document that is written last, when a graph is complete."""
    return f"{graph_path(name)}/summary"


def graph_work_path(name: str, run: str = "", part: str = "") -> str:
    """Return the path of a Parquet table that is kept until its graph is complete, or below which those of runs lie."""
    path = f"{graph_path(name)}/work"
    return f"{path}/{run}/{part}.parquet" if part else f"{path}/{run}" if run else path
