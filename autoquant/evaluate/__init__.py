"""Perplexity, KL divergence and top-1 agreement, on the same tokens for every format."""
