from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is absent: pip install 'saestore[torch]'")

from saestore.errors import InputError  # noqa: E402
from saestore.kernels.finite import count_nonfinite, to_storage_dtype  # noqa: E402


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("bad", [[], [np.nan], [np.inf], [-np.inf], [np.nan, np.inf, -np.inf, np.nan]])
def test_count_agrees_with_numpy(dtype, bad):
    x = np.random.default_rng(0).normal(size=500).astype(np.float32)
    x[np.arange(len(bad)) * 7] = bad
    tensor = torch.from_numpy(x.reshape(20, 25)).to(getattr(torch, dtype))
    assert count_nonfinite(tensor) == (~np.isfinite(x)).sum()


def test_count_of_nothing():
    assert count_nonfinite(torch.zeros(0, 3)) == 0


def test_float16_rounds_as_numpy_does():
    x = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32) * 100
    x[0] = [65504.0, 65519.0, -65519.0, 6e-8, 0.0]  # 65519 rounds down to the largest float16
    stored = to_storage_dtype(torch.from_numpy(x), "float16")
    assert stored.dtype == np.float16
    np.testing.assert_array_equal(stored, x.astype(np.float16))


def test_bfloat16_bits_are_rounded_to_nearest_even():
    ties = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0xBF808000, 0x7F7F0000, 0x80000000], np.uint32)
    bits = np.concatenate([ties, np.random.default_rng(0).normal(size=1000).astype(np.float32).view(np.uint32)])
    stored = to_storage_dtype(torch.from_numpy(bits.view(np.float32)), "bfloat16")
    expected = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)  # the textbook rounding on the bits
    assert stored.dtype == np.uint16
    np.testing.assert_array_equal(stored, expected)


def test_nonfinite_values_stay_what_they_are():
    x = torch.tensor([1.0, torch.nan, torch.inf, -torch.inf])
    stored = to_storage_dtype(x, "float16")
    np.testing.assert_array_equal(stored, np.array([1, np.nan, np.inf, -np.inf], np.float16))
    back = (to_storage_dtype(x, "bfloat16").astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(back, x.numpy())


@pytest.mark.parametrize("others", [[], [torch.nan], [torch.inf]])
def test_overflow_is_an_error_that_names_value_and_remedy(others):
    x = torch.tensor([1.0, -70_000.0, *others])
    with pytest.raises(InputError, match=r"magnitude 70000 does not fit float16 .*store bfloat16"):
        to_storage_dtype(x, "float16")
    assert to_storage_dtype(x, "float32")[1] == -70_000


def test_the_smallest_value_that_overflows_is_refused():
    with pytest.raises(InputError, match="65520"):
        to_storage_dtype(torch.tensor([65520.0]), "float16")
    with pytest.raises(InputError, match=r"bfloat16 .*store float32"):
        to_storage_dtype(torch.tensor([3.4e38]), "bfloat16")


def test_float32_of_half_types_is_exact():
    x = torch.randn(50).to(torch.bfloat16)
    np.testing.assert_array_equal(to_storage_dtype(x, "float32"), x.float().numpy())


def test_unknown_dtype():
    with pytest.raises(InputError, match="float16, bfloat16, float32"):
        to_storage_dtype(torch.zeros(1), "int8")
