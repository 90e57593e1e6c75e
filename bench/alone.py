"""Libraries without our code, on a model that a method of ours refused: what they say themselves.
Each runs in a process of its own, for they patch others.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from autoquant.backends.llamacpp import converter
from autoquant.methods.recipe import cores_for_gptqmodel

GPTQMODEL = """
import sys
import torch
from gptqmodel import BACKEND, GPTQModel
from gptqmodel.quantization.config import AWQConfig, GPTQConfig

folder, method = sys.argv[1:]
kind = AWQConfig if method == "awq" else GPTQConfig
model = GPTQModel.load(folder, kind(bits=4, group_size=32), device="cpu", dtype=torch.bfloat16)
samples = [{"input_ids": list(range(100, 228)), "attention_mask": [1] * 128} for _ in range(8)]
backend = {"backend": BACKEND.AWQ_TORCH} if method == "awq" else {}
model.quantize(samples, batch_size=4, **backend)
model.save("saved")
"""
AUTO_ROUND = """
import sys
import torch
from auto_round import AutoRound

samples = [
    {"input_ids": torch.arange(n, n + 128)[None], "attention_mask": torch.ones(1, 128).long()}
    for n in range(100, 108)
]
rounder = AutoRound(
    sys.argv[1], bits=4, group_size=32, sym=False, iters=5, nsamples=8, seqlen=128, batch_size=4,
    dataset=samples, device_map="cpu", enable_torch_compile=False,
)
rounder.quantize_and_save("saved", format="auto_awq")
"""
EXCEPTION = re.compile(r"^(?:[\w.]+\.)?(\w*(?:Error|Exception)\b: .*)$", re.MULTILINE)


def said(method: str, folder: Path) -> str:
    """What the library of a method says of a model that it cannot take; empty if it takes it."""
    with tempfile.TemporaryDirectory() as scratch:
        if method in ("gptq", "awq"):
            argv = [sys.executable, "-c", GPTQMODEL, str(folder), method]
            more = cores_for_gptqmodel()
        elif method == "autoround":
            argv, more = [sys.executable, "-c", AUTO_ROUND, str(folder)], {}
        elif method == "gguf":
            tools = converter.locate()
            argv = [sys.executable, str(tools / "convert_hf_to_gguf.py"), str(folder)]
            argv += ["--outfile", f"{scratch}/model.gguf", "--outtype", "f16"]
            more = converter.environment(tools)
        else:
            return ""
        done = subprocess.run(
            argv,
            cwd=scratch,
            env={**_environment(), **more},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    if done.returncode == 0:
        return ""
    if refused := re.search(r"Model \S+ is not supported", done.stderr):
        return refused[0]
    found = EXCEPTION.findall(done.stderr + done.stdout)
    lines = (done.stderr or done.stdout).strip().splitlines()
    return found[-1] if found else (lines[-1] if lines else f"exit status {done.returncode}")


def _environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
