"""The demo's networks and where their weights are cached."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from gfo.export.cache import cache_dir
from gfo.export.models.digits_networks import DIGITS_NETWORKS
from gfo.export.models.digits_recipe import DIGITS_RECIPES, digits_weights_path


@pytest.mark.parametrize("name", DIGITS_NETWORKS)
def test_network_gives_ten_logits_and_has_batchnorm(name: str):
    network = DIGITS_NETWORKS[name]().eval()
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert any(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def test_families_differ():
    resnet, vgg = (DIGITS_NETWORKS[name]().eval() for name in ("digits-resnet", "digits-vgg"))
    assert not any(isinstance(module, nn.MaxPool2d) for module in resnet.modules())
    assert sum(isinstance(module, nn.MaxPool2d) for module in vgg.modules()) == 3


def test_every_network_has_a_recipe():
    assert set(DIGITS_NETWORKS) == set(DIGITS_RECIPES)


def test_weights_path_follows_the_recipe(monkeypatch: pytest.MonkeyPatch):
    before = digits_weights_path("digits-vgg")
    assert digits_weights_path("digits-vgg") == before
    recipe = dataclasses.replace(DIGITS_RECIPES["digits-vgg"], seed=1)
    monkeypatch.setitem(DIGITS_RECIPES, "digits-vgg", recipe)
    assert digits_weights_path("digits-vgg") != before


def test_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("GFO_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    assert digits_weights_path("digits-vgg").is_relative_to(tmp_path)
    for unset in ("", None):
        monkeypatch.delenv("GFO_CACHE") if unset is None else monkeypatch.setenv("GFO_CACHE", unset)
        assert cache_dir() == Path.home() / ".cache" / "gfo"
