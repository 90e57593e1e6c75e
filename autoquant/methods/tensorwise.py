"""What methods share that look at no data and go through a model tensor by tensor: no whole model
in memory, mixtures of experts, and parts that see or hear, which stay in 16 bits.
"""

from __future__ import annotations

from typing import ClassVar, TypeVar

from autoquant.core.options import MethodOptions
from autoquant.core.records import Source
from autoquant.formats.tensors import Part
from autoquant.methods.folder import FolderMethod, libraries
from autoquant.source.layers import check_parts
from autoquant.source.parts import division
from autoquant.source.structure import structure

T = TypeVar("T", bound=MethodOptions)


class TensorwiseMethod(FolderMethod[T]):
    """HQQ, bitsandbytes or W8A8."""

    writes_intermediate: ClassVar[bool] = False

    def parts(self, source: Source) -> dict[str, Part]:
        """Each matrix by itself, experts too."""
        return division(source).parts

    def parameters(self, source: Source) -> int:
        """What is written of the source."""
        return division(source).parameters

    def read_back(self, source: Source) -> bool:
        """transformers 5 has the experts of a block in one tensor, which it does not load from
        quantized files.
        """
        return structure(source).experts

    def memory(self, source: Source, options: T) -> int:
        """Bytes that quantizing a tensor at a time needs, roughly: the largest matrix some times
        over in float32, or the largest other tensor as it is read and as it is written.
        """
        divided = division(source)
        largest = max(outputs * inputs for outputs, inputs in divided.shapes.values())
        return libraries() + max(4 * 5 * largest, 6 * divided.largest)

    def check(self, source: Source, options: T) -> None:
        """What can be refused within a second."""
        check_parts(source, self.title)
