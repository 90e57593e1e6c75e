"""Programs that measure what bench/RESULTS.md quotes: `python -m bench.NAME`, from the root."""
