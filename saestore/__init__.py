"""A lake of model activations and sparse-autoencoder codes."""
