"""Encoding stored activations: the plan, the tasks, and an SAE made ready to encode."""
