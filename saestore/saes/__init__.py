"""SAE sources: pretrained weights, wherever they lie, as tiles of units (numpy arrays, never the whole matrix)."""

from saestore.saes.config import SAEConfig
from saestore.saes.sources import open_sae
from saestore.saes.weights import SAEWeights

__all__ = ["SAEConfig", "SAEWeights", "open_sae"]
