"""A LoRA adapter as a GGUF file, by llama.cpp's convert_lora_to_gguf. Runs in a worker process."""

from __future__ import annotations

import logging
import runpy
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from autoquant.backends.llamacpp import hooks
from autoquant.backends.llamacpp.convert import FirstError
from autoquant.core.errors import CheckFailed, ProcessFailed
from autoquant.core.files import sha256_of
from autoquant.formats.gguf import Header, Tensor

SCRIPT = "convert_lora_to_gguf.py"
FIRST, SECOND = ".lora_a", ".lora_b"


def convert(
    adapter: str,
    base: str,
    converter: str,
    target: str,
    header: str,
    *,
    outtype: str,
    scales: dict[str, float],
    taking: dict[str, Any],
) -> dict[str, Any]:
    """Write the adapter's file ``target``, and look at it. ``base`` is a folder with the model's
    config, ``header`` the head of its GGUF file. llama.cpp multiplies by alpha / rank: where peft
    does not, ``scales`` has what the module's second matrix is to be multiplied by.

    Returns ``files`` ([name, bytes, sha256]), ``bits_per_weight`` and ``checks``. Raises
    ProcessFailed, or CheckFailed for an adapter that does not fit the model, and values that are
    not finite.
    """
    sys.path.insert(0, converter)
    from conversion import base as classes
    from gguf.metadata import Metadata

    hooks.read_everything(classes, Metadata, hooks.Taking(**taking))
    told = FirstError()
    logging.getLogger().addHandler(told)
    with tempfile.TemporaryDirectory(dir=Path(target).parent) as staging:
        folder = _scaled(Path(adapter), Path(staging) / "adapter", scales)
        sys.argv = [SCRIPT, str(folder), "--base", base, "--outfile", target, "--outtype", outtype]
        try:
            runpy.run_path(str(Path(converter) / SCRIPT), run_name="__main__")
        except SystemExit as ended:
            if ended.code:
                said = " ".join(told.messages) or "no reason given"
                raise ProcessFailed(f"llama.cpp's converter gave up: {said}") from None
        except OSError:  # a full disk
            raise
        except Exception as error:  # whatever the converter stumbles over
            logging.getLogger(__name__).exception("converter failed")
            raise ProcessFailed(
                "llama.cpp's converter failed on the adapter:"
                f" {type(error).__name__}: {str(error).strip() or 'it gave no reason'}. Merge it"
                " instead: leave adapter_only out"
            ) from None
    return _checked(Path(target), Header(header))


def _scaled(adapter: Path, folder: Path, scales: dict[str, float]) -> Path:
    """The adapter's folder, or a copy with some of its matrices multiplied."""
    from safetensors.torch import load_file, save_file

    if not scales:
        return adapter
    folder.mkdir()
    for one in adapter.glob("*.json"):
        shutil.copyfile(one, folder / one.name)
    tensors = {
        name: (tensor.float() * scales[name] if name in scales else tensor).contiguous()
        for name, tensor in load_file(adapter / "adapter_model.safetensors").items()
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def _checked(path: Path, model: Header) -> dict[str, Any]:
    """Every pair of matrices is of a matrix of the model, of its shape, and finite."""
    adapter = Header(path)
    seen = 0
    for name, tensor in adapter.tensors.items():
        if not np.isfinite(adapter.values(tensor)).all():
            raise CheckFailed(
                f"{path.name}: {name} has NaN or Inf values: the adapter is damaged, or"
                " its values are too large for the type (precision='f32')"
            )
        if not name.endswith(FIRST):
            continue
        of, other = name.removesuffix(FIRST), adapter.tensors.get(name.replace(FIRST, SECOND))
        whole = model.tensors.get(of)
        if whole is None or other is None:
            raise CheckFailed(f"{path.name}: there is no matrix {of} for {name} to change")
        (inputs, rank), (again, outputs) = _matrix(tensor), _matrix(other)
        if (inputs, outputs) != _matrix(whole) or rank != again:
            raise CheckFailed(
                f"{path.name}: {name} changes a matrix of {inputs} × {outputs}, and in the model it"
                f" is {' × '.join(map(str, _matrix(whole)))}"
            )
        seen += 1
    if not seen:
        raise CheckFailed(f"{path.name} changes nothing")
    stored = sum(tensor.bytes for tensor in adapter.tensors.values())
    weights = sum(tensor.elements for tensor in adapter.tensors.values())
    return {
        "files": [[path.name, path.stat().st_size, sha256_of(path)]],
        "bits_per_weight": 8 * stored / weights,
        "checks": [
            ["fits", f"{seen} matrices of the model, each of its shape"],
            ["finite", f"all {weights:,} values"],
        ],
    }


def _matrix(tensor: Tensor) -> tuple[int, int]:
    """Inputs and outputs; of experts, those of one."""
    shape = (*tensor.shape, 1, 1)
    return shape[0], shape[1]
