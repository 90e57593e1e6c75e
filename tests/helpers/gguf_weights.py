"""GGUF files read back under the names of their checkpoint. Runs in workers."""

from __future__ import annotations

from typing import Any


def make(folder: str, name: str) -> None:
    """Write a tiny random model of an architecture."""
    from bench.cases.architectures import make

    make(name, folder)


def read_back(
    folder: str, files: dict[str, str], converter: str, taking: dict[str, Any]
) -> dict[str, Any]:
    """Of each file how far its weights are from the checkpoint's, relative, at most; and how many
    are taken from the checkpoint itself, by the reason.
    """
    from autoquant.backends.llamacpp import graphs
    from autoquant.backends.llamacpp.weights import File, GgufWeights
    from autoquant.forward.weights import of_folder

    source = of_folder(folder)
    own, asked = source.value, list[str]()

    def noted(name: str) -> Any:
        asked.append(name)
        return own(name)

    source.value = noted  # type: ignore[method-assign]
    known = graphs.of_model(folder, converter, taking, "model")
    found: dict[str, Any] = {}
    for type, path in files.items():
        weights = GgufWeights(File([path], 2), known, source)
        far, in_rows = {}, 0
        for name in source.shapes:
            before = own(name).float()
            asked.clear()
            after = weights.value(name).float()
            rows = weights.rows(name, 0, min(3, len(after)))
            assert after.shape == before.shape, name
            assert rows is None or (rows.float() == after[:3]).all(), name
            in_rows += rows is not None
            if not asked:
                far[name] = float((before - after).norm() / before.norm().clamp(min=1e-9))
        worst = max(far, key=lambda name: far[name])
        found[type] = {
            "worst": far[worst],
            "in rows": in_rows,
            "name": worst,
            "matrices": sum(len(source.shapes[name]) > 1 for name in far),
            "of": sum(len(shape) > 1 for shape in source.shapes.values()),
        }
    return found


def spoil(path: str, name: str) -> None:
    """Make the first scale of a Q8_0 tensor NaN."""
    import numpy as np

    from autoquant.formats.gguf import Header

    offset = Header(path).tensors[name].offset
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(np.array(np.nan, np.float16).tobytes())
