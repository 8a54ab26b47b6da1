"""Bring other tools' files into the lake: `import_activations` and `import_codes`."""

from saestore.formats.importer_activations import import_activations
from saestore.formats.importer_codes import import_codes
from saestore.formats.importer_source import ImportResult

__all__ = ["ImportResult", "import_activations", "import_codes"]
