"""Images to positions: which pixels of the original image each patch was made from.

Coordinates are those of the pixel grid as stored in the file: an EXIF orientation is not applied, as the image
processors of transformers do not apply it either. Images are converted to RGB.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from saestore.errors import InputError, MissingError

if TYPE_CHECKING:
    import torch
    from PIL import Image

# The processors whose geometry is known are those that resize and crop with the methods of transformers' own backends.
_KNOWN_METHODS = {
    "resize": {"PilBackend.resize", "TorchvisionBackend.resize"},
    "center_crop": {"PilBackend.center_crop", "TorchvisionBackend.center_crop"},
    "_preprocess": {"PilBackend._preprocess", "TorchvisionBackend._preprocess"},
}


@dataclass(frozen=True)
class Geometry:
    """What an image processor does to one image, and the grid of patches the model cuts from the result.

    Parameters
    ----------
    width, height : int
        Size of the original image, in pixels.
    resized_width, resized_height : int
        Its size after the resize.
    left, top : int
        Where the crop begins in the resized image; negative where the processor pads.
    columns, rows : int
        The grid of patches.
    patch_size : int
        Side of a patch, in pixels of the processed image.
    """

    width: int
    height: int
    resized_width: int
    resized_height: int
    left: int
    top: int
    columns: int
    rows: int
    patch_size: int


@dataclass(frozen=True)
class ImagePositions:
    """The positions of some images: the same grid of patches for each, row by row.

    Parameters
    ----------
    paths : tuple of Path
        One file per sample.
    offsets : (n_samples + 1,) int64
        Sample i has the positions ``offsets[i]:offsets[i + 1]``.
    boxes : (n, 4) float32
        x0, y0, x1, y1 of each patch in pixels of the original image, clipped to it; the box of a patch that is all
        padding is empty.
    rows, columns : int
        The grid of patches of each image.
    """

    paths: tuple[Path, ...]
    offsets: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float32]
    rows: int
    columns: int

    @property
    def n_samples(self) -> int:
        """How many images."""
        return len(self.paths)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Positions of each sample, (n_samples,) int64."""
        return np.diff(self.offsets)


def geometry(processor: Any, *, width: int, height: int, patch_size: int) -> Geometry:
    """Say what a processor does to an image of a given size.

    Parameters
    ----------
    processor : transformers image processor
        One that resizes to a shortest edge or to height and width, and may crop the centre.
    width, height : int
        Size of the original image, in pixels.
    patch_size : int

    Raises
    ------
    InputError
        When the processor works in another way, so that boxes would be guesses.
    """
    _refuse_unknown(processor)
    resized_height, resized_width = height, width
    if processor.do_resize:
        resized_height, resized_width = _resized(processor, height, width)
    rows_px, columns_px, top, left = resized_height, resized_width, 0, 0
    if processor.do_center_crop:
        rows_px, columns_px = int(processor.crop_size["height"]), int(processor.crop_size["width"])
        top, left = (
            _crop_start(processor, *sizes) for sizes in ((resized_height, rows_px), (resized_width, columns_px))
        )
    return Geometry(
        width=width,
        height=height,
        resized_width=resized_width,
        resized_height=resized_height,
        left=left,
        top=top,
        columns=columns_px // patch_size,
        rows=rows_px // patch_size,
        patch_size=patch_size,
    )


def _refuse_unknown(processor: Any) -> None:
    kind = type(processor)
    other = [
        name
        for name, known in _KNOWN_METHODS.items()
        if getattr(getattr(kind, name, None), "__qualname__", "") not in known
    ]
    if other or getattr(processor, "do_pad", None):
        what = f"its own {', '.join(other)}" if other else "padding"
        raise InputError(
            f"{kind.__name__} prepares images with {what}, so the pixels behind a patch are not known; "
            "use a processor that resizes and crops the centre, as CLIP's and ViT's do"
        )


def _resized(processor: Any, height: int, width: int) -> tuple[int, int]:
    """Return height and width after the resize, as transformers computes them (``int``, not ``round``)."""
    size = dict(processor.size)
    if set(size) == {"height", "width"}:
        return int(size["height"]), int(size["width"])
    if set(size) == {"shortest_edge"}:
        short = int(size["shortest_edge"])
        if width <= height:
            return int(short * height / width), short
        return short, int(short * width / height)
    raise InputError(
        f"{type(processor).__name__} resizes to {size}, which is not known; expected shortest_edge, or height and width"
    )


def _crop_start(processor: Any, size: int, crop: int) -> int:
    """Return where the crop begins along one side; the two backends differ where an odd number of pixels is padded."""
    if processor.backend == "torchvision":
        return int((size - crop) / 2)
    return (size - crop) // 2


def patch_boxes(of: Geometry) -> npt.NDArray[np.float32]:
    """Return the box of each patch in the original image.

    A resize maps the sides of the image onto each other, so it scales coordinates by ``width / resized_width``; the
    crop shifts them. What a filter with a wide support sees beyond the box is not counted.

    Returns
    -------
    (rows * columns, 4) float32
        x0, y0, x1, y1 in pixels, row by row, clipped to the image.
    """
    x = (np.arange(of.columns + 1) * of.patch_size + of.left) * (of.width / of.resized_width)
    y = (np.arange(of.rows + 1) * of.patch_size + of.top) * (of.height / of.resized_height)
    x, y = np.clip(x, 0, of.width), np.clip(y, 0, of.height)
    boxes = np.empty((of.rows, of.columns, 4), np.float32)
    boxes[..., 0], boxes[..., 1] = x[None, :-1], y[:-1, None]
    boxes[..., 2], boxes[..., 3] = x[None, 1:], y[1:, None]
    return boxes.reshape(-1, 4)


def image_positions(paths: Sequence[str | Path], processor: Any, *, patch_size: int) -> ImagePositions:
    """Lay out the patches of images, reading no more of each file than its header.

    Raises
    ------
    MissingError, InputError
        When a file does not exist, is not an image, or gives another grid of patches than the first.
    """
    boxes: list[npt.NDArray[np.float32]] = []
    grid: tuple[int, int] | None = None
    for path in paths:
        with _opened(Path(path)) as image:
            width, height = image.size
        of = geometry(processor, width=width, height=height, patch_size=patch_size)
        if grid is None:
            grid = (of.rows, of.columns)
        if (of.rows, of.columns) != grid or 0 in grid:
            raise InputError(
                f"{path} of {width} x {height} pixels gives {of.rows} x {of.columns} patches, the first image "
                f"{grid[0]} x {grid[1]}; use a processor that makes all images the same size"
            )
        boxes.append(patch_boxes(of))
    rows, columns = grid or (0, 0)
    return ImagePositions(
        paths=tuple(Path(path) for path in paths),
        offsets=np.arange(len(paths) + 1, dtype=np.int64) * (rows * columns),
        boxes=np.concatenate(boxes) if boxes else np.zeros((0, 4), np.float32),
        rows=rows,
        columns=columns,
    )


def load_pixels(paths: Sequence[str | Path], processor: Any) -> torch.Tensor:
    """Read and prepare images.

    Returns
    -------
    (b, 3, height, width) float32 tensor
        What the processor gives.

    Raises
    ------
    MissingError, InputError
        When a file does not exist or cannot be decoded; the message names it.
    """
    import torch

    images: list[Image.Image] = []
    for path in paths:
        with _opened(Path(path)) as image:
            images.append(image.convert("RGB"))
    pixels: torch.Tensor = processor(images=images, return_tensors="pt")["pixel_values"]
    return pixels.to(torch.float32)


def processor_digest(processor: Any) -> str:
    """Return the sha256 of the settings of an image processor and of the backend that carries them out, in hex."""
    settings = {**processor.to_dict(), "backend": processor.backend}
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()


def image_positions_digest(positions: ImagePositions, *, processor: str, images: str) -> str:
    """Return the sha256 that two layers must share to lie on the same position axis, in hex.

    Parameters
    ----------
    positions : ImagePositions
    processor : str
        From `processor_digest`.
    images : str
        A digest of the contents of the files, in their order.
    """
    digest = hashlib.sha256(f"image positions 1\n{processor}\n{images}\n".encode())
    digest.update(positions.offsets.astype("<i8").data)
    digest.update(positions.boxes.astype("<f4").data)
    return digest.hexdigest()


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    from PIL import Image

    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError as error:
        raise MissingError(f"image {path} does not exist; check the path") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read as an image ({error}); replace it or leave it out") from error
