"""What comes with the package: two tiny trained models, and texts of four kinds in three parts."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent.parent / "demo"
MODELS = {"demo": FOLDER / "tiny-austen-4m", "demo-small": FOLDER / "tiny-austen-2m"}
MODEL = MODELS["demo"]

# Of each kind (see demo/texts/SOURCES.md) there is a part to calibrate on, one to measure on, and
# one that tells how sensitive weights are: of what a model has learned by heart it is too sure, so
# that is none that it was calibrated on, and predictions must not be made on what they are compared
# with. They share nothing. The bundled models know nothing but Jane Austen's prose.
CALIBRATION, EVALUATION, SENSITIVITY = "calibration", "evaluation", "sensitivity"
PROSE = "prose"
KINDS = (PROSE, "languages", "code", "conversations")
BUILTIN = "builtin"  # all kinds, in turn
IN_WORDS = "English prose, other languages, code, conversations"
CALIBRATION_TEXT = FOLDER / "austen_calibration.txt"
EVALUATION_TEXT = FOLDER / "austen_persuasion_heldout.txt"
SENSITIVITY_TEXT = FOLDER / "austen_persuasion_sensitivity.txt"
_PROSE = {
    CALIBRATION: CALIBRATION_TEXT,
    EVALUATION: EVALUATION_TEXT,
    SENSITIVITY: SENSITIVITY_TEXT,
}


def text_of(kind: str, part: str) -> Path:
    """The file of one kind and part."""
    if kind == PROSE:
        return _PROSE[part]
    suffix = "jsonl" if kind == "conversations" else "txt"
    return FOLDER / "texts" / f"{kind}_{part}.{suffix}"


def suited(text: str, model: Path) -> str:
    """The text that is meant by "builtin" for a model: for the bundled ones prose alone."""
    return PROSE if text == BUILTIN and model in MODELS.values() else text
