"""Images: check, open, send, save. Nothing here imports the rest of the package."""

import base64
import hashlib
import io
import os
import re
import warnings
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = (
    "PNG",
    "JPEG",
    "GIF",
    "WEBP",
    "BMP",
    "TIFF",
    "PPM",
)  # to open some other formats Pillow starts a program
MAX_PIXELS = 1280 * 28 * 28  # 1,280 visual tokens of Qwen2-VL; larger images are scaled down
MAX_IMAGE_PIXELS = 100_000_000  # refuse larger images: they decompress to gigabytes


def image_problem(path: Path) -> str | None:
    """What is wrong with an image, judged by its header, or None.

    The path may lead anywhere, through links too.
    """
    if re.search(r"(^|/)(https?|file|data):", str(path)):
        return "an image is read from a file; download it and write its path"
    try:
        if not path.exists():
            return "no such file; write its path relative to the file that names it, or absolute"
        if not path.is_file():  # reading a pipe would block
            return "not an image but a folder or a device"
        if not path.stat().st_size:
            return "not an image but an empty file; fetch it again"
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=FORMATS) as image:
            (width, height), mode = image.size, image.mode
    except UnidentifiedImageError:
        return f"not an image that can be read; save it as one of {', '.join(FORMATS)}"
    except Image.DecompressionBombError:
        return f"more than {MAX_IMAGE_PIXELS} pixels; scale it down"
    except (
        Exception
    ) as error:  # Pillow raises anything on a hostile file or a path with half a surrogate pair
        return f"not an image that can be read ({type(error).__name__}); mend the file or its path"
    if mode in ("I", "F"):
        return "pixels of 32 bits, whose white is not known; save it with 8 or 16 bits"
    return (
        None if width * height <= MAX_IMAGE_PIXELS else f"more than {MAX_IMAGE_PIXELS} pixels; scale it down"
    )


def open_image(path: str | io.BytesIO, max_pixels: int) -> Image.Image:
    """An image as RGB: first frame, turned as EXIF says, on white, scaled down to `max_pixels` (0: as it is).

    Raises OSError, whatever the file holds.
    """
    try:
        return decode_image(path, max_pixels)
    except OSError:
        raise
    except Exception as error:  # Pillow raises anything on a hostile file
        raise OSError(f"{type(error).__name__}: {error}") from error


def decode_image(path: str | io.BytesIO, max_pixels: int) -> Image.Image:
    with warnings.catch_warnings(action="ignore"), Image.open(path, formats=FORMATS) as image:
        if image.format == "JPEG" and max_pixels:  # decode a large photograph at a fraction of its size
            scale = max(1.0, (image.width * image.height / max_pixels) ** 0.5)
            image.draft("RGB", (int(image.width / scale), int(image.height / scale)))
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):  # convert() would clip at 255
            image = image.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L")
        if "A" in image.getbands() or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("RGB")
    if max_pixels and image.width * image.height > max_pixels:
        scale = (max_pixels / (image.width * image.height)) ** 0.5
        size = max(1, int(image.width * scale)), max(1, int(image.height * scale))
        image = image.resize(size, Image.Resampling.BICUBIC)
    return image


def data_url(path: str, max_pixels: int) -> str:
    """An image as a data URL. Small PNG and JPEG files are sent as they are, others as PNG of what
    open_image() shows.

    Raises OSError.
    """
    with Image.open(path, formats=FORMATS) as image:
        plain = image.mode in ("RGB", "L") and "transparency" not in image.info and not image.getexif()
        small = image.width * image.height <= (max_pixels or 1 << 62)
        kind = (image.format or "PNG").lower()
        unchanged = plain and small and image.format in ("PNG", "JPEG")
    data = Path(path).read_bytes()
    if not unchanged:
        buffer, kind = io.BytesIO(), "png"
        open_image(path, max_pixels).save(buffer, "PNG")
        data = buffer.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def save_image(value: object, folder: Path) -> str:
    """Save an image of a data set's row (PIL image, bytes, or a path) under its hash, once; return its path.

    Raises ValueError if `value` is no image.
    """
    if isinstance(value, str):
        return str(Path(value).absolute())
    if isinstance(value, dict):  # as `datasets` stores an image
        value = value.get("bytes")
    if isinstance(value, bytes):
        data, ending = value, ".img"
    elif hasattr(value, "save"):
        buffer, ending = io.BytesIO(), ".png"
        value.save(buffer, "PNG")
        data = buffer.getvalue()
    else:
        raise ValueError(f"a {type(value).__name__} is not an image")
    path = folder / (hashlib.sha256(data).hexdigest()[:24] + ending)
    if not path.exists():
        write_whole(path, data)
    return str(path.absolute())


def blank_image(path: str, folder: Path) -> str:
    """A white image of the same size, saved once; return its path."""
    with Image.open(path) as image:
        size = image.size
    blank = folder / f"blank_{size[0]}x{size[1]}.png"
    if not blank.exists():
        buffer = io.BytesIO()
        Image.new("1", size, 1).save(buffer, "PNG")
        write_whole(blank, buffer.getvalue())
    return str(blank.absolute())


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that several processes may write the same one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_bytes(data)
    part.replace(path)
