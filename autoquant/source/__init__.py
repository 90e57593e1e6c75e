"""A model's name -> Source (what it is, from headers alone) -> Snapshot (its files, hashed)."""

from autoquant.source.describe import SIDE_FILES, resolve
from autoquant.source.headers import pickle_header, shapes
from autoquant.source.snapshot import bytes_to_fetch, fetch

__all__ = [
    "SIDE_FILES",
    "bytes_to_fetch",
    "fetch",
    "pickle_header",
    "resolve",
    "shapes",
]
