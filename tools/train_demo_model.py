"""Train a model like autoquant/demo/tiny-austen-4m. usage: python tools/train_demo_model.py TEXTS
OUT [CPU_MINUTES [LAYERS TOKENIZER_FOLDER]]

TEXTS is the folder made by tools/extract_austen.py; Persuasion (austen_3.txt) is held out. The
shipped weights were made by the prototype of this program in 24 CPU-minutes; a new run gives a
similar model, not the same bytes. A 2,048-token byte-level BPE tokenizer, a Llama of 4.2 million
parameters (width 256, a multiple of the k-quants' 256-weight blocks), sequences of 256 tokens.
tiny-austen-2m is the same with one layer instead of four and the tokenizer of the first, made by
this program in 6 CPU-minutes. The matrices of the layers are trained with Muon
(https://kellerjordan.github.io/posts/muon/), the rest with AdamW.
"""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SEQUENCE, BATCH, VOCABULARY, HELD_OUT = 256, 8, 2048, 3


def unwrap(text: str) -> str:
    """Paragraphs on one line each."""
    return "\n\n".join(
        " ".join(part.split()) for part in re.split(r"\n\s*\n", text) if part.strip()
    )


class Muon(torch.optim.Optimizer):
    """Momentum whose updates are orthogonalized by five Newton-Schulz steps, in float32."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter], lr: float) -> None:
        super().__init__(list(parameters), {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.lerp_(p.grad, 0.05)
                update = p.grad.lerp(momentum, 0.95)
                tall = update.shape[0] > update.shape[1]
                x = update.T if tall else update
                x = x / (x.norm() + 1e-7)
                for _ in range(5):
                    a = x @ x.T
                    x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
                p.mul_(1 - 0.05 * group["lr"]).add_(
                    x.T if tall else x, alpha=-group["lr"] * max(1, p.shape[0] / p.shape[1]) ** 0.5
                )


@torch.no_grad()
def loss_on(model: Any, ids: torch.Tensor, chunks: int) -> float:
    """Mean cross-entropy on the first chunks of a text."""
    model.eval()
    parts = [ids[i * SEQUENCE : (i + 1) * SEQUENCE + 1] for i in range(chunks)]
    losses = [F.cross_entropy(model(part[None, :-1]).logits[0], part[1:]).item() for part in parts]
    model.train()
    return sum(losses) / len(losses)


def main(texts: Path, out: Path, minutes: float, layers: int, tokenizer: Path | None) -> None:
    """Train the tokenizer and the model within a budget of processor time and save both."""
    torch.manual_seed(0)
    novels = {i: unwrap((texts / f"austen_{i}.txt").read_text(encoding="utf-8")) for i in range(6)}
    train = "\n\n\n".join(novels[i] for i in novels if i != HELD_OUT)
    if tokenizer is not None:
        bpe = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    else:
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer, bpe.decoder = (
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            decoders.ByteLevel(),
        )
        bpe.train_from_iterator(
            [train],
            trainers.BpeTrainer(
                vocab_size=VOCABULARY,
                special_tokens=["<unk>", "<s>", "</s>"],
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            ),
        )
    PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=SEQUENCE,
    ).save_pretrained(out)
    ids, held_out = (
        torch.tensor(bpe.encode(train).ids),
        torch.tensor(bpe.encode(novels[HELD_OUT]).ids),
    )
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=256,
            intermediate_size=768,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=SEQUENCE,
            rms_norm_eps=1e-5,
            tie_word_embeddings=False,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "layers" in name]
    others = [p for name, p in model.named_parameters() if not (p.ndim == 2 and "layers" in name)]
    optimizers = (
        (Muon(matrices, 0.02), 0.02),
        (torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.01), 3e-3),
    )
    generator = torch.Generator().manual_seed(1)
    begun, step, order = time.process_time(), 0, []
    while (part := (time.process_time() - begun) / (60 * minutes)) < 1:
        scale = min(1.0, step / 30) * (1.0 if part < 0.4 else max(0.02, (1 - part) / 0.6))
        for optimizer, rate in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * scale
        if len(order) < BATCH:
            offset = int(torch.randint(SEQUENCE, (1,), generator=generator))
            order = [
                offset + SEQUENCE * int(k)
                for k in torch.randperm((len(ids) - 1 - offset) // SEQUENCE, generator=generator)
            ]
        starts = [order.pop() for _ in range(BATCH)]
        batch = torch.stack([ids[i : i + SEQUENCE + 1] for i in starts])
        loss = F.cross_entropy(
            model(batch[:, :-1]).logits.reshape(-1, VOCABULARY), batch[:, 1:].reshape(-1)
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, _ in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        step += 1
        if step % 100 == 0:
            print(
                f"step {step}, loss {loss.item():.3f}, held out {loss_on(model, held_out, 12):.3f}",
                flush=True,
            )
    print(f"held-out perplexity {math.exp(loss_on(model, held_out, 80)):.1f} after {step} steps")
    model.half().save_pretrained(out)


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4, 6):
        sys.exit(__doc__)
    main(
        Path(sys.argv[1]),
        Path(sys.argv[2]),
        float(sys.argv[3]) if len(sys.argv) > 3 else 24,
        int(sys.argv[4]) if len(sys.argv) == 6 else 4,
        Path(sys.argv[5]) if len(sys.argv) == 6 else None,
    )
