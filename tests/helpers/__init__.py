"""Functions that tests call in worker processes, where gguf-py, torch and transformers may be
imported: ``process.call("tests.helpers.models:tiny", ...)``. Importing a module of this package
imports none of those libraries; its functions do.
"""
