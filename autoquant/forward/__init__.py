"""A model run block by block, forward and backward, in the memory of one block."""
