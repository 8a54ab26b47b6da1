"""BatchTopK and Matryoshka SAEs as SAELens saves them: jumprelu SAEs with the threshold that training learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sae_lens import SAE
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.sae import TrainStepInput

from saestore.errors import InputError
from saestore.saes import open_sae
from tests.saes.conformance import check_source
from tests.saes.conftest import D_IN, D_SAE, K, oracle

OPTIONS: dict[str, dict[str, Any]] = {
    "batchtopk": {},
    "batchtopk rescaled": {"rescale_acts_by_decoder_norm": True},
    "matryoshka_batchtopk": {"matryoshka_widths": [D_SAE // 4, D_SAE]},
}


def trained(name: str, x: np.ndarray) -> Any:
    """A training SAE after a few steps on the rows."""
    cls, config_cls = get_sae_training_class(name.split()[0])
    torch.manual_seed(1)
    sae = cls(config_cls(d_in=D_IN, d_sae=D_SAE, k=K, topk_threshold_lr=0.3, **OPTIONS[name]))
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-2)
    for step in range(20):
        rows = TrainStepInput(
            sae_in=torch.from_numpy(x),
            coefficients={},
            dead_neuron_mask=None,
            n_training_steps=step,
            is_logging_step=False,
        )
        optimizer.zero_grad()
        sae.training_forward_pass(rows).loss.backward()
        optimizer.step()
    return sae


@pytest.mark.parametrize("name", OPTIONS)
def test_saved_sae_encodes_as_saelens_loads_it(tmp_path: Path, x: np.ndarray, name: str) -> None:
    sae = trained(name, x)
    sae.save_inference_model(tmp_path)
    theirs = SAE.load_from_disk(tmp_path)
    weights = open_sae(tmp_path)
    check_source(weights, x, *oracle(theirs, x))
    assert weights.config.architecture == "jumprelu"
    assert weights.config.k is None
    thresholds = weights.vector("threshold")
    assert thresholds.min() > 0, "training must have moved the threshold"
    with torch.no_grad():
        rows_of_batch = sae.encode(torch.from_numpy(x)).numpy()
    assert (rows_of_batch != 0).sum() == K * len(x), "the codes of training depend on the batch, those above do not"


def test_training_checkpoint_is_refused_with_the_remedy(tmp_path: Path, x: np.ndarray) -> None:
    trained("batchtopk", x).save_model(tmp_path)
    with pytest.raises(InputError, match="save_inference_model"):
        open_sae(tmp_path)
