"""The libraries that quantize, each behind one function. They run in worker processes only."""
