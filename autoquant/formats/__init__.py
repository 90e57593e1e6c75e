"""The file formats that are written, read back with NumPy."""
