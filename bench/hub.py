"""The Hub's figures, against the loopback Hub of the tests. usage: python -m bench.hub MODEL
[fetch|upload|overlap|many …]

fetch: bytes fetched from a repository laid out as real ones are (safetensors, .bin and original/
    copies), against snapshot_download.
upload: a 2 GB file, `autoquant upload` against `hf upload`, alternating; wall time, and the largest
    process's memory at 0.5 and 2 GB.
overlap: quantizing MODEL to five types and uploading them at 50 MB/s, at the same time against one
    after the other.
many: `autoquant plan gguf` of a repository of 400 shards: seconds and requests, the first time and
    once more; BEFORE=FOLDER, a checkout of an earlier commit, is measured beside.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from autoquant import source
from autoquant.core import bundled, files
from autoquant.core.journal import RunFolder
from autoquant.core.records import Artifact, Check, Stored
from autoquant.publish import card
from autoquant.result import Result
from tests.fakes.hub import TOKEN, Hub

BIN = Path(sys.executable).parent
TYPES = "Q8_0,Q6_K,Q5_K_M,Q4_K_M,Q3_K_M"


def environment(hub: Hub, home: Path) -> dict[str, str]:
    """A user's variables, without Xet: its servers cannot be run here."""
    from autoquant.backends.llamacpp import converter

    return {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "AUTOQUANT_LLAMA_CPP": str(converter.locate()),
        "AUTOQUANT_CACHE": str(home / "cache"),
    }


def timed(words: list[str], env: dict[str, str]) -> tuple[float, float]:
    """Seconds, and the peak resident memory in MB of the largest process."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(words, env=env, stdout=said, stderr=said)
        _, status, usage = os.wait4(child.pid, 0)
        if status:
            said.seek(0)
            sys.exit(f"{words}: {said.read().decode()}")
    return time.perf_counter() - start, usage.ru_maxrss * 1024 / 1e6


def fetch(work: Path, _: Path) -> None:
    """Ratio of bytes."""
    folder = bundled.MODEL
    weights = (folder / "model.safetensors").read_bytes()
    files: dict[str, bytes | Path] = {path.name: path for path in folder.iterdir()}
    files |= {
        "pytorch_model.bin": weights[1:] + b"x",
        "original/consolidated.00.pth": weights[::-1],
    }
    served = []
    for name, code in (
        ("naive", "from huggingface_hub import snapshot_download; snapshot_download('maker/tiny')"),
        ("ours", "from autoquant import source; source.fetch(source.resolve('maker/tiny'))"),
    ):
        hub = Hub(work / name / "hub").start()
        hub.seed("maker/tiny", files)
        subprocess.run(
            [sys.executable, "-c", code],
            env=environment(hub, work / name / "home"),
            check=True,
            capture_output=True,
        )
        served.append(hub.served)
        hub.stop()
    print(
        f"fetch: {served[1]:,} bytes against {served[0]:,} of a naive snapshot_download: ratio"
        f" {served[1] / served[0]:.2f}"
    )


def finished_run(folder: Path, megabytes: int) -> None:
    """A run folder with one file of random bytes."""
    shutil.rmtree(folder, ignore_errors=True)
    found = source.resolve("demo")
    with RunFolder(folder, method="gguf", source_id=found.id, source_sha256="0") as run:
        path = folder / "big-Q8_0.gguf"
        with open(path, "wb") as out:
            for _ in range(megabytes):
                out.write(os.urandom(1_000_000))
        artifact = Artifact(
            "Q8_0",
            (Stored(path.name, path.stat().st_size, files.sha256_of(path)),),
            8.5,
            checks=(Check("made", "for the benchmark"),),
        )
        result = Result(
            folder, "gguf", found, (artifact,), None, 0.0, {"options": {}}, extras=("README.md",)
        )
        card.write(result)
        run.record("result", "", [], result.to_json())


def upload(work: Path, _: Path) -> None:
    """Ratio of wall times, and memory."""
    hub = Hub(work / "hub", part_size=64 << 20).start()
    env = environment(hub, work / "home")
    plain, ours = work / "plain", work / "run"
    rows, memory = [], {}
    for megabytes in (500, 2000):
        finished_run(ours, megabytes)
        plain.mkdir(exist_ok=True)
        for name in ("big-Q8_0.gguf", "README.md"):
            (plain / name).unlink(missing_ok=True)
            os.link(ours / name, plain / name)
        for i in range(3 if megabytes == 2000 else 1):
            seconds = []
            for words in (
                [str(BIN / "hf"), "upload", f"tester/hf{megabytes}-{i}", str(plain)],
                [str(BIN / "autoquant"), "upload", str(ours), f"tester/ours{megabytes}-{i}"],
            ):
                for blob in (hub.root / "blobs").glob("*"):
                    blob.unlink()
                taken, peak = timed(words, env)
                seconds.append(taken)
                memory[words[1] if words[0].endswith("autoquant") else "hf", megabytes] = peak
            if megabytes == 2000:
                rows.append((seconds[0], seconds[1]))
                print(
                    f"  hf upload {seconds[0]:.2f} s, autoquant upload {seconds[1]:.2f} s",
                    flush=True,
                )
    hub.stop()
    print(
        "upload of 2 GB: autoquant / hf: median ratio"
        f" {statistics.median(b / a for a, b in rows):.3f}; largest process"
        f" {memory['upload', 500]:.0f} MB at 0.5 GB, {memory['upload', 2000]:.0f} MB at 2 GB (hf:"
        f" {memory['hf', 2000]:.0f} MB)"
    )


def overlap(work: Path, model: Path) -> None:
    """Ratio of wall times; what both start from (imports, hashing) is in both."""
    ratios = []
    for i in range(3):
        seconds = []
        for together in (False, True):
            place = work / f"{i}{together}"
            hub = Hub(place / "hub", bandwidth=50e6).start()
            env, out = environment(hub, work / "home"), place / "out"
            words = [
                str(BIN / "autoquant"),
                "quantize",
                "gguf",
                str(model),
                "--types",
                TYPES,
                "--evaluate",
                "off",
                "--out",
                str(out),
            ]
            if together:
                seconds.append(timed([*words, "--upload", "tester/x"], env)[0])
            else:
                made, _ = timed(words, env)
                sent, _ = timed([str(BIN / "autoquant"), "upload", str(out), "tester/x"], env)
                seconds.append(made + sent)
            hub.stop()
            shutil.rmtree(place)
        ratios.append(seconds[1] / seconds[0])
        print(f"  one after the other {seconds[0]:.2f} s, together {seconds[1]:.2f} s", flush=True)
    print(
        "five types quantized and uploaded at 50 MB/s: together / one after the other: median"
        f" ratio {statistics.median(ratios):.2f}"
    )


def shards(folder: Path, layers: int = 44) -> dict[str, bytes | Path]:
    """A Llama of one tensor a file, and what lies beside: some 400 files."""
    import json

    import numpy as np
    from safetensors.numpy import save_file

    config = json.loads((bundled.MODEL / "config.json").read_text())
    width, inner = config["hidden_size"], config["intermediate_size"]
    keys = width * config["num_key_value_heads"] // config["num_attention_heads"]
    config["num_hidden_layers"] = layers
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], width)
    }
    shapes |= {"lm_head.weight": shapes["model.embed_tokens.weight"], "model.norm.weight": (width,)}
    for i in range(layers):
        for name, shape in {
            "self_attn.q_proj": (width, width),
            "self_attn.k_proj": (keys, width),
            "self_attn.v_proj": (keys, width),
            "self_attn.o_proj": (width, width),
            "mlp.gate_proj": (inner, width),
            "mlp.up_proj": (inner, width),
            "mlp.down_proj": (width, inner),
            "input_layernorm": (width,),
            "post_attention_layernorm": (width,),
        }.items():
            shapes[f"model.layers.{i}.{name}.weight"] = shape
    if config.get("tie_word_embeddings"):
        del shapes["lm_head.weight"]
    folder.mkdir(parents=True)
    placed, out = {}, dict[str, bytes | Path]()
    for i, (name, shape) in enumerate(shapes.items(), 1):
        placed[name] = file = f"model-{i:05d}-of-{len(shapes):05d}.safetensors"
        save_file({name: np.ones(shape, dtype=np.float16)}, folder / file)
        out[file] = folder / file
    index = {"metadata": {}, "weight_map": placed}
    out["model.safetensors.index.json"] = json.dumps(index).encode()
    out["config.json"] = json.dumps(config).encode()
    return {**out, **{one.name: one for one in bundled.MODEL.glob("tokenizer*")}}


def many(work: Path, _: Path) -> None:
    """Seconds and requests of a plan."""
    files = shards(work / "model")
    hub = Hub(work / "hub").start()
    hub.seed("maker/many", files)
    trees = {"now": Path.cwd()}
    if os.environ.get("BEFORE"):
        trees["before"] = Path(os.environ["BEFORE"]).resolve()
    words = [sys.executable, "-m", "autoquant.cli", "plan", "gguf", "maker/many"]
    words += ["--pre-tokenizer", "gpt-2", "--types", "Q4_K_M"]
    for name, tree in trees.items():
        env = {**environment(hub, work / name), "PYTHONPATH": str(tree)}
        for turn in ("first", "again"):
            before = len(hub.requests("."))
            seconds, _peak = timed(words, env)
            asked = len(hub.requests(".")) - before
            print(f"many: {name}, {turn}: {len(files)} files, {seconds:.1f} s, {asked} requests")
    hub.stop()


def main(model: Path, parts: list[str]) -> None:
    """Run the parts."""
    for name, part in (("fetch", fetch), ("upload", upload), ("overlap", overlap), ("many", many)):
        if name in parts:
            work = Path("bench-work/hub").resolve() / name
            shutil.rmtree(work, ignore_errors=True)
            part(work, model)
            shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2:] or ["fetch", "upload", "overlap"])
