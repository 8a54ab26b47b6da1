"""Labels from boxes, against a loop over pixels of a fine raster and sums in exact fractions."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from marked_lake import image_lake

from saestore.errors import InputError, MissingError
from saestore.lake import Lake
from saestore.verbs import label

SIZES = ((37, 20), (12, 64), (30, 30))


def write_boxes(path: Path, rows: list[tuple[str, str, float, float, float, float]]) -> Path:
    lines = ["sample,concept,x0,y0,x1,y1", *(",".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def shared(a: np.ndarray, b: np.ndarray) -> Fraction:
    """The area of two boxes, side by side."""
    sides = [Fraction(float(min(a[i + 2], b[i + 2]))) - Fraction(float(max(a[i], b[i]))) for i in (0, 1)]
    return max(sides[0], Fraction(0)) * max(sides[1], Fraction(0))


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_patches_that_a_box_covers(tmp_path: Path, fraction: float, seed: int) -> None:
    lake, patches = image_lake(tmp_path, SIZES)
    rng, rows = np.random.default_rng(seed), []
    for _ in range(12):
        sample = int(rng.integers(len(SIZES)))
        (x0, x1), (y0, y1) = (np.sort(rng.uniform(-5, side + 5, 2)) for side in SIZES[sample])
        rows.append((f"s{sample}", ("cat", "dog")[int(rng.integers(2))], x0, y0, x1, y1))
    label(lake, "d", boxes=write_boxes(tmp_path / "boxes.csv", rows), fraction=fraction, quiet=True)
    labels, per_image = lake.labels("d"), len(patches) // len(SIZES)
    some = 0
    for place, name in enumerate(labels.concept_names):
        for row, patch in enumerate(patches):
            own = [
                np.array(box) for sample, concept, *box in rows if (sample, concept) == (f"s{row // per_image}", name)
            ]
            area = shared(patch, patch)
            expected = any(shared(patch, box) > Fraction(fraction) * area for box in own)
            assert labels.read()[row, place] == expected
            some += expected
    assert some


def test_a_box_that_only_touches_a_patch_does_not_cover_it(tmp_path: Path) -> None:
    # Of an image 640 wide in 224 pixels, a patch of 14 ends at 40; as float32 at a little more or less.
    edges = (np.arange(17) * 14 * (640 / 224)).astype(np.float32)
    patches = np.stack([edges[:-1], edges[:-1] * 0, edges[1:], edges[:-1] * 0 + 40], axis=1)
    patches[3] = 0  # all padding
    lake, _ = image_lake(tmp_path, [(640, 40)], boxes=patches)
    rows = [("s0", "cat", 40.0, 0.0, 80.0, 40.0), ("s0", "dog", 39.0, 39.5, 41, 99), ("s0", "all", -9, -9, 999, 99)]
    label(lake, "d", boxes=write_boxes(tmp_path / "boxes.csv", rows), quiet=True)
    labels = lake.labels("d")
    assert np.flatnonzero(labels.concept("cat")).tolist() == [1]
    assert np.flatnonzero(labels.concept("dog")).tolist() == [0, 1]
    assert np.flatnonzero(labels.concept("all")).tolist() == [0, 1, 2, *range(4, 16)]


@pytest.mark.parametrize(
    ("row", "error", "message"),
    [
        (("s0", "cat", 3, 3, 3, 9), InputError, "row 0: the box 3, 3, 3, 9 is empty"),
        (("s0", "cat", 3, 9, 5, 4), InputError, "row 0: the box 3, 9, 5, 4 is empty"),
        (("s0", "cat", "", 0, 5, 4), InputError, "row 0: x0 is ''; expected a number"),
        (("s0", "cat", 0, 0, "inf", 4), InputError, "row 0: x1 is 'inf'; expected a number"),
        (("nobody", "cat", 0, 0, 5, 4), MissingError, "no sample 'nobody'"),
    ],
)
def test_boxes_that_are_none(tmp_path: Path, row: tuple[object, ...], error: type[Exception], message: str) -> None:
    lake, _ = image_lake(tmp_path, SIZES)
    with pytest.raises(error, match=message):
        label(lake, "d", boxes=write_boxes(tmp_path / "boxes.csv", [row]), quiet=True)  # type: ignore[list-item]


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return image_lake(tmp_path, SIZES)[0]


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_fractions_that_are_none(lake: Lake, tmp_path: Path, fraction: float) -> None:
    path = write_boxes(tmp_path / "boxes.csv", [("s0", "cat", 0, 0, 1, 1)])
    with pytest.raises(InputError, match="from 0 to below 1"):
        label(lake, "d", boxes=path, fraction=fraction, quiet=True)


def test_texts_have_no_boxes_and_images_no_characters(lake: Lake, tmp_path: Path) -> None:
    from marked_lake import text_lake

    texts, _ = text_lake(str(tmp_path / "texts"), ["It rains."])
    path = write_boxes(tmp_path / "boxes.csv", [("s0", "cat", 0, 0, 1, 1)])
    with pytest.raises(InputError, match=r"labels from boxes need the boxes of patches, .* data/d/m have none"):
        label(texts, "d", boxes=path, quiet=True)
    (tmp_path / "words.yaml").write_text("rain: [rain]")
    with pytest.raises(InputError, match=r"labels from words need the characters of tokens, .* data/d/m have none"):
        label(lake, "d", words=tmp_path / "words.yaml", quiet=True)
