"""Small images that differ."""

import io

from PIL import Image


def png(number: int, side: int = 4) -> bytes:
    """Return a PNG file of one colour, another one for every number below 2**24."""
    colour = (number >> 16 & 255, number >> 8 & 255, number & 255)
    content = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(content, format="PNG")
    return content.getvalue()
