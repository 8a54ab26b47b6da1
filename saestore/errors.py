"""The exceptions of saestore: one family, and every message says what was given, what was expected and what to do."""

from __future__ import annotations


class SaestoreError(Exception):
    """Base of every error that saestore raises on purpose; the CLI prints its message as one line."""


class InputError(SaestoreError, ValueError):
    """Something the caller gave (a file, a name, an option, an array) is not usable as it is."""


class MissingError(SaestoreError, LookupError):
    """A named thing (lake, dataset, layer, SAE, unit, catalog entry) does not exist."""


class HoleError(SaestoreError):
    """Rows that were never written were asked for; holes are never read as zeros."""


class IntegrityError(SaestoreError):
    """Stored bytes disagree with their checksum, size or metadata."""


class ConflictError(SaestoreError):
    """The target exists already and was made from something else."""


class BudgetError(SaestoreError, MemoryError):
    """The call would need more memory than the budget allows."""


class QualityError(SaestoreError):
    """The numbers say that SAE and activations do not belong together."""


class DependencyError(SaestoreError, ImportError):
    """An optional package is needed for this and is not installed."""
