"""Peak memory of conversion and quantization on a synthetic checkpoint of 6.5 GB in several shards.
usage: python -m bench.memory WORK

Two measures. Inside a memory control group limited to 2 GB (page cache counts too; needs root and
cgroup v1 or v2) the run must finish; its peak is the group's own. And the largest resident set of
any one process, sampled from /proc.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

LIMIT = 2_000_000_000


def checkpoint(
    folder: Path,
    layers: int = 14,
    tokenizer: Path | None = None,
    width: int = 4096,
    *,
    inner: int = 0,
    heads: int = 0,
    vocabulary: int = 32000,
    shards: int = 3,
) -> int:
    """Write a random Llama (by default of width 4096, as Llama-2-7B's layers) in bfloat16, in
    shards; returns its bytes.

    ``tokenizer`` is a checkpoint to take tokenizer and vocabulary size from, if not the embedded
    one's tokenizer with ``vocabulary`` rows. ``inner`` is the MLP's width, ``heads`` how many there
    are for keys and values.
    """
    import torch
    from safetensors.torch import save_file

    from autoquant.core.bundled import MODEL as DEMO_FOLDER

    folder.mkdir(parents=True)
    if tokenizer:
        vocabulary = json.loads((tokenizer / "config.json").read_text())["vocab_size"]
    config = json.loads((DEMO_FOLDER / "config.json").read_text())
    inner = inner or 11008 * width // 4096
    heads = heads or width // 128
    config.update(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=width // 128,
        num_key_value_heads=heads,
        head_dim=128,
        vocab_size=vocabulary,
        dtype="bfloat16",
        max_position_embeddings=512,
    )
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy((tokenizer or DEMO_FOLDER) / name, folder / name)
    shapes = {
        "model.embed_tokens.weight": (vocabulary, width),
        "lm_head.weight": (vocabulary, width),
        "model.norm.weight": (width,),
    }
    for i in range(layers):
        prefix = f"model.layers.{i}."
        shapes |= {f"{prefix}self_attn.{n}_proj.weight": (width, width) for n in "qo"}
        shapes |= {f"{prefix}self_attn.{n}_proj.weight": (128 * heads, width) for n in "kv"}
        shapes |= {f"{prefix}mlp.{n}_proj.weight": (inner, width) for n in ("gate", "up")}
        shapes |= {
            f"{prefix}mlp.down_proj.weight": (width, inner),
            f"{prefix}input_layernorm.weight": (width,),
            f"{prefix}post_attention_layernorm.weight": (width,),
        }
    names = list(shapes)
    parts = [names[i::shards] for i in range(shards)]
    weight_map: dict[str, str] = {}
    generator = torch.Generator().manual_seed(0)
    for i, part in enumerate(parts):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        save_file(
            {
                name: (
                    torch.empty(shapes[name], dtype=torch.bfloat16).normal_(
                        0, 0.02, generator=generator
                    )
                )
                for name in part
            },
            folder / file,
        )
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


class Group:
    """A memory control group limited to LIMIT bytes, if this system lets us make one."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        v1 = Path("/sys/fs/cgroup/memory")
        base, limit, self.peak_file = (
            (v1, "memory.limit_in_bytes", "memory.max_usage_in_bytes")
            if v1.is_dir()
            else (Path("/sys/fs/cgroup"), "memory.max", "memory.peak")
        )
        with contextlib.suppress(OSError):
            folder = base / f"autoquant-bench-{os.getpid()}"
            folder.mkdir()
            (folder / limit).write_text(str(LIMIT))
            self.folder = folder

    def enter(self) -> None:
        """Move the calling process into the group."""
        if self.folder is not None:
            (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    def peak(self) -> int:
        """The most memory the group had charged, page cache included."""
        return int((self.folder / self.peak_file).read_text()) if self.folder is not None else 0

    def close(self) -> None:
        """Remove the group."""
        if self.folder is not None:
            self.folder.rmdir()


def resident(pid: int) -> dict[str, int]:
    """The resident sets of a process and its descendants: anonymous and file-backed bytes of the
    largest one.
    """
    best = {"RssAnon": 0, "VmRSS": 0}
    pids, seen = [pid], set()
    while pids:
        one = pids.pop()
        if one in seen:
            continue
        seen.add(one)
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{one}/task").iterdir():
                pids += [int(child) for child in (task / "children").read_text().split()]
            lines = dict(
                line.split(":", 1)
                for line in Path(f"/proc/{one}/status").read_text().splitlines()
                if ":" in line
            )
            for key in best:
                # a process that is ending has none
                best[key] = max(best[key], int(lines.get(key, "0").split()[0]) * 1024)
    return best


@contextlib.contextmanager
def own_memory() -> Iterator[list[int]]:
    """While it lasts: the largest own (anonymous) memory of this process's descendants, so far."""
    peak, done = [0], threading.Event()

    def sample() -> None:
        while not done.wait(0.05):
            peak[0] = max(peak[0], resident(os.getpid()).get("RssAnon", 0))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def main(work: Path) -> None:
    """Make the checkpoint, run with and without the limit, print the peaks."""
    model, out = work / "synthetic", work / "memory-out"
    if not model.is_dir():
        checkpoint(model)
    size = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    print(f"checkpoint: {size / 1e9:.2f} GB in 3 shards; types Q4_K_M and Q8_0 side by side")
    for limited in (False, True):
        shutil.rmtree(out, ignore_errors=True)
        group = Group() if limited else None
        if limited and (group is None or group.folder is None):
            print("no control group can be made here (root needed): skipped")
            continue
        argv = [
            sys.executable,
            "-m",
            "autoquant.cli",
            "quantize",
            "gguf",
            str(model),
            "--types",
            "Q4_K_M,Q8_0",
            "--evaluate",
            "off",
            "--pre-tokenizer",
            "gpt-2",
            "--out",
            str(out),
        ]
        start = time.monotonic()
        child = subprocess.Popen(
            argv, preexec_fn=group.enter if group else None, stdout=subprocess.DEVNULL
        )
        peaks = {"RssAnon": 0, "VmRSS": 0}
        done = threading.Event()

        def watch(
            pid: int = child.pid, peaks: dict[str, int] = peaks, done: threading.Event = done
        ) -> None:
            while not done.wait(0.05):
                for key, value in resident(pid).items():
                    peaks[key] = max(peaks[key], value)

        thread = threading.Thread(target=watch)
        thread.start()
        status = child.wait()
        done.set()
        thread.join()
        print(
            f"{'inside a 2.0 GB control group' if limited else 'unlimited'}: exit status {status},"
            f" {time.monotonic() - start:.0f} s; largest process: {peaks['RssAnon'] / 1e9:.2f} GB"
            f" anonymous, {peaks['VmRSS'] / 1e9:.2f} GB resident with mapped file pages"
            + (
                f"; whole group with page cache at most {group.peak() / 1e9:.2f} GB"
                if group
                else ""
            )
        )
        if group:
            group.close()
    shutil.rmtree(out, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
