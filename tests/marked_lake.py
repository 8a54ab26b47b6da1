"""Lakes of a few texts with tokens, or of images with patches, whose positions can be labelled."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from saestore.lake import Lake
from saestore.layout import ModelKey
from saestore.samples import SampleTable
from saestore.tables import write_positions, write_samples

KEY = ModelKey("d", "m")
Token = tuple[int, int]


def tokens_of(text: str, seed: int = 0) -> list[Token]:
    """A special token that stands for no characters, then pieces of one to four characters, spaces included."""
    rng, edges = np.random.default_rng(seed + len(text)), [0]
    while edges[-1] < len(text):
        edges.append(min(len(text), edges[-1] + int(rng.integers(1, 5))))
    return [(0, 0), *itertools.pairwise(edges)]


def table_of(
    contents: Sequence[str], kind: str, concepts: dict[str, Sequence[int]], first: int = 0, stop: int | None = None
) -> SampleTable:
    stop = len(contents) if stop is None else stop
    return SampleTable(
        ids=[f"s{place}" for place in range(first, stop)],
        kind=kind,  # type: ignore[arg-type]
        contents=list(contents[first:stop]),
        concept_names=list(concepts),
        concepts=np.array([[labels[place] for labels in concepts.values()] for place in range(first, stop)], np.uint8),
    )


def text_lake(
    url: str,
    texts: Sequence[str],
    *,
    concepts: dict[str, Sequence[int]] | None = None,
    cuts: Sequence[int] = (),
    tokens: Sequence[Sequence[Token]] | None = None,
) -> tuple[Lake, list[list[Token]]]:
    """A lake of texts `s0`, `s1`, ... in parts that begin at `cuts`; and the tokens of each text."""
    lake = Lake.create(url)
    of_texts = [list(spans) for spans in tokens or map(tokens_of, texts)]
    for part, (first, stop) in enumerate(itertools.pairwise([0, *cuts, len(texts)])):
        add_texts(lake, texts, of_texts, concepts or {}, part, first, stop)
    return lake, of_texts


def add_texts(
    lake: Lake,
    texts: Sequence[str],
    tokens: Sequence[Sequence[Token]],
    concepts: dict[str, Sequence[int]],
    part: int,
    first: int,
    stop: int,
) -> None:
    write_samples(lake.storage, "d", table_of(texts, "text", concepts, first, stop), part)
    spans = np.array([span for of_text in tokens[first:stop] for span in of_text], dtype=np.int32).reshape(-1, 2)
    write_positions(
        lake.storage,
        KEY.at(part),
        offsets=np.append(0, np.cumsum([len(of_text) for of_text in tokens[first:stop]])).astype(np.int64),
        arrays={
            "special": spans[:, 0] == spans[:, 1],
            "token_id": np.zeros(len(spans), np.uint32),
            "char_start": spans[:, 0].copy(),
            "char_end": spans[:, 1].copy(),
        },
        digest=f"{part}" * 64,
        attributes={},
    )


def image_lake(
    folder: Path,
    sizes: Sequence[tuple[int, int]],
    *,
    rows: int = 3,
    columns: int = 4,
    concepts: dict[str, Sequence[int]] | None = None,
    boxes: np.ndarray | None = None,
) -> tuple[Lake, np.ndarray]:
    """A lake of images of some widths and heights, each cut into a grid of patches; and the boxes of all patches."""
    paths = []
    for place, size in enumerate(sizes):
        paths.append(str(folder / f"image{place}.png"))
        Image.new("RGB", size).save(paths[-1])
    lake = Lake.create(str(folder / "lake"))
    write_samples(lake.storage, "d", table_of(paths, "image", concepts or {}))
    if boxes is None:
        boxes = np.concatenate([grid_boxes(width, height, rows, columns) for width, height in sizes])
    write_positions(
        lake.storage,
        KEY,
        offsets=np.arange(len(sizes) + 1, dtype=np.int64) * (len(boxes) // len(sizes)),
        arrays={"special": np.zeros(len(boxes), bool), "box": boxes},
        digest="b" * 64,
        attributes={},
    )
    return lake, boxes


def grid_boxes(width: float, height: float, rows: int, columns: int) -> np.ndarray:
    """Patches of a whole image, (rows * columns, 4) float32; edges are mostly no whole numbers."""
    x, y = np.linspace(0, width, columns + 1), np.linspace(0, height, rows + 1)
    corners = [(x[c], y[r], x[c + 1], y[r + 1]) for r in range(rows) for c in range(columns)]
    return np.array(corners, dtype=np.float32)
