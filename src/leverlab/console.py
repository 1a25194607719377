"""A console of rich for texts of users, data sets and models."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from leverlab.terminal import printable


class SafeConsole(Console):
    """A console whose texts are printable; its own styles and cursor control still work."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Return `text` as rich's own text, printable before its width is measured."""
        return super().render_str(printable(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments of `renderable`, their texts printable."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)
