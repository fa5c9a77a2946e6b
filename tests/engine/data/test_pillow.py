"""Pictures from anywhere: one is decoded, or set aside with a reason in one line; nothing else happens."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageFile

from gfo.engine.data.files import PictureFiles
from gfo.engine.data.pillow import PillowSource, decode, reason
from gfo.export.preprocessing import Preprocessing

PREPROCESSING = Preprocessing(16, 18)
FILES = PictureFiles(Path("nowhere"))


@pytest.fixture(autouse=True)
def source() -> PillowSource:
    return PillowSource(FILES, PREPROCESSING, 1, torch.device("cpu"))


def decoded(content: bytes) -> np.ndarray | str:
    return decode(FILES, "a picture", content, PREPROCESSING)


@cache
def noise(width: int = 25, height: int = 20) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def written(picture: Image.Image, format_: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, format_, **options)
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_chunk(added: bytes) -> bytes:
    """A PNG with another chunk after its header."""
    content = written(noise(), "PNG")
    return content[:33] + added + content[33:]


# ---- what is decoded


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"])
def test_every_mode_is_decoded_as_pillow_turns_it_into_rgb(mode: str) -> None:
    direct = mode not in ("I;16", "I", "F")
    picture = (noise() if direct else noise().convert("L")).convert(mode)
    content = written(picture, "TIFF")
    np.testing.assert_array_equal(decoded(content), PREPROCESSING.load_uint8(io.BytesIO(content)))


@pytest.mark.parametrize("format_", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_is_decoded(format_: str) -> None:
    options = {"lossless": True} if format_ == "WEBP" else {}
    frames = [noise().rotate(18 * i) for i in range(1, 20)]
    content = written(noise(), format_, save_all=True, append_images=frames, **options)
    np.testing.assert_array_equal(decoded(content), decoded(written(noise(), format_, **options)))


# ---- what is set aside


def test_what_would_be_unpacked_to_too_much_is_set_aside() -> None:
    bomb = zlib.compress(bytes(5_000_000), 9)
    for kind, start in ((b"zTXt", b"k\0\0"), (b"iTXt", b"k\0\1\0\0\0"), (b"iCCP", b"k\0\0")):
        assert str(decoded(with_chunk(chunk(kind, start + bomb)))).startswith("ValueError: Decompressed data too large")
    assert str(decoded(with_chunk(chunk(b"tEXt", b"k\0" + bytes(900_000)) * 80))).startswith(
        "ValueError: Too much memory"
    )
    assert isinstance(decoded(with_chunk(chunk(b"eXIf", b"MM\0*" + b"\xff" * 100_000))), np.ndarray)


def test_a_program_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("run"))
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n"
    assert decoded(content) == "ValueError: EPS is a program, and it is not run; save the picture as PNG"


def test_an_icon_is_as_large_as_the_picture_in_it() -> None:
    inner = written(Image.new("RGB", (200_000, 1)), "PNG")
    entry = struct.pack("<BBBBHHII", 32, 32, 0, 0, 1, 32, len(inner), 22)
    said = decode(FILES, "icon", b"\0\0\1\0\1\0" + entry + inner, Preprocessing(16, 1000))
    assert str(said).startswith("ValueError: 200000 x 1 pixels would be 200000000 x 1000 when resized")


def test_a_reason_is_one_short_line_that_can_be_printed() -> None:
    said = reason(ValueError("a\nb\x1b[31m\ud800 猫" + "c" * 1000 + " <_io.BytesIO object at 0x1>"))
    assert said.startswith("ValueError: a b?[31m? 猫ccc")
    assert len(said) == 200
    assert reason(KeyError()) == "KeyError:"


# ---- warnings


@pytest.mark.parametrize("action", ["error", "always"])
def test_warnings_of_pillow_set_nothing_aside_and_are_not_printed(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder, action: Any
) -> None:
    warnings.simplefilter(action)
    PillowSource(FILES, PREPROCESSING, 1, torch.device("cpu"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 450)  # a warning from there, an error from twice as many
    palette = noise().quantize(16)
    for content in (
        written(noise(), "JPEG"),
        written(palette, "PNG", transparency=bytes(range(16))),
        with_chunk(chunk(b"acTL", bytes(8))),
    ):
        assert isinstance(decoded(content), np.ndarray)
    assert not recwarn.list


# ---- anything


def _profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


_WRITTEN: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: written(noise(), "JPEG", icc_profile=_profile()),
    "progressive": lambda: written(noise().convert("CMYK"), "JPEG", progressive=True),
    "png": lambda: written(noise(), "PNG"),
    "palette": lambda: written(noise().convert("P"), "PNG", transparency=0),
    "gif": lambda: written(noise(), "GIF", save_all=True, append_images=[noise().rotate(90)]),
    "webp": lambda: written(noise(), "WEBP"),
    "tiff": lambda: written(noise(), "TIFF"),
    "bmp": lambda: written(noise(), "BMP"),
    "ppm": lambda: written(noise(), "PPM"),
    "jpeg 2000": lambda: written(noise(), "JPEG2000"),
    "tga": lambda: written(noise(), "TGA"),
    "ico": lambda: written(noise(32, 32), "ICO", sizes=[(32, 32)]),
    "dds": lambda: written(noise(), "DDS"),
}
_PLACES = st.integers(0, 60) | st.integers(0, 2000)


@settings(max_examples=120, derandomize=True, database=None)
@given(
    kind=st.sampled_from(sorted(_WRITTEN)),
    changes=st.lists(st.tuples(_PLACES, st.binary(max_size=4)), max_size=4),
    end=st.none() | st.integers(0, 2000),
)
def test_any_bytes_are_a_picture_or_set_aside(kind: str, changes: list[tuple[int, bytes]], end: int | None) -> None:
    content = _WRITTEN[kind]()
    for place, new in changes:
        content = content[:place] + new + content[place + len(new) :]
    found = decoded(content[:end])
    if isinstance(found, str):
        assert found.isprintable()
        assert 0 < len(found) <= 200
    else:
        assert (found.shape, found.dtype) == ((16, 16, 3), np.uint8)
