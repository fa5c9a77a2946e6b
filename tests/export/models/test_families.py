"""Model families: the table, its help text, and a family that another package adds."""

from __future__ import annotations

import subprocess
import sys

import pytest
from torch import nn

from gfo.export.classifier import load_classifier
from gfo.export.errors import InputError
from gfo.export.models import FAMILIES, model_forms
from gfo.export.models.base import Family, Loaded
from gfo.export.models.spec import ModelSpec
from gfo.export.preprocessing import Preprocessing


class Pooled(Family):
    """A family of another package: the mean of each colour, `pooled/<anything>`."""

    forms = ("pooled/<anything>",)
    library = "torch"

    def load(self, name: str, spec: ModelSpec) -> Loaded:
        return Loaded(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), Preprocessing(8, 9), "took a", 0.5)

    def weights_name(self, name: str, spec: ModelSpec) -> str:
        return f"none of {name}"


def test_help_lists_every_form() -> None:
    known = "torchvision/<name>, timm/<name>, gfo/digits-resnet, gfo/digits-vgg or python:module:function"
    assert model_forms() == known
    with FAMILIES.added("pooled", "no_such_module:Nothing"):  # is not imported for a help text
        assert model_forms() == f"{known.replace(' or ', ', ')} or pooled/<name>"


def test_another_package_adds_a_family() -> None:
    with FAMILIES.added("pooled", f"{__name__}:Pooled"):
        made = load_classifier(ModelSpec("pooled/x", input_size=16))
    assert (made.model, made.weights, made.num_classes) == ("pooled/x", "none of x", 3)
    assert (made.doubt, made.accuracy) == ("took a", 0.5)
    assert made.origin.startswith("torch ")
    assert made.preprocessing == Preprocessing(16, 18)
    with pytest.raises(InputError, match="--model pooled/x: not a model; use torchvision/<name>"):
        load_classifier(ModelSpec("pooled/x"))


@pytest.mark.parametrize("model", ["python/module:function", "torchvision:resnet18", "gfo/", "/x", ""])
def test_each_family_has_its_separator(model: str) -> None:
    with pytest.raises(InputError, match="not a model; use torchvision/<name>"):
        load_classifier(ModelSpec(model))


def test_a_help_text_loads_nothing_heavy() -> None:
    code = "import sys; from gfo.export.models import model_forms; model_forms(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
