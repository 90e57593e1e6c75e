"""A checkpoint that comes from the loopback Hub shard by shard: disk beside the results, memory,
and whether it finishes on a file system with room for the result and one and a half shards (needs
root). usage: python -m bench.stream WORK [GB[z]…]

With a z all weights are zeros, which take no room on the Hub's side. More than 16 GB are not run
on the small file system, which lies in memory. There a plan is asked first what it says, and the
way is left to the run.

The checkpoint is a random Llama of width 4096 with 128,256 rows, in six shards; its type is Q4_K_M.
Disk is counted in blocks that are taken, of shards in the run's folder and of all that is in
HF_HOME. Memory is the largest anonymous memory of any one process.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

from bench.hub import environment
from bench.memory import resident
from tests.fakes.hub import Hub

SHARDS, WIDTH, INNER, ROWS = 6, 4096, 14336, 128_256
REPO = "maker/wide"


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """The tensors of a Llama, in the order in which published shards have them."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (ROWS, WIDTH)}
    for i in range(layers):
        prefix = f"model.layers.{i}."
        found |= {f"{prefix}self_attn.{n}_proj.weight": (WIDTH, WIDTH) for n in "qo"}
        found |= {f"{prefix}self_attn.{n}_proj.weight": (WIDTH // 4, WIDTH) for n in "kv"}
        found |= {f"{prefix}mlp.{n}_proj.weight": (INNER, WIDTH) for n in ("gate", "up")}
        found |= {
            f"{prefix}mlp.down_proj.weight": (WIDTH, INNER),
            f"{prefix}input_layernorm.weight": (WIDTH,),
            f"{prefix}post_attention_layernorm.weight": (WIDTH,),
        }
    return found | {"model.norm.weight": (WIDTH,), "lm_head.weight": (ROWS, WIDTH)}


def publish(hub: Hub, gigabytes: float, scratch: Path, *, zeros: bool) -> int:
    """Put the checkpoint on the Hub, one shard after the other; the largest one's bytes."""
    import torch
    from safetensors.torch import save_file

    from autoquant.core.bundled import MODEL

    layers = round((gigabytes * 1e9 / 2 - 2 * ROWS * WIDTH) / 218e6)
    wanted = shapes(layers)
    config = json.loads((MODEL / "config.json").read_text())
    config.update(
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=ROWS,
        dtype="bfloat16",
        max_position_embeddings=512,
    )
    values = torch.empty(ROWS * WIDTH, dtype=torch.bfloat16).normal_(0, 0.02)
    sizes = {name: values[: _elements(shape)].numel() for name, shape in wanted.items()}
    limit, shard, parts = sum(sizes.values()) / SHARDS, 0, [list[str]() for _ in range(SHARDS)]
    held = 0
    for name, size in sizes.items():
        if held + size / 2 > limit * (shard + 1) and shard + 1 < SHARDS:
            shard += 1
        parts[shard].append(name)
        held += size
    listed: dict[str, str] = {}
    largest = 0
    for i, part in enumerate(parts):
        file = f"model-{i + 1:05d}-of-{SHARDS:05d}.safetensors"
        if zeros:
            hollow(scratch / file, {name: wanted[name] for name in part})
        else:
            save_file(
                {n: values[: sizes[n]].reshape(wanted[n]).clone() for n in part}, scratch / file
            )
        largest = max(largest, (scratch / file).stat().st_size)
        hub.seed(REPO, {file: scratch / file})
        (scratch / file).unlink()
        listed |= dict.fromkeys(part, file)
    small: dict[str, bytes | Path] = {
        "config.json": json.dumps(config).encode(),
        "model.safetensors.index.json": json.dumps({"metadata": {}, "weight_map": listed}).encode(),
        **{name: MODEL / name for name in ("tokenizer.json", "tokenizer_config.json")},
    }
    hub.seed(REPO, small)
    return largest


def hollow(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A file of safetensors of zeros, which take no room."""
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 2 * _elements(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)


def _elements(shape: tuple[int, ...]) -> int:
    return shape[0] * (shape[1] if len(shape) > 1 else 1)


def taken(*folders: Path) -> int:
    """Bytes of the blocks that files in folders take."""
    total = 0
    for folder in folders:
        for path in folder.rglob("*"):
            try:
                total += 512 * path.lstat().st_blocks
            except OSError:  # it went meanwhile
                continue
    return total


def plan(hub: Hub, home: Path) -> str:
    """What a plan says of the disk, the way, the time and whether it fits."""
    argv = [sys.executable, "-m", "autoquant.cli", "plan", "gguf", REPO, "--types", "Q4_K_M"]
    argv += ["--pre-tokenizer", "gpt-2", "--evaluate", "off"]
    done = subprocess.run(
        argv,
        env=environment(hub, home / "hf"),
        cwd=home,
        check=True,
        capture_output=True,
        text=True,
    )
    return " ".join(done.stdout.split("note:", 1)[1].split())


def run(hub: Hub, home: Path, *more: str) -> tuple[float, int, int, int]:
    """Seconds, the most bytes beside the results, the most memory, and the result's bytes."""
    out = home / "out"
    argv = [sys.executable, "-m", "autoquant.cli", "quantize", "gguf", REPO, "--types", "Q4_K_M"]
    argv += ["--pre-tokenizer", "gpt-2", "--evaluate", "off", "--out", str(out)]
    argv += more
    start = time.monotonic()
    child = subprocess.Popen(
        argv, env=environment(hub, home / "hf"), stdout=subprocess.DEVNULL, cwd=home
    )
    most, memory, done = [0], [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            beside = taken(out / ".autoquant" / "jobs" / "shards", home / "hf")
            most[0] = max(most[0], beside)
            memory[0] = max(memory[0], resident(child.pid)["RssAnon"])

    thread = threading.Thread(target=watch)
    thread.start()
    status = child.wait()
    done.set()
    thread.join()
    if status:
        raise SystemExit(f"exit status {status}")
    (made,) = out.glob("*.gguf")
    return time.monotonic() - start, most[0], memory[0], made.stat().st_size


def main() -> None:
    """Run on a disk with room, then on a small one."""
    work = Path(sys.argv[1]).resolve()
    for asked in sys.argv[2:] or ["12"]:
        zeros, gigabytes = asked.endswith("z"), float(asked.removesuffix("z"))
        shutil.rmtree(work, ignore_errors=True)
        (work / "home").mkdir(parents=True)
        hub = Hub(work / "hub").start()
        shard = publish(hub, gigabytes, work, zeros=zeros)
        seconds, most, memory, made = run(hub, work / "home", "--download", "stream")
        print(
            f"{gigabytes:g} GB{' of zeros' * zeros} in {SHARDS} shards of at most"
            f" {shard / 1e9:.2f} GB, result {made / 1e9:.2f} GB: {seconds:.0f} s, beside the result"
            f" {most / 1e9:.2f} GB = {most / shard:.2f} shards, memory {memory / 1e9:.2f} GB",
            flush=True,
        )
        shutil.rmtree(work / "home")
        if gigabytes > 16:
            hub.stop()
            continue
        small = work / "small"
        small.mkdir()
        size = made + int(1.5 * shard)
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(small)], check=True
        )
        try:
            said = plan(hub, small)
            seconds, most, memory, _ = run(hub, small)
        finally:
            subprocess.run(["umount", str(small)], check=False)
        print(
            f"on {size / 1e9:.2f} GB: {seconds:.0f} s, beside the result {most / shard:.2f} shards,"
            f" memory {memory / 1e9:.2f} GB; planned was: {said}",
            flush=True,
        )
        hub.stop()


if __name__ == "__main__":
    main()
