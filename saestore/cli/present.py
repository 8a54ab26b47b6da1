"""What each verb prints: the text for people, and the JSON document."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from saestore.budget import readable_bytes
from saestore.cli import present_concepts, present_graphs, present_probe_files, present_probes, present_steering
from saestore.cli.tables import plain, table
from saestore.layout import DATA
from saestore.progress import clock

if TYPE_CHECKING:
    from saestore.encoding.writer import EncodeResult
    from saestore.extraction.writer import ExtractResult
    from saestore.formats.importer import ImportResult
    from saestore.indexing.writer import IndexResult
    from saestore.labelling.writer import LabelResult
    from saestore.lake import Lake
    from saestore.verbs import CatalogRow, LakeStatus, Pruned, SAESummary, ShownRows, TopUnits, Training, UnitTable

Options = Mapping[str, Any]

_SHOWN_UNITS = 6
_SHOWN_ROWS = 20


def text(verb: str, result: Any, options: Options) -> str:
    """Return what a verb prints, given what it returned and the options it was called with."""
    return _TEXTS[verb](result, options)


def document(verb: str, result: Any) -> Any:
    """Return what a verb prints with `--json`."""
    if verb == "status":
        return {"lake": result.lake, "complete": result.complete, **_fields(result, "groups", "storage")}
    if verb == "init":
        return {"lake": result.url}
    if verb == "dense" and hasattr(result, "codes"):
        return _dense_document(result)
    if verb == "encode":
        return [_encode_document(row) for row in result]
    if verb == "run":
        return {
            **plain(result),
            "steps": [
                {"verb": step.verb, "command": step.command, "seconds": step.seconds, "skipped": step.skipped}
                | {"result": None if step.result is None else document(step.verb, step.result)}
                for step in result.steps
            ],
        }
    return plain(result)


def exit_code(verb: str, result: Any) -> int:
    """Return 1 where a status says that something is partial or a comparison that something differs, 3 where an encode,
    an index, a probe or files of the probing benchmark left something out, else 0.

    Of a recipe, the largest of its steps' codes.
    """
    if verb == "index":
        return 3 if any(row.reason for row in result) else 0
    if verb == "encode":
        return 3 if any(row.state == "left out" for row in result) else 0
    if verb == "run":
        return max((exit_code(step.verb, step.result) for step in result.steps if step.result is not None), default=0)
    if verb == "compare":
        return 0 if all(found.is_equal for found in result) else 1
    if verb in ("probes import", "probes export"):
        return 3 if present_probe_files.left_out(result) else 0
    if verb == "probe":
        return 3 if any(task.state == "missing" for task in result.tasks) else 0
    return 1 if verb == "status" and not result.complete else 0


def _fields(result: Any, *names: str) -> dict[str, Any]:
    return {name: plain(getattr(result, name)) for name in names}


def _init(result: Lake, options: Options) -> str:
    return f"lake at {result.url}"


def _catalog(result: list[CatalogRow], options: Options) -> str:
    listed = table(
        ["section", "name", "kind", "from", "state"],
        [[row.section, row.name, row.kind, row.source, row.state] for row in result],
    )
    unusable = sum(row.state != "ok" for row in result)
    return f"{listed}\n{len(result)} entries" + (f", {unusable} cannot be used here yet" if unusable else "")


def _extract(result: list[ExtractResult], options: Options) -> str:
    dry = bool(options.get("dry_run"))
    headers = ["dataset", "samples", "positions", "to extract" if dry else "extracted", "cut", "groups"]
    rows = [[r.dataset, r.samples, r.positions, r.extracted, r.truncated, len(r.groups)] for r in result]
    done = sum(r.extracted for r in result)
    if not done:
        return f"nothing to do: all {_count(result, 'dataset')} are extracted"
    last = f"{done:,} positions of {_count(result, 'dataset')}"
    return f"{table(headers, rows)}\n{last} {'to extract' if dry else 'extracted'}"


def _encode(result: list[EncodeResult], options: Options) -> str:
    left_out = [r for r in result if r.state == "left out"]
    lines = [_encoded([r for r in result if r.state != "left out"], dry=bool(options.get("dry_run")))]
    if left_out:
        lines += ["", f"left out: {_count(left_out, 'group')}"]
        lines += [f"  {_place(r)}: {r.reason}" for r in left_out]
    return "\n".join(lines)


def _encoded(result: list[EncodeResult], *, dry: bool) -> str:
    planned = sum(part.rows for r in result if r.plan for part in r.plan.parts if part.sae == r.sae)
    if dry and planned:
        return f"{planned:,} rows of {_count(result, 'group')} to encode"
    done = sum(r.encoded_rows for r in result)
    if not done:
        return f"nothing to do: all {_count(result, 'group')} of codes are encoded"
    rows = []
    for r in result:
        quality = [r.quality.get("explained_variance"), r.quality.get("l0")]
        numbers = ["" if value is None else f"{value:.2f}" for value in quality]
        rows.append([r.sae, f"{r.dataset}/{r.layer}/{r.sample_type}", r.rows, r.encoded_rows, *numbers])
    headers = ["SAE", "activations", "rows", "encoded", "explained variance", "L0"]
    return f"{table(headers, rows)}\n{done:,} rows encoded"


def _place(row: EncodeResult) -> str:
    names = "/".join(name for name in (row.dataset, row.layer, row.sample_type) if name)
    return ", ".join(part for part in (row.sae, names) if part)


def _encode_document(row: EncodeResult) -> dict[str, Any]:
    fields = _fields(row, *(field.name for field in dataclasses.fields(row) if field.name != "plan"))
    if row.plan is not None:
        shown = [field.name for field in dataclasses.fields(row.plan) if field.name not in ("source", "parts")]
        fields["plan"] = {**_fields(row.plan, *shown), "saes": [part.sae for part in row.plan.parts]}
    return fields


def _import(result: ImportResult, options: Options) -> str:
    what = f"{result.rows:,} rows of {_plural(result.samples, 'sample')} at {result.key.path}, {result.dtype}"
    if not result.imported_rows:
        return f"nothing to do: {what}, are imported"
    strange = f"; {result.nonfinite:,} values are not finite" if result.nonfinite else ""
    return f"{result.imported_rows:,} rows imported: {what}{strange}"


def _sae_import(result: SAESummary, options: Options) -> str:
    what = f"SAE {result.name} ({result.architecture}, {result.d_in} -> {result.d_sae:,}, {result.hook_name})"
    return f"{what} imported" if result.imported else f"nothing to do: {what} is in the lake"


def _sae_list(result: list[SAESummary], options: Options) -> str:
    if not result:
        return "no SAE in this lake; import one with: saestore sae import LAKE SOURCE"
    return table(
        ["name", "architecture", "d_in", "d_sae", "k", "dtype", "hook", "size"],
        [
            [s.name, s.architecture, s.d_in, s.d_sae, s.k, s.dtype, s.hook_name, readable_bytes(s.stored_bytes)]
            for s in result
        ],
    )


def _sae_train(result: Training, options: Options) -> str:
    what = f"{result.out}: Top-K SAE, {result.d_in} -> {result.d_sae:,}, k {result.k}, {result.layer}"
    if not result.trained:
        return f"nothing to do: {what} is trained"
    return f"{what}, trained on {result.samples:,} rows in {clock(result.seconds)}"


def _status(result: LakeStatus, options: Options) -> str:
    rows = []
    for group in result.groups:
        part = f" {group.written_rows:,}/{group.rows:,}" if group.state == "partial" else ""
        names = [group.dataset, group.model, group.layer, group.sae, group.sample_type]
        size = readable_bytes(group.stored_bytes)
        rows.append([group.kind, *names, group.rows, group.state + part, size, group.note])
    headers = ["kind", "dataset", "model", "layer", "SAE", "sample type", "rows", "state", "size", "note"]
    counts = {state: sum(g.state == state for g in result.groups) for state in ("done", "partial", "missing")}
    told = ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "empty"
    total = readable_bytes(sum(group.stored_bytes for group in result.groups))
    lines = [table(headers, rows)] if rows else []
    lines.append(f"{result.lake}: {told}, {total}")
    if result.storage:
        lines += ["", _storage(result)]
    return "\n".join(lines)


def _storage(result: LakeStatus) -> str:
    rows = [
        [
            cost.path.removeprefix(f"{DATA}/"),
            cost.rows,
            cost.k,
            cost.bytes_per_row,
            cost.legacy_pt_bytes_per_row,
            cost.dense_pt_bytes_per_row,
            f"{cost.versus_legacy:.1f}x",
            f"{cost.versus_dense:.0f}x",
        ]
        for cost in result.storage
    ]
    headers = ["bytes per row of codes", "rows", "k", "lake", "legacy .pt", "dense .pt", "legacy/lake", "dense/lake"]
    return table(headers, rows)


def _index(result: list[IndexResult], options: Options) -> str:
    left_out = [f"  {row.key.path}: {row.reason}" for row in result if row.reason]
    lines = ["", "left out:", *left_out] if left_out else []
    if not any(row.indexed_rows for row in result):
        return "\n".join([f"nothing to do: all {_count(result, 'group')} of codes have postings", *lines])
    rows = [[row.key.path.removeprefix(f"{DATA}/"), row.rows, row.indexed_rows, row.entries] for row in result]
    done = sum(row.indexed_rows for row in result)
    return "\n".join([table(["codes", "rows", "indexed", "entries"], rows), f"{done:,} rows indexed", *lines])


def _label(result: LabelResult, options: Options) -> str:
    rows = [[count.concept, count.samples, count.yes, count.no, count.unlabelled] for count in result.concepts]
    what = f"positions of {result.dataset}: {result.path}"
    done = f"{result.labelled_rows:,} of {result.rows:,} {what}, labelled"
    if not result.labelled_rows:
        done = f"nothing to do: all {result.rows:,} {what}, are labelled"
    return f"{table(['concept', 'samples', 'yes', 'no', 'unlabelled'], rows)}\n{done}"


def _show(result: ShownRows, options: Options) -> str:
    lines = [f"SAE {result.sae}, {result.layer}, {result.sample_type}"]
    for row in result.rows:
        place = row.place
        lines += ["", f"row {place.row} of {place.dataset}, sample {place.sample}, {row.l0} active: {place.text}"]
        lines += [f"  unit {unit:>7}  {value:9.3f}" for unit, value in zip(row.units, row.values, strict=True)]
    return "\n".join(lines)


def _top(result: TopUnits, options: Options) -> str:
    lines = [f"SAE {result.sae}, {result.layer}, {result.sample_type}"]
    if result.picked:
        lines.append(result.picked)
    for unit in result.units:
        share = unit.active_rows / max(1, unit.rows)
        lines += ["", f"unit {unit.unit}: active in {unit.active_rows:,} of {unit.rows:,} rows ({share:.2%})"]
        width = max((len(example.place.dataset) for example in unit.examples), default=0)
        for example in unit.examples:
            band = "" if example.band is None else f"  {example.band[0]:g}-{example.band[1]:g}"
            lines.append(f"  {example.value:9.3f}{band}  {example.place.dataset:<{width}}  {example.place.text}")
    return "\n".join(lines)


def _stats(result: list[UnitTable], options: Options) -> str:
    parts = []
    for found in result:
        numbers = {name: values for name, values in found.columns.items() if not name.startswith("is_")}
        flags = zip(found.columns["is_dead"], found.columns["is_always_on"], strict=True)
        told = ["dead" if dead else "always on" if always else "" for dead, always in flags]
        rows = [
            [
                *(
                    f"{value:.4g}" if values.dtype.kind == "f" else int(value)
                    for value, values in zip(row, numbers.values(), strict=True)
                ),
                flag,
            ]
            for row, flag in zip(zip(*numbers.values(), strict=True), told, strict=True)
        ]
        parts.append(
            f"{found.dataset}, SAE {found.sae}, {found.layer}, {found.sample_type}: {found.d_sae:,} units over "
            f"{found.n_rows:,} rows ({found.over}), {found.dead:,} dead, {found.always_on:,} always on\n"
            + table([*numbers, ""], rows)
        )
    return "\n\n".join(parts)


def _prune(result: list[Pruned], options: Options) -> str:
    names = list(dict.fromkeys(name for view in result for name in view.removed))
    rows = [
        [
            view.dataset,
            view.rows,
            view.active,
            *(view.removed.get(name, 0) for name in names),
            view.kept,
            ", ".join(f"{name} {value:.4g}" for name, value in view.criteria.items())
            + ("" if view.strength is None else f", p99 >= {view.strength:.4g}"),
        ]
        for view in result
    ]
    first = result[0]
    source = f"of view {first.parent}" if first.parent else f"of {first.d_sae:,} units"
    lines = [
        f"view {first.view} {source}: SAE {first.sae}, {first.layer}, {first.sample_type}, over split {first.split}"
        + (", legacy rows and percentiles" if first.legacy else ""),
        table(["dataset", "rows", "active", *(f"- {name}" for name in names), "kept", "criteria"], rows),
    ]
    return "\n".join(lines)


def _dense(result: Any, options: Options) -> str:
    if hasattr(result, "codes"):
        return _dense_block(result)
    rate = readable_bytes(result.bytes / max(result.seconds, 1e-9))
    return (
        f"{result.path}: {result.rows:,} rows x {result.units:,} units, {readable_bytes(result.bytes)} "
        f"in {clock(result.seconds)} ({rate}/s)\n{result.units_file}: the original unit of each column"
    )


def _dense_block(block: Any) -> str:
    """Return xarray's own text, and the numbers: of many units those with the largest values in these rows."""
    codes = block.codes
    rows, units = codes.shape
    lines = [str(block), ""]
    if units > _SHOWN_UNITS:
        strongest = abs(codes).max("row").argsort().values[::-1][:_SHOWN_UNITS]
        codes = codes.isel(unit=strongest)
        lines.append(f"the {_SHOWN_UNITS} units of {units:,} with the largest values in these rows:")
    if rows > _SHOWN_ROWS:
        codes = codes.isel(row=slice(0, _SHOWN_ROWS))
        lines.append(f"the first {_SHOWN_ROWS} of {rows:,} rows:")
    pairs = zip(codes.row.values, codes.values, strict=True)
    numbers = [[int(row), *(f"{value:.3f}" for value in values)] for row, values in pairs]
    return "\n".join([*lines, table(["row", *(f"unit {int(unit)}" for unit in codes.unit)], numbers)])


def _dense_document(block: Any) -> dict[str, Any]:
    names = ("sample", "split", "position", "special", "token_id")
    return {
        "attributes": plain(dict(block.attrs)),
        "rows": plain(block.row.values),
        "units": plain(block.unit.values),
        **{name: plain(block[name].values) for name in names if name in block.coords},
        "l0": plain(block.l0.values),
        "codes": plain(block.codes.values),
    }


def _run(result: Any, options: Options) -> str:
    skipped = sum(bool(step.skipped) for step in result.steps)
    steps = _plural(len(result.steps) - skipped, "step") + (f" ({skipped} skipped)" if skipped else "")
    if result.dry_run:
        return f"{steps}; nothing was run"
    held = ", ".join(
        f"{count:,} {what.removesuffix('s') if count == 1 else what}" for what, count in result.holds.items() if count
    )
    lines = [
        f"{result.name}: {steps} in {clock(result.seconds)}",
        f"the lake {result.lake} holds {held}; {readable_bytes(result.stored_bytes)} in all, "
        f"{readable_bytes(result.added_bytes)} made by this run",
    ]
    if result.next:
        lines += ["", "try next:", *(f"  $ {command}" for command in result.next)]
    return "\n".join(lines)


def _count(items: Any, what: str) -> str:
    return _plural(len(items), what)


def _plural(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


_TEXTS: dict[str, Callable[[Any, Options], str]] = {
    "init": _init,
    "catalog": _catalog,
    "extract": _extract,
    "import": _import,
    "sae import": _sae_import,
    "sae list": _sae_list,
    "sae train": _sae_train,
    "encode": _encode,
    "index": _index,
    "label": _label,
    "status": _status,
    "show": _show,
    "top": _top,
    "stats": _stats,
    "prune": _prune,
    "thresholds": present_concepts.thresholds,
    "detect": present_concepts.detect,
    "localise": present_concepts.localise,
    "compare": present_concepts.compare,
    "report concepts": present_concepts.report,
    "graph": present_graphs.graph,
    "neighbours": present_graphs.neighbours,
    "steer bundle": present_steering.bundle,
    "probe": present_probes.probe,
    "report probes": present_probes.report,
    "report graph": present_graphs.report,
    "probes import": present_probe_files.files,
    "probes export": present_probe_files.files,
    "dense": _dense,
    "run": _run,
}
