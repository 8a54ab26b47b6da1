"""SAEs whose matrices stay in their files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sae_lens", reason="sae-lens is not installed: linked SAEs have no oracle")

from saestore.encoding.writer import encode
from saestore.errors import InputError, IntegrityError, MissingError
from saestore.lake import Lake
from saestore.saes import open_sae
from saestore.saes.lake import open_lake_sae, write_sae
from tests.saes.conformance import check_source
from tests.saes.conftest import make_sae, oracle
from tests.small_lake import HOOK, add_activations, mirror_sae


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake.create(tmp_path / "lake")


def as_saelens(sae: Any, folder: Path) -> Path:
    sae.save_model(folder)
    return folder / "sae_weights.safetensors"


def as_gemma_scope(sae: Any, folder: Path) -> Path:
    folder.mkdir()
    np.savez(folder / "params.npz", **{name: p.detach().numpy() for name, p in sae.named_parameters()})
    return folder / "params.npz"


@pytest.mark.parametrize("layout", [as_saelens, as_gemma_scope])
def test_linked_weights_encode_as_copied_ones_and_take_no_room(
    lake: Lake, tmp_path: Path, x: np.ndarray, layout: Any
) -> None:
    sae = make_sae("jumprelu", apply_b_dec_to_input=False)
    file = layout(sae, tmp_path / "sae")
    with open_sae(file, hook_name=HOOK) as source:
        write_sae(lake.storage, "linked", source, link=True)
        write_sae(lake.storage, "copied", source)
    check_source(open_lake_sae(lake.storage, "linked"), x, *oracle(sae, x))
    assert sorted(path.name for path in (tmp_path / "lake/saes/linked").iterdir() if path.is_dir()) == [
        *("b_dec", "b_enc", "decoder_norms", "ledger", "threshold")
    ]
    add_activations(lake, "d", x)
    linked, copied = encode(lake, ["linked", "copied"], dtype="float32", force=True, quiet=True)
    assert linked.encoded_rows == copied.encoded_rows == len(x)
    np.testing.assert_array_equal(lake.codes("d", sae="linked").dense(), lake.codes("d", sae="copied").dense())
    np.testing.assert_array_equal(lake.codes("d", sae="linked").decode(), lake.codes("d", sae="copied").decode())


def test_a_file_that_moved_or_changed_is_refused(lake: Lake, tmp_path: Path, x: np.ndarray) -> None:
    file = as_saelens(make_sae("topk"), tmp_path / "sae")
    with open_sae(file) as source:
        write_sae(lake.storage, "s", source, link=True)
    add_activations(lake, "d", x)
    os.utime(file, ns=(1, 1))
    with pytest.raises(IntegrityError, match=r"sae_weights\.safetensors.*was changed since it was linked"):
        encode(lake, "s", quiet=True)
    file.rename(tmp_path / "elsewhere")
    with pytest.raises(MissingError, match=r"sae_weights\.safetensors.*is not there; bring it back"):
        encode(lake, "s", quiet=True)
    assert list(lake.code_keys()) == []


def test_weights_in_no_file_cannot_be_linked(lake: Lake) -> None:
    with pytest.raises(InputError, match="not in local files"):
        write_sae(lake.storage, "s", mirror_sae(4), link=True)
