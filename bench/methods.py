"""The figures in the table of all methods: each run on the bundled model without options. usage:
python -m bench.methods [METHOD …]

Writes autoquant/methods/measured.json (``make sync`` then writes the table) and prints it. Of
Llama-3.1-8B only the shapes are used: a header, and a hole in place of the weights.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import autoquant
from autoquant import source
from autoquant.backends.llamacpp.types import TYPES
from autoquant.core import options
from autoquant.methods import METHODS
from autoquant.methods.overview import measured

CHUNKS = 40  # of 256 tokens, all of the bundled model's context; as in bench/folders.py
WIDTH, INNER, LAYERS, VOCABULARY, KEYS = 4096, 14336, 32, 128256, 1024


def llama(folder: Path) -> None:
    """A checkpoint with the shapes of Llama-3.1-8B, without its weights."""
    shapes = {
        "model.embed_tokens.weight": (VOCABULARY, WIDTH),
        "lm_head.weight": (VOCABULARY, WIDTH),
        "model.norm.weight": (WIDTH,),
    }
    for i in range(LAYERS):
        block = {
            "input_layernorm": (WIDTH,),
            "post_attention_layernorm": (WIDTH,),
            "self_attn.q_proj": (WIDTH, WIDTH),
            "self_attn.k_proj": (KEYS, WIDTH),
            "self_attn.v_proj": (KEYS, WIDTH),
            "self_attn.o_proj": (WIDTH, WIDTH),
            "mlp.gate_proj": (INNER, WIDTH),
            "mlp.up_proj": (INNER, WIDTH),
            "mlp.down_proj": (WIDTH, INNER),
        }
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in block.items()}
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)
    (folder / "config.json").write_text(
        json.dumps(
            {
                "architectures": ["LlamaForCausalLM"],
                "model_type": "llama",
                "max_position_embeddings": 131072,
                "vocab_size": VOCABULARY,
            }
        )
    )


def main(names: list[str]) -> None:
    """Measure, write and print."""
    found = measured()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "llama"
        folder.mkdir()
        llama(folder)
        large = source.resolve(folder)
        for name in names or METHODS:
            method, out = METHODS[name], Path(scratch) / name
            words = [
                sys.executable,
                "-m",
                "autoquant.cli",
                "quantize",
                name,
                "demo",
                "--eval-chunks",
                str(CHUNKS),
                "--out",
                str(out),
            ]
            status = subprocess.run(
                words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            ).returncode
            if status == 2:
                print(name, "cannot be run here: its row stays as it is", flush=True)
                continue
            if status:
                raise SystemExit(f"{' '.join(words)} exited with status {status}")
            artifact = autoquant.load(str(out)).artifacts[0]
            assert artifact.evaluation is not None
            chosen = method.resolve_defaults(large, options.build(method.Options, {}))
            bits = (
                TYPES[artifact.type].bits_per_weight
                if artifact.type in TYPES
                else method.plan(large, chosen, out).items[0].bits_per_weight
            )
            quality = artifact.evaluation
            found[name] = {
                "type": artifact.type,
                "bits_per_weight": round(bits, 3),
                "kl_mean": round(quality.kl_mean, 5),
                "agreement": round(quality.agreement, 4),
            }
            print(name, found[name], flush=True)
    path = Path(autoquant.__file__).parent / "methods" / "measured.json"
    path.write_text(
        json.dumps({name: found[name] for name in METHODS if name in found}, indent=2) + "\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main(sys.argv[1:])
