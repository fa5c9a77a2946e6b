"""What the commands share: options that mean the same everywhere, and errors as one line with an exit code."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from ...export.errors import EngineUnavailable, InputError

if TYPE_CHECKING:
    from ...export.models.spec import ModelSpec

BAD_INPUT, UNAVAILABLE, INTERRUPTED = 2, 3, 130

MODEL_HELP = "torchvision/<name>, timm/<name>, gfo/digits-resnet, gfo/digits-vgg or python:module:function."
Model = Annotated[str, typer.Option(help=MODEL_HELP)]
Weights = Annotated[
    str,
    typer.Option(help="default, a torchvision name such as IMAGENET1K_V1, random, or a .safetensors/.pth state dict."),
]
Data = Annotated[Path, typer.Option(help="Folder that holds train/<class>/* or val/<class>/*.")]
ClassMap = Annotated[
    Path | None, typer.Option(help="JSON {folder: model output}; else DATA/classes.json, else WordNet ids.")
]
InputSize = Annotated[int | None, typer.Option(help="Pixels; the short side is resized in the model's own crop ratio.")]
Resize = Annotated[int | None, typer.Option(help="Short side in pixels before the centre crop.")]
Interpolation = Annotated[str | None, typer.Option(help="bilinear or bicubic.")]
Channels = Annotated[str | None, typer.Option(help="Three numbers for values in 0..1, as 0.485,0.456,0.406.")]
Precision = Annotated[str, typer.Option(help="fp32, bf16 or fp16.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Loader = Annotated[str, typer.Option(help="auto (DALI where the pictures go to a GPU, else Pillow), dali or pillow.")]
DecodedCache = Annotated[
    bool, typer.Option("--decoded-cache", help="Keep decoded pictures under GFO_CACHE and read them from there.")
]
Impl = Annotated[
    str, typer.Option(help="Fused operations: auto (Triton on CUDA, else reference), reference or triton.")
]
BatchSize = Annotated[int, typer.Option(help="Pairs in a pass through the network, at most.")]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of everything that is drawn.")]


def model_spec(
    model: str,
    weights: str,
    input_size: int | None,
    resize: int | None,
    interpolation: str | None,
    mean: str | None,
    std: str | None,
    seed: int,
) -> ModelSpec:
    """The options that name a model, as one object."""
    from ...export.models.spec import ModelSpec

    return ModelSpec(
        model, weights, input_size, resize, interpolation, _three("--mean", mean), _three("--std", std), seed
    )


def _three(option: str, text: str | None) -> tuple[float, float, float] | None:
    if text is None:
        return None
    try:
        red, green, blue = (float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"{option} {text}: expected three numbers separated by commas") from error
    return red, green, blue


def run(app: typer.Typer, name: str, *, resumes: bool = True) -> None:
    """Run a command and leave with its exit code: 0, 2 bad input, 3 engine unavailable, 130 interrupted, or its own.

    `resumes`: whether the same command goes on where an interrupted one stopped, to say so.

    Bad input is one line on standard error, without a traceback. A defect keeps its traceback and exits with 1.
    """
    try:
        code = app(prog_name=name, standalone_mode=False)
    except (InputError, EngineUnavailable) as error:
        _leave(name, str(error), UNAVAILABLE if isinstance(error, EngineUnavailable) else BAD_INPUT)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except OSError as error:
        where = error.filename or "input or output"
        _leave(
            name, f"{where}: {error.strerror or error}; check the path, its permissions and the free space", BAD_INPUT
        )
    except Exception as error:
        # typer's usage errors: they carry their exit code and a message, and their class is not public.
        if not hasattr(error, "format_message"):
            raise
        _leave(name, f"{_usage(error)} (see {name} --help)", BAD_INPUT)
    if code == INTERRUPTED:  # typer itself turns Ctrl-C into this code, without a word
        kept = "what is finished is kept, the same command resumes" if resumes else "nothing is kept"
        _leave(name, f"interrupted; {kept}", INTERRUPTED)
    sys.exit(code if isinstance(code, int) else 0)


def _usage(error: Any) -> str:
    """typer's message, and the value, which it leaves out where pydantic has checked it."""
    checked = getattr(error.__cause__, "errors", None)
    return str(error.format_message()) + (f", got {checked()[0]['input']!r}" if checked else "")


def _leave(name: str, message: str, code: int) -> NoReturn:
    print(f"{name}: {' '.join(message.split())}", file=sys.stderr)
    sys.stderr.flush()
    if code == INTERRUPTED:
        os._exit(code)  # decoding threads would be waited for
    sys.exit(code)
