"""What best units do inside samples: heat maps over the patches of images, and highlighted tokens of texts."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from saestore.analysis.detection import BestUnit, Detection
from saestore.analysis.localisation import Localisation
from saestore.analysis.maps import ConceptMap, MapChoice, unit_maps
from saestore.errors import ConflictError
from saestore.report.examples import Example, Examples
from saestore.report.page import Cell, Data, Section, missing, number, paragraph, table, text
from saestore.report.subject import Subject

THUMBNAIL = 224
"""Pixels of the longer side of an image on the page."""

TOKENS = 160
"""Of a longer text, so many tokens around the strongest are shown."""

_REST = 200

_OUTCOMES = {
    "hit": "detected, has the concept",
    "missed": "not detected, has the concept",
    "alarm": "detected, has not the concept",
    "unlabelled": "detected, not labelled",
}


def maps_section(subject: Subject, concepts: int) -> Section:
    """Return maps of a few reported samples for the concepts that were detected best on the deciding split.

    Parameters
    ----------
    concepts : int
        The most concepts to map.
    """
    key, title = f"maps-{subject.number}", "Where units are active"
    detection = subject.detection
    if detection is None:
        return Section(key, title, missing(f"There is no detection to show: {subject.remarks.get('detection', '')}"))
    if not subject.is_mappable:
        return Section(key, title, missing("Rows are whole samples here, so there is nothing to map inside of them."))
    parts = []
    if subject.localisation is None:
        parts.append(
            missing(
                f"There is no localisation to show: {subject.remarks.get('localisation', '')}. Positions are "
                "marked that reach the threshold of the detection."
            )
        )
    else:
        parts.append(_localised(key, subject.localisation))
    choices = _choices(subject)
    named = [one for one in subject.best if one.concept in choices]
    chosen = sorted(named, key=lambda one: -one.calibration.f1)[:concepts]
    drawn: list[tuple[ConceptMap, Example]] = []
    of_positions = detection.thresholds.by == "position"
    try:
        examples = Examples(subject.codes, detection)
        for one in chosen:
            found = list(_mapped(subject, detection, examples, one, choices[one.concept]))
            drawn += found
            if found:
                figures = "".join(_figure(each, example, outlined=of_positions) for each, example in found)
                parts.append(f"<h4>{text(one.concept)}: unit {one.unit}</h4><div class='maps'>{figures}</div>")
            else:
                split = detection.splits[1]
                parts.append(
                    f"<h4>{text(one.concept)}: unit {one.unit}</h4>{missing(f'No sample in {split} to show.')}"
                )
    except ConflictError as error:
        parts.append(missing(f"Samples cannot be mapped: {error}"))
    if drawn:
        of_images = drawn[0][0].boxes is not None
        parts.insert(0, _key(of_images, of_positions))
        has_images = any("<image " in part for part in parts)
        parts.insert(0, paragraph(_about(len(chosen), len(named), detection.splits, drawn, has_images=has_images)))
    return Section(key, title, "".join(parts), (_data(subject.dataset, drawn),) if drawn else ())


def _choices(subject: Subject) -> dict[str, MapChoice]:
    """Return for each concept the threshold of positions: that of direct localisation, else that of the detection."""
    found = {}
    for one in subject.best:
        if one.unit is not None and one.percentile is not None and one.threshold is not None:
            found[one.concept] = MapChoice(one.concept, one.unit, one.percentile, one.threshold)
    for where in subject.localisation.best() if subject.localisation is not None else ():
        if where.method == "direct" and where.threshold is not None and where.concept in found:
            found[where.concept] = replace(found[where.concept], threshold=where.threshold)
    return found


def _mapped(
    subject: Subject, detection: Detection, examples: Examples, one: BestUnit, choice: MapChoice
) -> Iterator[tuple[ConceptMap, Example]]:
    chosen = examples.of(one)
    names = [example.sample for example in chosen]
    yield from zip(unit_maps(subject.codes, detection.thresholds, choice, names), chosen, strict=True)


def _about(
    shown: int, of: int, splits: tuple[str, str], drawn: list[tuple[ConceptMap, Example]], *, has_images: bool
) -> str:
    decide, report = splits
    words = (
        f"Samples of split {report} with the highest values of the best unit, and where there is one a missed "
        "sample and a false alarm."
    )
    if shown < of:
        words += f" The {shown} of {of} concepts with the highest F1 on {decide} are shown; more with --maps."
    if drawn[0][0].boxes is not None and not has_images:
        words += " The image files are not there, or Pillow is not installed; the grid of patches stands alone."
    if drawn[0][0].boxes is None and drawn[0][0].spans is None:
        words += " Which characters tokens stand for is not stored; numbers count the positions of a sample."
    return words


def _key(of_images: bool, of_positions: bool) -> str:
    marks = [("heat", "activation, 0 to the map's largest")]
    marks += [("has", "labelled with the concept")] if of_positions else []
    marks += [("found", "predicted")] if of_images else [("under", "predicted"), ("grey", "special token")]
    shown = "".join(f"<span class='key {kind}'></span>{words}" for kind, words in marks)
    return f"<p class='note'>{shown}</p>"


def _figure(each: ConceptMap, example: Example, *, outlined: bool) -> str:
    if not outlined:  # labels of samples hold for all of their positions, and say nothing of one
        each = replace(each, labels=np.zeros_like(each.labels))
    is_text = each.boxes is None
    unlabelled = int(np.count_nonzero((each.labels == 255) & ~each.special))
    about = f"sample {each.sample}, largest {example.score:.3g}"
    if unlabelled:
        about += f", {unlabelled} of {len(each.labels)} positions not labelled"
    caption = (
        f"<figcaption><span class='badge {example.outcome}'>{_OUTCOMES[example.outcome]}</span> {text(about)}"
        "</figcaption>"
    )
    drawn = _tokens(each) if is_text else _patches(each)
    return f"<figure class='{'of-text' if is_text else 'of-image'}'>{drawn}{caption}</figure>"


# ------------------------------------------------------------------ images


def _patches(each: ConceptMap) -> str:
    """Return the patches where they are in the image; the image below them, where its file is there."""
    boxes = each.boxes
    assert boxes is not None
    image = _image(each.content)
    width, height = image[1] if image else (float(np.ceil(edge)) for edge in boxes[:, 2:].max(axis=0))
    left, top = (float(min(0, np.floor(edge))) for edge in boxes[:, :2].min(axis=0))
    right, bottom = (
        float(max(size, edge)) for size, edge in zip((width, height), boxes[:, 2:].max(axis=0), strict=True)
    )
    parts = []
    if image:
        parts.append(f'<image href="{image[0]}" width="{width:g}" height="{height:g}" preserveAspectRatio="none"/>')
    largest = float(each.values.max(initial=0)) or 1.0
    for (x0, y0, x1, y1), value in zip(boxes.tolist(), each.values.tolist(), strict=True):
        if value > 0:
            parts.append(
                f'<rect class="cell" x="{x0:.6g}" y="{y0:.6g}" width="{x1 - x0:.6g}" height="{y1 - y0:.6g}" '
                f'fill-opacity="{0.12 + 0.6 * value / largest:.3f}"><title>{value:.4g}</title></rect>'
            )
    frame = boxes[:, :2].min(axis=0).tolist() + boxes[:, 2:].max(axis=0).tolist()
    lines = _lines(boxes, each.grid)
    parts.append(f'<path class="frame" stroke-opacity="0.35" d="{lines}"/>')
    parts.append(f'<path class="frame" d="{_outline(*frame)}"/>')
    edges = "".join(_around(boxes, each.labels == 1, each.grid))
    if edges:
        parts.append(f'<path class="halo" d="{edges}"/><path class="labelled" d="{edges}"/>')
    dots = "".join(f"M{(x0 + x1) / 2:.6g} {(y0 + y1) / 2:.6g}h0" for x0, y0, x1, y1 in boxes[each.predicted].tolist())
    if dots:
        parts.append(f'<path class="dot" d="{dots}"/><path class="predicted" d="{dots}"/>')
    label = text(f"activations of unit {each.unit} over sample {each.sample}")
    return (
        f'<svg role="img" aria-label="{label}" viewBox="{left:g} {top:g} {right - left:g} {bottom - top:g}">'
        f"{''.join(parts)}</svg>"
    )


def _outline(x0: float, y0: float, x1: float, y1: float) -> str:
    return f"M{x0:.6g} {y0:.6g}H{x1:.6g}V{y1:.6g}H{x0:.6g}Z"


def _lines(boxes: NDArray[np.float32], grid: tuple[int, int] | None) -> str:
    """Return the lines between patches: two for each row and column of a grid, else the patches one by one."""
    if grid is None or grid[0] * grid[1] != len(boxes):
        return "".join(_outline(*box) for box in boxes.tolist())
    by_row = boxes.reshape(*grid, 4)
    (x0, y0), (x1, y1) = boxes[:, :2].min(axis=0).tolist(), boxes[:, 2:].max(axis=0).tolist()
    down = "".join(f"M{x:.6g} {y0:.6g}V{y1:.6g}" for x in by_row[0, 1:, 0].tolist())
    return down + "".join(f"M{x0:.6g} {y:.6g}H{x1:.6g}" for y in by_row[1:, 0, 1].tolist())


def _around(boxes: NDArray[np.float32], has: NDArray[np.bool_], grid: tuple[int, int] | None) -> Iterator[str]:
    """Yield the edges between patches that have the concept and those that have not."""
    if grid is None or grid[0] * grid[1] != len(boxes):
        yield from (_outline(*box) for box in boxes[has].tolist())
        return
    rows, columns = grid
    inside = np.pad(has.reshape(rows, columns), 1)
    for place in np.flatnonzero(has).tolist():
        row, column = divmod(place, columns)
        x0, y0, x1, y1 = boxes[place].tolist()
        if not inside[row, column + 1]:
            yield f"M{x0:.6g} {y0:.6g}H{x1:.6g}"
        if not inside[row + 2, column + 1]:
            yield f"M{x0:.6g} {y1:.6g}H{x1:.6g}"
        if not inside[row + 1, column]:
            yield f"M{x0:.6g} {y0:.6g}V{y1:.6g}"
        if not inside[row + 1, column + 2]:
            yield f"M{x1:.6g} {y0:.6g}V{y1:.6g}"


def _image(path: str) -> tuple[str, tuple[float, float]] | None:
    """Return a small copy of an image as a data URL, and the size of the original; None where it cannot be read."""
    try:
        from PIL import Image
    except ImportError:
        return None
    if not Path(path).is_file():
        return None
    try:
        # The rotation that a camera notes is not applied: boxes are in pixels of the image as it is stored.
        with Image.open(path) as opened:
            size = float(opened.width), float(opened.height)
            small = opened.convert("RGB")
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        out = io.BytesIO()
        small.save(out, format="JPEG", quality=72)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode('ascii')}", size


# ------------------------------------------------------------------- texts


def _tokens(each: ConceptMap) -> str:
    """Return a text with its tokens marked; where characters are not known, the positions by number."""
    n = len(each.values)
    strongest = int(np.argmax(each.values)) if n else 0
    first = min(max(0, strongest - TOKENS // 2), max(0, n - TOKENS))
    shown = range(first, min(n, first + TOKENS))
    largest = float(each.values.max(initial=0)) or 1.0
    parts = ["… "] if first else []
    cursor = None if first else 0
    for place in shown:
        if each.spans is None:
            parts.append(_token(each, place, "special" if each.special[place] else f" {place} ", largest) + " ")
            continue
        start, stop = each.spans[place].tolist()
        if each.special[place] and start == stop:
            parts.append(_token(each, place, "special", largest))
            continue
        cursor = start if cursor is None else cursor
        parts.append(text(each.content[cursor:start]))
        # Tokens that share a character, such as those of bytes of one, show it once.
        parts.append(_token(each, place, each.content[max(start, cursor) : stop], largest))
        cursor = max(cursor, stop)
    if shown.stop < n:
        parts.append(" …")
    elif each.spans is not None:
        rest = each.content[cursor or 0 :]  # of a text that the model did not read to its end, it may be long
        parts.append(text(rest if len(rest) <= _REST else f"{rest[:_REST]} …"))
    return f"<p class='tokens'>{''.join(parts)}</p>"


def _token(each: ConceptMap, place: int, shown: str, largest: float) -> str:
    value = float(each.values[place])
    kinds = [name for name, is_so in _kinds(each, place) if is_so]
    named = f' class="{" ".join(kinds)}"' if kinds else ""
    shade = f' style="background:rgba(214,84,20,{0.12 + 0.73 * value / largest:.2f})"' if value > 0 else ""
    if "special" in kinds:
        shade = ""
    return f'<span{named}{shade} title="{value:.4g}">{text(shown)}</span>'


def _kinds(each: ConceptMap, place: int) -> Iterator[tuple[str, bool]]:
    yield "special", bool(each.special[place])
    yield "has", bool(each.labels[place] == 1 and not each.special[place])
    yield "found", bool(each.predicted[place])


# ----------------------------------------------------------------- numbers


def _localised(key: str, found: Localisation) -> str:
    """Return the table of what localisation finds of each concept."""
    decide, report = found.splits
    headers = [("concept", ""), ("method", ""), ("unit", "original id"), ("percentile", "of the second threshold")]
    headers += [("threshold", "of activations, or of cosines"), (f"F1 {decide}", "what was chosen by")]
    headers += [(f"{name} {report}", "over labelled positions") for name in ("P", "R", "F1", "IoU")]
    rows: list[list[Cell | str]] = [
        [
            one.concept,
            one.method,
            Cell(one.unit, "none" if one.unit is None else str(one.unit)),
            number(one.percentile, "g"),
            number(one.threshold, ".4g"),
            number(one.calibration.f1),
            *(number(getattr(one.test, name)) for name in ("precision", "recall", "f1", "iou")),
        ]
        for one in found.best()
    ]
    return table(f"table-{key}", headers, rows)


def _data(dataset: str, drawn: list[tuple[ConceptMap, Example]]) -> Data:
    """Return every position of every map, with its box or its characters."""
    maps = [each for each, _ in drawn]
    lengths = [len(each.rows) for each in maps]

    def repeated(values: Sequence[str | int]) -> NDArray[np.object_]:
        return np.repeat(np.array(values, dtype=object), lengths)

    columns = {
        "concept": repeated([each.concept for each in maps]),
        "unit": repeated([each.unit for each in maps]),
        "sample": repeated([each.sample for each in maps]),
        "outcome": repeated([example.outcome for _, example in drawn]),
        "row": np.concatenate([each.rows for each in maps]),
        "value": np.concatenate([each.values for each in maps]),
        "label": np.concatenate([each.labels for each in maps]),
        "predicted": np.concatenate([each.predicted for each in maps]).astype(int),
        "special": np.concatenate([each.special for each in maps]).astype(int),
    }
    for names, places in (
        (("x0", "y0", "x1", "y1"), [each.boxes for each in maps]),
        (("char_start", "char_end"), [each.spans for each in maps]),
    ):
        stored = [each for each in places if each is not None]
        if len(stored) == len(maps):
            columns |= dict(zip(names, np.concatenate(stored).T, strict=True))
    return Data(dataset, "maps", columns)
