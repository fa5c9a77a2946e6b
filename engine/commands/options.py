"""Options that mean the same in every command, in groups: a group is a heading of `--help` and parses into a spec."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, get_type_hints

import typer

from ...export.errors import InputError
from ...export.models import model_forms
from ...export.options import key_values
from ..data import LOADERS
from ..engines import ENGINES

if TYPE_CHECKING:
    from ...export.models.spec import ModelSpec
    from ..cluster.spec import ClusterSpec
    from ..data.spec import DataSpec, Split
    from ..engines.choice import EngineChoice
    from ..progress import Progress

MODEL_HELP = f"{model_forms()}."
Model = Annotated[str, typer.Option(help=MODEL_HELP)]
Weights = Annotated[
    str,
    typer.Option(help="default, a torchvision name such as IMAGENET1K_V1, random, or a .safetensors/.pth state dict."),
]
WeightsKey = Annotated[
    str | None,
    typer.Option(help="Entry of a .pth file that holds the weights, as ema; its state_dict or model if not given."),
]
InputSize = Annotated[
    int | None, typer.Option(help="Input size in pixels; the short side follows the model's own crop ratio.")
]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of everything that is drawn.")]
Impl = Annotated[
    str, typer.Option(help="Fused operations: auto (Triton on CUDA, the reference elsewhere), reference or triton.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Channels = Annotated[str | None, typer.Option(help="Three numbers for values in 0..1, as 0.485,0.456,0.406.")]
ClassMap = Annotated[
    Path | None, typer.Option(help="JSON {folder: model output}; otherwise DATA/classes.json, otherwise WordNet ids.")
]
LogJson = Annotated[
    Path | None,
    typer.Option(help="Append events to this file, a line of JSON each: start, block, quarantine, worker lost, end."),
]
FittedPictures = Annotated[
    int | None, typer.Option(help="Pictures of each class to fit, a seeded draw; all if not given.")
]


class Group:
    """A group of options: a dataclass whose fields are annotated for typer."""

    panel: ClassVar[str]
    """Heading of the group in `--help`."""


@dataclass(frozen=True)
class ModelOptions(Group):
    """Options that name a model, its weights and its preprocessing."""

    panel: ClassVar[str] = "Model"
    model: Model
    weights: Weights = "default"
    weights_key: WeightsKey = None
    input_size: InputSize = None
    resize: Annotated[int | None, typer.Option(help="Short side in pixels before the centre crop.")] = None
    interpolation: Annotated[str | None, typer.Option(help="bilinear or bicubic.")] = None
    mean: Channels = None
    std: Channels = None

    def spec(self, seed: int) -> ModelSpec:
        """Return the model, as functions take it."""
        from ...export.models.spec import ModelSpec

        return ModelSpec(
            self.model,
            self.weights,
            self.input_size,
            self.resize,
            self.interpolation,
            _three("--mean", self.mean),
            _three("--std", self.std),
            seed,
            self.weights_key,
        )


@dataclass(frozen=True)
class DataOptions(Group):
    """Options that name pictures and how they are read."""

    panel: ClassVar[str] = "Data"
    data: Annotated[Path, typer.Option(help="Folder that holds train/<class>/* or val/<class>/*, or WebDataset files.")]
    classes: Annotated[
        str | None, typer.Option(help="Folder names A,B,…, all or random:N; the bank's own classes for an evaluation.")
    ] = None
    class_map: ClassMap = None
    loader: Annotated[
        str, typer.Option(help=f"{LOADERS.listed('auto')}; auto is DALI for pictures on a GPU, otherwise Pillow.")
    ] = "auto"
    decoded_cache: Annotated[
        bool, typer.Option("--decoded-cache", help="Keep decoded pictures under GFO_CACHE and read them from there.")
    ] = False
    workers: Annotated[int | None, typer.Option(help="Decoding threads; one per core if not given.")] = None

    def spec(self, split: Split | str) -> DataSpec:
        """Return the data, as functions take it."""
        from ..data.spec import DataSpec

        values = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(DataOptions) if field.name != "data"
        }
        return DataSpec(self.data, split, **values)  # type: ignore[arg-type] (checked by DataSpec)


@dataclass(frozen=True)
class EngineOptions(Group):
    """Options that choose an engine."""

    panel: ClassVar[str] = "Engine"
    engine: Annotated[str, typer.Option(help=f"{ENGINES.listed('auto')}.")] = "auto"
    precision: Annotated[
        str | None, typer.Option(help="fp32, bf16 or fp16; that of the artefact (int8, too), or fp32, if not given.")
    ] = None
    device: Device = "auto"
    batch_size: Annotated[
        int | None, typer.Option(help="Maximum number of pairs in a pass through the network; measured if not given.")
    ] = None
    engine_option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="An option of the engine; repeatable. gfo-doctor lists them."),
    ] = None
    impl: Impl = "auto"
    provider: Annotated[str, typer.Option(help="onnxruntime: auto, cpu, cuda or tensorrt.")] = "auto"
    compiled: Annotated[bool, typer.Option("--compiled", help="torch: compile the network first.")] = False

    def choice(self) -> EngineChoice:
        """Return the engine, as functions take it; `--impl`, `--provider` and `--compiled` are shorthands."""
        from ..engines.choice import EngineChoice

        given: dict[str, Any] = key_values("--engine-option", self.engine_option or ())
        shorthands = {"impl": self.impl, "provider": self.provider, "compiled": self.compiled}
        for name, value in shorthands.items():
            if value in ("auto", False):
                continue
            if name in given:
                raise InputError(f"--{name}, --engine-option {name}={given[name]}: name the same option; drop one")
            given[name] = value
        return EngineChoice(self.engine, self.precision, self.device, given, self.batch_size)


@dataclass(frozen=True)
class ClusterOptions(Group):
    """Options that choose a Dask cluster."""

    panel: ClassVar[str] = "Cluster"
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="local:N|local|ADDRESS|slurm:N",
            help="Dask cluster: N processes here, one for each GPU here, a scheduler's tcp://host:8786, or N jobs of a "
            "queue.",
        ),
    ] = None
    cluster_config: Annotated[
        Path | None, typer.Option(help="Dask's own YAML for it; for a queue, its jobqueue: section describes a job.")
    ] = None

    def spec(self) -> ClusterSpec | None:
        """Return the cluster, as functions take it; None for this process."""
        from ..cluster.spec import ClusterSpec

        if self.cluster is not None:
            return ClusterSpec(self.cluster, self.cluster_config)
        if self.cluster_config is not None:
            raise InputError(f"--cluster-config {self.cluster_config}: nothing reads it; add --cluster")
        return None


@contextlib.contextmanager
def progress(command: str, log: Path | None) -> Iterator[Progress]:
    """Show progress in the terminal, and note what happens in `--log-json`, for a `with` block."""
    from ..progress import TerminalProgress

    shown = TerminalProgress()
    if log is None:
        yield shown
        return
    from ..events import logged

    with logged(shown, log, command) as noted:
        yield noted


def command(app: typer.Typer) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as the command of `app`; a parameter annotated with a `Group` becomes the group's options.

    Other parameters are options of their own. All of them are passed by name.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(function, include_extras=True)
        groups = {name: kind for name, kind in hints.items() if isinstance(kind, type) and issubclass(kind, Group)}
        parameters: list[inspect.Parameter] = []
        for name, parameter in inspect.signature(function).parameters.items():
            if name in groups:
                parameters += options_of(groups[name])
            else:
                parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name]))

        def called(**values: Any) -> None:
            for name, group in groups.items():
                values[name] = group(**{field.name: values.pop(field.name) for field in dataclasses.fields(group)})  # type: ignore[arg-type]
            function(**values)

        called.__doc__ = function.__doc__
        app.command()(with_signature(called, parameters))
        return function

    return register


def with_signature(call: Callable[..., None], signature: Sequence[inspect.Parameter]) -> Callable[..., None]:
    """Give a function that takes keywords the parameters that typer reads."""
    typed: Any = call
    typed.__signature__ = inspect.Signature(signature)
    typed.__annotations__ = {one.name: one.annotation for one in signature}
    return call


def options_of(options: type[Any]) -> list[inspect.Parameter]:
    """Return the fields of a dataclass as keyword parameters that typer reads.

    A field without a heading of its own is under the `panel` of the class that defines it.
    """
    hints, parameters = get_type_hints(options, include_extras=True), list[inspect.Parameter]()
    for field in dataclasses.fields(options):
        kind, *metadata = (hints[field.name].__origin__, *hints[field.name].__metadata__)
        info = copy.copy(metadata[0])
        if info.rich_help_panel is None:
            owner = next(one for one in options.__mro__ if field.name in inspect.get_annotations(one))
            info.rich_help_panel = owner.panel
        default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
        parameters.append(
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info]
            )
        )
    return parameters


def new_app() -> typer.Typer:
    """Return a typer application with the settings of every command."""
    return typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)


def _three(option: str, text: str | None) -> tuple[float, float, float] | None:
    if text is None:
        return None
    try:
        red, green, blue = (float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"{option} {text}: expected three numbers separated by commas") from error
    return red, green, blue
