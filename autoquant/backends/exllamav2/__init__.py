"""EXL2: exllamav2's converter and its environment; the file format, read with NumPy."""
