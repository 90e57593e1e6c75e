"""llama.cpp through llama-cpp-python's C API: types, converter, quantization, importance matrix,
evaluation.

``types`` and ``converter`` are cheap to import; ``library`` and ``convert`` load native code and
run in worker processes only.
"""
