"""The Fisher information of a model's parts beside that of transformers' whole model. Runs in
workers.
"""

from __future__ import annotations

from typing import Any

from tests.helpers.forward import _far, _ids, _whole

LENGTH = 5


def ends(folder: str, name: str) -> dict[str, float]:
    """How far the information of the output head is from the expectation over all labels, and that
    of the embeddings from the squared gradients of each sample.
    """
    import torch

    from autoquant.fisher.ends import EmbeddingInformation, HeadInformation
    from autoquant.formats.architecture import config_of
    from autoquant.forward.blockwise import Blockwise
    from autoquant.forward.gradients import backward
    from autoquant.forward.weights import of_folder
    from bench.cases.architectures import make

    make(name, folder)
    config = config_of(folder)
    ids = _ids(config, 2, LENGTH)
    labels = ids.flip(1)

    def loss(logits: Any, sample: int) -> Any:
        entropy = torch.nn.functional.cross_entropy
        return entropy(logits[0], labels[sample], reduction="sum")

    model = Blockwise(config, of_folder(folder))
    reached = backward(model, ids, loss, lambda *_: None)
    vocabulary = config.get_text_config().vocab_size
    head = HeadInformation(model, reached).rows(3, vocabulary)
    rows = EmbeddingInformation(ids, reached).rows(2, vocabulary)
    model.close()

    whole = _whole(folder)
    output = whole.get_output_embeddings()
    # told apart from the embeddings
    output.weight = torch.nn.Parameter(output.weight.detach().clone())
    embedded = whole.get_input_embeddings().weight
    wanted_rows, wanted_head = torch.zeros_like(embedded), torch.zeros_like(output.weight)
    seen: dict[str, Any] = {}

    def keep(_: Any, inputs: Any, product: Any) -> None:
        seen.update(hidden=inputs[0][0].detach(), product=product)

    output.register_forward_hook(keep)
    for sample in range(len(ids)):
        out = whole(input_ids=ids[sample : sample + 1], use_cache=False).logits
        (gradient,) = torch.autograd.grad(loss(out, sample), embedded, retain_graph=True)
        wanted_rows += gradient.square()
        surprise = torch.log_softmax(out[0], -1)
        for token in range(LENGTH):
            every = torch.eye(vocabulary)  # of each label that may be drawn
            (found,) = torch.autograd.grad(
                surprise[token], seen["product"], every, retain_graph=True, is_grads_batched=True
            )
            likely = surprise[token].detach().exp()
            mean = likely @ found[:, 0, token].square()
            wanted_head += mean[:, None] * seen["hidden"][token].square()
    tokens = ids.numel()
    return {
        "head": _far(head, wanted_head[3:] / tokens),
        "embeddings": _far(rows, wanted_rows[2:] / tokens),
    }


def given_back(folder: str, name: str) -> dict[str, Any]:
    """Which tensors a checkpoint's parameters give back, and which of these have changed."""
    from autoquant.formats.architecture import config_of
    from autoquant.forward.blockwise import Blockwise
    from autoquant.forward.weights import of_folder
    from bench.cases.architectures import make

    make(name, folder)
    weights = of_folder(folder)
    model = Blockwise(config_of(folder), weights)
    parameters = model.parameters
    inside = tuple(f"{unit}." for unit in model.units)
    names = [one for one, _ in model.model.named_parameters() if one.startswith(inside)]
    found = parameters.given_back({one: parameters.value(one).float() for one in names})
    model.close()
    stored = {one for one, (owner, _) in parameters.places().items() if owner in set(names)}
    return {
        "lacking": sorted(stored - set(found)),
        "wrong": [n for n, one in found.items() if not one.equal(weights.value(n).float())],
        "count": len(found),
    }


def damage(sample: int) -> dict[str, Any]:
    """The damage of a matrix of two experts, by our way and by the definition."""
    import numpy as np

    from autoquant.backends.llamacpp.ggml import Ggml
    from autoquant.fisher.damage import Matrix, measure

    random = np.random.default_rng(1)
    rows, width = 600, 512
    weights = random.standard_normal((rows, width), dtype=np.float32)
    squares = random.gamma(0.3, 1.0, (rows, width)).astype(np.float32)
    squares *= random.lognormal(0, 2, (rows, 1)).astype(np.float32)
    matrix = Matrix("m", rows, width, 2, lambda a, b: (squares[a:b], weights[a:b]))
    ggml, kinds = Ggml(), ("Q8_0", "Q4_K", "Q2_K", "IQ3_XXS", "IQ2_XXS")
    for kind in kinds:
        ggml.begin(kind)
    importance = random.gamma(1.0, 1.0, (2, width)).astype(np.float32)
    found = measure(matrix, kinds, ggml, importance=importance, sample=sample, threads=2)
    half, wanted = rows // 2, {}
    for kind in kinds:
        total = 0.0
        for expert in range(2):
            own = slice(expert * half, (expert + 1) * half)
            made = ggml.quantize(weights[own], kind, importance[expert])
            error = ggml.floats(made, kind) - weights[own]
            total += 0.5 * float((squares[own] * error**2).sum())
        wanted[kind] = total
    plain = measure(matrix, ("Q4_K",), ggml, by_itself=False, sample=sample)
    unweighed = ggml.floats(ggml.quantize(weights, "Q4_K", None), "Q4_K") - weights
    columns = np.stack([squares[:half].mean(0), squares[half:].mean(0)])
    return {
        "found": found.nats,
        "wanted": wanted,
        "quantized": found.quantized,
        "unweighed": plain.nats["Q4_K"] / (0.5 * float((squares * unweighed**2).sum())),
        "importance": float(np.abs(found.importance / columns - 1).max()),
    }


def unseen() -> dict[str, Any]:
    """What becomes of the information of four experts, two of which no token was sent to."""
    import torch

    from autoquant.fisher.walk import fill_unseen

    squares = {
        "experts": torch.tensor([0.0, 2.0, 0.0, 4.0])[:, None, None].expand(4, 2, 3).clone(),
        "matrix": torch.zeros(2, 3),
    }
    count = fill_unseen(squares)
    return {"count": count, "means": squares["experts"].mean((1, 2)).tolist()}
