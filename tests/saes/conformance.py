"""The suite that every SAE source passes: dense codes and reconstructions, by numpy, from what a source serves."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import torch

from saestore.kernels.normalize import denormalize, normalize
from saestore.saes.weights import SAEWeights, matrix_widths, other_shapes, unit_rule, unit_vectors


def dense_codes(weights: SAEWeights, x: np.ndarray, *, tile: int = 24) -> np.ndarray:
    """Return (n, d_sae) codes of rows x (n, d_in), brute force in float64 from tiles and the unit rule."""
    config, rule = weights.config, unit_rule(weights)
    normalized, _ = normalize(torch.from_numpy(x), config.normalization)
    x_in = normalized.double().numpy()
    if config.apply_b_dec_to_input:
        x_in = x_in - weights.vector("b_dec")
    tiles = [weights.rows("W_enc", slice(a, min(a + tile, config.d_sae))) for a in range(0, config.d_sae, tile)]
    p = x_in @ np.concatenate(tiles).astype(np.float64).T
    v = p * (1 if rule.scale is None else rule.scale) + (0 if rule.bias is None else rule.bias)
    active = v != 0 if rule.signed else v > np.maximum(0 if rule.threshold is None else rule.threshold, 0)
    if rule.cut is not None:
        active &= p > rule.cut
    codes = np.where(active, v, 0)
    if rule.topk is not None:
        kth = -np.sort(-np.abs(codes), axis=1)[:, rule.topk - 1 : rule.topk]
        codes = np.where(np.abs(codes) >= kth, codes, 0)
    return codes


def reconstructions(weights: SAEWeights, x: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Return (n, d_out) reconstructions of rows x from their codes (n, d_sae)."""
    config = weights.config
    _, state = normalize(torch.from_numpy(x), config.normalization)
    if config.rescale_acts_by_decoder_norm:
        codes = codes / weights.vector("decoder_norms")
    x_hat = codes @ weights.rows("W_dec", slice(0, config.d_sae)) + weights.vector("b_dec")
    if not config.is_transcoder:  # what one gives belongs to another hook point
        x_hat = denormalize(torch.from_numpy(x_hat), state).numpy()
    return x_hat + x @ weights.vector("W_skip").T if config.has_skip else x_hat


def own_hash(weights: SAEWeights) -> str:
    """Return the hash of the format's text: the fields that codes depend on, then every number as float32."""
    fields = (
        *("architecture", "d_in", "d_out", "d_sae", "k", "apply_b_dec_to_input", "normalization"),
        *("rescale_acts_by_decoder_norm", "saelens_config"),
    )
    text = json.dumps({name: getattr(weights.config, name) for name in fields}, sort_keys=True).encode()
    for name in (*unit_vectors(weights.config), *other_shapes(weights.config)):
        text += name.encode() + weights.vector(name).astype("<f4").tobytes()
    for matrix in matrix_widths(weights.config):
        text += matrix.encode() + weights.rows(matrix, slice(0, weights.config.d_sae)).astype("<f4").tobytes()
    return hashlib.sha256(text).hexdigest()


def check_source(weights: SAEWeights, x: np.ndarray, codes: np.ndarray, x_hat: np.ndarray) -> None:
    """Assert that a source gives the codes and reconstructions of an oracle, and keeps the contract of SAEWeights."""
    config = weights.config
    ours = dense_codes(weights, x)
    assert 0 < (codes != 0).sum() < codes.size, "the oracle's codes must be sparse and not empty"
    assert config.is_signed == (codes < 0).any(), "the oracle's codes must show whether they may be negative"
    np.testing.assert_array_equal(ours != 0, codes != 0)
    np.testing.assert_allclose(ours, codes, rtol=1e-4, atol=1e-5)
    assert x_hat.shape == (len(x), config.d_out)
    np.testing.assert_allclose(reconstructions(weights, x, ours), x_hat, rtol=1e-4, atol=1e-4)

    for name, width in matrix_widths(config).items():
        whole = weights.rows(name, slice(0, config.d_sae))
        assert whole.shape == (config.d_sae, width)
        assert whole.dtype == np.float32
        assert whole.flags.c_contiguous
        assert whole.flags.writeable
        for start, stop in ((0, 1), (3, 20), (config.d_sae - 1, config.d_sae), (5, 5)):
            np.testing.assert_array_equal(weights.rows(name, slice(start, stop)), whole[start:stop])
        few = np.array([0, 4, 5, config.d_sae - 1])
        np.testing.assert_array_equal(weights.take(name, few), whole[few])
        assert weights.take(name, few[:0]).shape == (0, width)
    shapes = {**dict.fromkeys(unit_vectors(config), (config.d_sae,)), **other_shapes(config)}
    for name, shape in shapes.items():
        vector = weights.vector(name)
        assert vector.shape == shape
        assert vector.dtype == np.float32
    np.testing.assert_allclose(
        weights.vector("decoder_norms"),
        np.linalg.norm(weights.rows("W_dec", slice(0, config.d_sae)), axis=1),
        rtol=1e-6,
    )
    assert weights.content_hash() == own_hash(weights)
    assert type(config).from_json(config.to_json()) == config
