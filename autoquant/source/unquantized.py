"""A quantized source made into one of 16 bits, in the cache: what every method then takes. What its
quantization has lost stays lost.
"""

from __future__ import annotations

import bisect
import itertools
import json
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoquant.core.cache import cache_folder
from autoquant.core.errors import InputError
from autoquant.core.files import free_bytes, key_of, move_into_place
from autoquant.core.progress import Bar
from autoquant.core.records import Source
from autoquant.formats import stored
from autoquant.formats.checkpoint import weight_files
from autoquant.formats.tensors import Tensors
from autoquant.runtime import process
from autoquant.runtime.worker import Report
from autoquant.source.headers import Header, headers_of, read_json
from autoquant.source.outline import beside
from autoquant.source.outline import write as write_outline


def outline(source: Source) -> Path:
    """A folder that has the 16-bit form of a quantized source as headers and holes, with its config
    and tokenizer. Raises InputError for a format that is not read.
    """
    folder = source.folder
    seen = [
        (path.name, path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.iterdir())
        if path.is_file()
    ]
    place = cache_folder() / "sources" / f"{key_of(str(folder), seen)}-outline"
    if (place / "config.json").is_file():
        return place
    config = read_json(folder / "config.json")
    block = config.pop("quantization_config")
    headers = headers_of(folder, list(source.weights))
    try:
        made = stored.made_of(headers, block, Tensors(str(folder)))
    except (ValueError, KeyError) as error:
        raise InputError(
            f"{source.id} is quantized already ({source.quantized}), and cannot be read back:"
            f" {error}. Give the unquantized model"
        ) from None
    dtype = _half(headers)
    tensors = {name: (dtype, list(one.shape)) for name, one in made.items()}
    write_outline(place, tensors, _config(config, dtype), [folder])
    return place


def _half(headers: Mapping[str, Header]) -> str:
    """The 16-bit dtype of a quantized checkpoint's other tensors."""
    return (
        "F16" if {dtype for dtype, _ in headers.values()} & {"F16", "BF16"} == {"F16"} else "BF16"
    )


def _config(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """The config of the 16-bit form."""
    kept = {name: value for name, value in config.items() if name != "torch_dtype"}
    return {**kept, "dtype": "float16" if dtype == "F16" else "bfloat16"}


def place_of(folder: Path, sha256: str) -> Path:
    """The folder of 16 bits for a quantized one at hand, made if it is not there. Raises InputError
    without room.
    """
    place = cache_folder() / "sources" / f"{key_of(sha256)}-16bit"
    if (place / "config.json").is_file():
        return place
    names = [path.name for path in weight_files(folder)]
    values = sum(math.prod(shape) for _, shape in headers_of(folder, names).values())
    needed = 2 * values
    place.parent.mkdir(parents=True, exist_ok=True)
    if needed > free_bytes(place.parent):
        raise InputError(
            f"the model is quantized, and its 16-bit form needs about {needed / 1e9:.2f} GB in"
            f" {place.parent}; {free_bytes(place.parent) / 1e9:.2f} GB are free. Set"
            " AUTOQUANT_CACHE to a larger disk"
        )
    with tempfile.TemporaryDirectory(dir=place.parent) as scratch, Bar("to 16 bits") as progress:
        made = Path(scratch) / "model"
        process.call(
            "autoquant.source.unquantized:write",
            log=Path(scratch) / "log",
            progress=progress,
            folder=str(folder),
            target=str(made),
        )
        move_into_place(made, place)
    return place


KEPT = ("F16", "BF16", "F32", "I64")  # dtypes of tensors that are the form's own


class Form:
    """The 16-bit form of the quantized checkpoint in ``folder``, whose values are made when they
    are asked for, of the stored ``tensors``; config and headers suffice until then.
    """

    def __init__(self, folder: Path, tensors: Tensors) -> None:
        config = read_json(folder / "config.json")
        self.tensors = tensors
        self.block: dict[str, Any] = config.pop("quantization_config")
        self.headers = headers_of(folder, [path.name for path in weight_files(folder)])
        self._sorted = sorted(self.headers)
        self.made = stored.made_of(self.headers, self.block, tensors)
        self.config = _config(config, _half(self.headers))

    def needs(self, name: str) -> list[str]:
        """The stored tensors that one is made of."""
        one = self.made[name]
        if one.way == "plain":
            return [one.base]
        first = bisect.bisect_left(self._sorted, one.base)
        others = itertools.islice(self._sorted, first, None)
        return list(itertools.takewhile(lambda other: other.startswith(one.base), others))

    def value(self, name: str) -> Any:
        """One tensor, as torch has it."""
        import torch

        one = self.made[name]
        if one.way == "plain" and self.headers[name][0] in KEPT:
            return self.tensors.raw(name)
        return torch.from_numpy(stored.read(self.tensors, one, self.block)).to(self._dtype())

    def rows(self, name: str, first: int, last: int) -> Any:
        """Some rows of one that is stored as it is, or of one of MXFP4, whose rows are experts."""
        import torch

        one = self.made[name]
        if one.way == "plain" and self.headers[name][0] in KEPT:
            return self.tensors.rows(name, first, last)
        if one.way != "mxfp4":
            return None
        parts = [
            self.tensors.rows(f"{one.base}_{part}", first, last).numpy()
            for part in ("blocks", "scales")
        ]
        return torch.from_numpy(stored.mxfp4(*parts)).to(self._dtype())

    def _dtype(self) -> Any:
        import torch

        return torch.float16 if _half(self.headers) == "F16" else torch.bfloat16


def write(folder: str, target: str, *, report: Report) -> None:
    """Write the 16-bit form, tensor by tensor. Runs in a worker."""
    from autoquant.formats.writer import ShardWriter

    form = Form(Path(folder), Tensors(folder))
    with ShardWriter(Path(target), form.made) as out:
        for i, name in enumerate(form.made, 1):
            out.add(name, form.value(name))
            report(i, len(form.made))
    text = json.dumps(form.config, indent=2)
    (Path(target) / "config.json").write_text(text + "\n", encoding="utf-8")
    beside([Path(folder)], Path(target))
