"""A model's name -> Source (what it is, from headers alone) -> Snapshot (its files, hashed)."""

from autoquant.source.describe import SIDE_FILES, resolve
from autoquant.source.headers import pickle_header, shapes
from autoquant.source.snapshot import adapter_bytes, bytes_to_fetch, fetch, fetch_adapter

__all__ = [
    "SIDE_FILES",
    "adapter_bytes",
    "bytes_to_fetch",
    "fetch",
    "fetch_adapter",
    "pickle_header",
    "resolve",
    "shapes",
]
