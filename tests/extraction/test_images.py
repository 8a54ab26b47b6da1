from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("PIL", reason="Pillow is absent: pip install 'saestore[models]'")
pytest.importorskip("transformers", reason="transformers is absent: pip install 'saestore[models]'")

from PIL import Image

from saestore.errors import InputError, MissingError
from saestore.extraction.images import (
    geometry,
    image_positions,
    image_positions_digest,
    load_pixels,
    patch_boxes,
    processor_digest,
)

SIZES = [(300, 300), (500, 300), (300, 500), (611, 224), (224, 230), (100, 45), (57, 333)]


def processors():
    import transformers as t

    return {
        "clip": t.CLIPImageProcessor(),
        "vit": t.ViTImageProcessor(),
        "deit": t.CLIPImageProcessor(size={"shortest_edge": 256}),  # a crop on both sides
        "squash_crop": t.CLIPImageProcessor(size={"height": 240, "width": 280}),
        "odd_crop": t.CLIPImageProcessor(size={"shortest_edge": 225}, crop_size={"height": 210, "width": 196}),
        "padded": t.CLIPImageProcessor(do_resize=False, crop_size={"height": 448, "width": 448}),
    }


PROCESSORS = list(processors())


@pytest.fixture(scope="module")
def processor_named():
    return processors().__getitem__


def light_of(processor, image):
    """How bright each pixel of the processed image is, 0 to 1: what the model sees, without our arithmetic."""
    pixels = processor(images=image, return_tensors="np", do_normalize=False, do_rescale=False)["pixel_values"]
    return np.asarray(pixels[0, 0], dtype=np.float64) / 255


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("size", SIZES)
def test_painting_a_box_white_lights_up_its_patch(processor_named, name, size):
    processor, patch = processor_named(name), 14
    width, height = size
    of = geometry(processor, width=width, height=height, patch_size=patch)
    boxes = patch_boxes(of)
    assert boxes.shape == (of.rows * of.columns, 4)
    rng = np.random.default_rng(0)
    whole = np.flatnonzero(
        (boxes[:, 2] - boxes[:, 0] > 0.99 * of.width / of.resized_width * patch)
        & (boxes[:, 3] - boxes[:, 1] > 0.99 * of.height / of.resized_height * patch)
    )
    assert len(whole)
    inner = 0
    for at in rng.choice(whole, 6):
        x0, y0, x1, y1 = boxes[at].astype(np.float64)
        # A box has edges between pixels: paint each pixel by the share of it that the box covers.
        x, y = np.arange(width), np.arange(height)
        across = np.clip(np.minimum(x + 1, x1) - np.maximum(x, x0), 0, 1)
        down = np.clip(np.minimum(y + 1, y1) - np.maximum(y, y0), 0, 1)
        canvas = np.rint(255 * np.outer(down, across)).astype(np.uint8)
        light = light_of(processor, Image.fromarray(np.repeat(canvas[..., None], 3, 2)))
        assert light.shape[0] // patch == of.rows
        assert light.shape[1] // patch == of.columns
        cut = light[: of.rows * patch, : of.columns * patch]
        by_patch = cut.reshape(of.rows, patch, of.columns, patch).mean((1, 3))
        assert by_patch.argmax() == at
        enlarged = of.resized_width > width or of.resized_height > height
        assert by_patch.flat[at] > (0.6 if enlarged else 0.85)  # the filter spreads light over the edges of a box
        row, column = divmod(int(at), of.columns)
        if 0 < row < of.rows - 1 and 0 < column < of.columns - 1:
            inner += 1  # the light is spread evenly, so a box that is half a pixel off shows in its centre
            middle_x = (light.sum(0) @ (np.arange(light.shape[1]) + 0.5)) / light.sum()
            middle_y = (light.sum(1) @ (np.arange(light.shape[0]) + 0.5)) / light.sum()
            assert abs(middle_x - (column + 0.5) * patch) < 0.35
            assert abs(middle_y - (row + 0.5) * patch) < 0.35
    assert inner > 0


def test_clip_boxes_of_a_landscape_by_hand(processor_named):
    of = geometry(processor_named("clip"), width=448, height=224, patch_size=14)
    boxes = patch_boxes(of).reshape(16, 16, 4)
    np.testing.assert_allclose(boxes[0, 0], [112, 0, 126, 14])  # 448 wide, the middle 224 are seen
    np.testing.assert_allclose(boxes[15, 15], [322, 210, 336, 224])
    np.testing.assert_allclose(boxes[2, 5], [112 + 70, 28, 112 + 84, 42])


def test_boxes_of_padding_are_clipped(processor_named):
    of = geometry(processor_named("padded"), width=100, height=448, patch_size=14)
    boxes = patch_boxes(of)
    assert boxes[:, [0, 2]].min() == 0
    assert boxes[:, [0, 2]].max() == 100
    empty = boxes[:, 2] == boxes[:, 0]
    assert empty.any()
    assert not empty.all()


def test_positions_of_files(tmp_path, processor_named):
    paths = []
    for at, size in enumerate([(300, 200), (200, 300), (64, 64)]):
        paths.append(tmp_path / f"{at}.png")
        Image.new("RGB", size).save(paths[-1])
    positions = image_positions(paths, processor_named("clip"), patch_size=32)
    assert (positions.rows, positions.columns) == (7, 7)
    assert positions.offsets.tolist() == [0, 49, 98, 147]
    assert positions.boxes.dtype == np.float32
    assert positions.boxes[49:98, 2].max() <= 200
    assert positions.boxes[49:98, 3].max() <= 300
    pixels = load_pixels(paths, processor_named("clip"))
    assert tuple(pixels.shape) == (3, 3, 224, 224)


def test_exif_orientation_is_not_applied(tmp_path, processor_named):
    image = Image.new("RGB", (300, 200))
    exif = image.getexif()
    exif[0x0112] = 6  # "rotate by 90 degrees"
    image.save(tmp_path / "turned.jpg", exif=exif)
    positions = image_positions([tmp_path / "turned.jpg"], processor_named("vit"), patch_size=16)
    assert positions.boxes[:, 2].max() == 300
    assert positions.boxes[:, 3].max() == 200


def test_grey_palette_and_alpha_become_rgb(tmp_path, processor_named):
    paths = []
    for mode in ("L", "P", "RGBA", "1", "CMYK"):
        paths.append(tmp_path / (f"{mode}.tif" if mode == "CMYK" else f"{mode}.png"))
        Image.new(mode, (40, 30)).save(paths[-1])
    assert tuple(load_pixels(paths, processor_named("vit")).shape) == (5, 3, 224, 224)


def test_broken_files_are_named(tmp_path, processor_named):
    processor = processor_named("clip")
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"not an image")
    with pytest.raises(InputError, match=r"broken\.jpg cannot be read as an image"):
        image_positions([broken], processor, patch_size=14)
    whole, cut = tmp_path / "whole.png", tmp_path / "cut.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90, 3), dtype=np.uint8)).save(whole)
    cut.write_bytes(whole.read_bytes()[:4000])
    assert image_positions([cut], processor, patch_size=14).n_samples == 1  # the header is there
    with pytest.raises(InputError, match=r"cut\.png cannot be read as an image"):
        load_pixels([whole, cut], processor)
    with pytest.raises(MissingError, match=r"none\.png does not exist"):
        image_positions([tmp_path / "none.png"], processor, patch_size=14)


def test_processors_of_unknown_geometry_are_refused():
    import transformers as t

    with pytest.raises(InputError, match="pixels behind a patch are not known"):
        geometry(t.ConvNextImageProcessor(), width=100, height=100, patch_size=14)
    with pytest.raises(InputError, match="longest_edge"):
        geometry(t.CLIPImageProcessor(size={"longest_edge": 224}), width=100, height=100, patch_size=14)


def test_images_of_different_grids_are_refused(tmp_path):
    import transformers as t

    for name, size in (("a.png", (100, 100)), ("b.png", (200, 100))):
        Image.new("RGB", size).save(tmp_path / name)
    uneven = t.CLIPImageProcessor(do_center_crop=False)
    with pytest.raises(InputError, match=r"b\.png of 200 x 100 pixels gives 16 x 32 patches, the first image 16 x 16"):
        image_positions([tmp_path / "a.png", tmp_path / "b.png"], uneven, patch_size=14)


def test_digests_change_with_what_they_stand_for(tmp_path, processor_named):
    paths = [tmp_path / "a.png", tmp_path / "b.png", tmp_path / "c.png"]
    for path in paths:
        Image.new("RGB", (40, 30)).save(path)

    def digest(chosen, name="clip", images="contents"):
        processor = processor_named(name)
        positions = image_positions(chosen, processor, patch_size=14)
        return image_positions_digest(positions, processor=processor_digest(processor), images=images)

    same = digest(paths)
    assert digest(list(paths)) == same
    different = [digest(paths, images="others"), digest(paths[:2]), digest(paths, "deit"), digest(paths, "vit")]
    assert len({same, *different}) == 5
