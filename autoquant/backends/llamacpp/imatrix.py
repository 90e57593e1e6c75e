"""Importance matrices: collected by llama.cpp while it runs a text, written and read as GGUF."""

from __future__ import annotations

import ctypes as C
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import gguf
import llama_cpp.llama_cpp as L
import numpy as np
import numpy.typing as npt

from autoquant.backends.llamacpp.library import CONTEXT, Floats, Model
from autoquant.core.errors import InputError, ProcessFailed
from autoquant.formats import imatrix as format
from autoquant.formats.gguf import Header, function
from autoquant.runtime.worker import Report

# --- importance matrix ----------------------------------------------------------------------------


class _Tensor(C.Structure):
    """ggml_tensor of the pinned llama.cpp (ggml.h); :func:`_looks_right` tests the layout against
    the library at run time.
    """


_Tensor._fields_ = [
    ("type", C.c_int),
    ("buffer", C.c_void_p),
    ("ne", C.c_int64 * 4),
    ("nb", C.c_size_t * 4),
    ("op", C.c_int),
    ("op_params", C.c_int32 * 16),
    ("flags", C.c_int32),
    ("src", C.POINTER(_Tensor) * 10),
    ("view_src", C.c_void_p),
    ("view_offs", C.c_size_t),
    ("data", C.c_void_p),
    ("name", C.c_char * 64),
    ("extra", C.c_void_p),
    ("padding", C.c_char * 8),
]


def _looks_right(pointer: Any) -> bool:
    tensor = C.cast(pointer, C.POINTER(_Tensor)).contents
    return bool(
        function("ggml_get_name", C.c_char_p, C.c_void_p)(pointer) == tensor.name
        and function("ggml_nelements", C.c_int64, C.c_void_p)(pointer) == int(np.prod(tensor.ne))
    )


def _read(tensor: _Tensor) -> npt.NDArray[Any]:
    """A copy of a tensor's values (float32 or int32) as [ne3, ne2, ne1, ne0], wherever its buffer
    lives.
    """
    n = function("ggml_nbytes", C.c_size_t, C.c_void_p)(C.addressof(tensor))
    raw = np.empty(n, dtype=np.uint8)
    function("ggml_backend_tensor_get", None, C.c_void_p, C.c_void_p, C.c_size_t, C.c_size_t)(
        C.addressof(tensor), raw.ctypes.data, 0, n
    )
    return np.ndarray(
        tuple(tensor.ne)[::-1],
        dtype=np.float32 if tensor.type == 0 else np.int32,
        buffer=raw,
        strides=tuple(tensor.nb)[::-1],
    )


class _Collector:
    """Sums of squared activations entering each weight matrix: what llama.cpp calls an importance
    matrix.

    Same rules as llama.cpp's imatrix tool (tools/imatrix/imatrix.cpp): matrices of the blocks only,
    batches of at least 16 tokens, one row of sums an expert for mixtures of experts.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Floats] = {}
        self.counts: dict[str, Floats] = {}
        self.error: str | None = None
        op_name = function("ggml_op_name", C.c_char_p, C.c_int)
        names = {op_name(i): i for i in range(90)}
        self._dense, self._experts = names[b"MUL_MAT"], names[b"MUL_MAT_ID"]
        self._checked = False

    def __call__(self, pointer: Any, ask: bool, _: Any) -> bool:
        try:
            return self._look(pointer, ask)
        except Exception as error:  # noqa: BLE001
            # ctypes would print and drop it: kept for the caller, who raises
            self.error = f"{type(error).__name__}: {error}"
            return False

    def _look(self, pointer: Any, ask: bool) -> bool:
        if not self._checked:
            if not _looks_right(pointer):
                raise ProcessFailed(
                    "ggml_tensor's layout is not the one this release knows; the installed"
                    " llama-cpp-python is another version"
                )
            self._checked = True
        tensor = C.cast(pointer, C.POINTER(_Tensor)).contents
        if tensor.op not in (self._dense, self._experts):
            return not ask
        weight, inputs = tensor.src[0].contents, tensor.src[1].contents
        name = weight.name.decode().split("#")[1] if b"#" in weight.name else weight.name.decode()
        if ask:
            return bool(
                tensor.op == self._experts
                or (inputs.ne[1] >= 16 and inputs.type == 0 and name.startswith("blk."))
            )
        values = _read(inputs)
        experts, width = int(weight.ne[2] * weight.ne[3]), int(inputs.ne[0])
        if name not in self.sums:
            self.sums[name] = np.zeros((experts, width), dtype=np.float32)
            self.counts[name] = np.zeros(
                experts if tensor.op == self._experts else 1, dtype=np.float32
            )
        sums, counts = self.sums[name], self.counts[name]
        if tensor.op == self._experts:
            # [tokens, used or 1, width], [tokens, used]
            rows, ids = values[0], _read(tensor.src[2].contents)[0, 0]
            for used in range(ids.shape[1]):
                picked = rows[:, used % rows.shape[1]]
                for expert in np.unique(ids[:, used]):
                    routed = picked[ids[:, used] == expert]
                    sums[expert] += np.einsum("ij,ij->j", routed, routed)
                    counts[expert] += len(routed)
        else:
            for i3 in range(values.shape[0]):
                for i2 in range(values.shape[1]):
                    sums[(i3 % int(weight.ne[3])) * int(weight.ne[2]) + i2 % int(weight.ne[2])] += (
                        np.einsum("ij,ij->j", values[i3, i2], values[i3, i2])
                    )
            counts += values.shape[0] * values.shape[1] * values.shape[2] // experts
        return True


def collect_imatrix(
    model: str,
    text: str,
    target: str,
    *,
    dataset: str,
    chunks: int,
    threads: int,
    context: int = CONTEXT,
    ids: list[list[int]] | None = None,
    report: Report | None = None,
) -> dict[str, Any]:
    """Collect an importance matrix on a text and write it in llama.cpp's GGUF imatrix format.

    The text is cut into chunks as llama.cpp's tool does it; or ``ids`` are the chunks, ready-made
    token ids of ``context`` each, which are run as they are. Returns ``chunks`` really used and
    ``tensors``. Raises InputError if the text has less than one chunk of ``context`` tokens.
    """
    collector = _Collector()
    callback = L.ggml_backend_sched_eval_callback(collector)
    runner = Model(model, threads=threads, context=context, callback=callback)
    if ids:
        parts = [np.asarray(sample, dtype=np.int32) for sample in ids]
    else:
        tokens = runner.tokenize(text, special=True)
        if len(tokens) < context:
            raise InputError(
                f"imatrix: {dataset} has {len(tokens)} tokens; at least {context} are needed;"
                " 50,000 are recommended"
            )
        parts = [
            tokens[i * context : (i + 1) * context].copy()
            for i in range(min(chunks, len(tokens) // context))
        ]
        if L.llama_vocab_get_add_bos(runner.vocab):
            for chunk in parts:
                chunk[0] = L.llama_vocab_bos(runner.vocab)
    n = len(parts)
    for i, chunk in enumerate(parts):
        # outputs everywhere, or the last block would be run for the last token only
        runner.decode(chunk, 0)
        if collector.error:
            raise ProcessFailed(f"collecting the importance matrix failed: {collector.error}")
        if report is not None:
            report(i + 1, n)
    if not collector.sums:
        raise ProcessFailed(
            "the importance matrix is empty: llama.cpp ran no matrix of the model's blocks through"
            " the callback"
        )
    broken = [name for name, values in collector.sums.items() if not np.isfinite(values).all()]
    if broken:
        raise ProcessFailed(
            f"the importance matrix has values that are not finite for {broken[0]}: the model"
            " itself computes NaN or Inf on this text"
        )
    write(target, collector.sums, collector.counts, dataset=dataset, chunks=n, context=context)
    return {"chunks": n, "tensors": len(collector.sums)}


def write(
    target: str,
    sums: Mapping[str, Floats],
    counts: Mapping[str, Floats],
    *,
    dataset: str,
    chunks: int,
    context: int,
) -> None:
    """Write an importance matrix in llama.cpp's GGUF format: of each tensor the ``sums`` of squared
    inputs [experts or 1, inputs] and the ``counts`` of tokens.
    """
    writer = gguf.GGUFWriter(target, arch="llama")
    # an imatrix file has none; its general.type tells what it is
    writer.kv_data[0].pop("general.architecture")
    writer.add_string("general.type", "imatrix")
    writer.add_array("imatrix.datasets", [dataset])
    writer.add_uint32("imatrix.chunk_count", chunks)
    writer.add_uint32("imatrix.chunk_size", context)
    for name in sorted(sums):
        writer.add_tensor(f"{name}.in_sum2", sums[name].reshape(len(counts[name]), -1))
        writer.add_tensor(f"{name}.counts", counts[name].reshape(-1, 1))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_imatrix(path: str) -> dict[str, Floats]:
    """Mean squared activations from an importance matrix of either format: tensor name -> [experts
    * width]. Experts never seen count as 1.

    Raises InputError if the file is none, is damaged or has values that are not finite.
    """
    if format.is_dat(Path(path)):
        return _read_dat(path)
    try:
        header = Header(path)
    except ValueError:
        raise InputError(
            f"imatrix: {path} is neither a complete GGUF file nor of llama.cpp's older .dat format"
        ) from None
    if header.get("general.type") != "imatrix":
        raise InputError(f"imatrix: {path} is a GGUF file, but no importance matrix")
    data = {name: header.values(tensor) for name, tensor in header.tensors.items()}
    out: dict[str, Floats] = {}
    for name in data:
        if name.endswith(".in_sum2"):
            base = name.removesuffix(".in_sum2")
            sums = data[name].reshape(-1)
            counts = data[f"{base}.counts"].reshape(-1)
            per_count = sums.reshape(len(counts), -1)
            mean = np.where(counts[:, None] > 0, per_count / np.maximum(counts[:, None], 1), 1.0)
            out[base] = np.ascontiguousarray(mean.reshape(-1), dtype=np.float32)
    return _sound(out, path)


def _read_dat(path: str) -> dict[str, Floats]:
    """The older format's entries."""
    try:
        entries, _ = format.read_dat(Path(path))
    except ValueError as error:
        raise InputError(f"imatrix: {path} is damaged: {error}") from None
    return _sound(
        {
            name: (values / np.float32(max(1, calls))).astype(np.float32)
            for name, (values, calls) in entries.items()
        },
        path,
    )


def _sound(entries: dict[str, Floats], path: str) -> dict[str, Floats]:
    """The entries, if there are any and all are finite. Raises InputError."""
    if not entries:
        raise InputError(f"imatrix: {path} holds no entries")
    broken = [name for name, values in entries.items() if not np.isfinite(values).all()]
    if broken:
        raise InputError(f"imatrix: {path} has NaN or Inf values for {broken[0]}")
    return entries


def uncovered(imatrix: str, tensors: Iterable[str]) -> list[str]:
    """The blocks' matrices that an importance matrix does not have."""
    entries = read_imatrix(imatrix)
    wanted = (name for name in tensors if name.startswith("blk.") and name.endswith(".weight"))
    return [name for name in wanted if name not in entries]


def refuse_other_models(imatrix: str, header: str) -> None:
    """Raise InputError if an importance matrix was made for another model than the header's."""
    entries, tensors = read_imatrix(imatrix), Header(header).tensors
    for name, values in entries.items():
        if name == "output.weight" and name not in tensors:
            continue  # of a model that ties its head to the embeddings
        if name not in tensors:
            raise InputError(
                f"imatrix: {imatrix} was made for another model: it has {name}, which this model"
                " has not"
            )
        width = tensors[name].shape[0] * tensors[name].shape[2]
        if values.size != width:
            raise InputError(
                f"imatrix: {imatrix} was made for another model: {name} has {values.size} values"
                f" there, {width} here"
            )
