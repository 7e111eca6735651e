"""Puts a fake ``spendmeter.ingest`` into the wrapper's own process: PYTHONPATH leads here in tests.

FAKE_INGEST_OUT: folder that gets one JSON file per committed run.
FAKE_INGEST: "" | import | locked | crash | hang (while it prepares) | slow (while it commits).
"""

import importlib.abc
import importlib.util
import os
import sys


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "spendmeter.ingest":
            return importlib.util.spec_from_file_location(name, __file__.replace("sitecustomize", "fake_ingest"))
        return None


if os.environ.get("FAKE_INGEST_OUT"):
    sys.meta_path.insert(0, _Finder())
