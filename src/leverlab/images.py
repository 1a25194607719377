"""Encoded images as RGB pixels: the only decoder, for data sets, bundles, llama.cpp and the demo page alike."""

import hashlib
import io
import warnings

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from leverlab.errors import LeverlabError

LARGEST_RATIO = 200  # of the longer to the shorter side, as in transformers
LARGEST_PIXELS = 1 << 26  # 67 megapixels, 200 MB as RGB; a small file may claim far more
# Only formats that Pillow decodes itself: for EPS, say, it runs Ghostscript on the file.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
_DEEP_GREY = ("PNG", "PPM")  # formats whose mode "I" holds 16 bits
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_image(content: bytes) -> Image.Image:
    """Return the first frame of an encoded image in RGB, as `rgb_image` does.

    Raises `LeverlabError` when the bytes are no image in one of `FORMATS`, are cut or damaged, or decode to more than
    `LARGEST_PIXELS`, and the errors of `check_size`.
    """
    try:
        with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
            image = Image.open(io.BytesIO(content), formats=FORMATS)
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        known = "it is too large" if isinstance(error, Image.DecompressionBombError) else "it is in no known format"
        raise LeverlabError(f"the image cannot be decoded: {known}; use one of {', '.join(FORMATS)}") from None
    except Exception as error:  # its decoders raise struct.error, IndexError and more beside OSError
        raise LeverlabError(f"the image cannot be decoded ({error}); use another one") from None
    return rgb_image(image)


def pixel_digest(image: Image.Image) -> str:
    """Return a digest of an image as `rgb_image` returns it, equal for equal pixels. Raises the same errors."""
    rgb = rgb_image(image)
    return hashlib.sha256(f"{rgb.size}".encode() + rgb.tobytes()).hexdigest()[:32]


def rgb_image(image: Image.Image) -> Image.Image:
    """Return an opened image in RGB as a viewer shows it: upright by its EXIF orientation, on white where transparent.

    Of 16 bits a channel the upper eight are kept. What it returns comes back as it is. Raises `LeverlabError` when the
    image is cut or damaged, has grey values of an unknown range (32 bits, floats), or more than `LARGEST_PIXELS`, and
    the errors of `check_size`.
    """
    check_size(image.size)
    if image.width * image.height > LARGEST_PIXELS:
        raise LeverlabError(
            f"the image has {image.width} x {image.height} pixels, more than {LARGEST_PIXELS:,}; make it smaller"
        )
    try:
        image.load()
        turn = _TURNS.get(_orientation(image))
        rgb = _opaque(_eight_bits(image))
        upright = rgb if turn is None else rgb.transpose(turn)
        upright.info = {}  # its orientation and transparency are applied, and must not be again
        return upright
    except LeverlabError:
        raise
    except Exception as error:  # its decoders raise struct.error, IndexError and more beside OSError
        raise LeverlabError(f"the image cannot be decoded ({error}); use another one") from None


def check_size(size: tuple[int, int]) -> None:
    """Raise `LeverlabError` for a (width, height) without pixels, or with a side over 200 times as long as the other.

    Qwen2.5-VL's image processor takes no such image.
    """
    if min(size) < 1 or max(size) > LARGEST_RATIO * min(size):
        raise LeverlabError(
            f"the image is {size[0]} x {size[1]} pixels, and must have pixels, and no side over {LARGEST_RATIO} "
            "times as long as the other; use another one"
        )


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a damaged tag names no orientation, and the pixels may be sound
        return 1


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return an image of more than 8 bits of grey with 8, and any other as it is."""
    if not image.mode.startswith(("I", "F")):
        return image
    if image.mode == "F" or (image.mode == "I" and image.format not in _DEEP_GREY):
        raise LeverlabError(
            "the image cannot be decoded: its grey values are floats or of 32 bits, which have no known range; save it "
            "with 8 or 16 bits"
        )
    levels = np.asarray(image).astype(np.int64)
    grey = (levels >> 8).astype(np.uint8)
    clear = image.info.get("transparency")
    return Image.fromarray(grey if clear is None else np.where(levels == clear, 255, grey).astype(np.uint8))


def _opaque(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
