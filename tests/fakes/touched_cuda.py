"""A torch that has asked CUDA something while it was imported, for tests of forked workers."""

from __future__ import annotations

import sys
import types

torch = types.ModuleType("torch")
torch.cuda = types.SimpleNamespace(_is_in_bad_fork=lambda: True)  # type: ignore[attr-defined]
sys.modules["torch"] = torch
