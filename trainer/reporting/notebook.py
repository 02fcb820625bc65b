"""The display of a run in a notebook: one output of its cell, updated in place."""

import io
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Protocol

from rich.console import Console, RenderableType

_KERNEL = "ZMQInteractiveShell"  # the class, or base class, of the shell in Jupyter, Colab and VS Code
_SIZE = 100, 40  # characters and lines; a notebook does not tell its own
_HTML = (
    '<pre style="white-space:pre;overflow-x:auto;line-height:normal;'
    "font-family:Menlo,'DejaVu Sans Mono',consolas,'Courier New',monospace\">{code}</pre>"
)


class _Handle(Protocol):
    """What `IPython.display.display` returns if it is asked for an output that can be updated."""

    def update(self, data: Mapping[str, str], *, raw: bool) -> None: ...


def in_notebook() -> bool:
    """Whether this program is the kernel of a notebook, which has imported IPython then."""
    shell = None
    with suppress(KeyError, AttributeError):
        shell = sys.modules["IPython"].get_ipython()
    return any(kind.__name__ == _KERNEL for kind in type(shell).__mro__)


class Notebook:
    """What is printed on `console`, and below it a part that changes, as rich's Live has on a terminal.

    rich shows each printed line as an output of its own, and its Live needs ipywidgets.
    """

    def __init__(self) -> None:
        width, height = _SIZE
        self.console = Console(
            file=_Nowhere(), record=True, force_terminal=True, force_jupyter=False, color_system="truecolor",
            width=width, height=height, legacy_windows=False,
        )  # fmt: skip
        self._above = ("", "")  # text and HTML of what has been printed
        self._below: RenderableType | None = None
        self._output: _Handle | None = None

    def start(self) -> None:
        """Nothing needs to be set up, as a terminal's cursor must be."""

    def update(self, renderable: RenderableType, *, refresh: bool = False) -> None:
        """Replace the part that changes; it is shown with `refresh`, or with the next `show`."""
        self._below = renderable
        if refresh:
            self.show()

    def stop(self) -> None:
        """Show the part that changes once more; it stays above what is printed from now on."""
        if self._below is not None:
            self.console.print(self._below)
        self._below = None
        self.show()

    def show(self) -> None:
        """Update the output of the cell."""
        self._above = self._with_printed()
        text, html = self._above
        if self._below is not None:
            self.console.print(self._below)
            text, html = self._with_printed()
        content = {"text/plain": text, "text/html": _HTML.format(code=html)}
        if self._output is None:
            from IPython.display import display

            self._output = display(content, raw=True, display_id=True)
        else:
            self._output.update(content, raw=True)

    def _with_printed(self) -> tuple[str, str]:
        """Return the text and HTML that stay, and what the console has recorded since."""
        text, html = self._above
        text += self.console.export_text(clear=False)
        return text, html + self.console.export_html(code_format="{code}", inline_styles=True)


class _Nowhere(io.StringIO):
    """Keeps nothing of what is written: the console records it."""

    def write(self, text: str) -> int:
        return len(text)
