"""A picture is decoded where there is memory for it; one that does not fit is neither decoded nor set aside."""

from __future__ import annotations

import io
import math
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from gfo.engine.data import memory
from gfo.engine.data.files import PictureFiles
from gfo.engine.data.memory import available, memory_of, room_for
from gfo.engine.data.pillow import PillowSource
from gfo.export.errors import Unreachable
from gfo.export.preprocessing import Preprocessing

PREPROCESSING = Preprocessing(16, 18)
GB = 10**9
# 13,377 x 13,377 pixels of one colour, which a decoder turns into 2.9 GB.
BOMB = bytes.fromhex("524946461e000000574542505650384c110000002f4034100d07508f2217a5ff8188e87f0000")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine that says what the test writes: `proc/` and `cgroup/` in this folder."""
    monkeypatch.setattr(memory, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "_SMALL", 0)
    (tmp_path / "proc" / "self").mkdir(parents=True)
    memory._limits.cache_clear()
    yield tmp_path
    memory._limits.cache_clear()


def write(machine: Path, **files: str) -> None:
    for name, text in files.items():
        path = machine / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_what_the_machine_has(machine: Path) -> None:
    assert available() == math.inf
    write(machine, proc__meminfo="MemTotal: 9 kB\nMemFree: 1 kB\nMemAvailable:   5000 kB\n")
    assert available() == 5_120_000


def test_what_control_groups_leave(machine: Path) -> None:
    write(machine, proc__self__cgroup="0::/batch/job\n", cgroup__memory_DOT_max="max\n")
    write(machine, cgroup__batch__job__memory_DOT_max="max", cgroup__batch__memory_DOT_max="9000\n")
    write(machine, cgroup__batch__memory_DOT_current="8000\n")
    write(machine, cgroup__batch__memory_DOT_stat="anon 7000\nactive_file 200\ninactive_file 300\n")
    assert available() == 9000 - 8000 + 500


def test_what_control_groups_of_the_first_version_leave_in_a_container(machine: Path) -> None:
    write(machine, proc__self__cgroup="5:cpu,memory:/of/the/host\n3:pids:/a:b\n")
    top = machine / "cgroup" / "cpu,memory"
    top.mkdir(parents=True)
    (top / "memory.limit_in_bytes").write_text("9000")
    (top / "memory.usage_in_bytes").write_text("8000")
    assert available() == 1000
    memory._limits.cache_clear()
    (top / "memory.limit_in_bytes").write_text("9223372036854771712")
    assert available() == math.inf


def test_what_the_limit_of_the_process_leaves() -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    try:
        resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), before[1]))
        assert available() <= 1 << 30
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_large_pictures_wait_for_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 3 * GB)
    at_once, most, lock = 0, 0, threading.Lock()
    together = threading.Barrier(3, timeout=30)

    def decode() -> None:
        nonlocal at_once, most
        with room_for(GB, "a picture"):
            with lock:
                at_once += 1
                most = max(most, at_once)
            together.wait()  # until three are inside
            with lock:
                at_once -= 1

    threads = [threading.Thread(target=decode) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 3
    with (
        pytest.raises(MemoryError, match=r"a picture take 3\.1 GB to decode, 3\.0 GB are free"),
        room_for(31 * GB // 10, "a picture"),
    ):
        pass
    with room_for(3 * GB, "a picture"):  # what the others had is given back
        pass


def test_small_pictures_do_not_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: -1)
    with room_for(1 << 20, "a picture"):
        pass


@pytest.mark.parametrize(
    ("format_", "each"), [("JPEG", 12), ("PNG", 12), ("WEBP", 24), ("JPEG2000", 26), ("AVIF", 24), ("PPM", 18)]
)
def test_bytes_for_a_pixel_by_format(format_: str, each: int) -> None:
    file = io.BytesIO()
    Image.new("RGB", (400, 300)).save(file, format_)
    assert memory_of(Image.open(file), PREPROCESSING) == 400 * 300 * each


def test_what_is_resized_counts() -> None:
    file = io.BytesIO()
    Image.new("RGB", (2, 2000)).save(file, "PNG")
    assert memory_of(Image.open(file), PREPROCESSING) == 4 * (2 * 2000 + 18 * 2000 + 18 * 18000)


def read(root: Path, name: str) -> dict[int, str]:
    source = PillowSource(PictureFiles(root), PREPROCESSING, 1, torch.device("cpu"))
    (block,) = source.blocks([name], 1)
    return block.quarantined


def test_a_picture_that_does_not_fit_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bomb.webp").write_bytes(BOMB)
    Image.new("RGB", (13377, 1)).save(tmp_path / "wide.png")
    monkeypatch.setattr(memory, "available", lambda: 2 * GB)
    said = r"bomb\.webp: cannot be read now \(MemoryError: 13377 x 13377 pixels of WEBP take 4\.3 GB to decode, 2\.0 GB"
    with pytest.raises(Unreachable, match=said):
        read(tmp_path, "bomb.webp")
    assert read(tmp_path, "wide.png") == {}


def test_a_decoder_that_fails_for_lack_of_memory_has_found_no_broken_picture(
    own_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_: object) -> None:
        raise OSError("broken data stream when reading image file")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", failing)
    assert read(own_data, "val/bee/0.jpg") == {0: "OSError: broken data stream when reading image file"}
    monkeypatch.setattr("gfo.engine.data.pillow.available", lambda: 20_000)
    with pytest.raises(Unreachable, match=r"50 x 39 pixels of JPEG may be broken, or too large for the memory"):
        read(own_data, "val/bee/0.jpg")
