"""The colours of text, lines and marks: each has a contrast of 4.5 : 1 or more against white, which
WCAG 2.2 asks for of text (success criterion 1.4.3); a test computes it.
"""

COLORS = (
    "#2a6f97",
    "#b85c00",
    "#47752b",
    "#8e5aa8",
    "#b23a48",
    "#4d4d4d",
    "#0f7377",
    "#7d6a00",
    "#b0437f",
    "#7a5230",
)
BLUE, ORANGE = COLORS[:2]
GREY, RED = "#6c757d", "#a4161a"  # what is compared with; the unquantized model
