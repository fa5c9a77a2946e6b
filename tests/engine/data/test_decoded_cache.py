"""The decoded cache: what it keeps is what the decoder gave, whoever writes, is killed, or changes a file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from gfo.engine.data import decoded_cache
from gfo.engine.data.decoded_cache import DecodedCache
from gfo.engine.data.files import PictureFiles
from gfo.engine.data.loading import open_source
from gfo.engine.data.pillow import PillowSource
from gfo.engine.data.spec import DataSpec
from gfo.export.cache import key
from gfo.export.errors import InputError
from gfo.export.preprocessing import Preprocessing

PREPROCESSING = Preprocessing(16, 18)


class Watched(PictureFiles):
    """Remembers which pictures have been decoded."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.asked: list[str] = []

    def read(self, path: str) -> bytes:
        self.asked.append(path)
        return super().read(path)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GFO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pictures"


def names(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.glob("val/*/*"))


def read(root: Path, block: int = 4, preprocessing: Preprocessing = PREPROCESSING) -> tuple[torch.Tensor, list[str]]:
    """All pictures through a cache over Pillow, and which had to be decoded."""
    files = Watched(root)
    source = DecodedCache(PillowSource(files, preprocessing, 2, torch.device("cpu")), files, preprocessing)
    blocks = [b for b in source.blocks(names(root), block) if len(b.images)]
    return torch.cat([b.images for b in blocks]), sorted(files.asked)


def fresh(root: Path, preprocessing: Preprocessing = PREPROCESSING) -> np.ndarray:
    return np.stack([preprocessing.load_uint8(root / name) for name in names(root)])


def test_a_second_run_decodes_nothing(own_data: Path, kept: Path) -> None:
    for block, decoded in ((4, names(own_data)), (4, []), (7, [])):
        images, asked = read(own_data, block)
        assert asked == decoded
        np.testing.assert_array_equal(images, fresh(own_data))
    assert len(list(kept.iterdir())) == 1
    assert open_source(DataSpec(own_data, loader="pillow", workers=2, decoded_cache=True), PREPROCESSING).how.endswith(
        f"kept in {kept}"
    )


def test_what_changes_is_decoded_anew(own_data: Path, kept: Path) -> None:
    read(own_data)
    (own_data / "val/ant/1.png").write_bytes((own_data / "val/bee/3.png").read_bytes())
    images, asked = read(own_data)
    assert asked == names(own_data)
    np.testing.assert_array_equal(images, fresh(own_data))
    for other in (Preprocessing(16, 20), Preprocessing(17, 18), Preprocessing(16, 18, "bicubic")):
        images, asked = read(own_data, preprocessing=other)
        assert asked == names(own_data)
        np.testing.assert_array_equal(images, fresh(own_data, other))
    # Mean and std are applied later.
    assert read(own_data, preprocessing=Preprocessing(16, 18, mean=(0, 0, 0)))[1] == []
    assert len(list(kept.iterdir())) == 5


def test_pixels_of_a_gpu_are_kept_apart(own_data: Path, kept: Path) -> None:
    class OnGpu(PillowSource):
        decodes_on = "cuda"

    read(own_data)
    files, paths = Watched(own_data), names(own_data)
    facts = {"root": str(own_data.resolve()), "decoder": "pillow", "geometry": [16, 18, "bilinear"]}
    pictures = [[path, *files.identity(path)] for path in paths]
    on_cpu = key({**facts, "pictures": pictures})  # as it has always been: a folder of an older version is replaced
    assert [folder.name for folder in kept.iterdir()] == [on_cpu]
    source = DecodedCache(OnGpu(files, PREPROCESSING, 2, torch.device("cpu")), files, PREPROCESSING)
    list(source.blocks(paths, 4))
    assert sorted(files.asked) == paths
    on_gpu = key({**facts, "pictures": pictures, "device": "cuda"})
    assert {folder.name for folder in kept.iterdir()} == {on_cpu, on_gpu}


def test_blocks_that_are_read_in_part_are_kept_in_part(own_data: Path, kept: Path) -> None:
    files, paths = Watched(own_data), names(own_data)
    source = DecodedCache(PillowSource(files, PREPROCESSING, 2, torch.device("cpu")), files, PREPROCESSING)
    blocks = source.blocks(paths, 4)
    for _ in range(2):
        next(blocks)
    blocks.close()  # type: ignore[attr-defined]
    images, asked = read(own_data, 5)
    assert asked == paths[8:]
    np.testing.assert_array_equal(images, fresh(own_data))


def test_broken_pictures_are_tried_again(own_data: Path, kept: Path) -> None:
    broken = own_data / "val/bee/2.jpg"
    content, times = broken.read_bytes(), broken.stat()
    broken.write_bytes(b"\0" * len(content))
    read(own_data)
    for _ in range(2):
        images, asked = read(own_data)
        assert asked == ["val/bee/2.jpg"]
        assert not images[names(own_data).index("val/bee/2.jpg")].any()
    broken.write_bytes(content)
    os.utime(broken, ns=(times.st_atime_ns, times.st_mtime_ns))
    np.testing.assert_array_equal(read(own_data)[0], fresh(own_data))


def resized(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(1000)


def in_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def linked(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


@pytest.mark.parametrize("name", ["pixels.u8", "sums.u32", "index.json"])
@pytest.mark.parametrize("spoil", [Path.unlink, in_a_folder, linked, resized])
def test_a_damaged_folder_is_made_again(own_data: Path, kept: Path, spoil: Callable[[Path], None], name: str) -> None:
    read(own_data)
    (folder,) = kept.iterdir()
    spoil(folder / name)
    images, asked = read(own_data)
    assert asked == ([] if name == "index.json" else names(own_data))
    np.testing.assert_array_equal(images, fresh(own_data))
    assert read(own_data)[1] == []


@pytest.mark.parametrize("place", ["file", "link", "folder"])
def test_what_is_in_the_place_of_a_folder_is_replaced(own_data: Path, kept: Path, tmp_path: Path, place: str) -> None:
    read(own_data)
    (folder,) = kept.iterdir()
    folder.rename(tmp_path / "another")
    if place == "file":
        folder.touch()
    elif place == "link":
        folder.symlink_to(tmp_path / "another")
    else:
        folder.mkdir()
    for asked in (names(own_data), []):
        images, decoded = read(own_data)
        assert decoded == asked
        np.testing.assert_array_equal(images, fresh(own_data))
    assert len(list((tmp_path / "another").iterdir())) == 3  # nothing is removed through a link


def test_files_that_are_shortened_while_they_are_read_are_mended(own_data: Path, kept: Path) -> None:
    read(own_data)
    (folder,) = kept.iterdir()
    files, paths = Watched(own_data), names(own_data)
    source = DecodedCache(PillowSource(files, PREPROCESSING, 2, torch.device("cpu")), files, PREPROCESSING)
    blocks = source.blocks(paths, 4)
    images = [next(blocks).images]
    with (folder / "pixels.u8").open("r+b") as file:
        file.truncate(5 * 16 * 16 * 3 + 1)
    images += [block.images for block in blocks]
    np.testing.assert_array_equal(torch.cat(images), fresh(own_data))
    assert set(paths[8:]) <= set(files.asked) <= set(paths[5:])  # one block had been read ahead, or not yet
    assert set(read(own_data)[1]) <= set(paths[5:8])  # its pictures are missing now
    assert read(own_data)[1] == []


def test_a_folder_of_an_older_version_is_made_again(own_data: Path, kept: Path) -> None:
    read(own_data)
    (folder,) = kept.iterdir()
    (folder / "sums.u32").unlink()
    (folder / "done.u8").write_bytes(b"\1" * 18)
    assert read(own_data)[1] == names(own_data)
    assert sorted(path.name for path in folder.iterdir()) == ["index.json", "pixels.u8", "sums.u32"]


def test_pixels_without_their_checksum_are_not_believed(own_data: Path, kept: Path) -> None:
    """What a killed writer leaves: pixels come first."""
    read(own_data)
    (folder,) = kept.iterdir()
    with (folder / "pixels.u8").open("r+b") as pixels, (folder / "sums.u32").open("r+b") as sums:
        pixels.seek(5 * 16 * 16 * 3)
        pixels.write(b"half a picture")
        sums.seek(5 * 4)
        sums.write(bytes(4))
    images, asked = read(own_data)
    assert asked == [names(own_data)[5]]
    np.testing.assert_array_equal(images, fresh(own_data))


@pytest.mark.parametrize(("name", "place"), [("pixels.u8", 5 * 16 * 16 * 3 + 100), ("sums.u32", 5 * 4)])
def test_damaged_pixels_are_decoded_anew(own_data: Path, kept: Path, name: str, place: int) -> None:
    read(own_data)
    (folder,) = kept.iterdir()
    content = bytearray((folder / name).read_bytes())
    content[place] ^= 8
    (folder / name).write_bytes(content)
    for wanted in ([names(own_data)[5]], []):
        images, asked = read(own_data)
        assert asked == wanted
        np.testing.assert_array_equal(images, fresh(own_data))


_WRITER = """
import sys
from collections.abc import Callable
from pathlib import Path
from gfo.engine.data.loading import open_source
from gfo.engine.data.spec import DataSpec
from gfo.export.preprocessing import Preprocessing
root = Path(sys.argv[1])
names = sorted(str(path.relative_to(root)) for path in root.glob("val/*/*"))
print("ready", flush=True)
sys.stdin.readline()
data = DataSpec(root, loader="pillow", workers=1, decoded_cache=True)
for block in open_source(data, Preprocessing(16, 18)).blocks(names, 2):
    print(block.start, flush=True)
    if len(sys.argv) > 2:
        sys.stdin.readline()
"""


def writer(root: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _WRITER, str(root), *words]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


def test_two_writers_and_one_that_is_killed(own_data: Path, kept: Path) -> None:
    killed, other = writer(own_data, "slowly"), writer(own_data)
    assert killed.stdin
    assert killed.stdout
    for line in ("0\n", "2\n"):
        killed.stdin.write("\n")
        killed.stdin.flush()
        assert killed.stdout.readline() == line
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert other.stdin
    other.stdin.write("\n")
    other.stdin.flush()
    np.testing.assert_array_equal(read(own_data)[0], fresh(own_data))  # the second writer is this process
    other.communicate()
    assert other.returncode == 0
    images, asked = read(own_data)
    assert asked == []
    np.testing.assert_array_equal(images, fresh(own_data))
    assert [path.name[0] for path in kept.iterdir() if path.name.startswith(".")] == []


def test_a_disk_that_is_too_small(own_data: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(decoded_cache.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match=r"18 pictures take 0\.0 GB, .*pictures has 0\.0 GB free; set GFO_CACHE"):
        read(own_data)


def test_a_disk_that_becomes_full(own_data: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: object, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(decoded_cache, "_write_all", full)
        with pytest.raises(OSError, match=r"No space left on device: .*pixels\.u8"):
            read(own_data)
    np.testing.assert_array_equal(read(own_data)[0], fresh(own_data))
