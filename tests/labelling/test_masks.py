"""Labels from masks, against a loop over every pixel of every mask, in exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from marked_lake import image_lake
from PIL import Image

from saestore.errors import InputError, MissingError
from saestore.verbs import label

SIZES = ((37, 20), (12, 64), (30, 30))


def random_mask(size: tuple[int, int], seed: int) -> np.ndarray:
    """A few pixels and a block, (height, width) bool."""
    rng, (width, height) = np.random.default_rng(seed), size
    mask = rng.random((height, width)) < 0.01
    x, y = int(rng.integers(width)), int(rng.integers(height))
    mask[y : y + height // 3, x : x + width // 3] = True
    return mask


def save(path: Path, mask: np.ndarray, mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if mode == "RGBA":
        pixels = np.zeros((*mask.shape, 4), np.uint8)
        pixels[..., 1], pixels[..., 3] = 200, mask * 255  # coloured all over, and seen where the mask is
        image = Image.fromarray(pixels, "RGBA")
    elif mode == "RGB":
        image = Image.fromarray(np.stack([mask * 0, mask * 0, mask * 3], axis=2).astype(np.uint8), "RGB")
    elif mode == "P":
        image = Image.fromarray(mask.astype(np.uint8) * 7, "P")
        image.putpalette([255] * 768)  # all colours alike: it is the number that counts
    elif mode == "I;16":
        image = Image.fromarray(mask.astype(np.uint16) * 256)
    else:
        image = Image.fromarray(mask.astype(np.uint8) * 255).convert(mode)
    image.save(path)


def by_pixel(mask: np.ndarray, patch: np.ndarray, fraction: float, size: tuple[int, int]) -> bool:
    """Whether more than the fraction of a patch is in the mask, pixel by pixel."""
    height, width = mask.shape
    x0, y0, x1, y1 = (Fraction(float(edge)) for edge in patch)
    x0, x1, y0, y1 = x0 * width / size[0], x1 * width / size[0], y0 * height / size[1], y1 * height / size[1]
    covered = Fraction(0)
    for y in range(math.floor(y0), math.ceil(y1)):
        for x in range(math.floor(x0), math.ceil(x1)):
            if y < height and x < width and mask[y, x]:
                across = min(x1, Fraction(x + 1)) - max(x0, Fraction(x))
                down = min(y1, Fraction(y + 1)) - max(y0, Fraction(y))
                # An edge of float32 that is meant to be a whole number is one.
                covered += across * down if min(across, down) > Fraction(1, 1000) else 0
    return covered > Fraction(fraction) * (x1 - x0) * (y1 - y0)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("scale", [1, 2, 0.5])
def test_patches_that_a_mask_covers(tmp_path: Path, fraction: float, scale: float) -> None:
    lake, patches = image_lake(tmp_path, SIZES)
    per_image, masks = len(patches) // len(SIZES), {}
    for place, (width, height) in enumerate(SIZES):
        for number, concept in enumerate(("part::leg", "cat")):
            size = (math.ceil(width * scale), math.ceil(height * scale))
            masks[place, concept] = random_mask(size, 10 * place + number)
            save(tmp_path / "masks" / concept / f"s{place}.png", masks[place, concept])
    label(lake, "d", masks=tmp_path / "masks", fraction=fraction, quiet=True)
    labels = lake.labels("d")
    assert labels.concept_names == ("cat", "part::leg")
    total = 0
    for concept in labels.concept_names:
        expected = [
            by_pixel(masks[row // per_image, concept], patch, fraction, SIZES[row // per_image])
            for row, patch in enumerate(patches)
        ]
        assert labels.concept(concept).tolist() == expected
        total += sum(expected)
    assert 0 < total < 2 * len(patches)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "I;16"])
def test_every_kind_of_image_is_a_mask(tmp_path: Path, mode: str) -> None:
    lake, patches = image_lake(tmp_path, [(40, 30)], rows=3, columns=4)
    mask = random_mask((40, 30), 3)
    save(tmp_path / "masks" / "cat" / "s0.png", mask, mode)
    label(lake, "d", masks=tmp_path / "masks", quiet=True)
    expected = [bool(mask[int(y0) : int(y1), int(x0) : int(x1)].any()) for x0, y0, x1, y1 in patches]
    assert lake.labels("d").concept("cat").tolist() == expected
    assert 0 < sum(expected) < 12


def test_masks_of_one_concept_are_taken_together(tmp_path: Path) -> None:
    lake, _ = image_lake(tmp_path, [(40, 30)], rows=1, columns=4)
    for place in (0, 2):
        mask = np.zeros((30, 40), bool)
        mask[:15, 10 * place : 10 * place + 10] = True
        save(tmp_path / "files" / f"{place}.png", mask)
        save(tmp_path / "files" / f"{place}b.png", mask[::-1])
    rows = [f"s0,cat,files/{name}.png" for name in ("0", "0b", "2")]
    (tmp_path / "masks.csv").write_text("\n".join(["sample,concept,path", *rows]) + "\n")
    label(lake, "d", masks=tmp_path / "masks.csv", fraction=0.5, quiet=True)
    assert lake.labels("d").concept("cat").tolist() == [1, 0, 0, 0]  # half of the third is not more than half


def test_two_names_of_one_sample_are_taken_together(tmp_path: Path) -> None:
    from dataclasses import replace

    from saestore.labelling.blocks import Block
    from saestore.labelling.masks import Masks
    from saestore.labelling.source import Whole

    Image.new("RGB", (4, 2)).save(tmp_path / "a.jpg")
    for place, name in enumerate(("a", "a.jpg")):
        mask = np.zeros((2, 4), bool)
        mask[:, place] = True
        save(tmp_path / "masks" / "cat" / f"{name}.png", mask)
    masks = Masks(tmp_path / "masks")
    masks.check(Whole("d", {"a.jpg": 0}, 4))
    ids, paths = (np.array([name], dtype=object) for name in ("a.jpg", str(tmp_path / "a.jpg")))
    boxes = np.array([[x, 0, x + 1, 2] for x in range(4)], np.float32)
    block = Block(ids, paths, np.zeros((1, 0), np.uint8), 0, 0, np.array([0, 4]), None, None, boxes)
    assert masks.label(block).labels[:, 0].tolist() == [1, 1, 0, 0]
    assert masks.label(replace(block, boxes=boxes[::-1])).labels[:, 0].tolist() == [0, 0, 1, 1]


def test_an_empty_mask_says_no_and_no_mask_leaves_it_to_the_table(tmp_path: Path) -> None:
    lake, _ = image_lake(tmp_path, SIZES, rows=1, columns=2, concepts={"cat": [1, 1, 0], "dog": [255, 0, 1]})
    save(tmp_path / "masks" / "cat" / "s0.png", np.zeros((20, 37), bool))
    save(tmp_path / "masks" / "dog" / "s2.png", np.ones((30, 30), bool))
    save(tmp_path / "masks" / "sky" / "s1.png", np.ones((64, 12), bool))
    label(lake, "d", masks=tmp_path / "masks", quiet=True)
    labels = lake.labels("d")
    assert labels.concept("cat").tolist() == [0, 0, 255, 255, 0, 0]
    assert labels.concept("dog").tolist() == [255, 255, 0, 0, 1, 1]
    assert labels.concept("sky").tolist() == [0, 0, 1, 1, 0, 0]


def test_names_of_masks_may_leave_out_the_ending_of_the_image(tmp_path: Path) -> None:
    from saestore.labelling.masks import Masks
    from saestore.labelling.source import Whole

    for name in ("sub/a", "b.jpg", "c"):
        save(tmp_path / "masks" / "cat" / f"{name}.png", np.ones((2, 2), bool))
    ids = {"sub/a.jpg": 0, "b.jpg": 1, "c": 2, "c.png": 3}
    Masks(tmp_path / "masks").check(Whole("d", ids, 9))
    with pytest.raises(InputError, match=r"c.png may be of sample 'c.png' or 'c.tif'"):
        Masks(tmp_path / "masks").check(Whole("d", {"sub/a.jpg": 0, "b.jpg": 1, "c.png": 2, "c.tif": 3}, 9))
    with pytest.raises(MissingError, match="no sample 'c'"):
        Masks(tmp_path / "masks").check(Whole("d", {"sub/a.jpg": 0, "b.jpg": 1}, 9))


def test_masks_that_cannot_be(tmp_path: Path) -> None:
    lake, _ = image_lake(tmp_path, SIZES)
    folder = tmp_path / "masks"
    with pytest.raises(MissingError, match="no such file or folder"):
        label(lake, "d", masks=folder, quiet=True)
    folder.mkdir()
    with pytest.raises(InputError, match="no masks in this folder"):
        label(lake, "d", masks=folder, quiet=True)
    save(folder / "cat" / "s0.png", np.ones((37, 20), bool))
    with pytest.raises(InputError, match=r"s0.png is 20 x 37 pixels and its image 37 x 20 pixels"):
        label(lake, "d", masks=folder, quiet=True)
    (folder / "cat" / "s0.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"s0.png cannot be read as an image"):
        label(lake, "d", masks=folder, quiet=True)
    save(folder / "cat" / "s0.png", np.ones((20, 37), bool))
    (tmp_path / "image0.png").unlink()
    with pytest.raises(MissingError, match=r"image0.png does not exist, and the masks of sample 's0' need its size"):
        label(lake, "d", masks=folder, quiet=True)
    (folder / "cat" / "s1.jpg").write_bytes(b"")
    with pytest.raises(InputError, match=r"s1.jpg: a mask is a file <concept>/<sample id>.png"):
        label(lake, "d", masks=folder, quiet=True)
    (tmp_path / "masks.csv").write_text("sample,concept,path\ns0,cat,none.png\n")
    with pytest.raises(MissingError, match=r"row 0: no file .*none.png; paths start from the folder of the table"):
        label(lake, "d", masks=tmp_path / "masks.csv", quiet=True)
    assert lake.label_names("d") == []
