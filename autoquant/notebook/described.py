"""Alternative texts of plots: what a screen reader says of a figure that a cell shows."""

from __future__ import annotations

import base64
import html
import sys
from typing import Any


def alt(figure: Any) -> str:
    """A figure in words: of each plot its title, what is on its axes, and the names in its legend.
    All of them are the figure's own, so they are in its language.
    """
    said = [figure.get_suptitle()]
    for axes in figure.axes:
        plotted = " / ".join(filter(None, (axes.get_ylabel(), axes.get_xlabel())))
        legend = axes.get_legend()
        names = [one.get_text() for one in legend.get_texts()] if legend else []
        said.append(": ".join(filter(None, (axes.get_title(), plotted, ", ".join(names)))))
    return "; ".join(filter(None, said))


def shown(figure: Any) -> str:
    """The HTML of a figure, with its description."""
    from IPython.core.pylabtools import print_figure

    drawn = print_figure(figure, "png")  # type: ignore[no-untyped-call]
    data = base64.b64encode(drawn).decode() if drawn else ""
    return (
        f'<img alt="{html.escape(alt(figure))}" style="max-width:100%"'
        f' src="data:image/png;base64,{data}">'
    )


def begin() -> None:
    """In a notebook, have figures shown as :func:`shown` does, beside the image that Jupyter makes
    of them, which no text can be given to. Imports nothing that is not there.
    """
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if shell is not None:
        formatter = shell.display_formatter.formatters["text/html"]
        # the class above Figure: of Figure itself matplotlib's backend forgets them when it begins
        formatter.for_type_by_name("matplotlib.figure", "FigureBase", shown)
