"""What fits on a device: its memory, what a model takes of it, which method and type to choose."""
