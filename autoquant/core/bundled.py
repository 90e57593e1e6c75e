"""What comes with the package: two tiny trained models and two texts."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent.parent / "demo"
MODELS = {"demo": FOLDER / "tiny-austen-4m", "demo-small": FOLDER / "tiny-austen-2m"}
MODEL = MODELS["demo"]
# Jane Austen's novels: to calibrate on, and one held out from them and from the models' training,
# of which the last chapters tell how sensitive weights are: of what it has learned by heart, a
# model is too sure
CALIBRATION_TEXT = FOLDER / "austen_calibration.txt"
EVALUATION_TEXT = FOLDER / "austen_persuasion_heldout.txt"
SENSITIVITY_TEXT = FOLDER / "austen_persuasion_sensitivity.txt"
