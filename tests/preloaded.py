"""What a forked server finds imported: the application, and all that it imports to load a model."""

import os

# As app.py does before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import app  # noqa: F401
from parakeet_api.model.restore import import_libraries

import_libraries()
