"""The image workers: ``invert_image``, ``base64_decode`` and ``base64_encode``.

Images are UINT8 [height, width, 3], red first. An image that would decode to more bytes than a request's body may have
is refused by its header, before anything is decoded, because a few KiB of PNG can announce gigabytes.
"""

from __future__ import annotations

import binascii
import io
from typing import Literal

import numpy as np
from PIL import Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from typing_extensions import Buffer

from fastinfer.backends.builtin.item import GivenUpError, Item
from fastinfer.base import limits
from fastinfer.base.budget import Budget
from fastinfer.base.errors import ApiError
from fastinfer.tensor.signature import Signature
from fastinfer.tensor.tensor import Tensor, TensorSpec

MAX_PIXELS = limits.MAX_BODY_BYTES // 3
"""Maximum pixels of a decoded image: as many as fit into a request's body."""

MAX_SCANS = 100
"""Maximum scans of a JPEG image. Encoders write about ten; each costs a pass over all pixels and few bytes of file."""

_PNG = b"\x89PNG"
_START_OF_SCAN = b"\xff\xda"
_BLOCK_BYTES = 4096  # Pillow decodes a file in blocks of this size; cancellation is checked between them
_PILLOW_BYTES = 10  # per pixel: 4 of the image, 4 of the converted one, and rows being copied
_MAX_SIDE = {"png": 2**31 - 1, "jpeg": 65_500}  # libpng's and libjpeg's limits
_PIXELS = "UINT8", (-1, -1, 3)
_TEXT = "BYTES", (1,)


class _File(io.BytesIO):
    """A file in memory whose reads and writes fail when nobody waits for the image any more."""

    def __init__(self, item: Item, content: bytes = b"") -> None:
        super().__init__(content)
        self._item = item

    def read(self, size: int | None = -1, /) -> bytes:
        self._item.check()
        return super().read(size)

    def write(self, data: Buffer, /) -> int:
        self._item.check()
        return super().write(data)


class InvertImage:
    """Inverts each colour: 255 - x."""

    platform = "invert_image"
    inline = False
    signature = Signature([TensorSpec("input", *_PIXELS)], [TensorSpec("output", *_PIXELS)], positional=True)

    def __init__(self, budget: Budget | None = None) -> None:
        self._budget = budget

    def compute(self, inputs: list[Tensor], item: Item | None = None) -> list[Tensor]:  # noqa: ARG002
        output = Tensor.empty("output", "UINT8", inputs[0].shape, self._budget)
        np.invert(inputs[0].numpy(), out=output.fill())
        return [output]


class Base64Decode:
    """Decodes base64 text of a JPEG or PNG file to pixels. Transparency is dropped; orientation tags are ignored."""

    platform = "base64_decode"
    inline = False
    signature = Signature(
        [TensorSpec("input", *_TEXT)], [TensorSpec("output", *_PIXELS)], positional=True, takes_base64=True
    )

    def __init__(self, budget: Budget | None = None) -> None:
        self._budget = budget or Budget()

    def compute(self, inputs: list[Tensor], item: Item | None = None) -> list[Tensor]:
        text: bytes = inputs[0].numpy()[0]
        try:
            file = binascii.a2b_base64(text, strict_mode=True)
        except ValueError as error:
            raise ApiError(400, "inputs[0].data[0] is not base64 text") from error
        return [decode_image(file, item or Item(), self._budget)]


class Base64Encode:
    """Encodes pixels to base64 text of a PNG or JPEG file."""

    platform = "base64_encode"
    inline = False
    signature = Signature([TensorSpec("input", *_PIXELS)], [TensorSpec("output", *_TEXT)], positional=True)

    def __init__(self, file_format: Literal["png", "jpeg"]) -> None:
        self._format = file_format

    def compute(self, inputs: list[Tensor], item: Item | None = None) -> list[Tensor]:
        pixels = inputs[0].numpy()
        height, width, _ = pixels.shape
        if pixels.size == 0:
            raise ApiError(400, f"inputs[0]: an image of {height} x {width} pixels is empty")
        if max(height, width) > _MAX_SIDE[self._format]:
            most = _MAX_SIDE[self._format]
            raise ApiError(400, f"inputs[0]: an image in {self._format.upper()} has at most {most} pixels a side")
        file = _File(item or Item())
        Image.fromarray(pixels).save(file, self._format)
        text = np.array([binascii.b2a_base64(file.getbuffer(), newline=False)], object)
        return [Tensor.from_numpy("output", text, "BYTES")]


def decode_image(file: bytes, item: Item, budget: Budget) -> Tensor:
    """Decode a JPEG or PNG file to pixels, a tensor named ``output``.

    Args:
        file: the file's bytes.
        item: the item that this work belongs to; it may be cancelled meanwhile.
        budget: the memory of the pixels counts in it, Pillow's own copies included.

    Raises:
        ApiError: 400 if it is neither, is damaged, is larger than :data:`MAX_PIXELS`, or has too many scans.
        GivenUpError: nobody waits any more.
        MemoryError: no memory is left, or the budget is spent.
    """
    if file.count(_START_OF_SCAN) > MAX_SCANS and not file.startswith(_PNG):
        raise ApiError(400, f"inputs[0].data[0]: a JPEG image of more than {MAX_SCANS} scans")
    # Pillow's open() would also try other formats, and only warn if an image is too large.
    reader: type[ImageFile.ImageFile] = PngImageFile if file.startswith(_PNG) else JpegImageFile
    try:
        with reader(_File(item, file)) as image:
            image.decodermaxblock = _BLOCK_BYTES
            pixels = image.width * image.height
            if pixels > MAX_PIXELS:
                raise ApiError(400, f"inputs[0].data[0]: an image of {pixels} pixels, at most {MAX_PIXELS} are decoded")
            reserved = pixels * _PILLOW_BYTES
            if not budget.reserve(reserved):
                raise MemoryError("the budget for requests is spent")
            try:
                output = Tensor.empty("output", "UINT8", (image.height, image.width, 3), budget)
                output.fill()[...] = np.asarray(image.convert("RGB"))
            finally:
                budget.release(reserved)
            return output
    except (ApiError, MemoryError, GivenUpError):
        raise
    except Exception as error:  # Pillow raises a dozen different exceptions for damaged files
        raise ApiError(400, "inputs[0].data[0] is not the base64 text of a whole JPEG or PNG image") from error
