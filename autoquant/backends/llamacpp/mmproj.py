"""The parts of a model that see or hear, as llama.cpp reads them: an mmproj file beside the text
model's. Runs in a worker process.
"""

from __future__ import annotations

import errno
import gc
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from autoquant.backends.llamacpp import hooks
from autoquant.backends.llamacpp.arriving import leaves_of
from autoquant.backends.llamacpp.convert import Stop
from autoquant.backends.llamacpp.reading import Reading
from autoquant.backends.llamacpp.writing import write_header, write_weights
from autoquant.core.errors import CheckFailed
from autoquant.runtime.worker import Report


def convert(
    model: str,
    converter: str,
    target: str,
    *,
    outtype: str,
    name: str,
    taking: dict[str, Any],
    only_plan: bool,
    made: dict[str, Any] | None = None,
    report: Report | None = None,
) -> dict[str, Any]:
    """Write the mmproj file ``target`` (f16, bf16, q8_0) unless ``only_plan``, and look at it.

    Returns ``bytes``, ``tensors``, ``values``, and of a plan ``reads``: the parts of the
    checkpoint's files ([file, offset, bytes]) that it is made of; in their place ``unknown``, the
    architecture, if llama.cpp's converter has no such file for it, or ``failed``, why it made none.
    ``made``: of a model whose tensors are made as they are read, see reading.Reading. Raises
    CheckFailed for values that are not finite.
    """
    gc.disable()
    sys.path.insert(0, converter)
    import convert_hf_to_gguf as script
    from conversion import MMPROJ_MODEL_MAP, base
    from gguf.metadata import Metadata

    found = base.ModelBase.load_hparams(Path(model), False)
    kind = base.get_model_architecture(found, base.ModelType.MMPROJ)
    if kind not in MMPROJ_MODEL_MAP:
        return {"unknown": kind}
    hooks.read_everything(base, Metadata, hooks.Taking(**taking), name)
    result: dict[str, Any] = {}

    def write(self: Any) -> None:
        self.prepare_tensors()
        self.prepare_metadata(vocab_only=False)
        header = Path(staging) / "header.gguf"
        tensors = self.gguf_writer.tensors[0].values()
        result["bytes"] = write_header(self.gguf_writer, header)
        result["tensors"] = len(tensors)
        result["values"] = int(sum(np.prod(info.tensor.shape) for info in tensors))
        if only_plan:
            leaves = [leaf for info in tensors for leaf in leaves_of(info.tensor)]
            ranges = (leaf.data_range for leaf in leaves)
            result["reads"] = [[one.filename.name, one.offset, one.size] for one in ranges]
            raise Stop
        if made:
            Reading(Path(made["files"]), None, made)
        write_weights(self.gguf_writer, header, Path(target), report)

    base.ModelBase.write = write
    with tempfile.TemporaryDirectory(dir=Path(target).parent) as staging:
        folder = _staged(Path(model), Path(staging) / "model")
        sys.argv = ["convert_hf_to_gguf.py", str(folder), "--mmproj", "--outfile", target]
        sys.argv += ["--outtype", outtype, "--model-name", name]
        try:
            script.main()
        except Stop:
            pass
        except (Exception, SystemExit) as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise
            # whatever the converter stumbles over, above all the processor's files
            return {"failed": f"{type(error).__name__}: {error}"}
    if not only_plan:
        _refuse_not_finite(target, outtype)
    return result


def _staged(model: Path, folder: Path) -> Path:
    """Links to the model's files, with the added tokens in tokenizer_config.json: transformers 5 no
    longer writes them there, where the converter looks for a picture's.
    """
    folder.mkdir()
    for one in model.iterdir():
        (folder / one.name).symlink_to(one.resolve())
    tokens, config = model / "tokenizer.json", model / "tokenizer_config.json"
    if tokens.is_file() and config.is_file():
        added = json.loads(tokens.read_text(encoding="utf-8")).get("added_tokens") or []
        data = json.loads(config.read_text(encoding="utf-8"))
        data.setdefault("added_tokens_decoder", {str(one["id"]): one for one in added})
        (folder / config.name).unlink()
        (folder / config.name).write_text(json.dumps(data), encoding="utf-8")
    return folder


def _refuse_not_finite(path: str, outtype: str) -> None:
    """Look at every value of the file."""
    from autoquant.formats.gguf import Header

    header = Header(path)
    for name, tensor in header.tensors.items():
        if not np.isfinite(header.values(tensor)).all():
            raise CheckFailed(
                f"{Path(path).name}: {name} has NaN or Inf values as {outtype}: take"
                " mmproj_type='bf16' (--mmproj-type bf16)"
            )
