from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is absent: pip install 'saestore[torch]'")

from saestore.kernels.attention_probe import Block, attend, gradient  # noqa: E402

LENGTHS = np.array([3, 0, 1, 6, 0])


@pytest.fixture
def probe():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(LENGTHS.sum(), 7)).astype(np.float32) * 3
    vectors = torch.from_numpy(rng.normal(size=(2, 7)).astype(np.float32))
    return Block.of(x, LENGTHS, "cpu"), x, vectors, torch.tensor([0.25])


def test_scores_are_those_of_each_sample(probe):
    block, x, vectors, bias = probe
    found = attend(block, vectors, bias)
    a, w = vectors.double().numpy()
    for number, rows in enumerate(np.split(x.astype(np.float64), np.cumsum(LENGTHS)[:-1])):
        weights = np.exp(rows @ a) / np.exp(rows @ a).sum()
        assert found.logits[number].item() == pytest.approx(weights @ rows @ w + 0.25, abs=1e-5)
    np.testing.assert_allclose(found.outputs.numpy(), x.astype(np.float64) @ w, atol=1e-5)
    for number in (0, 2, 3):
        assert found.weights[block.sample == number].sum().item() == pytest.approx(1)


def test_large_scores_do_not_overflow(probe):
    block, x, vectors, bias = probe
    found = attend(block, vectors * 1e4, bias)
    first = x[:3]
    best = first[np.argmax(first @ vectors[0].numpy())]
    assert found.logits[0].item() == pytest.approx(best @ vectors[1].numpy() * 1e4 + 0.25, rel=1e-4)


def test_the_gradient_is_that_of_torch(probe):
    block, x, vectors, bias = probe
    y = torch.tensor([1.0, 0, 0, 1, 1])
    vectors.requires_grad_()
    bias.requires_grad_()
    pooled = []
    for rows in torch.split(torch.from_numpy(x), LENGTHS.tolist()):
        pooled.append((torch.softmax(rows @ vectors[0], 0)[:, None] * rows).sum(0) @ vectors[1] + bias[0])
    torch.nn.functional.binary_cross_entropy_with_logits(torch.stack(pooled), y).backward()
    with torch.no_grad():
        found = attend(block, vectors, bias)
        slopes = (torch.sigmoid(found.logits) - y) / len(y)
        np.testing.assert_allclose(gradient(block, found, bias, slopes).numpy(), vectors.grad.numpy(), atol=1e-6)
    assert slopes.sum().item() == pytest.approx(bias.grad.item(), abs=1e-6)


def test_samples_without_positions_alone(probe):
    _, _, vectors, bias = probe
    block = Block.of(np.empty((0, 7), np.float32), np.zeros(3, np.int64), "cpu")
    found = attend(block, vectors, bias)
    assert found.logits.tolist() == [0.25] * 3
    assert gradient(block, found, bias, torch.ones(3)).abs().sum().item() == 0
