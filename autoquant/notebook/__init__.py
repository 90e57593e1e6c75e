"""What notebooks use. Importing it in one lets plots be described to screen readers, and cells say
which ones come first.
"""

from autoquant.notebook import above, described

described.begin()
above.begin()
