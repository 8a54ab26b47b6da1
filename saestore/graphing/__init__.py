"""The feature graph: which units go together, within a layer and across layers, from codes or activations."""
