"""One EXL3 run: each bitrate, then what is mixed of them."""

from __future__ import annotations

import functools
import shutil

from autoquant.backends.exllamav3 import optimizer
from autoquant.core.files import key_of
from autoquant.core.journal import RunFolder
from autoquant.core.records import Snapshot
from autoquant.methods.base import Output
from autoquant.methods.exl3 import mixing
from autoquant.methods.exl3.options import Exl3Options
from autoquant.methods.exl3.work import Work


def quantize(snapshot: Snapshot, options: Exl3Options, run: RunFolder) -> Output:
    """Make and verify each bitrate, then what is mixed of them, unless the journal knows it as
    done. Each becomes a folder of the run's folder.
    """
    work = Work(snapshot, options, run)
    artifacts = []
    for type, bpw in zip(options.types, options.bpw, strict=False):  # the first of them
        key = key_of(work.asked, type)
        artifacts.append(work.once(type, key, functools.partial(work.quantize, type, bpw, key)))
    mixed = mixing.quantize(work, artifacts) if options.optimized else []
    artifacts += mixed
    shutil.rmtree(run.jobs, ignore_errors=True)
    first = artifacts[0].facts
    provenance = {
        "algorithm": f"EXL3: trellis-coded quantization with LDLQ ({first['algorithm']})",
        "file format": "EXL3",
        "bits per weight of the blocks": ", ".join(
            f"{a.type}: target {a.facts['bpw']:.2f}, achieved {a.facts['codes']:.3f}, with scales"
            f" and padding {a.facts['achieved']:.3f}"
            for a in artifacts
        ),
        "head bits": str(options.head_bits),
        "codebook": options.codebook,
        "calibration": f"{work.text_name()}, {first['samples']} samples of {work.length} tokens",
    }
    if first["calibration sha256"]:
        provenance["calibration sha256"] = first["calibration sha256"]
    if mixed:
        provenance["mixed by exllamav3's optimizer"] = mixing.described(mixed, options)
    return Output(tuple(artifacts), None, provenance, extras=(optimizer.NAME,) if mixed else ())
