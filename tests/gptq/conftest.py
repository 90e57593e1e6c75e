"""GPTQ on the bundled model: what its tests, and those of AWQ, have in common."""

from __future__ import annotations

from typing import Any

QUICK: dict[str, Any] = {"calibration_samples": 8, "calibration_length": 128, "evaluate": "off"}
