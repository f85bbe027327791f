"""The image workers: ``invert_image``, ``base64_decode`` and ``base64_encode``.

Images are UINT8 [height, width, 3], red first. One that would decode to more than a request's body may hold is refused
by its header, before anything is decoded: a few KiB of PNG can claim gigabytes.
"""

from __future__ import annotations

import binascii
import io
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from fastinfer import limits
from fastinfer._ext.signature import Signature
from fastinfer._ext.tensor import Tensor, TensorSpec
from fastinfer.errors import ApiError

MAX_PIXELS = limits.MAX_BODY_BYTES // 3
"""Of an image that is decoded: as many as fit a request's body."""

_MAX_SIDE = {"png": 2**31 - 1, "jpeg": 65_500}  # libpng's and libjpeg's limits
_PIXELS = "UINT8", (-1, -1, 3)
_TEXT = "BYTES", (1,)


class InvertImage:
    """Each colour to its opposite: 255 - x."""

    platform = "invert_image"
    inline = False
    signature = Signature([TensorSpec("input", *_PIXELS)], [TensorSpec("output", *_PIXELS)], positional=True)

    def compute(self, inputs: list[Tensor]) -> list[Tensor]:
        return [Tensor.from_numpy("output", np.invert(inputs[0].numpy()))]


class Base64Decode:
    """Base64 text of a JPEG or PNG file to pixels; transparency is dropped, orientation tags are not applied."""

    platform = "base64_decode"
    inline = False
    signature = Signature(
        [TensorSpec("input", *_TEXT)], [TensorSpec("output", *_PIXELS)], positional=True, takes_base64=True
    )

    def compute(self, inputs: list[Tensor]) -> list[Tensor]:
        text: bytes = inputs[0].numpy()[0]
        try:
            file = binascii.a2b_base64(text, strict_mode=True)
        except ValueError as error:
            raise ApiError(400, "inputs[0].data[0] is not base64 text") from error
        return [Tensor.from_numpy("output", decode_image(file))]


class Base64Encode:
    """Pixels to base64 text of a PNG or JPEG file."""

    platform = "base64_encode"
    inline = False
    signature = Signature([TensorSpec("input", *_PIXELS)], [TensorSpec("output", *_TEXT)], positional=True)

    def __init__(self, file_format: Literal["png", "jpeg"]) -> None:
        self._format = file_format

    def compute(self, inputs: list[Tensor]) -> list[Tensor]:
        pixels = inputs[0].numpy()
        height, width, _ = pixels.shape
        if pixels.size == 0:
            raise ApiError(400, f"inputs[0]: an image of {height} x {width} pixels is empty")
        if max(height, width) > _MAX_SIDE[self._format]:
            most = _MAX_SIDE[self._format]
            raise ApiError(400, f"inputs[0]: an image in {self._format.upper()} has at most {most} pixels a side")
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, self._format)
        text = np.array([binascii.b2a_base64(file.getbuffer(), newline=False)], object)
        return [Tensor.from_numpy("output", text, "BYTES")]


def decode_image(file: bytes) -> NDArray[np.uint8]:
    """The pixels of a JPEG or PNG file.

    Raises:
        ApiError: 400 where it is neither, is damaged, or is larger than :data:`MAX_PIXELS`.
    """
    # The two formats by themselves: Pillow's open() would try others as well, and warns where we refuse.
    reader: type[ImageFile.ImageFile] = PngImageFile if file.startswith(b"\x89PNG") else JpegImageFile
    try:
        with reader(io.BytesIO(file)) as image:
            pixels = image.width * image.height
            if pixels > MAX_PIXELS:
                raise ApiError(400, f"inputs[0].data[0]: an image of {pixels} pixels, at most {MAX_PIXELS} are decoded")
            return np.asarray(image.convert("RGB"))
    except (ApiError, MemoryError):
        raise
    except Exception as error:  # Pillow raises a dozen different ones for damaged files
        raise ApiError(400, "inputs[0].data[0] is not the base64 text of a whole JPEG or PNG image") from error
