"""The cache is believed only where nobody else could have put something into it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from gfo.export.cache import cache_dir
from gfo.export.errors import InputError

Foreign = Callable[[Path], None]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this user with `graphs/key`."""
    monkeypatch.setenv("GFO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "graphs" / "key").mkdir(parents=True)
    for folder in (tmp_path / "cache", tmp_path / "cache" / "graphs", tmp_path / "cache" / "graphs" / "key"):
        folder.chmod(0o755)
    return tmp_path / "cache"


@pytest.fixture
def foreign() -> Foreign:
    """Give a file or a link to another user."""
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    return lambda path: os.lchown(path, 12345, -1)


def test_a_cache_of_ones_own_is_believed(cache: Path) -> None:
    assert cache_dir() == cache
    assert cache_dir("graphs", "key") == cache / "graphs" / "key"
    assert cache_dir("graphs", "another", "deeper") == cache / "graphs" / "another" / "deeper"
    cache.chmod(0o775)  # the group's: often the user is alone in it
    assert cache_dir("graphs") == cache / "graphs"


@pytest.mark.parametrize("name", ["cache", "cache/graphs", "cache/graphs/key"])
def test_a_folder_of_another_user_is_refused(cache: Path, foreign: Foreign, name: str) -> None:
    foreign(cache.parent / name)
    with pytest.raises(InputError, match=rf"{name}: the cache belongs to another user \(number 12345\).*set GFO_CACHE"):
        cache_dir("graphs", "key")


def test_a_folder_of_another_user_is_refused_by_whoever_is_not_root(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    if cache.stat().st_uid == 0:  # who could do anything, anyway
        assert cache_dir("graphs") == cache / "graphs"
    else:
        with pytest.raises(InputError, match="the cache belongs to another user"):
            cache_dir("graphs")


@pytest.mark.parametrize("name", ["cache", "cache/graphs", "cache/graphs/key"])
def test_a_folder_that_everybody_may_write_into_is_refused(cache: Path, name: str) -> None:
    (cache.parent / name).chmod(0o777)
    with pytest.raises(InputError, match=rf"{name}: everybody may write into the cache.*chmod -R o-w"):
        cache_dir("graphs", "key")


def test_in_a_folder_like_tmp_each_place_is_looked_at(cache: Path, foreign: Foreign) -> None:
    cache.chmod(0o1777)
    assert cache_dir("graphs", "key") == cache / "graphs" / "key"
    (cache / "graphs").chmod(0o1777)
    with pytest.raises(InputError, match=r"cache/graphs: everybody may write"):
        cache_dir("graphs", "key")
    foreign(cache / "graphs")
    with pytest.raises(InputError, match=r"cache/graphs: the cache belongs to another user"):
        cache_dir("graphs", "key")


def test_a_link_is_followed_if_it_and_what_it_leads_to_are_ones_own(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(cache)
    monkeypatch.setenv("GFO_CACHE", str(tmp_path / "link"))
    assert cache_dir("graphs") == tmp_path / "link" / "graphs"
    cache.chmod(0o777)
    with pytest.raises(InputError, match="everybody may write"):
        cache_dir("graphs")


@pytest.mark.parametrize("name", ["link", "cache"])
def test_a_link_of_or_to_another_user_is_refused(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, foreign: Foreign, name: str
) -> None:
    (tmp_path / "link").symlink_to(cache)
    foreign(tmp_path / name)
    monkeypatch.setenv("GFO_CACHE", str(tmp_path / "link"))
    with pytest.raises(InputError, match="link: the cache belongs to another user"):
        cache_dir("graphs")


def test_what_is_not_there_is_made_by_whoever_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GFO_CACHE", str(tmp_path / "new"))
    assert cache_dir("graphs") == tmp_path / "new" / "graphs"
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    monkeypatch.setenv("GFO_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"file/graphs: the cache cannot be read \(Not a directory\)"):
        cache_dir("graphs")


def test_without_a_home_there_is_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GFO_CACHE", "~nobody-of-this-name/cache")
    with pytest.raises(InputError, match="has no home folder here; set GFO_CACHE"):
        cache_dir()
