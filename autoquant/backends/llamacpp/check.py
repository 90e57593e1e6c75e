"""What is looked at on a GGUF file before it counts as done. Runs in a worker process."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from glob import escape
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from autoquant.backends.llamacpp import library
from autoquant.backends.prompt import GENERATED, PROMPT, in_words
from autoquant.core.errors import CheckFailed
from autoquant.core.files import sha256_of
from autoquant.formats.gguf import Header, Tensor
from autoquant.runtime import trace
from autoquant.runtime.worker import Emit

SAMPLE_ROWS = 8  # rows dequantized a tensor: first, last and evenly between


def _shards(path: Path) -> list[Path]:
    """The file itself, or all shards of a split file given the first."""
    n = Header(path).get("split.count", "u16") or 1
    return [
        path.with_name(path.name.replace("-00001-of-", f"-{i:05d}-of-")) for i in range(1, n + 1)
    ]


def verify(
    path: str,
    header: str,
    plan: dict[str, Any],
    *,
    threads: int,
    run: bool = True,
    unquantized: str = "",
    hashes: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Check one GGUF file (or the first shard of one) against the header-only file of its source
    and the plan of its type.

    Opens; architecture, tensor names, shapes and types; size on disk; chat template; no NaN or Inf
    in SAMPLE_ROWS dequantized rows of every tensor; a greedy generation that is not one token
    repeated (``run``), unless the ``unquantized`` file's is too. ``hashes`` are those of files that
    need not be read for it. Returns ``checks`` ([name, seen]),
    ``files`` ([name, bytes, sha256]) and ``bits_per_weight``; and ``repeats``: the token that it
    repeats, if there is no ``unquantized`` file to compare with, else None. Raises CheckFailed
    naming the file and tensor.
    """
    first = Path(path)
    name = first.name
    try:
        files = _shards(first)
        headers = [Header(file) for file in files]
    except ValueError as error:
        raise CheckFailed(f"{name} does not open as GGUF: {error}") from None
    expected = Header(header)
    for key in ("general.architecture", "tokenizer.chat_template"):
        want, have = expected.get(key), headers[0].get(key)
        if want != have:
            raise CheckFailed(f"{name}: {key} is {have!r}, the source has {want!r}")
    wanted = expected.tensors
    tensors = {tensor.name for file in headers for tensor in file.tensors.values()}
    odd = sorted(set(wanted) ^ tensors)
    if odd:
        raise CheckFailed(
            f"{name} has {len(tensors)} tensors, the source {len(wanted)}; {odd[0]} is in one only"
        )
    stored = sum(look(file, name, expected, plan["tensors"]) for file in headers)
    size = sum(file.stat().st_size for file in files)
    if len(files) == 1 and size != plan["bytes"]:
        raise CheckFailed(f"{name} has {size:,} bytes, planned were {plan['bytes']:,}")
    bits = stored * 8 / sum(tensor.elements for tensor in wanted.values())
    if abs(bits - plan["bits_per_weight"]) > 1e-6:
        raise CheckFailed(
            f"{name} has {bits:.4f} bits per weight, planned were {plan['bits_per_weight']:.4f}"
        )
    checks = [
        [
            "opens",
            (
                f"{headers[0].get('general.architecture')}, {len(tensors)} tensors, shapes and"
                " types as planned"
            ),
        ],
        ["finite", f"no NaN or Inf in {SAMPLE_ROWS} rows of each tensor"],
        ["size", f"{size:,} bytes, {bits:.3f} bits per weight, as planned"],
    ]
    repeats = None
    if run:
        tokens = library.generate(str(first), threads=threads, prompt=PROMPT, n=GENERATED)
        said = f"{len(tokens)} tokens, {len(set(tokens))} different"
        said += f": {in_words(library.text_of(str(first), tokens))}"
        if len(set(tokens)) < 2 and not unquantized:
            repeats = tokens[0]
        elif len(set(tokens)) < 2:
            said = repeats_too(unquantized, name, tokens[0], threads)
        checks.append(["generates", said])
    with trace.library("sha256"):
        listed = [
            [file.name, file.stat().st_size, hashes.get(file.name) or sha256_of(file)]
            for file in files
        ]
    return {"checks": checks, "files": listed, "bits_per_weight": bits, "repeats": repeats}


def look(file: Header, name: str, expected: Header, types: Mapping[str, str]) -> int:
    """Look at a file's tensors, or a shard's: shapes as ``expected``, types as planned, nothing cut
    off, values finite. Returns their bytes. Raises CheckFailed.
    """
    for one, tensor in file.tensors.items():
        wanted = expected.tensors[one].shape
        if tensor.shape != wanted:
            raise CheckFailed(f"{name}: {one} has shape {tensor.shape}, the source {wanted}")
        if tensor.type != types[one]:
            raise CheckFailed(f"{name}: {one} is {tensor.type}, planned was {types[one]}")
        if file.path.stat().st_size < tensor.offset + tensor.bytes:
            raise CheckFailed(
                f"{file.path.name} is cut short: {one} would end at byte"
                f" {tensor.offset + tensor.bytes:,}"
            )
        _finite(file, tensor)
    return sum(tensor.bytes for tensor in file.tensors.values())


def repeats_too(unquantized: str, name: str, token: int, threads: int) -> str:
    """What to say of a file that repeats one token, if the ``unquantized`` one does. Raises
    CheckFailed if that does not.
    """
    said = library.generate(unquantized, threads=threads, prompt=PROMPT, n=GENERATED)
    if set(said) != {token}:
        raise CheckFailed(
            f"{name} generates nothing but token {token} after {PROMPT!r}, which the unquantized"
            " model does not: the type is too small for it, or the file broken"
        )
    return f"{GENERATED} times the same token, as the unquantized model does"


def _finite(file: Header, tensor: Tensor) -> None:
    rows = np.unique(
        np.linspace(0, tensor.elements // tensor.shape[0] - 1, SAMPLE_ROWS).astype(np.int64)
    )
    try:
        values = file.values(tensor, rows)
    except NotImplementedError:
        # gguf-py cannot read the newest block formats; llama.cpp has validated them while writing
        return
    if not np.isfinite(values).all():
        raise CheckFailed(
            f"{file.path.name}: {tensor.name} ({tensor.type}) has NaN or Inf values; look for them"
            " in the source's weights"
        )


def verify_all(
    header: str,
    jobs: list[dict[str, Any]],
    hashes: dict[str, str],
    *,
    cores: int,
    emit: Emit,
    taken: bool = False,
) -> None:
    """Verify the files of jobs (see targets.Target), side by side, but for those that are kept for
    ourselves, and emit ``{"type", "plan", …}`` for each. ``hashes`` are those of files that need
    not be read for it. Whether a file repeats a token that the unquantized model does not is left
    to others. Shards that were ``taken`` away have been looked at one by one.
    """
    wanted = [job for job in jobs if not job["kept"]]

    def work(job: dict[str, Any]) -> None:
        plan, threads = job["plan"], max(1, cores // len(wanted))
        path = _first(Path(job["target"]), taken)
        if path is None:
            answer = _of_shards(plan, Header(header))
        else:
            itself = str(path) if job["ready"] else ""
            answer = verify(
                str(path), header, plan, threads=threads, unquantized=itself, hashes=hashes
            )
        emit({"type": job["type"], "plan": plan, **answer})

    with ThreadPoolExecutor(max(1, min(cores, len(wanted)))) as pool:
        for done in [pool.submit(work, job) for job in wanted]:
            done.result()


def _of_shards(plan: dict[str, Any], expected: Header) -> dict[str, Any]:
    """What :func:`verify` returns, of shards that are no more here; their names are known to
    whoever has taken them.
    """
    count, bits = len(expected.tensors), plan["bits_per_weight"]
    return {
        "checks": [
            ["opens", f"each shard, {count} tensors in all, shapes and types as planned"],
            ["finite", f"no NaN or Inf in {SAMPLE_ROWS} rows of each tensor"],
            ["size", f"each shard as planned, {bits:.3f} bits per weight"],
            ["generates", "not tried: its shards were deleted here as they were sent"],
        ],
        "files": [],
        "bits_per_weight": bits,
        "repeats": None,
    }


def _first(path: Path, taken: bool) -> Path | None:
    """The file, or if it was cut, its first shard; None if that was taken away."""
    if path.is_file():
        return path
    if taken:
        return None
    return next(path.parent.glob(f"{escape(path.stem)}-00001-of-*.gguf"))
