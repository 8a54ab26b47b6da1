"""Lakes to report on: texts with characters of tokens, one of them hostile, and images that are not square."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from saestore.analysis.detection import write_detection
from saestore.analysis.localisation import write_localisation
from saestore.analysis.thresholds import write_thresholds
from saestore.codes import Codes
from saestore.indexing.stats import write_stats
from saestore.indexing.writer import index
from saestore.labels import write_labels
from saestore.lake import Lake
from saestore.layout import CodesKey, ModelKey
from saestore.samples import SampleTable
from saestore.tables import write_positions, write_samples
from tests.built_lake import top_k, write_codes

IMAGE_KEY = CodesKey("pictures", "clip", "layer_22", "s", "patch")
TEXT_KEY = CodesKey("words", "m", "layer_3", "s", "token")
CONCEPT = "a <b>'bold'</b> & \"quoted\" concept"
HOSTILE = "</script><script>alert('x')</script> & <img src=x onerror=alert(1)> “quoted” // https://elsewhere.example/x"
SIZES = ((320, 200), (120, 300), (224, 224))
GRID = (4, 6)
SPLITS = ("train", "cal", "test", "cal", "test", "test")


def analyse(codes: Codes, *, localise: bool = True) -> None:
    write_stats(codes.group.storage, [codes.key], quiet=True)
    write_thresholds(codes, quiet=True)
    write_detection(codes, quiet=True)
    if localise:
        write_localisation(codes, methods=["direct"], quiet=True)


def image_lake(lake: Lake, folder: Path | None, *, n: int = 60, labelled: bool = True) -> Codes:
    """Images of a bright disc on grey, whose patches the centre crop leaves; files only where a folder is given."""
    rng = np.random.default_rng(5)
    rows, columns = GRID
    boxes, labels, contents, dense = [], [], [], []
    for place in range(n):
        width, height = SIZES[place % 3]
        x_edges = np.linspace(0.1 * width, 0.9 * width, columns + 1)
        y_edges = np.linspace(0.05 * height, 0.95 * height, rows + 1)
        of_patch = [
            (x_edges[column], y_edges[row], x_edges[column + 1], y_edges[row + 1])
            for row in range(rows)
            for column in range(columns)
        ]
        has = np.zeros((rows, columns), np.uint8)
        if rng.random() < 0.5:
            row, column = int(rng.integers(0, rows - 1)), int(rng.integers(0, columns - 2))
            has[row : row + 2, column : column + 3] = 1
        values = rng.choice([0, 0, 0, 0, 0.5, 1.0], (rows * columns, 12)).astype(np.float32)
        strong = rng.random(rows * columns) < 0.75
        values[(has.ravel() == 1) & strong, 3] += 3
        values[(has.ravel() == 0) & (rng.random(rows * columns) < 0.02), 3] += 2.5
        boxes.append(np.array(of_patch, np.float32))
        labels.append(has.reshape(-1, 1))
        dense.append(values)
        path = "no/such/picture.png"
        if folder is not None:
            path = str(folder / f"picture-{place}.png")
            picture = Image.new("RGB", (width, height), (120, 126, 134))
            draw = ImageDraw.Draw(picture)
            for (x0, y0, x1, y1), one in zip(of_patch, has.ravel(), strict=True):
                if one:
                    draw.ellipse((x0, y0, x1, y1), fill=(250, 210, 60))
            picture.save(path)
        contents.append(path)
    write_samples(
        lake.storage,
        IMAGE_KEY.dataset,
        SampleTable(
            ids=[f"p{place}" for place in range(n)],
            kind="image",
            contents=contents,
            split=[SPLITS[place % len(SPLITS)] for place in range(n)],
            concept_names=["disc"],
            concepts=np.array([[int(each.any())] for each in labels], np.uint8),
        ),
    )
    model = ModelKey(IMAGE_KEY.dataset, IMAGE_KEY.model)
    write_positions(
        lake.storage,
        model,
        offsets=np.arange(n + 1) * rows * columns,
        arrays={"special": np.zeros(n * rows * columns, bool), "box": np.concatenate(boxes)},
        digest="pictures",
        attributes={"patch_rows": rows, "patch_columns": columns},
    )
    if labelled:
        write_labels(lake.storage, model, "concepts", np.concatenate(labels), ["disc"])
    write_codes(lake.storage, IMAGE_KEY, top_k(np.concatenate(dense), 8), shard_rows=128, chunk_rows=32)
    index(lake.storage, [IMAGE_KEY], quiet=True)
    return Codes.open(lake.storage, IMAGE_KEY)


def text_lake(lake: Lake, *, key: CodesKey = TEXT_KEY, labelled: bool = True) -> Codes:
    """Texts of words; the strongest sample of the test split is hostile."""
    rng = np.random.default_rng(3)
    words = ["the", "bridge", "runs", "quietly", "over", "a", "river", "irony", "never", "rains"]
    contents = [" ".join(rng.choice(words, 9)) for _ in range(36)]
    split = [SPLITS[place % len(SPLITS)] for place in range(36)]
    contents[2] = f"irony {HOSTILE}"
    spans, special, lengths, has, values = [], [], [], [], []
    for place, content in enumerate(contents):
        starts = [0] + [at + 1 for at, sign in enumerate(content) if sign == " "]
        edges = [(0, 0), *((start, stop - 1) for start, stop in pairwise([*starts, len(content) + 1]))]
        spans += edges
        special += [True] + [False] * (len(edges) - 1)
        lengths.append(len(edges))
        is_irony = [content[start:stop] == "irony" for start, stop in edges]
        has += is_irony
        noise = rng.choice([0, 0, 0, 0.5, 1.0], (len(edges), 16)).astype(np.float32)
        noise[:, 4] = np.where(is_irony, 3 + rng.random(len(edges)) * (place != 2) + 3 * (place == 2), 0)
        noise[np.array(is_irony) & (rng.random(len(edges)) < 0.25) & (place != 2), 4] = 0.25
        values.append(noise)
    labels = np.array(has, np.uint8)[:, None]
    offsets = np.append(0, np.cumsum(lengths))
    samples = np.maximum.reduceat(labels[:, 0], offsets[:-1])
    write_samples(
        lake.storage,
        key.dataset,
        SampleTable(
            ids=[f"t{place}" for place in range(36)],
            kind="text",
            contents=contents,
            split=split,
            concept_names=[CONCEPT],
            concepts=samples[:, None],
        ),
    )
    model = ModelKey(key.dataset, key.model)
    where = np.array(spans, np.int32)
    write_positions(
        lake.storage,
        model,
        offsets=offsets,
        arrays={"special": np.array(special), "char_start": where[:, 0], "char_end": where[:, 1]},
        digest="words",
        attributes={},
    )
    if labelled:
        write_labels(lake.storage, model, "concepts", labels, [CONCEPT])
    write_codes(lake.storage, key, top_k(np.concatenate(values), 10), shard_rows=128, chunk_rows=32)
    index(lake.storage, [key], quiet=True)
    return Codes.open(lake.storage, key)
