"""The stages of tools/gpu_check.py: what has been proved on a CPU, tried on a real GPU."""
