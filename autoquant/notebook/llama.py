"""llama.cpp's own arithmetic and speed for the lessons, in a process of its own, for native code
may abort: what is packed and computed by hand is compared with it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from autoquant.backends.llamacpp import converter
from autoquant.core.language import say
from autoquant.runtime import process

TARGET = "autoquant.backends.llamacpp.rows"


def quantize(values: Any, kind: str, importance: Any = None) -> npt.NDArray[np.uint8]:
    """Weights [rows, columns] as llama.cpp's bytes of a type (Q4_K …), [rows, bytes].
    ``importance`` [columns] says how much errors in a column count.
    """
    given = {"given": np.asarray(values, np.float32)}
    if importance is not None:
        given["importance"] = np.asarray(importance, np.float32)
    raw: npt.NDArray[np.uint8] = _asked("quantize", given, kind)
    return raw


def floats(raw: Any, kind: str) -> npt.NDArray[np.float32]:
    """The weights that bytes [rows, bytes] of a type stand for, [rows, columns]."""
    values: npt.NDArray[np.float32] = _asked("floats", {"given": np.asarray(raw, np.uint8)}, kind)
    return values


def in_words(block: Any) -> str:
    """The bytes [18] of a Q4_0 block, and what the first three of them are: its scale (float16, the
    low byte first) and a pair of codes, weight 0's in the low half.
    """
    given = np.asarray(block, np.uint8)
    scale = float(given[:2].view(np.float16)[0])
    low, high, pair = (int(one) for one in given[:3])
    codes = say(
        "{pair} = codes {first} (weight 0) and {second} (weight 16)",
        pair=f"{pair:02x}",
        first=pair & 15,
        second=pair >> 4,
    )
    return (
        f"{say('the first block:')} {given.tobytes().hex(' ')}\n"
        f"{low:02x} {high:02x} = 0x{high:02x}{low:02x} = {scale:.4f}; {codes}"
    )


def _asked(function: str, arrays: dict[str, Any], kind: str) -> Any:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        arguments: dict[str, Any] = {"out": str(folder / "out.npy"), "kind": kind}
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)
            arguments[name] = str(folder / f"{name}.npy")
        process.call(
            f"{TARGET}:{function}",
            log=folder / "log",
            env=converter.environment(converter.locate()),
            fresh=True,  # it needs nothing that takes seconds to import
            **arguments,
        )
        return np.load(folder / "out.npy")


def speed(
    paths: Sequence[str | Path], *, prompt: int = 128, new: int = 64, rounds: int = 6
) -> list[tuple[float, float]]:
    """Of each GGUF file the tokens per second of prefill and of decode, by llama.cpp on one
    thread: ``prompt`` tokens together, then ``new`` ones, one at a time.
    """
    with tempfile.TemporaryDirectory() as scratch:
        found = process.call(
            "autoquant.backends.llamacpp.speed:measure",
            log=Path(scratch) / "log",
            env=converter.environment(converter.locate()),
            fresh=True,  # as above
            paths=[str(path) for path in paths],
            threads=1,
            prompt=prompt,
            new=new,
            rounds=rounds,
        )
    return [(prefill, decode) for prefill, decode in found]
