"""Probing: classifiers on activations and on codes, by the rules of the sparse-probing benchmark."""
