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


def rounding(bits: int, group_size: int, sym: bool) -> dict[str, float]:
    """The squared error of our rounding of a matrix relative to that of GPTQModel's own quantizer,
    group by group, and the share of weights that are rounded to another value.
    """
    import torch
    from gptqmodel.quantization.config import GPTQConfig
    from gptqmodel.quantization.quantizer import Quantizer

    from autoquant.fisher.rounding import rounded

    torch.manual_seed(0)
    weights = torch.randn(48, 128)
    if not sym:  # a group on one side of zero, of which GPTQModel clips half if it is symmetric
        weights[3, :32] = weights[3, :32].abs()
    size = group_size if group_size > 0 else weights.shape[1]
    parts = []
    for group in weights.split(size, dim=1):
        theirs = Quantizer(GPTQConfig(bits=bits, group_size=group_size, sym=sym))
        theirs.configure(perchannel=True)
        theirs.find_params(group, weight=True)
        parts.append(theirs.quantize(group))
    ours, own = rounded(weights, bits, group_size, sym=sym), torch.cat(parts, 1)
    step = float((own - weights).abs().max())
    return {
        "error": float((ours - weights).norm() / (own - weights).norm()),
        "other": float(((ours - own).abs() > step / 2).float().mean()),
    }


def modules() -> dict[str, Any]:
    """The damage of each matrix of the small bundled model, block by block, and by the gradients of
    the whole model.
    """
    import torch

    from autoquant.core.bundled import MODELS
    from autoquant.fisher.rounding import collect, rounded

    folder = str(MODELS["demo-small"])
    ids = torch.arange(3, 3 + 4 * 24).reshape(4, 24) % 500
    model = _whole(folder)
    weights = {
        name: one for name, one in model.named_parameters() if ".layers." in name and one.ndim == 2
    }
    found = collect(
        {"folder": folder},
        ids.tolist(),
        list(weights),
        [(4, 32), (8, -1)],
        sym=True,
        damp=0.05,
        threads=2,
        emit=lambda _: None,
    )["nats"]
    generator, worst = torch.Generator().manual_seed(0), 0.0
    squares = {name: torch.zeros_like(one) for name, one in weights.items()}
    products: dict[str, Any] = {}

    def keep(name: str) -> Any:
        def add(_: Any, arguments: tuple[Any, ...]) -> None:
            entering = arguments[0].detach()[0]
            products[name] = products.get(name, 0) + entering.T @ entering

        return add

    for name in weights:
        model.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(keep(name))
    for sample in ids:
        logits = model(input_ids=sample[None], use_cache=False).logits[0]
        chances = logits.detach().softmax(-1)
        labels = torch.multinomial(chances, 1, generator=generator)[:, 0]
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        for name, one in zip(
            weights, torch.autograd.grad(loss, list(weights.values())), strict=True
        ):
            squares[name] += one.square()
    for name, one in weights.items():
        damped = products[name].double()
        own = damped.diagonal().clone()
        damped += 0.05 * own.mean() * torch.eye(len(own))
        upper = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)  # as GPTQ has it
        squares[name] *= (1 / upper.diagonal().square() / own).clamp(max=1)
        for kind, nats in zip([(4, 32), (8, -1)], found[name], strict=True):
            off = rounded(one.detach(), *kind, sym=True) - one.detach()
            wanted = float((squares[name] * off.square()).sum()) / ids.numel() / 2
            worst = max(worst, abs(nats / wanted - 1))
    return {"modules": len(found), "worst": worst}


def left() -> dict[str, Any]:
    """What GPTQ leaves of errors in inputs: in correlated ones, by the definition of a variance
    given others; and in inputs of which one is always zero, and all are.
    """
    import torch

    from autoquant.fisher.rounding import left

    torch.manual_seed(0)
    entering = torch.randn(64, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64)
    products = entering.T @ entering
    own = products.diagonal().clone()
    damped = products + 0.1 * own.mean() * torch.eye(6)
    wanted = [float(1 / torch.linalg.inv(damped[i:, i:])[0, 0] / own[i]) for i in range(6)]
    dead = torch.diag(torch.tensor([1.0, 0.0, 4.0]))
    return {
        "found": left(products.clone(), 0.1).tolist(),
        "wanted": [min(one, 1.0) for one in wanted],
        "alone": left(dead, 0.0001).tolist(),
        "nothing": left(torch.zeros(3, 3), 0.1).tolist(),
    }
