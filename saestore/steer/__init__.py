"""Steering: change units of an SAE inside a running model, with what the feature graph knows of their neighbours."""

from saestore.steer.bundle import Bundle
from saestore.steer.files import load_bundle
from saestore.steer.hook import apply

__all__ = ["Bundle", "apply", "load_bundle"]
