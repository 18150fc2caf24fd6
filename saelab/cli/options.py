"""Options and arguments that commands share, the objects that they stand for, and configurations in JSON."""

import ast
import inspect
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import torch
import typer

import saelab
from saelab.errors import InputError
from saelab.files.tensor_files import write_atomically
from saelab.sae.base import ARCHITECTURES, Preset

Dtype = Literal["float32", "float16", "bfloat16"]
KNOBS = {name: knob for cls in ARCHITECTURES.values() for name, knob in cls.knobs().items()}
"""Every knob of every architecture by name; the learning rate is a field of `TrainingConfig`."""
SWEPT = {cls.sparsity_knob.name for cls in ARCHITECTURES.values() if cls.sparsity_knob}
"""Names of the knobs that a sweep varies."""
if TYPE_CHECKING:
    Architecture = str
else:
    Architecture = Literal[tuple(ARCHITECTURES)]
ABLATIONS = tuple(name for cls in ARCHITECTURES.values() for name in cls.ablation_labels)


# Configurations: a command's options and arguments as JSON, under their command-line names in snake_case.


def config_fields(context: typer.Context) -> dict[str, str]:
    """Map each field that a configuration may hold to the name of the command's parameter."""
    kept = [param for param in context.command.params if param.name not in ("config", "resume", "as_json")]
    return {param.opts[0].lstrip("-").replace("-", "_"): str(param.name) for param in kept}


def given_fields(context: typer.Context) -> dict[str, Any]:
    """Values of the fields that the user set, on the command line or in a configuration; all others have defaults."""
    sources = {field: context.get_parameter_source(name) for field, name in config_fields(context).items()}
    given = [field for field, source in sources.items() if source is not None and source.name != "DEFAULT"]
    return {field: context.params[config_fields(context)[field]] for field in given}


def read_configuration(context: typer.Context, path: Path | None) -> Path | None:
    """Make the values of a configuration the defaults of the options that the command line does not set."""
    if path is None:
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise typer.BadParameter(f"{path} must hold one JSON object, not a {type(found).__name__}")
    version = found.pop("saelab_version", saelab.__version__)
    if version != saelab.__version__:
        typer.echo(f"Note: {path} is by saelab {version}; this is {saelab.__version__}.", err=True)
    fields = config_fields(context)
    if unknown := found.keys() - fields.keys():
        raise typer.BadParameter(
            f"{path} has unknown field(s) {', '.join(sorted(unknown))}; known: {', '.join(fields)}"
        )
    context.default_map = {fields[field]: value for field, value in found.items() if value is not None}
    return path


def write_configuration(context: typer.Context, folder: Path, **instead: Any) -> Path:
    """Write a configuration that repeats this command to ``folder``; values of ``instead`` replace the command's."""
    values = {field: context.params[name] for field, name in config_fields(context).items()}
    text = json.dumps({"saelab_version": saelab.__version__, **values, **instead}, indent=1, default=str)
    return write_atomically(
        folder / f"saelab-{context.info_name}.json", lambda path: path.write_text(text + "\n", encoding="utf-8")
    )


# Options and arguments.

StoreArgument = Annotated[Path, typer.Argument(metavar="STORE", help="Folder of activations, made by saelab harvest.")]
SAEArgument = Annotated[
    Path,
    typer.Argument(
        metavar="SAE",
        help="File of an SAE, folder of a run, or folder written by SAELens or dictionary_learning.",
    ),
]


def each_of(choices: Sequence[str]) -> Callable[[list[str] | None], list[str] | None]:
    """Make a callback that checks a repeatable option, since typer has no type for a list of choices."""

    def check(values: list[str] | None) -> list[str] | None:
        for value in values or ():
            if value not in choices:
                raise typer.BadParameter(f"{value!r} is not one of {', '.join(choices)}.")
        return values

    return check


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        is_eager=True,
        callback=read_configuration,
        help="JSON file of options and arguments by name (n_tokens, not --n-tokens), such as the one that this command "
        "leaves in its folder. Options on the command line take precedence.",
    ),
]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, ...; auto takes a GPU if there is one.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")]
HookOption = Annotated[str | None, typer.Option(help="Hook whose activations to use, if the store holds several.")]
DSaeOption = Annotated[int, typer.Option(min=1, help="Number of features.")]
PresetOption = Annotated[
    Preset,
    typer.Option(
        help="paper: unit-norm decoder rows, plain L1; norm_weighted: free decoder rows, L1 weighted by their norms."
    ),
]
AblationOption = Annotated[
    list[str] | None,
    typer.Option(
        callback=each_of(ABLATIONS),
        help=f"Ablation of a gated SAE in preset paper: {', '.join(ABLATIONS)}. May be repeated.",
    ),
]


def training_fields() -> Iterator[tuple[str, Any, Any, str]]:
    """Yield name, type, default and meaning (the docstring below it) of each field of `TrainingConfig`."""
    [source] = ast.parse(inspect.getsource(saelab.TrainingConfig)).body
    assert isinstance(source, ast.ClassDef)
    meanings = {
        ast.unparse(field.target): " ".join(ast.literal_eval(docstring.value).replace("`", "").split())
        for field, docstring in pairwise(source.body)
        if isinstance(field, ast.AnnAssign) and isinstance(docstring, ast.Expr)
    }
    types = get_type_hints(saelab.TrainingConfig)
    for field in fields(saelab.TrainingConfig):
        yield field.name, types[field.name], field.default, meanings[field.name]


def with_training_options(*, sweeps: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace a command's ``**training`` by an option for each field of `TrainingConfig` and each knob.

    A command that ``sweeps`` takes several values of the knobs in `SWEPT`.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command)
        options = []

        def add(name: str, annotation: Any, option: Any) -> None:
            kind = inspect.Parameter.KEYWORD_ONLY
            options.append(inspect.Parameter(name, kind, default=option, annotation=annotation))

        for name, annotation, default, meaning in training_fields():
            if name == "seed":
                meaning += " It seeds the SAE's initial weights too."
            add(name, annotation, typer.Option(default, help=meaning))
        for name, knob in KNOBS.items():
            number: Any = int if knob.is_whole else float
            of = ", ".join(cls.label for cls in ARCHITECTURES.values() if name in cls.knobs())
            least = {"min": number(knob.minimum)} if math.isfinite(knob.minimum) else {}
            if sweeps and name in SWEPT:
                add(name, list[number], typer.Option([], help=f"{knob.meaning} ({of}) May be repeated.", **least))
            else:
                shown = f"{knob.default:g}"
                add(name, number | None, typer.Option(None, help=f"{knob.meaning} ({of})", show_default=shown, **least))
        kept = [parameter for parameter in own.parameters.values() if parameter.kind != parameter.VAR_KEYWORD]
        command.__signature__ = own.replace(parameters=[*kept, *options])  # type: ignore[attr-defined]
        return command

    return decorate


# The objects that options stand for.


def find_device(name: str) -> torch.device | None:
    """Return the device of this name, or None for ``auto``.

    Raises
    ------
    InputError
        This machine has no such device.
    """
    if name == "auto":
        return None
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch raises either for a missing device
        raise InputError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error


def split_training(training: Mapping[str, Any]) -> tuple[saelab.TrainingConfig, dict[str, Any]]:
    """The values of `with_training_options` as a configuration, and the knobs that are set."""
    knobs = {name: training[name] for name in KNOBS if training[name] not in (None, [])}
    return saelab.TrainingConfig(**{name: training[name] for name in training.keys() - KNOBS.keys()}), knobs


def new_sae(
    architecture: str, d_in: int, d_sae: int, preset: Preset, ablations: Sequence[str], **rest: Any
) -> "saelab.SparseAutoencoder":
    """Make an SAE to train from scratch."""
    cls = ARCHITECTURES[architecture]
    if ablations and not cls.ablation_labels:
        raise InputError(f"ablations are those of the gated SAE; a {cls.label} one takes none")
    if ablations:
        rest["ablations"] = ablations
    return cls(d_in, d_sae, preset=preset, **rest)
