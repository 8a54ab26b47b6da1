"""Arrays inside files: what is damaged is refused, whatever part of the file it is."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saestore.errors import InputError, IntegrityError, SaestoreError
from saestore.saes import stored
from saestore.saes.clip_scope import open_clip_scope
from saestore.saes.gemma_scope import open_gemma_scope
from saestore.saes.stored import StoredArray, file_stamp, read_npz_members, read_safetensors_header, read_torch_file

D_IN, D_SAE = 6, 20


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def write_npz(folder: Path, save: Any = np.savez) -> Path:
    unit = numbers(D_SAE)
    save(
        folder / "params.npz",
        **{"W_enc": numbers(D_IN, D_SAE), "W_dec": numbers(D_SAE, D_IN)},
        **{"b_enc": unit, "threshold": unit, "b_dec": numbers(D_IN)},
    )
    return folder / "params.npz"


def write_pt(folder: Path) -> Path:
    tensors = {"pre_b": numbers(D_IN), "enc": numbers(D_IN, D_SAE), "dec": numbers(D_SAE, D_IN)}
    state = {name: torch.from_numpy(array) for name, array in tensors.items()}
    torch.save({"k": 3, "n_features": D_SAE, "d_in": D_IN, "model_state_dict": state}, folder / "a.pt")
    return folder / "a.pt"


def write_safetensors(path: Path, **changes: Any) -> Path:
    entry = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]} | changes
    text = json.dumps({"a": {key: value for key, value in entry.items() if value is not None}}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(24))
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [2, 4]},
        {"shape": [3]},
        {"shape": [-2, -3]},
        {"shape": [2.0, 3]},
        {"shape": [True, 6]},
        {"shape": None},
        {"shape": 6},
        {"dtype": "F16"},
        {"dtype": None},
        {"dtype": ["F32"]},
        {"data_offsets": [4, 24]},
        {"data_offsets": [-4, 20]},
        {"data_offsets": [24, 0]},
        {"data_offsets": [0, 24.0]},
        {"data_offsets": ["0", "24"]},
        {"data_offsets": [0]},
        {"data_offsets": None},
    ],
)
def test_places_that_cannot_be_in_a_safetensors_file(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert read_safetensors_header(write_safetensors(tmp_path / "a"))["a"].read().shape == (2, 3)
    with pytest.raises(IntegrityError, match="is not a whole safetensors file") as raised:
        read_safetensors_header(write_safetensors(tmp_path / "b", **changes))
    assert "\n" not in str(raised.value)


def test_tensors_that_are_no_floats_are_located_and_not_read(tmp_path: Path) -> None:
    array = read_safetensors_header(write_safetensors(tmp_path / "a", dtype="BOOL", shape=[24]))["a"]
    assert (array.dtype_name, array.is_float) == ("BOOL", False)
    with pytest.raises(InputError, match="is BOOL; expected floats"):
        array.read()


def test_an_npy_header_must_fill_its_member(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", numbers(4, 5))
    whole = (tmp_path / "a.npy").read_bytes()
    for content in (whole.replace(b"(4, 5)", b"(4, 4)"), whole.replace(b"(4, 5)", b"(9, 5)"), whole + b"more"):
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr("a.npy", content)
        with pytest.raises(IntegrityError, match="does not fill its"):
            read_npz_members(tmp_path / "a.npz")


def test_a_flipped_bit_among_the_numbers_is_found_when_they_are_hashed(tmp_path: Path) -> None:
    for path, opened in ((write_npz(tmp_path), open_gemma_scope), (write_pt(tmp_path), open_clip_scope)):
        whole = path.read_bytes()
        opened(path).content_hash()
        for array in (numbers(D_IN, D_SAE), numbers(D_SAE, D_IN), numbers(D_IN)):
            damaged = bytearray(whole)
            damaged[whole.index(array.tobytes()) + array.nbytes // 2] ^= 1
            path.write_bytes(damaged)
            with pytest.raises(IntegrityError, match="CRC-32"):
                opened(path).content_hash()


def test_torch_files_without_checksums_are_taken_as_they_are(tmp_path: Path) -> None:
    expected = open_clip_scope(write_pt(tmp_path)).content_hash()
    torch.serialization.set_crc32_options(False)
    try:
        path = write_pt(tmp_path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert all(array.record is None for array in read_torch_file(path)["model_state_dict"].values())
    assert open_clip_scope(path).content_hash() == expected


def check_flips(path: Path, opened: Any, *, flips: int) -> None:
    """Assert that a file with one changed byte gives the same numbers or an error of ours, of one line."""
    whole, expected, messages = path.read_bytes(), opened(path).content_hash(), []
    rng = np.random.default_rng(8)
    for place in rng.choice(len(whole), flips, replace=False):
        damaged = bytearray(whole)
        damaged[place] ^= rng.integers(1, 256)
        path.write_bytes(damaged)
        try:
            assert opened(path).content_hash() == expected, f"byte {place} was changed"
        except SaestoreError as error:
            messages.append(str(error))
    assert len(messages) > flips / 4
    assert not [message for message in messages if "\n" in message]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_changed_bytes_of_an_npz_file(tmp_path: Path, save: Any) -> None:
    path = write_npz(tmp_path, save)
    check_flips(path, lambda path: open_gemma_scope(path, cache=tmp_path / "cache"), flips=400)


def test_changed_bytes_of_a_torch_file(tmp_path: Path) -> None:
    check_flips(write_pt(tmp_path), open_clip_scope, flips=150)


@pytest.mark.parametrize("dtype", ["<f8", ">f4", "<f2", "bfloat16", "<i4"])
def test_other_dtypes_are_widened_by_small_buffers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    values = (numbers(7, 9) * 100).round(0)
    stored_values = torch.from_numpy(values).bfloat16().view(torch.int16).numpy() if dtype == "bfloat16" else values
    raw = stored_values if dtype == "bfloat16" else values.astype(dtype)
    (tmp_path / "a").write_bytes(b"front" + raw.tobytes())
    monkeypatch.setattr(stored, "_BUFFER_BYTES", 40)
    array = StoredArray(tmp_path / "a", 5, dtype, (7, 9), file_stamp(tmp_path / "a"))
    expected = torch.from_numpy(values).bfloat16().float().numpy() if dtype == "bfloat16" else values
    np.testing.assert_array_equal(array.read(), expected)
    np.testing.assert_array_equal(array.rows(2, 6), expected[2:6])
    np.testing.assert_array_equal(array.columns(3, 8), expected[:, 3:8].T)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no file that always fails to be read")
def test_what_the_disk_says_is_one_line() -> None:
    path = Path("/proc/self/mem")
    with pytest.raises(InputError, match=r"cannot be read .*error"):
        StoredArray(path, 0, "<f4", (4,), file_stamp(path)).read()
