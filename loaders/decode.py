"""From an encoded image to upright 8-bit RGB, one policy for every loader, and back to PNG or JPEG.

- JPEG is decoded by compiled code of our own (`jpeg/`) where it is baseline and whole, else by libjpeg-turbo with the
  accurate DCT and smooth chroma upsampling: bit for bit what Pillow gives, in threads that release the GIL. What
  libjpeg-turbo objects to, Pillow judges: stray bytes pass, a file cut short does not. A scan that breaks off or holds
  invalid codes, which Pillow would fill with grey, is a broken image.
- Everything else (PNG, WebP, TIFF, BMP, PPM, GIF, CMYK JPEG) goes through Pillow; of several frames the first counts.
- EXIF orientation is applied. Greyscale, palette and CMYK become RGB. Alpha and transparent colours are dropped, not
  blended, as Pillow's `convert("RGB")` does. 16-bit samples are scaled, not clipped: grey by `>> 8`, colour as Pillow
  reads it. 32-bit samples have no range that all agree on: they are refused.
- An image of more pixels than Pillow's limit against decompression bombs (179 million) is refused.

Every failure is a `BrokenImage` that names the image and the reason. Pillow's warnings come through as warnings; where
warnings are errors they are logged with the image's name instead, since the image itself can be read.
"""

from __future__ import annotations

import io
import logging
import struct
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from penstock.errors import BrokenImage
from penstock.loaders.fetched import Box, DecodeInto, Fetched
from penstock.loaders.jpeg import decode_jpeg

LOG = logging.getLogger(__name__)
MOST_PIXELS = 178_956_970  # twice PIL.Image.MAX_IMAGE_PIXELS: where Pillow itself refuses
DENSEST = 512  # pixels in a byte of a plain JPEG, at most: each block of 64 takes one bit of Huffman code or more
PILLOW_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "PPM", "GIF")  # not all it knows: EPS would run Ghostscript
LOST_PIXELS = ("premature end of data segment", "bad Huffman code")  # libjpeg's words where it makes up the rest
ORIENTATION = 0x0112  # the EXIF tag
_QUIET = threading.Lock()  # warnings.catch_warnings changes the whole process
T = TypeVar("T")


def decode_rgb(data: bytes, location: str) -> NDArray[np.uint8]:
    """Decode to uint8 [H, W, 3], upright. Raises BrokenImage, which names `location`."""
    return _decode(data, location, JpegHeader.read(data))


def fetch_encoded(encoded: Sequence[bytes], locations: Sequence[str]) -> Fetched:
    """Images whose files' bytes are at hand. Raises BrokenImage, also where sizes cannot be read."""
    headers = [JpegHeader.read(data) for data in encoded]
    images = list(zip(encoded, locations, headers, strict=True))
    sizes = np.array([_size(*image) for image in images], np.int64).reshape(-1, 2)
    return Fetched(height=sizes[:, 0], width=sizes[:, 1], decode=[partial(_decode_into, *image) for image in images])


def encoded_decoder(data: bytes, location: str) -> DecodeInto:
    """What decodes one such image."""
    return partial(_decode_into, data, location, JpegHeader.read(data))


def image_size(data: bytes, location: str = "image") -> tuple[int, int]:
    """Height and width of the upright image, from its headers alone. Raises BrokenImage."""
    return _size(data, location, JpegHeader.read(data))


def _size(data: bytes, location: str, header: JpegHeader | None) -> tuple[int, int]:
    if header is None:
        return _forgiving(_pillow_size, data, location)
    pixels = header.height * header.width
    if pixels > MOST_PIXELS:
        raise BrokenImage(location, f"{header.width} x {header.height} pixels, more than the limit of {MOST_PIXELS}")
    if not pixels or (header.plain and pixels > DENSEST * len(data)):
        raise BrokenImage(location, f"{len(data)} bytes cannot be {header.width} x {header.height} pixels")
    return (header.width, header.height) if header.orientation >= 5 else (header.height, header.width)


def _decode_into(
    data: bytes, location: str, header: JpegHeader | None, out: NDArray[np.uint8], box: Box | None
) -> None:
    """Decode into `out`, uint8 [H, W, 3] of the size that the header names. Raises BrokenImage."""
    if header is not None:  # else a lie in a table, or in the header, would cost the memory for all that it says
        _hold_to(out, _size(data, location, header), location)
    upright = header is not None and header.orientation == 1
    image = _decode(data, location, header, out, box) if upright else _decode(data, location, header)
    _hold_to(out, image.shape[:2], location)
    if image is not out:
        np.copyto(out, image)


def _hold_to(announced: NDArray[np.uint8], size: tuple[int, ...], location: str) -> None:
    """Raises BrokenImage for an image whose size is not the one announced."""
    (height, width), (rows, columns) = size, announced.shape[:2]
    if size != announced.shape[:2]:
        raise BrokenImage(location, f"it is of {height}×{width} pixels, {rows}×{columns} were announced")


def _decode(
    data: bytes,
    location: str,
    header: JpegHeader | None,
    out: NDArray[np.uint8] | None = None,
    box: Box | None = None,
) -> NDArray[np.uint8]:
    """The upright image: in `out`, where that is given (for one that is stored upright), and right within the box."""
    if header is None or header.bits != 8 or header.components not in (1, 3):
        return _forgiving(_pillow_rgb, data, location)
    _size(data, location, header)  # refuses decompression bombs
    stored = np.empty((header.height, header.width, 3), np.uint8) if out is None else out
    if decode_jpeg(data, stored, box):
        return _upright(stored, header.orientation)
    try:
        pixels = simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False, strict=True, buffer=stored)
    except ValueError as error:
        if any(words in str(error) for words in LOST_PIXELS):
            raise BrokenImage(location, f"damaged JPEG: {error}") from error
        return _forgiving(_pillow_rgb, data, location)
    return _upright(stored if pixels.shape == stored.shape else pixels, header.orientation)


def is_canonical(data: bytes) -> bool:
    """Whether it is a JPEG that all decoders read alike: 8 bits, grey or YCbCr of a usual subsampling, upright."""
    header = JpegHeader.read(data)
    return header is not None and header.plain and header.orientation == 1


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """Lossless, at zlib's fastest level."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def encode_jpeg(image: NDArray[np.uint8], quality: int) -> bytes:
    """Baseline JPEG of RGB pixels with 4:2:0 chroma subsampling, as most photographs have it."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality, "RGB", "420", fastdct=False)


@dataclass(frozen=True, kw_only=True)
class JpegHeader:
    """What the markers before the scan say (ITU-T T.81, annex B).

    Attributes:
        height, width: as stored, before the orientation is applied.
        plain: 8 bits, baseline or progressive with Huffman codes, grey or YCbCr with a usual chroma subsampling.
        orientation: EXIF's 1 to 8; 1 is upright.
    """

    height: int
    width: int
    bits: int
    components: int
    plain: bool
    orientation: int

    @staticmethod
    def read(data: bytes) -> JpegHeader | None:
        """None unless the data starts as a JPEG and its frame header is there."""
        frame, adobe_rgb, orientation = None, False, 0
        for marker, body in _segments(data):
            if marker == 0xE1 and body[:6] == b"Exif\0\0":
                orientation = orientation or _exif_orientation(body[6:])
            elif marker == 0xEE and body[:5] == b"Adobe":
                adobe_rgb = body[11:12] == b"\0"
            elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and len(body) >= 6:
                frame = marker, body
        if frame is None:
            return None
        marker, body = frame
        bits, height, width, components = struct.unpack(">BHHB", body[:6])
        plain = bits == 8 and marker <= 0xC2 and not adobe_rgb and _grey_or_ycbcr(body[6:], components)
        return JpegHeader(
            height=height, width=width, bits=bits, components=components, plain=plain, orientation=orientation or 1
        )


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The marker segments of a JPEG up to its first scan; nothing if it is no JPEG, fewer if it is cut short."""
    position = 2
    while data[:2] == b"\xff\xd8" and position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        if marker in (0xDA, 0xD9):  # start of scan, end of image
            return
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        yield marker, data[position + 4 : position + 2 + length]
        position += 2 + length


def _grey_or_ycbcr(components: bytes, count: int) -> bool:
    """Whether a frame header's component list (id, sampling, table each) is one of those that everybody writes."""
    if count != 3:
        return count == 1
    identifiers, sampling = components[0:9:3], components[1:9:3]
    return identifiers != b"RGB" and sampling[1:] == b"\x11\x11" and sampling[0] in (0x11, 0x21, 0x22, 0x12, 0x41)


def _exif_orientation(tiff: bytes) -> int:
    """The orientation in an EXIF block, 0 if there is none or the block is damaged."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    try:
        start = struct.unpack_from(f"{order}I", tiff, 4)[0]
        for entry in range(struct.unpack_from(f"{order}H", tiff, start)[0]):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", tiff, start + 2 + 12 * entry)
            if tag == ORIENTATION and kind == 3 and 1 <= value <= 8:
                return value
    except struct.error:
        pass
    return 0


def _upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Undo an EXIF orientation; the result owns contiguous memory."""
    if orientation >= 5:  # 5 to 8 are 1, 4, 3, 2 with rows and columns exchanged afterwards
        pixels = _upright(pixels, {5: 1, 6: 4, 7: 3, 8: 2}[orientation]).transpose(1, 0, 2)
    elif orientation > 1:
        pixels = pixels[:: 1 if orientation == 2 else -1, :: 1 if orientation == 4 else -1]
    return np.ascontiguousarray(pixels)


def _forgiving(read: Callable[[bytes, str], T], data: bytes, location: str) -> T:
    """Read with Pillow; where warnings are errors, log the warning and read again without."""
    try:
        return read(data, location)
    except Warning as warning:
        LOG.warning("%s: %s", location, warning)
    with _QUIET, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read(data, location)


def _pillow_open(data: bytes, location: str) -> Image.Image:
    if not data:
        raise BrokenImage(location, "empty file")
    try:
        return Image.open(io.BytesIO(data), formats=PILLOW_FORMATS)
    except Warning:
        raise
    except Image.UnidentifiedImageError as error:
        raise BrokenImage(location, f"not an image: it starts with {data[:12]!r}") from error
    except Exception as error:
        raise BrokenImage(location, _reason(error, data)) from error


def _pillow_size(data: bytes, location: str) -> tuple[int, int]:
    with _pillow_open(data, location) as image:
        width, height = image.size
        return (width, height) if _pillow_orientation(image) >= 5 else (height, width)


def _pillow_rgb(data: bytes, location: str) -> NDArray[np.uint8]:
    with _pillow_open(data, location) as image:
        orientation = _pillow_orientation(image)  # as `_pillow_size` has it: PNG may say another after the pixels
        try:
            image.load()
            pixels = _eight_bit_rgb(image)
        except Warning:
            raise
        except Exception as error:  # Pillow's plugins raise SyntaxError, struct.error, EOFError… on damaged files
            raise BrokenImage(location, _reason(error, data)) from error
        return _upright(pixels, orientation)


def _pillow_orientation(image: Image.Image) -> int:
    """EXIF's, or 1. Pillow turns TIFF itself and leaves no EXIF block then."""
    return _exif_orientation(image.info.get("exif", b"").removeprefix(b"Exif\0\0")) or 1


def _eight_bit_rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):  # both hold 16 bits
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError("32-bit samples, whose range is unknown; save it with 8 or 16 bits")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the same colours; straight to RGB, Pillow warns
    return np.array(image.convert("RGB"))


def _reason(error: Exception, data: bytes) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return str(error)
    kind = "JPEG" if data[:2] == b"\xff\xd8" else "image"
    return f"truncated {kind}" if "truncated" in str(error).lower() else f"damaged {kind}: {error}"
