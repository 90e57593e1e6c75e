"""The Fisher information of a model's two ends, the output head and the embeddings, some rows at a
time. Runs in workers.

Of the head it is known exactly, no label need be drawn: a logit's variance is p (1 - p), so the
information of a weight is its mean over tokens, times the squared hidden state that enters there.
Embeddings have that of the rows of the tokens that occurred. Of a matrix that is both it is the
sum.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from autoquant.backends.llamacpp.ggml import Floats
from autoquant.forward.blockwise import Blockwise
from autoquant.forward.gradients import Ends
from autoquant.forward.head import Head

CONTRIBUTION = 64 << 20  # bytes of logits that are there at a time


class HeadInformation:
    """That of the output head's rows."""

    def __init__(self, model: Blockwise, ends: Ends) -> None:
        import torch

        self._head, self._hidden = Head(model), ends.final.to(model.device)
        with torch.no_grad():
            self._normalizers = torch.stack(
                [self._head.logits(one[None])[0].logsumexp(-1) for one in self._hidden]
            )

    def rows(self, first: int, last: int) -> Any:
        """[last - first, width]."""
        import torch

        tokens, width = self._hidden.shape[0] * self._hidden.shape[1], self._hidden.shape[2]
        found = torch.zeros(last - first, width, device=self._hidden.device)
        step = max(1, CONTRIBUTION // (4 * self._hidden.shape[1] * (last - first)))
        for at in range(0, len(self._hidden), step):
            hidden = self._hidden[at : at + step]
            with torch.no_grad():
                product = self._head.product(hidden, first, last)
            product.requires_grad_()
            with torch.enable_grad():
                logits = self._head.after(product)
                slope = torch.autograd.grad(logits.sum(), product)[0]
            with torch.no_grad():
                normalizer = self._normalizers[at : at + step, :, None]
                chance = (logits.detach() - normalizer).exp_()
                variance = chance * (1 - chance) * slope.square()
                found += variance.flatten(0, 1).T @ hidden.flatten(0, 1).square()
        return found / tokens


class EmbeddingInformation:
    """That of the embeddings' rows: squared gradients, sample by sample."""

    def __init__(self, ids: Any, ends: Ends) -> None:
        import torch

        gradients = ends.embedded.cpu()
        self._tokens, places = ids.unique(return_inverse=True)
        self._squares = torch.zeros(len(self._tokens), gradients.shape[2])
        for own, one in zip(places, gradients, strict=True):
            self._squares += torch.zeros_like(self._squares).index_add_(0, own, one).square_()
        self._squares /= ids.numel()

    def rows(self, first: int, last: int) -> Any:
        """[last - first, width]."""
        import torch

        found = torch.zeros(last - first, self._squares.shape[1])
        here = (self._tokens >= first) & (self._tokens < last)
        found[self._tokens[here] - first] = self._squares[here]
        return found


def pieces(model: Blockwise, parameter: str, parts: list[Any]) -> Any:
    """What damage.Matrix takes of a parameter of the ends: the sum of the ``parts``' information,
    and its weights.
    """

    def piece(first: int, last: int) -> tuple[Floats, Floats]:
        weights = model.parameters.rows(parameter, first, last).float().cpu().numpy()
        squares = sum(part.rows(first, last).cpu() for part in parts)
        return np.ascontiguousarray(squares.numpy()), np.ascontiguousarray(weights)

    return piece
