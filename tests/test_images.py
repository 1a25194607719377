"""The image decoder: every kind of file as a viewer shows it, and one sentence for what is no image."""

import io
import struct
import warnings
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, features

from leverlab.errors import LeverlabError
from leverlab.images import FORMATS, LARGEST_PIXELS, check_size, decode_image, pixel_digest, rgb_image

ORIENTATION = 0x0112
RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def saved(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, format=form, **options)
    return content.getvalue()


def levels(content: bytes) -> np.ndarray:
    image = decode_image(content)
    assert image.mode == "RGB"
    assert image.info == {}
    return np.asarray(image)


def test_an_ordinary_file_has_the_pixels_that_pillow_gives() -> None:
    smooth = Image.fromarray(RGB).resize((70, 50), Image.Resampling.BICUBIC)
    for content in (
        saved(smooth),
        saved(smooth, "JPEG"),
        saved(smooth.convert("L")),
        saved(smooth.convert("L"), "JPEG"),
    ):
        assert np.array_equal(levels(content), np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))


@pytest.mark.parametrize(
    ("orientation", "shown"),
    [
        (1, RGB),
        (2, RGB[:, ::-1]),
        (3, RGB[::-1, ::-1]),
        (4, RGB[::-1]),
        (5, RGB.swapaxes(0, 1)),
        (6, RGB.swapaxes(0, 1)[:, ::-1]),  # a quarter turn clockwise
        (7, RGB[::-1, ::-1].swapaxes(0, 1)),
        (8, RGB.swapaxes(0, 1)[::-1]),
        (9, RGB),
    ],
)
@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
def test_the_orientation_of_exif_is_applied_once(orientation: int, shown: np.ndarray, form: str) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"lossless": True} if form == "WEBP" else {}
    content = saved(Image.fromarray(RGB), form, exif=exif, **options)
    assert np.array_equal(levels(content), shown)
    assert np.array_equal(np.asarray(rgb_image(decode_image(content))), shown)


def test_a_photo_and_its_turned_twin_with_the_tag_are_one_image() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    turned = saved(Image.fromarray(RGB.swapaxes(0, 1)[::-1].copy()), exif=exif)
    assert pixel_digest(decode_image(turned)) == pixel_digest(Image.fromarray(RGB))
    assert pixel_digest(Image.fromarray(RGB)) != pixel_digest(Image.fromarray(RGB.reshape(7, 5, 3)))


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0MM\0*\0\0\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01"]
)
def test_damaged_exif_names_no_orientation(exif: bytes) -> None:
    with warnings.catch_warnings(action="ignore"):
        assert np.array_equal(levels(saved(Image.fromarray(RGB), exif=exif)), RGB)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_grey_of_16_bits_keeps_the_upper_eight(form: str) -> None:
    """A twin of 8 bits, scaled by 257, has the same pixels; it was white before."""
    grey = np.arange(256, dtype=np.uint8).reshape(8, 32)
    content = saved(Image.fromarray(grey.astype(np.uint16) * 257), form)
    assert np.array_equal(levels(content), np.repeat(grey[..., None], 3, axis=2))


def test_a_transparent_grey_of_16_bits_is_white() -> None:
    deep = np.asarray([[0, 256, 512, 65535]], dtype=np.uint16)
    content = saved(Image.fromarray(deep))
    content = content[:33] + chunk(b"tRNS", struct.pack(">H", 512)) + content[33:]
    assert levels(content)[0, :, 0].tolist() == [0, 1, 255, 255]


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_grey_without_a_known_range_is_refused(dtype: type) -> None:
    content = saved(Image.fromarray(np.asarray([[0, 70_000]], dtype=dtype)), "TIFF")
    with pytest.raises(LeverlabError, match="floats or of 32 bits, which have no known range"):
        decode_image(content)


def on_white(alpha: int, level: int) -> int:
    return round((alpha * level + (255 - alpha) * 255) / 255)


@pytest.mark.parametrize(
    ("image", "shown"),
    [
        (Image.new("RGBA", (2, 2), (255, 0, 0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (2, 2), (9, 8, 7, 255)), (9, 8, 7)),
        (Image.new("RGBA", (2, 2), (200, 0, 100, 51)), tuple(on_white(51, level) for level in (200, 0, 100))),
        (Image.new("LA", (2, 2), (0, 0)), (255, 255, 255)),
        (Image.new("LA", (2, 2), (7, 255)), (7, 7, 7)),
        (Image.new("1", (2, 2), 1), (255, 255, 255)),
        (Image.new("1", (2, 2), 0), (0, 0, 0)),
    ],
)
def test_what_is_transparent_lies_on_white(image: Image.Image, shown: tuple[int, ...]) -> None:
    found = levels(saved(image))
    assert np.abs(found.astype(int) - shown).max() <= 1
    assert (found == found[0, 0]).all()


@pytest.mark.parametrize(("mode", "form"), [("P", "GIF"), ("P", "PNG"), ("L", "PNG"), ("RGB", "PNG")])
def test_a_transparent_colour_is_white(mode: str, form: str) -> None:
    image = Image.new(mode, (2, 1), 0)
    if mode == "P":
        image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), (1, 1, 1) if mode == "RGB" else 1)
    found = levels(saved(image, form, transparency=(0, 0, 0) if mode == "RGB" else 0))
    assert found[0, 0].tolist() == [255, 255, 255]
    assert found[0, 1].tolist() == ([0, 0, 255] if mode == "P" else [1, 1, 1])


def test_inks_become_colours() -> None:
    inks = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert levels(saved(inks, "TIFF"))[0, 0].tolist() == [255, 0, 0]
    assert np.abs(levels(saved(inks, "JPEG"))[0, 0].astype(int) - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame_is_seen(form: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if form == "WEBP" else {}
    content = saved(frames[0], form, save_all=True, append_images=frames[1:], **options)
    assert levels(content)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_is_read_and_a_file_that_is_cut_is_one_sentence(form: str) -> None:
    known = {"JPEG2000": "jpg_2000", "AVIF": "avif", "WEBP": "webp"}
    if form in known and not features.check(known[form]):
        pytest.skip(f"this Pillow has no {form}")
    content = saved(Image.fromarray(RGB).resize((70, 50)), form)
    assert levels(content).shape == (50, 70, 3)
    with pytest.raises(LeverlabError, match="the image cannot be decoded") as caught:
        decode_image(content[: len(content) // 2])
    assert_one_sentence(caught.value)


def assert_one_sentence(error: LeverlabError) -> None:
    assert "\n" not in str(error)
    assert " at 0x" not in str(error)


def eps() -> bytes:
    return saved(Image.new("RGB", (4, 4)), "EPS")


@pytest.mark.parametrize(
    "make", [lambda: b"", lambda: b"no image", eps, lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>"]
)
def test_what_is_no_image_is_one_sentence_without_a_memory_address(make: Callable[[], bytes]) -> None:
    """EPS among them: Pillow would run Ghostscript on the file."""
    with pytest.raises(
        LeverlabError, match="cannot be decoded: it is in no known format; use one of PNG, JPEG"
    ) as caught:
        decode_image(make())
    assert_one_sentence(caught.value)


@pytest.mark.parametrize("side", [8_200, 12_000, 20_000])
def test_a_small_file_that_claims_many_pixels_is_refused_before_they_are_there(side: int) -> None:
    """67, 144 and 400 megapixels: above our bound, above Pillow's warning, above its error."""
    assert side**2 > LARGEST_PIXELS
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    content = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    with (
        warnings.catch_warnings(action="error"),
        pytest.raises(LeverlabError, match=r"pixels, more than|it is too large"),
    ):
        decode_image(content)


@pytest.mark.parametrize("size", [(201, 1), (1, 201), (402, 2)])
def test_a_side_over_200_times_the_other_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(LeverlabError, match=f"the image is {size[0]} x {size[1]} pixels"):
        decode_image(saved(Image.new("RGB", size)))
    check_size((200, 1))
