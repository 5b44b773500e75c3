"""Images: check, open, send, save, in one way for files and bytes. Nothing here imports the
rest of the package."""

import base64
import hashlib
import io
import math
import os
import re
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageCms, UnidentifiedImageError

# To open some other formats Pillow starts a program.
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
MAX_PIXELS = 1280 * 28 * 28  # 1,280 visual tokens of Qwen2-VL; larger images are scaled down
MAX_IMAGE_PIXELS = 100_000_000  # refuse larger images: they decompress to gigabytes
PNG, PNG_TEXTS = b"\x89PNG\r\n\x1a\n", (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
# of a data URL, or what a file of these formats begins with; neither has a dot, which most paths have
BASE64 = re.compile(
    r"data:[^,.]*;base64,(.*)|((?:/9j/|iVBORw0K|R0lGOD|UklGR|Qk[0-3]|SUkqA|TU0AK)[\w+/\s-]{40,}+=*\s*)", re.S
)
STARTS = (PNG, b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")  # of files that hold an image
PICTURE_NAME = re.compile(r"[^\n]{1,500}\.(png|jpe?g|gif|webp|bmp|tiff?|ppm)", re.IGNORECASE)
TURNS = dict(zip(range(2, 9), map(Image.Transpose, (0, 3, 1, 5, 4, 6, 2))))  # by EXIF's orientation
Source = str | Path | bytes


def image_problem(path: str | Path) -> str | None:
    """What is wrong with an image, judged by its header, or None."""
    try:
        return read(path, lambda image: None)
    except OSError as error:
        return str(error)


def open_image(source: Source, max_pixels: int) -> Image.Image:
    """An image as RGB: first frame, turned as EXIF says, on white, scaled down to `max_pixels` (0: as it is).

    Raises OSError in plain words, whatever the source holds.
    """
    return read(source, lambda image: as_shown(image, max_pixels))


def read(source: Source, work: Callable) -> object:
    """work(image), with its header read. A PNG that Pillow refuses is tried without its texts."""
    if isinstance(source, (str, Path)) and (problem := path_problem(str(source))):
        raise OSError(problem)
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        with warnings.catch_warnings(action="ignore"), Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError
            return work(image)
    except Image.DecompressionBombError:
        problem = f"more than {MAX_IMAGE_PIXELS} pixels; scale it down"
    except UnidentifiedImageError:
        problem = f"not an image that can be read; save it as one of {', '.join(FORMATS)}"
    except Exception as error:  # Pillow raises anything on a hostile file
        reason = f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}"
        problem = f"not an image that can be read ({reason[:200]}); mend the file or its path"
    if bare := bare_png(source):
        return read(bare, work)
    raise OSError(problem)


def path_problem(path: str) -> str | None:
    """Why no image can be at a path, which may lead anywhere, through links too."""
    if re.search(r"(^|/)(https?|file|data):", path):
        return "an image is read from a file; download it and write its path"
    if not os.path.exists(path):
        return "no such file; write its path relative to the file that names it, or absolute"
    if not os.path.isfile(path):  # reading a pipe would block
        return "not an image but a folder or a device"
    return None if os.path.getsize(path) else "not an image but an empty file; fetch it again"


def bare_png(source: Source) -> bytes | None:
    """A PNG without texts and colour profile, and without what pixels do not need if its checksum is wrong:
    Pillow refuses what no viewer minds. None if there is nothing to leave out."""
    if not isinstance(source, bytes) and not os.access(source, os.R_OK):
        return None
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
        data = file.read() if file.read(len(PNG)) == PNG else b""
    kept, place = [PNG], 0
    while place < len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        kind, checksum = data[place + 4 : place + 8], zlib.crc32(data[place + 4 : end - 4]).to_bytes(4, "big")
        if kind not in PNG_TEXTS and (kind[:1].isupper() or checksum == data[end - 4 : end]):
            kept.append(data[place:end])
        place = end
    bare = b"".join(kept)
    return bare if len(bare) < len(PNG + data) else None


def as_shown(image: Image.Image, max_pixels: int) -> Image.Image:
    scale = min(1.0, ((max_pixels or math.inf) / (image.width * image.height)) ** 0.5)
    size = [max(1, int(side * scale)) for side in image.size]
    if scale < 1:  # decode a large JPEG at a fraction of its size
        image.draft("RGB", size)
    image.load()
    orientation = orientation_of(image)
    if image.mode[0] in "IF":
        image = gray(image)
    elif image.mode == "LAB":
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
    if image.has_transparency_data:
        image = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    image = image.resize(size, Image.Resampling.BICUBIC) if scale < 1 else image
    return turned(image, orientation)


def orientation_of(image: Image.Image) -> object:
    try:
        return image.getexif().get(0x0112)
    except Exception:  # EXIF that is broken: the pixels stand as they are
        return None


def turned(image: Image.Image, orientation: object) -> Image.Image:
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def gray(image: Image.Image) -> Image.Image:
    """Pixels of 16 or 32 bits in 8. White is 65,535; of 32 bits the first of 1, 255 and 65,535 that no pixel
    exceeds, else the brightest."""
    import numpy

    values = numpy.nan_to_num(numpy.asarray(image, numpy.float32))
    is_16_bits = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    white = next((white for white in (1, 255) if values.max() <= white and not is_16_bits), 65_535)
    shades = Image.fromarray(numpy.uint8(values.clip(0) * (255 / max(white, values.max())) + 0.5))
    if (clear := image.info.get("transparency")) is not None:
        shades.putalpha(Image.fromarray(numpy.uint8(255 * (values != clear))))
    return shades


def data_url(path: str, max_pixels: int) -> str:
    """An image as a data URL: a small PNG or JPEG file as it is, others as PNG of what open_image() shows.

    Raises OSError in plain words.
    """

    def is_sent(image: Image.Image) -> bool:
        image.load()
        is_small = not max_pixels or image.width * image.height <= max_pixels
        is_plain = image.mode in ("RGB", "L") and not image.has_transparency_data
        is_file = image.format in ("PNG", "JPEG") and bool(image.filename)
        return is_small and is_plain and is_file and orientation_of(image) in (None, 1)

    data = Path(path).read_bytes() if read(path, is_sent) else png(open_image(path, max_pixels))
    kind = "png" if data.startswith(PNG) else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def is_picture(value: object) -> bool:
    """Whether a value of a row holds an image, or names an image's file."""
    if isinstance(value, list):
        return any(map(is_picture, value))
    if isinstance(value, str):
        return bool(PICTURE_NAME.fullmatch(value) or BASE64.fullmatch(value))
    is_stored = isinstance(value, dict) and "bytes" in value and "path" in value
    return is_stored or isinstance(value, bytes) and value.startswith(STARTS)


def save_image(value: object, folder: Path, find: Callable[[str], str] = os.path.abspath) -> str:
    """Save an image of a data set's row under its hash, once; return its path, or that of the file it names,
    found by find(path). An image is bytes, base64 text, or {"bytes", "path"} as `datasets` has it.

    Raises ValueError if `value` is none.
    """
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path") or b""
    if isinstance(value, str):
        found = BASE64.fullmatch(value)
        if not found:
            return find(value)
        try:
            value = base64.b64decode((found[1] or found[2] or "").translate({45: "+", 95: "/"}))
        except ValueError:
            raise ValueError("base64 text that breaks off") from None
    if not isinstance(value, bytes):
        raise ValueError(f"a {type(value).__name__} is not an image")
    if value == b"":
        raise ValueError("an image without bytes and path")
    return write_once(folder / f"{hashlib.sha256(value).hexdigest()[:24]}.img", value)


def blank_image(path: str, folder: Path) -> str:
    """A white image of the same size, saved once; return its path. One that cannot be read stays: its reply
    will say why.
    """
    try:
        blank = read(path, lambda image: turned(Image.new("1", image.size, 1), orientation_of(image)))
    except OSError:
        return path
    return write_once(folder / f"blank_{blank.width}x{blank.height}.png", png(blank))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_once(path: Path, data: bytes) -> str:
    """Write a file so that several processes may write the same one; return its path."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_bytes(data)
        part.replace(path)
    return str(path.absolute())
