"""Labels from masks, images whose pixels say where a concept is: a patch that a mask covers has the concept."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from saestore.errors import DependencyError, InputError, MissingError
from saestore.kernels.areas import box_areas, covered_areas, snapped, summed_area_table, touched
from saestore.labelling.blocks import Block, Found
from saestore.labelling.entries import read_entries
from saestore.labelling.source import Needs, Whole, check_fraction, check_samples, file_digest
from saestore.samples import IMAGE_ENDINGS

if TYPE_CHECKING:
    from PIL import Image

_ENDING = ".png"
_MODES_OF_PIXELS = ("1", "L", "P", "I", "F", "I;16", "I;16B", "I;16L", "I;16N", "RGB")
_MODES_WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")


class Masks:
    """A folder of `<concept>/<sample id>.png`, or a table with the columns sample, concept and path.

    The ending of an image's name may be left out of the id in a folder, and paths in a table start from its folder. A
    pixel is of the concept where it is not 0 (of a palette its number, of colours any of them, and nothing where it is
    fully transparent). Several masks of one concept in a sample are taken together. A mask is of the image's size, or
    it is the whole image scaled: then the patches are scaled to it. A patch is 1 when more than `fraction` of its own
    box is of the concept; pixels that it holds in part count in part.

    Raises
    ------
    MissingError, InputError
        Folder or table cannot be read, or a mask does not exist.
    """

    kind = "masks"
    needs: Needs | None = "box"
    of_every_row = False

    def __init__(self, path: Path, fraction: float = 0.0) -> None:
        self.path = path
        self.fraction = check_fraction(fraction)
        self._is_folder = path.is_dir()
        if not self._is_folder and not path.exists():
            raise MissingError(f"{path}: no such file or folder; check the path")
        entries = _folder_entries(path) if self._is_folder else _table_entries(path)
        self.concept_names = tuple(dict.fromkeys(concept for concept, _, _ in entries))
        self._files = [file for _, _, file in entries]
        self._of: dict[str, dict[int, list[Path]]] = {}
        places = {name: place for place, name in enumerate(self.concept_names)}
        for concept, sample, file in entries:
            self._of.setdefault(sample, {}).setdefault(places[concept], []).append(file)

    def settings(self) -> dict[str, Any]:
        """Return the fraction."""
        return {"fraction": self.fraction}

    def digest(self) -> str:
        """Return the sha256 of all masks, and of the table."""
        return file_digest(self._files if self._is_folder else [self.path, *self._files])

    def check(self, whole: Whole) -> None:
        """Refuse samples that do not exist; names in a folder become ids."""
        if self._is_folder:
            by_name, self._of = self._of, {}
            for name, masks in by_name.items():
                own = self._of.setdefault(self._id(name, whole), {})
                for concept, files in masks.items():
                    own.setdefault(concept, []).extend(files)
        check_samples(self.path, self._of, whole)

    def label(self, block: Block) -> Found:
        """Label the patches of some images.

        Raises
        ------
        MissingError, InputError
            An image or a mask cannot be read, or they are not of the same shape.
        """
        assert block.boxes is not None
        found = Found.nothing(block, len(self.concept_names))
        for place, sample in enumerate(block.ids):
            masks = self._of.get(sample)
            if masks is None:
                continue
            rows = block.rows(place)
            with _opened(Path(block.contents[place]), f"the masks of sample {sample!r} need its size") as image:
                size = image.size
            for concept, files in masks.items():
                found.named[place, concept] = True
                found.labels[rows, concept] = self._covered(block.boxes[rows], size, files)
        return found

    def _covered(self, boxes: NDArray[np.float32], image: tuple[int, int], files: list[Path]) -> NDArray[np.bool_]:
        """Return which patches of an image of some width and height are covered."""
        mask = _mask(files[0])
        for file in files[1:]:
            other = _mask(file)
            if other.shape != mask.shape:
                raise InputError(
                    f"{file} is {_size(other)} and {files[0]}, of the same concept and sample, {_size(mask)}; give "
                    "masks of one size"
                )
            mask |= other
        height, width = mask.shape
        # Scaled to whole pixels, one side may be off by one from what the other says.
        if abs(width * image[1] - height * image[0]) > max(image):
            raise InputError(
                f"{files[0]} is {_size(mask)} and its image {image[0]} x {image[1]} pixels; give one of the whole image"
            )
        scale = np.array([width / image[0], height / image[1]] * 2)
        patches, table = snapped(boxes * scale), summed_area_table(mask)
        if self.fraction == 0:
            return touched(table, patches)
        return covered_areas(table, patches) > self.fraction * box_areas(patches)

    def _id(self, name: str, whole: Whole) -> str:
        """Return the sample that a file's name without `.png` is: an id, or one without the ending of its image."""
        endings = ("", *IMAGE_ENDINGS, *map(str.upper, IMAGE_ENDINGS))
        found = [name + ending for ending in endings if name + ending in whole.ids]
        if len(found) > 1 and found[0] != name:
            raise InputError(
                f"{self.path}: the mask {name}{_ENDING} may be of sample {found[0]!r} or {found[1]!r}; name it "
                f"{found[0]}{_ENDING}"
            )
        return found[0] if found else name


def _folder_entries(folder: Path) -> list[tuple[str, str, Path]]:
    """Return concept, name and file of the masks in a folder, in order of their names."""
    concepts = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    found = []
    for concept in concepts:
        for base, _, names in os.walk(concept):
            for name in sorted(names):
                file = Path(base) / name
                if name.startswith("."):
                    continue
                if file.suffix.lower() != _ENDING:
                    raise InputError(
                        f"{file}: a mask is a file <concept>/<sample id>{_ENDING}; convert it, or remove it"
                    )
                relative = file.relative_to(concept).as_posix()
                found.append((concept.name, relative[: -len(_ENDING)], file))
    if not found:
        raise InputError(f"{folder}: no masks in this folder; expected files <concept>/<sample id>{_ENDING}")
    return sorted(found)


def _table_entries(path: Path) -> list[tuple[str, str, Path]]:
    """Return concept, sample and file of the rows of a table."""
    entries = read_entries(path, ["path"])
    names = entries.texts("path")
    found = []
    for sample, rows in entries.rows_of.items():
        for row in rows:
            file = path.parent / names[row]
            if not file.is_file():
                raise MissingError(f"{path}: row {row}: no file {file}; paths start from the folder of the table")
            found.append((row, (entries.concept_names[entries.concept[row]], sample, file)))
    return [entry for _, entry in sorted(found)]


def _mask(file: Path) -> NDArray[np.bool_]:
    """Return which pixels of a mask are of the concept, (height, width) bool."""
    with _opened(file, "it is a mask") as image:
        if image.mode in _MODES_WITH_ALPHA:
            bands = np.asarray(image) != 0
            opaque: NDArray[np.bool_] = bands[..., :-1].any(axis=2) & bands[..., -1]
            return opaque
        bands = np.asarray(image if image.mode in _MODES_OF_PIXELS else image.convert("RGB")) != 0
    pixels: NDArray[np.bool_] = bands.any(axis=2) if bands.ndim == 3 else bands
    return pixels


def _size(mask: NDArray[np.bool_]) -> str:
    return f"{mask.shape[1]} x {mask.shape[0]} pixels"


@contextmanager
def _opened(path: Path, what: str) -> Iterator[Image.Image]:
    try:
        from PIL import Image
    except ImportError:
        raise DependencyError(f"{path}: reading images needs Pillow; pip install 'saestore[models]'") from None
    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError:
        raise MissingError(f"image {path} does not exist, and {what}; check the path") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path} cannot be read as an image ({reason}), and {what}; replace it") from None
