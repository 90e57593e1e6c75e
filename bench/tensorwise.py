"""HQQ, NF4 and W8A8 tensor by tensor: memory on a random checkpoint of 6.5 GB, and time against the
way that loads the whole model, on one of 1.9 GB. usage: python -m bench.tensorwise WORK [METHOD…]

Memory: the largest anonymous memory of any one process (mapped file pages are left out: the system
can take them back), sampled from /proc, for each piece of work of a run. Time: our quantizing
process against the library's own loading, quantizing and saving, alternating; checks are in
neither.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.memory import checkpoint, own_memory

ROUNDS = {"bitsandbytes": 2, "hqq": 1}  # one of hqq takes a quarter of an hour
WHOLE = {
    "bitsandbytes": """
import sys, torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
model = AutoModelForCausalLM.from_pretrained(
    sys.argv[1], quantization_config=how, dtype=torch.bfloat16, device_map="cpu")
model.save_pretrained(sys.argv[2])
""",
    "hqq": """
import sys, torch
from hqq.core.quantize import BaseQuantizeConfig
from hqq.models.hf.base import AutoHQQHFModel
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
AutoHQQHFModel.quantize_model(model, quant_config=BaseQuantizeConfig(nbits=4, group_size=64),
    compute_dtype=torch.bfloat16, device="cpu")
AutoHQQHFModel.save_quantized(model, sys.argv[2])
""",
}


class Watch:
    """Times and memory of each worker's work in a run: target -> seconds, bytes."""

    def __init__(self) -> None:
        from autoquant.runtime import process

        self.seen: dict[str, tuple[float, int]] = {}
        self._real = process.call
        process.call = self._call

    def _call(self, target: str, /, **kwargs: Any) -> Any:
        start = time.monotonic()
        with own_memory() as peak:
            try:
                return self._real(target, **kwargs)
            finally:
                self.seen[target.split(".", 1)[1]] = (time.monotonic() - start, peak[0])


def run(method: str, model: Path, out: Path) -> dict[str, tuple[float, int]]:
    """One run of ours, without measuring quality."""
    import autoquant
    from autoquant.core.errors import CheckFailed
    from autoquant.runtime import process

    shutil.rmtree(out, ignore_errors=True)
    real, watch = process.call, Watch()
    try:
        getattr(autoquant, method)(model, evaluate="off", out=out)
    except CheckFailed as failure:  # a random model may repeat itself; the work was done
        print(f"{method}: {failure}", flush=True)
    finally:
        process.call = real
        shutil.rmtree(out, ignore_errors=True)
    return watch.seen


def main(work: Path, methods: list[str]) -> None:
    """Print memory, then time."""
    large, small, out = work / "synthetic", work / "synthetic-2048-16", work / "tensorwise"
    if not large.is_dir():
        checkpoint(large)
    if not small.is_dir():
        checkpoint(small, layers=16, width=2048)
    for method in methods:
        for target, (seconds, peak) in run(method, large, out).items():
            print(f"{method}: {target}: {seconds:.0f} s, {peak / 1e9:.2f} GB", flush=True)
    for method, script in ((name, WHOLE[name]) for name in methods if name in WHOLE):
        ours, whole = [], []
        for _ in range(ROUNDS[method]):
            start = time.monotonic()
            target = str(out / "whole")
            shutil.rmtree(target, ignore_errors=True)
            subprocess.run(
                [sys.executable, "-c", script, str(small), target],
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            whole.append(time.monotonic() - start)
            seen = run(method, small, out)
            ours.append(next(sec for name, (sec, _) in seen.items() if "backends" in name))
        ratio = statistics.median(ours) / statistics.median(whole)
        print(f"{method}: ours {ours}, whole {whole}, ratio {ratio:.2f}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2:] or ["bitsandbytes", "w8a8", "hqq"])
