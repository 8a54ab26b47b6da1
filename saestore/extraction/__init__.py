"""Activations out of models: hook points, positions, batches and the forward pass."""
