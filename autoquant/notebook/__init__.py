"""What notebooks use. Importing it in one lets plots be described to screen readers."""

from autoquant.notebook import described

described.begin()
