"""How fast llama.cpp runs small files: tokens in a second, of a prompt and one at a time. Runs in a
worker.
"""

from __future__ import annotations

import time

import numpy as np

from autoquant.backends.llamacpp.library import Model


def measure(
    paths: list[str], *, threads: int, prompt: int, new: int, rounds: int
) -> list[tuple[float, float]]:
    """Of each file the tokens per second while it reads ``prompt`` tokens together (prefill), and
    while it then takes ``new`` ones, one at a time (decode). The files take turns, and the best
    round counts, for others use the machine too. Token ids are random: the time does not depend on
    them.
    """
    context = -(-(prompt + new) // 256) * 256
    models = [Model(path, threads=threads, context=context) for path in paths]
    best = [(0.0, 0.0)] * len(paths)
    for turn in range(rounds + 1):
        for i, model in enumerate(models):
            random = np.random.default_rng(turn)
            tokens = random.integers(5, model.n_vocab, prompt + new, dtype=np.int32)
            begun = time.perf_counter()
            model.decode(tokens[:prompt], prompt - 1)
            read = time.perf_counter()
            for place in range(prompt, prompt + new):
                model.decode(tokens[place : place + 1], 0, start=place)
            ended = time.perf_counter()
            if turn:  # the first one warms caches
                now = prompt / (read - begun), new / (ended - read)
                best[i] = max(best[i][0], now[0]), max(best[i][1], now[1])
    return best
