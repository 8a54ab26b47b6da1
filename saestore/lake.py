"""A lake: opening it, finding what it holds, and its status."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from saestore.activations import Activations
from saestore.code_rows import joined_quality
from saestore.codes import Codes
from saestore.errors import InputError, IntegrityError, MissingError
from saestore.graphs import KIND, FeatureGraph, graph_names
from saestore.labels import DEFAULT_NAME, Labels, label_names
from saestore.layout import (
    ALL_UNITS,
    ATTRIBUTE,
    DATA,
    FORMAT_VERSION,
    LABELS,
    PARTS,
    POSITIONS,
    PROBES,
    RESULTS,
    SAES,
    SAMPLE_TYPES,
    SAMPLES,
    ActivationsKey,
    CodesKey,
    ModelKey,
    RowsKey,
    dataset_path,
    graph_path,
    is_name,
    probe_names_path,
    probe_path,
    sae_path,
    samples_path,
)
from saestore.parts import RowParts, Stored, n_parts, of_parts, open_on_axis, parts_of
from saestore.postings import Segment
from saestore.probe_results import ProbeResult, read_results
from saestore.rows import RowGroup, group_exists
from saestore.runs import run_records
from saestore.storage import Storage, claim_document, document_key, group_document, open_storage, read_document
from saestore.tables import Positions, Samples
from saestore.views import view_names

if TYPE_CHECKING:
    from saestore.graphing.options import GraphOptions

State = Literal["done", "partial", "missing"]
Key = TypeVar("Key", ActivationsKey, CodesKey)


@dataclass(frozen=True)
class GroupStatus:
    """State of one row group.

    kind : `sae`, `samples`, `positions`, `labels`, `activations`, `codes`, `postings`, `view`, `thresholds`,
        `detection`, `localisation`, `probes` or `graph`
    rows, written_rows : rows of the axis, and those in the ledger
    state : `done`, `partial` where rows are not written or the ledger is damaged, or `missing` where nothing was begun
        or the metadata are damaged
    stored_bytes : bytes of all written shards
    note : what the user should know: quality, non-finite values, truncated rows
    """

    kind: str
    path: str
    dataset: str
    model: str
    layer: str
    sae: str
    sample_type: str
    rows: int
    written_rows: int
    state: State
    stored_bytes: int
    note: str


class Lake:
    """One lake, open for navigation.

    Get one with `saestore.open` or `Lake.create`. It holds no array and may be sent to another process.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def __repr__(self) -> str:
        return f"<Lake {self.url}: {len(self.datasets())} datasets, {len(self.saes())} SAEs>"

    @property
    def url(self) -> str:
        """Where the lake is."""
        return self.storage.url

    @classmethod
    def open(cls, url: str | os.PathLike[str], *, storage_options: Mapping[str, Any] | None = None) -> Lake:
        """Open an existing lake.

        Raises
        ------
        MissingError
            There is no lake at the URL.
        InputError
            It has a format that this version cannot read.
        """
        storage = open_storage(url, storage_options=storage_options)
        document = read_document(storage, "")
        if document is None or ATTRIBUTE not in document.get("attributes", {}):
            raise MissingError(
                f"there is no lake at {storage.url}; check the path, or make one with: saestore init {os.fspath(url)}"
            )
        own = document["attributes"][ATTRIBUTE]
        version = own.get("format") if isinstance(own, dict) else None
        if version != FORMAT_VERSION:
            raise InputError(
                f"the lake {storage.url} has format {version}, this saestore reads {FORMAT_VERSION}; update it"
            )
        return cls(storage)

    @classmethod
    def create(cls, url: str | os.PathLike[str], *, storage_options: Mapping[str, Any] | None = None) -> Lake:
        """Make a lake, or open the one that is there.

        Raises
        ------
        InputError
            The place holds a Zarr hierarchy that is not a lake, or cannot be written.
        """
        storage = open_storage(url, storage_options=storage_options)
        document = read_document(storage, "")
        if document is None:
            document = claim_document(storage, "", group_document({ATTRIBUTE: {"format": FORMAT_VERSION}}))
        if ATTRIBUTE not in document.get("attributes", {}):
            raise InputError(f"{storage.url} holds a Zarr node that is not a lake; choose another place")
        return cls.open(url, storage_options=storage_options)

    # ------------------------------------------------------------ navigation

    def datasets(self) -> list[str]:
        """Return the names of the datasets."""
        return self._children(DATA)

    def models(self, dataset: str) -> list[str]:
        """Return the names of the models whose activations of a dataset are stored."""
        return [name for name in self._children(dataset_path(dataset)) if name not in (SAMPLES, PARTS)]

    def layers(self, dataset: str, model: str) -> list[str]:
        """Return the names of a model's stored layers, shallow ones first."""
        names = [name for name in self._children(ModelKey(dataset, model).path) if name not in (POSITIONS, LABELS)]
        return sorted(names, key=_layer_order)

    def label_names(self, dataset: str, model: str | None = None) -> list[str]:
        """Return the names of the concept labels of a model's positions."""
        return label_names(self.storage, ModelKey(dataset, self._one_model(dataset, model)))

    def saes(self) -> list[str]:
        """Return the names of the imported SAEs."""
        return [name for name in self._children(SAES) if group_exists(self.storage, sae_path(name))]

    def activation_keys(self, dataset: str | None = None) -> Iterator[ActivationsKey]:
        """Yield the keys of all stored activations, or of those of one dataset."""
        for name in self.datasets() if dataset is None else [dataset]:
            for model in self.models(name):
                for layer in self.layers(name, model):
                    for sample_type in self._sample_types(ModelKey(name, model).activations_root(layer)):
                        yield ActivationsKey(name, model, layer, sample_type)

    def code_keys(self, dataset: str | None = None) -> Iterator[CodesKey]:
        """Yield the keys of all stored codes, or of those of one dataset."""
        for name in self.datasets() if dataset is None else [dataset]:
            for model in self.models(name):
                for layer in self.layers(name, model):
                    key = ModelKey(name, model)
                    for sae in self._children(key.codes_root(layer)):
                        for sample_type in self._sample_types(key.sae_codes_root(layer, sae)):
                            yield CodesKey(name, model, layer, sae, sample_type)

    # --------------------------------------------------------------- readers

    def samples(self, dataset: str) -> Samples:
        """Open the sample table of a dataset."""
        return Samples.open(self.storage, dataset)

    def positions(self, dataset: str, model: str | None = None) -> Positions:
        """Open the position axis of a model over a dataset; the model may be left out where there is one."""
        return Positions.open(self.storage, ModelKey(dataset, self._one_model(dataset, model)))

    def labels(self, dataset: str, name: str = DEFAULT_NAME, model: str | None = None) -> Labels:
        """Open concept labels of the positions of a model; the model may be left out where there is one.

        Raises
        ------
        MissingError
            There are no labels of that name; the message lists what there is.
        """
        return Labels.open(self.storage, ModelKey(dataset, self._one_model(dataset, model)), name)

    def activations(
        self,
        dataset: str,
        *,
        layer: str | int | None = None,
        sample_type: str | None = None,
        model: str | None = None,
    ) -> Activations:
        """Open stored activations; what is unique in the lake may be left out.

        Parameters
        ----------
        dataset : str
        layer : str or int, optional
            Such as `22`, `layer_22` or `layer_22.mlp_out`.
        sample_type : str, optional
            `token`, `patch`, `cls`, `mean`, `max` or `last`.
        model : str, optional

        Raises
        ------
        MissingError
            Nothing, or more than one thing, fits; the message lists what there is.
        """
        wanted = {"dataset": dataset, "layer": layer_name(layer), "sample_type": sample_type, "model": model}
        return Activations.open(self.storage, self._one(self._keys_of(dataset, self.activation_keys(dataset)), wanted))

    def codes(
        self,
        dataset: str,
        *,
        sae: str | None = None,
        layer: str | int | None = None,
        sample_type: str | None = None,
        model: str | None = None,
    ) -> Codes:
        """Open stored codes; what is unique in the lake may be left out.

        Raises
        ------
        MissingError
            Nothing, or more than one thing, fits; the message lists what there is.
        """
        wanted = {
            "dataset": dataset,
            "sae": sae,
            "layer": layer_name(layer),
            "sample_type": sample_type,
            "model": model,
        }
        return Codes.open(self.storage, self._one(self._keys_of(dataset, self.code_keys(dataset)), wanted))

    def probes(self, dataset: str | None = None) -> list[ProbeResult]:
        """Read all results of probes, or those of one dataset; of codes those of the codes as they are now."""
        found = []
        for key in self.activation_keys(dataset):
            found += read_results(self.storage, key.probes_path, key)
        for code_key in self.code_keys(dataset):
            if self.storage.names(code_key.views_root):
                run = Codes.open(self.storage, code_key).run
                for view in self._children(code_key.views_path(run)):
                    found += read_results(self.storage, code_key.results_path(run, view, PROBES), code_key)
        return found

    def graph(
        self,
        a: Codes | Activations | Sequence[Codes | Activations],
        b: Codes | Activations | Sequence[Codes | Activations] | None = None,
        *,
        name: str = "default",
        options: GraphOptions | None = None,
        pooling: Literal["mean", "max"] | None = None,
        memory: str | int | None = None,
        device: str = "cpu",
        scheduler: str | None = None,
        quiet: bool = False,
    ) -> FeatureGraph:
        """Join correlated units of codes, views or activations over the same rows, or open the graph that is there.

        `saestore.graph` does the same for names of layers and SAEs, and over several datasets.

        Parameters
        ----------
        a, b : Codes, Activations, or sequences of these
            Without b, units of each of a are joined with each other and with those of every other one of a; with b,
            those of a with those of b. Special tokens never count.
        name : str
            Of the graph.
        options : GraphOptions, optional
            Which pairs are kept, see `saestore.graphing.options`; default those with |r| of 0.3 or more.
        pooling, memory, device, scheduler, quiet
            As for `saestore.graph`.

        Raises
        ------
        InputError, ConflictError, BudgetError
            As for `saestore.graph`.

        Examples
        --------
        >>> lake.graph(codes.view("pruned").where(split="train")).neighbours(812)  # doctest: +SKIP
        """
        from saestore.graphing.joining import graph_of
        from saestore.graphing.options import GraphOptions

        return graph_of(
            self.storage,
            a,
            b,
            name=name,
            options=options or GraphOptions(),
            pooling=pooling,
            memory=memory,
            device=device,
            scheduler=scheduler,
            quiet=quiet,
        )

    def open_graph(self, name: str = "default") -> FeatureGraph:
        """Open a feature graph.

        Raises
        ------
        MissingError
            There is none of this name, or it is not complete.
        """
        return FeatureGraph.open(self.storage, name)

    def runs(self) -> list[dict[str, Any]]:
        """Return the records of all runs of `encode`, oldest first: parameters, plan and outcome, as JSON values."""
        return list(run_records(self.storage))

    # ---------------------------------------------------------------- status

    def status(self) -> list[GroupStatus]:
        """Return the state of every row group, from listings and ledgers alone.

        What is damaged does not hide the rest: its note says what is wrong.
        """
        rows = [self._axis_status("sae", [sae_path(name)], sae=name) for name in self._children(SAES)]
        for dataset in self.datasets():
            parts = range(n_parts(self.storage, dataset))
            rows.append(self._axis_status("samples", [samples_path(dataset, part) for part in parts], dataset=dataset))
            for model in self.models(dataset):
                paths = [ModelKey(dataset, model, part).positions_path for part in parts]
                rows.append(self._axis_status("positions", paths, dataset=dataset, model=model))
                rows += self._labels_status(ModelKey(dataset, model))
        for key in self.activation_keys():
            rows.append(self._status_on_axis("activations", key, key))
            rows += self._probes_status(key, key.probes_path, "")
        for code_key in self.code_keys():
            rows.append(self._status_on_axis("codes", code_key, code_key.activations))
            rows.append(self._postings_status(code_key))
            rows += self._view_statuses(code_key)
        rows += [self._graph_status(name) for name in graph_names(self.storage)]
        return [row for row in rows if row is not None]

    def _axis_status(self, kind: str, paths: Sequence[str], **names: str) -> GroupStatus | None:
        """Return the state of an axis; parts that are still being written count."""

        def opened() -> Stored:
            documents = of_parts(lambda path: read_document(self.storage, path), paths)
            groups = [
                RowGroup.from_document(self.storage, path, document)
                for path, document in zip(paths, documents, strict=True)
                if document is not None
            ]
            return RowParts(groups) if len(groups) > 1 else RowGroup.open(self.storage, paths[0])

        return self._group_status(kind, paths[0], opened, **names)

    def _labels_status(self, key: ModelKey) -> list[GroupStatus | None]:
        """Return the state of the labels of a model's positions, one of each name."""

        def status(name: str) -> GroupStatus | None:
            names = {"dataset": key.dataset, "model": key.model}
            path = key.labels_path(name)
            return self._group_status("labels", path, lambda: Labels.open(self.storage, key, name).group, **names)

        return [status(name) for name in label_names(self.storage, key)]

    def _status_on_axis(self, kind: str, key: ActivationsKey | CodesKey, source: ActivationsKey) -> GroupStatus | None:
        """Return the state of what lies on the axis of activations."""

        def opened() -> Stored:
            return open_on_axis(self.storage, source, lambda part: key.at(part).path)

        return self._group_status(kind, key.path, opened, **_names(key))

    def _group_status(self, kind: str, path: str, opened: Callable[[], Stored], **names: str) -> GroupStatus | None:
        rows = written = stored_bytes = 0
        state: State = "missing"
        try:
            group = opened()
            rows, written, state = group.grid.rows, group.written_rows(), "partial"
            stored_bytes, note = group.stored_bytes(), _note(group)
            state = "done" if written == rows else "partial"
        except MissingError:
            return None
        except IntegrityError as error:
            note = str(error)
        return GroupStatus(
            kind=kind,
            path=path,
            **{name: names.get(name, "") for name in ("dataset", "model", "layer", "sae", "sample_type")},
            rows=rows,
            written_rows=written,
            state=state,
            stored_bytes=stored_bytes,
            note=note,
        )

    def _postings_status(self, key: CodesKey) -> GroupStatus | None:
        """Return the state of the postings of codes; None where there are none."""
        if not self.storage.names(key.units_path):
            return None
        rows = written = stored_bytes = 0
        note = ""
        try:
            codes = Codes.open(self.storage, key)
            rows = codes.group.grid.rows

            def told(path: str) -> tuple[int, int]:
                document = read_document(self.storage, path)
                if document is None:
                    return 0, 0
                segment = Segment(RowGroup.from_document(self.storage, path, document))
                rows = (segment.stop_row - segment.first_row) * segment.group.is_complete
                return segment.group.stored_bytes(), rows

            of_segments = of_parts(told, [path for part in codes.parts for path in part.segment_paths])
            stored_bytes, written = (sum(of_one[side] for of_one in of_segments) for side in (0, 1))
            if not stored_bytes:
                note = "only those of older codes; build them with saestore index"
        except (IntegrityError, MissingError) as error:
            note = str(error)
        state: State = "done" if rows and written == rows else "partial" if stored_bytes or not rows else "missing"
        return GroupStatus(
            kind="postings",
            path=key.units_path,
            **_names(key),
            rows=rows,
            written_rows=written,
            state=state,
            stored_bytes=stored_bytes,
            note=note,
        )

    def _view_statuses(self, key: CodesKey) -> Iterator[GroupStatus | None]:
        """Yield the state of the views of codes as they are stored now, and of what was found with them.

        Rows of a view are the units that it keeps, those of a result its pairs of unit and concept, or its concepts.
        """
        if not self.storage.names(key.views_root):
            return
        try:
            run = Codes.open(self.storage, key).run
        except (IntegrityError, MissingError):  # the codes' own line says so
            return
        there = self._children(key.views_path(run))
        for name in [*view_names(self.storage, key, run), *({ALL_UNITS} & set(there))]:
            path = key.view_path(run, name)
            if name != ALL_UNITS:
                yield self._group_status("view", path, partial(RowGroup.open, self.storage, path), **_names(key))
            for kind in RESULTS:
                for result in self._children(key.results_path(run, name, kind)):
                    place = key.result_path(run, name, kind, result)
                    yield self._group_status(kind, place, partial(RowGroup.open, self.storage, place), **_names(key))
            yield from self._probes_status(key, key.results_path(run, name, PROBES), name)

    def _probes_status(self, key: RowsKey, root: str, view: str) -> Iterator[GroupStatus]:
        """Yield the state of the results of probes of each name; their rows are the methods in each setting.

        A result is written in one piece, so that what is there is whole.
        """
        of = f", view {view}" if view not in ("", ALL_UNITS) else ""
        for name in self._children(root):
            results = self._children(probe_names_path(root, name))
            sizes = self.storage.sizes([document_key(probe_path(root, name, result)) for result in results])
            yield GroupStatus(
                kind=PROBES,
                path=probe_names_path(root, name),
                **{"sae": "", **_names(key)},
                rows=len(results),
                written_rows=len(results),
                state="done",
                stored_bytes=sum(size or 0 for size in sizes),
                note=f"{name}{of}: {', '.join(results)}",
            )

    def _graph_status(self, name: str) -> GroupStatus:
        """Return the state of a feature graph; its rows are the edges."""
        path, edges, stored_bytes = graph_path(name), 0, 0
        state: State = "done"
        try:
            graph = FeatureGraph.open(self.storage, name)
            edges, stored_bytes = int(graph.summary["counts"]["edges"]), graph.stored_bytes
            note = f"{name}: {', '.join(end.name for end in graph.ends)}"
        except (MissingError, IntegrityError) as error:
            state, note = "partial", str(error)
        return GroupStatus(
            kind=KIND,
            path=path,
            dataset="",
            model="",
            layer="",
            sae="",
            sample_type="",
            rows=edges,
            written_rows=edges,
            state=state,
            stored_bytes=stored_bytes,
            note=note,
        )

    def _children(self, path: str) -> list[str]:
        # Other names are those of files that desktops, editors and people leave in folders.
        return [name for name in self.storage.names(path) if is_name(name)]

    def _sample_types(self, path: str) -> list[str]:
        return [name for name in self._children(path) if name in SAMPLE_TYPES]

    def _one_model(self, dataset: str, model: str | None) -> str:
        if model is not None:
            return model
        models = self.models(dataset)
        if len(models) != 1:
            raise MissingError(f"dataset {dataset!r} has models {models or 'none'}; name one with model=")
        return models[0]

    def _keys_of(self, dataset: str, keys: Iterator[Key]) -> list[Key]:
        self.samples(dataset)  # a dataset that is not there is its own error
        return [key for key in keys if key.dataset == dataset]

    def _one(self, keys: list[Key], wanted: Mapping[str, str | None]) -> Key:
        fitting = [
            key for key in keys if all(value is None or getattr(key, name) == value for name, value in wanted.items())
        ]
        if len(fitting) == 1:
            return fitting[0]
        listed = "; ".join(key.path.removeprefix(f"{DATA}/") for key in (fitting or keys)[:6]) or "nothing"
        asked = ", ".join(f"{name} {value}" for name, value in wanted.items() if value is not None)
        if not fitting:
            raise MissingError(f"nothing stored fits {asked}; there is {listed}")
        raise MissingError(f"{len(fitting)} stored groups fit {asked}: {listed}; name layer, SAE or sample type too")


def layer_name(layer: str | int | None) -> str | None:
    """Return the name of a layer in the lake: 22 and `22` are `layer_22`."""
    if layer is None:
        return None
    text = str(layer)
    return f"layer_{text}" if text[:1].isdigit() else text


def _names(key: ActivationsKey | CodesKey) -> dict[str, str]:
    names = {"dataset": key.dataset, "model": key.model, "layer": key.layer, "sample_type": key.sample_type}
    return {**names, "sae": key.sae} if isinstance(key, CodesKey) else names


def _layer_order(name: str) -> tuple[int, str]:
    digits = name.removeprefix("layer_").split(".")[0]
    return (int(digits) if digits.isdigit() else 1 << 30, name)


def _note(group: Stored) -> str:
    kind = group.attributes["kind"]
    if kind == "labels":
        count = len(group.attributes["concept_names"])
        return f"{group.path.rpartition('/')[2]}: {count:,} concept{'' if count == 1 else 's'}"
    if kind == "activations":
        count = group.flagged(group.array_names[0])
        return f"{count:,} non-finite values" if count else ""
    if kind == "view":
        return group.path.rsplit("/", 1)[-1]
    if kind in RESULTS:
        view = group.attributes.get("view")
        return f"{group.path.rpartition('/')[2]}, {f'view {view}' if view else 'all units'}"
    if kind == "codes":
        notes = []
        parts = [part for part in parts_of(group) if isinstance(part, RowGroup)]
        measured = [part.attributes["quality"] for part in parts if part.attributes.get("quality")]
        quality = joined_quality(measured) if measured else None
        if quality and quality["explained_variance"] is not None:
            notes.append(f"explained variance {quality['explained_variance']:.2f}, L0 {quality['l0']:.0f}")
        if not group.attributes.get("l0_exact", True):
            notes.append("l0 counts filled slots, the imported file holds no true number")
        truncated = group.flagged("l0")
        if truncated:
            k = max(part.attributes["k"] for part in parts)
            notes.append(f"{truncated:,} rows have more than {k} active units")
        return "; ".join(notes)
    return ""
