"""The command line: `saelab lab` opens the tutorials, and the others do what the library does, for scripts too.

With ``--json`` a command writes one JSON document to stdout, and everything else to stderr. Exit codes: 0, done; 1, an
error whose sentence is on stderr; 2, wrong usage; 130, interrupted (143, told to terminate).
"""

import ast
import importlib.metadata
import importlib.util
import inspect
import json
import math
import os
import shlex
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, redirect_stdout
from dataclasses import asdict, fields
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_type_hints

import torch
import typer
from typer.core import TyperGroup

import saelab
from saelab.course import grading
from saelab.data.shards import INDEX, read_index
from saelab.files.other_libraries import Format
from saelab.files.tensor_files import write_atomically
from saelab.sae.base import Preset
from saelab.sae.gated import Ablation
from saelab.training.checkpoints import CHECKPOINT

if TYPE_CHECKING:
    from accelerate import Accelerator

FIRST_TUTORIAL = "00_start_here.ipynb"
JUPYTER_DEFAULTS = Path(__file__).parents[1] / "assets" / "jupyter"
DEFAULT_TEXT = "reviews-4l"
DEFAULT_N_TEXTS = 128

Dtype = Literal["float32", "float16", "bfloat16"]
Architecture = Literal["gated", "standard"]
"""Those that are trained from scratch."""


class _Commands(TyperGroup):
    """Commands whose foreseen errors come as their sentence, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            if not _is_foreseen(error):
                raise
            typer.echo(f"Error: {error}", err=True)
            raise typer.Exit(1) from error


def _is_foreseen(error: Exception) -> bool:
    """Whether its message was written for users: by the operating system or an import, or by saelab itself."""
    if isinstance(error, OSError | ImportError):
        return not isinstance(error, BrokenPipeError)
    if not isinstance(error, TypeError | ValueError | saelab.NonFiniteLossError):
        return False
    where = traceback.extract_tb(error.__traceback__)[-1]
    # Not raised but come upon, or in another package, the same types are bugs.
    return Path(where.filename).is_relative_to(Path(__file__).parents[1]) and (where.line or "").startswith("raise ")


app = typer.Typer(
    help="Train, measure and teach sparse autoencoders.",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # in 80 columns its boxes cut the names of options, and break sentences of errors
    pretty_exceptions_enable=False,
)


@app.callback()
def main() -> None:
    """SAELab: sparse autoencoders, live."""


def packaged_tutorials() -> Path:
    """Where installation put the tutorials: beside the environment's other shared data."""
    files = importlib.metadata.files("saelab") or []
    return next(Path(str(file.locate())).resolve().parent for file in files if file.name == FIRST_TUTORIAL)


def _tutorials_here() -> Path | None:
    """Those of the clone that we stand in."""
    here = Path("tutorials")
    return here if (here / FIRST_TUTORIAL).exists() else None


def original_tutorials() -> Path:
    """The tutorials as they are meant: those of the clone we stand in, else the package's own."""
    return _tutorials_here() or packaged_tutorials()


def tutorials_folder() -> Path:
    """The tutorials to open: those of the clone we stand in, else a copy of the package's own that may be edited."""
    if (here := _tutorials_here()) is not None:
        return here
    copy = Path("saelab-tutorials")
    if not copy.exists():
        shutil.copytree(packaged_tutorials(), copy)
        typer.echo(f"The tutorials are in {copy.resolve()}; what you change there stays.")
    return copy


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def lab(context: typer.Context) -> None:
    """Open JupyterLab on the tutorials. Further options go to JupyterLab: saelab lab --no-browser --port 9999."""
    if importlib.util.find_spec("jupyterlab") is None:
        typer.echo('JupyterLab is not installed; run: pip install "saelab[lab]"', err=True)
        raise typer.Exit(1)
    folder = tutorials_folder()
    options = [f"--ServerApp.root_dir={folder.resolve()}", f"--LabApp.default_url=/lab/tree/{FIRST_TUTORIAL}"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options.append("--allow-root")
    # Our defaults, below the user's own settings: no question about news that covers the first notebook.
    os.environ["JUPYTER_CONFIG_PATH"] = os.pathsep.join(
        filter(None, [os.environ.get("JUPYTER_CONFIG_PATH"), str(JUPYTER_DEFAULTS)])
    )
    os.execv(sys.executable, [sys.executable, "-m", "jupyter", "lab", *options, *context.args])


# Configurations: a command's options and arguments as JSON, by their names on the command line in snake_case.


def _config_fields(context: typer.Context) -> dict[str, str]:
    """What a configuration may hold: the field's name, and that of the command's parameter."""
    kept = [param for param in context.command.params if param.name not in ("config", "resume", "as_json")]
    return {param.opts[0].lstrip("-").replace("-", "_"): str(param.name) for param in kept}


def _given(context: typer.Context) -> dict[str, Any]:
    """The fields that the user gave, on the command line or in a configuration; the others have their defaults."""
    sources = {field: context.get_parameter_source(name) for field, name in _config_fields(context).items()}
    given = [field for field, source in sources.items() if source is not None and source.name != "DEFAULT"]
    return {field: context.params[_config_fields(context)[field]] for field in given}


def _read_configuration(context: typer.Context, path: Path | None) -> Path | None:
    """Make the fields of a configuration the defaults of all options that are not given themselves."""
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
    fields = _config_fields(context)
    if unknown := found.keys() - fields.keys():
        raise typer.BadParameter(
            f"{path} has unknown field(s) {', '.join(sorted(unknown))}; known: {', '.join(fields)}"
        )
    context.default_map = {fields[field]: value for field, value in found.items() if value is not None}
    return path


def _write_configuration(context: typer.Context, folder: Path, **instead: Any) -> Path:
    """Write what repeats this command to ``folder``; fields as they were given or by default, or ``instead``."""
    values = {field: context.params[name] for field, name in _config_fields(context).items()}
    text = json.dumps({"saelab_version": saelab.__version__, **values, **instead}, indent=1, default=str)
    return write_atomically(folder / f"saelab-{context.info_name}.json", lambda path: path.write_text(text + "\n"))


# What several commands share.

StoreArgument = Annotated[Path, typer.Argument(metavar="STORE", help="Folder of activations that saelab harvest made.")]
SAEArgument = Annotated[
    Path,
    typer.Argument(
        metavar="SAE", help="An SAE's file, the folder of a run, or a folder of SAELens or dictionary_learning."
    ),
]


def _each_of(choices: Any) -> Callable[[list[str] | None], list[str] | None]:
    """Check an option that may be repeated: typer knows choices, but no lists of them."""

    def check(values: list[str] | None) -> list[str] | None:
        for value in values or ():
            if value not in get_args(choices):
                raise typer.BadParameter(f"{value!r} is not one of {', '.join(get_args(choices))}.")
        return values

    return check


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        is_eager=True,
        callback=_read_configuration,
        help="JSON with options and arguments by name (n_tokens, not --n-tokens), such as the file that this command "
        "leaves in its folder; what is given beside it wins.",
    ),
]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, ...; auto takes a GPU where there is one.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")]
HookOption = Annotated[str | None, typer.Option(help="Which hook's activations, of a store of several.")]
DSaeOption = Annotated[int, typer.Option(min=1, help="Number of features.")]
PresetOption = Annotated[
    Preset, typer.Option(help="Decoder rows of unit norm and plain L1, or L1 weighted by free decoder norms.")
]
AblationOption = Annotated[
    list[str] | None,
    typer.Option(
        callback=_each_of(Ablation),
        help=f"Of a gated SAE in the paper's preset: {', '.join(get_args(Ablation))}. May be repeated.",
    ),
]


def _training_fields() -> Iterator[tuple[str, Any, Any, str]]:
    """Name, type, default and meaning of each field of `TrainingConfig`; the meaning is the docstring below it."""
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


def _with_training_options(*left_out: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each field of `TrainingConfig`, in place of its ``**training``."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command)
        options = []
        for name, annotation, default, meaning in _training_fields():
            if name == "seed":
                meaning += " Of the SAE's first weights too."
            option = typer.Option(default, help=meaning)
            if name not in left_out:
                options.append(
                    inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=annotation)
                )
        kept = [parameter for parameter in own.parameters.values() if parameter.kind != parameter.VAR_KEYWORD]
        command.__signature__ = own.replace(parameters=[*kept, *options])  # type: ignore[attr-defined]
        return command

    return decorate


@contextmanager
def _working(how_to_go_on: str = "Nothing was written.") -> Iterator[None]:
    """While it works, stdout is for the result alone: what libraries print goes to stderr. Says how to go on."""
    try:
        with redirect_stdout(sys.stderr):
            yield
    except (KeyboardInterrupt, SystemExit) as stop:  # Trainer exits so when it was told to terminate
        if os.environ.get("RANK", "0") == "0":  # one of several processes speaks for all
            typer.echo(f"Stopped. {how_to_go_on}", err=True)
        raise typer.Exit(130 if isinstance(stop, KeyboardInterrupt) else int(stop.code or 0)) from stop


def _command(*words: object) -> str:
    """A command to type."""
    return shlex.join(["saelab", *map(str, words)])


def _shows_progress() -> bool:
    return sys.stderr.isatty()  # in a log, each step of a bar would be a line


def _print(as_json: bool, document: Mapping[str, Any], text: str) -> None:
    typer.echo(json.dumps(_plain(document), allow_nan=False) if as_json else text)


def _plain(value: Any) -> Any:
    """As JSON has it: no NaN, no infinity, no paths."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value


def _device(name: str) -> torch.device | None:
    """None for ``auto``. Raises where there is no such device."""
    if name == "auto":
        return None
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch has both for what this machine lacks
        raise ValueError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error


def _read_text(name: str) -> list[str]:
    """The texts of `saelab.load_text`, or of a file."""
    path = Path(name)
    if path.suffix not in (".txt", ".jsonl"):
        if path.suffix and path.is_file():
            raise ValueError(f"{path} is neither .txt (one text a line) nor .jsonl (an object with text a line)")
        return saelab.load_text(name)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with path.open(encoding="utf-8-sig") as file:
            lines = [(number, line.rstrip("\n")) for number, line in enumerate(file, start=1) if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    return [line if path.suffix == ".txt" else _text_of(line, f"{path}, line {number}") for number, line in lines]


def _text_of(line: str, where: str) -> str:
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{where}: expected a JSON object with a field "text", not {line[:60]!r}') from error
    if not isinstance(text, str):
        raise ValueError(f'{where}: its field "text" must be a string, not {text!r:.60}')
    return text


def _load_sae(path: Path, device: str = "auto") -> "saelab.SparseAutoencoder":
    run = path / CHECKPOINT
    where = _device(device) or torch.accelerator.current_accelerator() or torch.device("cpu")
    return saelab.load(run if run.is_file() else path, device=where)


def _new_sae(
    architecture: str, d_in: int, d_sae: int, preset: Preset, ablations: Sequence[Any], **rest: Any
) -> "saelab.SparseAutoencoder":
    if architecture == "gated":
        return saelab.GatedSAE(d_in, d_sae, preset=preset, ablations=ablations, **rest)
    if ablations:
        raise ValueError(f"ablations are those of the gated SAE; a {architecture} one takes none")
    return saelab.StandardSAE(d_in, d_sae, preset=preset, **rest)


@app.command()
def harvest(
    context: typer.Context,
    store: Annotated[Path, typer.Argument(metavar="STORE", help="Folder to keep the activations in.")],
    hook: Annotated[list[str], typer.Option(help="Where in the model: blocks.1.hook_resid_post, ... May be repeated.")],
    model: Annotated[
        str, typer.Option(help="reviews-4l (inside the package), a Hugging Face folder, or a name on the hub.")
    ] = "reviews-4l",
    text: Annotated[
        str, typer.Option(help="reviews-4l or imdb, a .txt with a text a line, or a .jsonl with a field text.")
    ] = DEFAULT_TEXT,
    n_tokens: Annotated[
        int | None, typer.Option(show_default="all of the text", help="Stop after so many tokens.")
    ] = None,
    context_length: Annotated[
        int | None,
        typer.Option(
            "--context",
            show_default="128, or less where the model's limit is lower",
            help="Tokens that the model sees at once, with BOS.",
        ),
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="Type that they are kept in; half the space for 16 bits.")] = "float32",
    special_tokens: Annotated[bool, typer.Option(help="Keep the activations at BOS, EOS and padding too.")] = False,
    scale_of: Annotated[
        Path | None, typer.Option(help="Take the scale of that store: for activations held out from its SAEs.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts at a time.")] = 32,
    device: DeviceOption = "auto",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a language model over text and keep what hooks see. Stopped or killed, the same command goes on."""
    with _working("The same command goes on from what is on the disk."):
        begun = (store / INDEX).exists()
        whole = begun and read_index(store)["complete"]
        scales = {name: saelab.ActivationStore.open(scale_of, name).scale for name in hook} if scale_of else None
        texts = _read_text(text)
        try:
            stores = saelab.harvest_many(
                saelab.load_language_model(model, device=_device(device)),
                hook,
                texts,
                store=store,
                n_tokens=n_tokens,
                context=context_length,
                scales=scales,
                dtype=getattr(torch, dtype),
                special_tokens=special_tokens,
                batch_size=batch_size,
                progress=_shows_progress(),
            )
        except KeyboardInterrupt:
            # Only what this very command began: it may have been stopped before it knew the folder for another's.
            if not begun and (store / INDEX).exists():
                _write_configuration(context, store)
            raise
        configuration = store / f"saelab-{context.info_name}.json"
        if not configuration.exists():
            _write_configuration(context, store)
    status = "whole already" if whole else "completed" if begun else "harvested"
    hooks = {name: {"d_in": s.d_in, "scale": s.scale} for name, s in stores.items()}
    n = len(next(iter(stores.values())))
    lines = [f"{store}: {n:,} activations, {status}"]
    lines += [f"  {name}: width {found['d_in']}, scale {found['scale']:.6g}" for name, found in hooks.items()]
    which = ["--hook", hook[0]] if len(hook) > 1 else []
    document = {"store": store, "status": status, "n_activations": n, "hooks": hooks, "config": configuration}
    _print(as_json, document, "\n".join([*lines, f"Next: {_command('train', store, 'FOLDER', *which)}"]))


def _accelerator() -> "Accelerator | None":
    """What connects the processes that ``accelerate launch`` or ``torchrun`` started; None for a single one."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        if "ACCELERATE_MIXED_PRECISION" in os.environ:  # launched, but accelerate takes CPUs for one processor
            typer.echo("Note: accelerate started one process; for several without GPUs add --multi_gpu.", err=True)
        return None
    from accelerate import Accelerator

    return Accelerator(cpu=not torch.cuda.is_available())


def _settings(trainer: "saelab.Trainer") -> dict[str, Any]:
    """The fields of a configuration that a run holds itself."""
    sae = trainer.sae.settings()
    own = {"architecture": trainer.sae.architecture, "ablation": sae.get("ablations", [])}
    return {**own, "d_sae": sae["d_sae"], "preset": sae["preset"], **asdict(trainer.config)}


def _check_given(context: typer.Context, trainer: "saelab.Trainer", where: Path) -> None:
    """Raise for an option that is given and that the run, or the SAE it starts from, has otherwise."""
    settings, given = _settings(trainer), _given(context)
    for field in settings.keys() & given.keys():
        value = sorted(given[field] or ()) if field == "ablation" else given[field]
        if value != settings[field]:
            option = f"--{field.replace('_', '-')}"
            raise ValueError(
                f"{where} has {option} {settings[field]}; leave {option} {value} out, or begin another run"
            )


@app.command()
@_with_training_options()
def train(
    context: typer.Context,
    store: StoreArgument,
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder of the run, for its checkpoint: the SAE's file.")
    ],
    architecture: Annotated[
        Literal[Architecture, "rescale_shift"], typer.Option(help="rescale_shift takes a standard SAE, --from.")
    ] = "gated",
    d_sae: DSaeOption = 1024,
    preset: PresetOption = "paper",
    ablation: AblationOption = None,
    standard: Annotated[
        Path | None, typer.Option("--from", help="The standard SAE that a rescale_shift one starts from.")
    ] = None,
    hook: HookOption = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in FOLDER; where there is none yet, begin it.")
    ] = False,
    device: DeviceOption = "auto",
    config: ConfigOption = None,
    as_json: JsonOption = False,
    **training: Any,
) -> None:
    """Train an SAE on a store of activations. Stopped or killed, it goes on with --resume.

    In several processes: accelerate launch --multi_gpu --num_processes 2 -m saelab train ...
    """
    which = ["--hook", hook] if hook else []
    with _working(f"Go on with: {_command('train', store, folder, *which, '--resume')}"):
        accelerator = _accelerator()
        if accelerator is not None and device != "auto":
            context.fail("several processes are on the devices that accelerate gives them; leave --device out")
        if (architecture == "rescale_shift") != (standard is not None):
            context.fail("--architecture rescale_shift and --from, its standard SAE, go together")
        activations = saelab.ActivationStore.open(store, hook)
        checkpoint = folder / CHECKPOINT
        resumes = checkpoint.exists()
        if resumes and not resume:
            raise FileExistsError(f"{folder} holds a run: add --resume to go on with it, or name another folder")
        if resumes:
            trainer = saelab.Trainer.resume(folder, activations, device=_device(device), accelerator=accelerator)
        else:
            sae: saelab.SparseAutoencoder
            if architecture == "rescale_shift":
                assert standard is not None
                loaded = _load_sae(standard, device)
                if not isinstance(loaded, saelab.StandardSAE):
                    raise ValueError(f"{standard} holds a {loaded.architecture} SAE; --from takes a standard one")
                sae = saelab.RescaleShiftSAE.from_standard(loaded)
            else:
                sae = _new_sae(
                    architecture,
                    activations.d_in,
                    d_sae,
                    preset,
                    ablation or (),
                    seed=training["seed"],
                    device=_device(device) or "auto",
                )
            trainer = saelab.Trainer(
                sae, activations, saelab.TrainingConfig(**training), folder=folder, accelerator=accelerator
            )
        _check_given(context, trainer, folder if resumes else standard or folder)
        is_main = accelerator is None or accelerator.is_main_process
        if is_main and not resumes:
            _write_configuration(context, folder, **_settings(trainer))
        trainer.run(progress=_shows_progress())
        if accelerator is not None:
            accelerator.end_training()
    if not is_main:
        return
    last = trainer.records[-1]
    document = {
        "folder": folder,
        "sae": checkpoint,
        "architecture": trainer.sae.architecture,
        "d_in": trainer.sae.d_in,
        "d_sae": trainer.sae.d_sae,
        "seconds": trainer.seconds,
        **last._asdict(),
    }
    text = (
        f"Step {last.step}: loss {last.loss:.4g}, L0 {last.l0:.4g}, FVU {last.fvu:.4g}, gamma {last.gamma:.4g}, "
        f"{last.n_dead} of {trainer.sae.d_sae} features dead\n"
        f"The SAE is in {checkpoint}\nNext: {_command('evaluate', folder, store, '--loss-recovered')}"
    )
    _print(as_json, document, text)


@app.command()
@_with_training_options("l1_coefficient")
def sweep(
    context: typer.Context,
    store: StoreArgument,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder for the SAEs, a file each, and table.csv.")],
    l1: Annotated[list[float], typer.Option(min=0, help="An L1 coefficient; may be repeated.")],
    architecture: Annotated[
        list[str] | None,
        typer.Option(
            callback=_each_of(Architecture),
            show_default="gated",
            help=f"{' or '.join(get_args(Architecture))}; may be repeated.",
        ),
    ] = None,
    d_sae: DSaeOption = 1024,
    preset: PresetOption = "paper",
    ablation: AblationOption = None,
    test: Annotated[
        Path | None, typer.Option(show_default="STORE", help="Store of activations to evaluate on.")
    ] = None,
    hook: HookOption = None,
    device: DeviceOption = "auto",
    config: ConfigOption = None,
    as_json: JsonOption = False,
    **training: Any,
) -> None:
    """Train an SAE at each L1 coefficient, and evaluate all. Stopped or killed, the same command goes on."""
    with _working("The same command goes on where this one was."):
        activations = saelab.ActivationStore.open(store, hook)
        held_out = saelab.ActivationStore.open(test, hook) if test else None
        where = _device(device) or "auto"

        def maker(architecture: str) -> "Callable[[], saelab.SparseAutoencoder]":
            d_in = activations.d_in
            return lambda: _new_sae(
                architecture, d_in, d_sae, preset, ablation or (), seed=training["seed"], device=where
            )

        architectures = architecture or ["gated"]
        makers = [maker(name) for name in architectures]
        for make in makers:
            make()  # raises now what else would come after the SAEs before it
        training_config = saelab.TrainingConfig(**training)
        _write_configuration(context, folder, architecture=architectures)
        table = saelab.sweep(
            makers, activations, l1, config=training_config, test=held_out, folder=folder, progress=_shows_progress()
        )
        path = write_atomically(folder / "table.csv", lambda unfinished: table.to_csv(unfinished, index=False))
    shown = table[["architecture", "l1_coefficient", "l0", "fvu", "gamma", "n_dead", "path"]]
    document = {"folder": folder, "table": path, "rows": table.to_dict("records")}
    _print(as_json, document, f"{shown.to_string(index=False, float_format='{:.4g}'.format)}\nThe table is in {path}")


def _store_for(store: Path, sae: "saelab.SparseAutoencoder", hook: str | None) -> "saelab.ActivationStore":
    """The store of ``hook``; of several, by default that of the hook that the SAE was trained on."""
    hooks = read_index(store)["recipe"]["hooks"]
    if hook is None and sae.trained_on and len(hooks) > 1 and sae.trained_on.hook in hooks:
        hook = sae.trained_on.hook
    activations = saelab.ActivationStore.open(store, hook)
    if sae.trained_on and sae.trained_on != activations.trained_on:
        found = ", ".join(f"{name} {value}" for name, value in activations.trained_on._asdict().items())
        asked = ", ".join(f"{name} {value}" for name, value in sae.trained_on._asdict().items())
        typer.echo(f"Note: the SAE was trained on {asked}; this store has {found}.", err=True)
    return activations


@app.command()
def evaluate(
    context: typer.Context,
    sae_path: SAEArgument,
    store: StoreArgument,
    loss_recovered: Annotated[
        bool, typer.Option("--loss-recovered", help="What it costs the model to go on with reconstructions.")
    ] = False,
    text: Annotated[
        str | None,
        typer.Option(show_default=DEFAULT_TEXT, help="For the loss; as for saelab harvest. Better other text."),
    ] = None,
    n_texts: Annotated[
        int | None,
        typer.Option(
            min=1,
            show_default=str(DEFAULT_N_TEXTS),
            help="For the loss: the text's last, which a harvest with --n-tokens leaves out.",
        ),
    ] = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="A sentiment probe on its codes, and one on the activations to compare.")
    ] = False,
    hook: HookOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Measure an SAE on a store of activations. Better not on the one that it was trained on."""
    if not loss_recovered and (text or n_texts):
        context.fail("--text and --n-texts are for --loss-recovered; add that")
    with _working():
        sae = _load_sae(sae_path, device)
        activations = _store_for(store, sae, hook)
        metrics = saelab.evaluate(sae, activations, progress=_shows_progress())
        document = {"sae": sae_path, "store": store, "hook": activations.hook, "metrics": metrics.as_dict()}
        texts = [str(metrics)]
        if loss_recovered or probe:
            model = saelab.load_language_model(activations.model_name, device=_device(device))
        if loss_recovered:
            recovered = saelab.loss_recovered(
                model,
                activations.hook,
                sae,
                _read_text(text or DEFAULT_TEXT)[-(n_texts or DEFAULT_N_TEXTS) :],
                scale=activations.scale,
                context=read_index(store)["recipe"]["context"],
                progress=_shows_progress(),
            )
            document["loss_recovered"] = recovered.as_dict()
            texts.append(f"Loss recovered\n{recovered}")
        if probe:
            reports = _probes(sae, model, activations)
            document["probe"] = {name: report.as_dict() for name, report in reports.items()}
            lines = [f"{name:<11}  {report.test_accuracy:.3f} on held-out texts" for name, report in reports.items()]
            texts.append("\n".join(["Accuracy of a sentiment probe", *lines]))
    _print(as_json, document, "\n\n".join(texts))


def _probes(
    sae: "saelab.SparseAutoencoder", model: Any, store: "saelab.ActivationStore"
) -> "dict[str, saelab.ProbeReport]":
    """The sentiment probe on the SAE's codes, and on the activations themselves."""
    split = saelab.sentiment_set(model, store.hook, scale=store.scale, progress=_shows_progress()).split()
    with torch.no_grad():
        codes = [part._replace(x=sae.encode(part.x.to(sae.W_enc)).cpu()) for part in split]
    return {"codes": saelab.probe(*codes), "activations": saelab.probe(*split)}


@app.command()
def export(
    sae_path: SAEArgument,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder to write; new, or empty.")],
    format: Annotated[Format, typer.Option(help="For which library.")],
    as_jumprelu: Annotated[
        bool, typer.Option("--as-jumprelu", help="As a JumpReLU SAE with the same codes, for tools that know no other.")
    ] = False,
    scale: Annotated[
        float | None,
        typer.Option(
            show_default="that of the store it was trained on",
            help="What the model's activations were multiplied by; it is folded into the weights.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write an SAE for another library. What comes out takes the model's own activations."""
    with _working():
        sae = _load_sae(sae_path, "cpu")
        written = saelab.export(sae, folder, format, scale=scale, as_jumprelu=as_jumprelu)
        files = sorted(file.name for file in written.iterdir())
    _print(as_json, {"folder": folder, "format": format, "files": files}, f"Wrote {folder}: {', '.join(files)}")


OriginalsOption = Annotated[
    Path | None,
    typer.Option("--tutorials", show_default="SAELab's own", help="The originals, where a course has changed them."),
]


@app.command()
def grade(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of submissions, searched to the bottom.")],
    output: Annotated[Path, typer.Option(help="CSV to write: a row an exercise.")] = Path("grades.csv"),
    timeout: Annotated[float, typer.Option(min=0, help="Seconds for one submission.")] = 300,
    memory: Annotated[float, typer.Option(min=0, help="GB for one submission.")] = 2,
    jobs: Annotated[int, typer.Option(min=1, help="Submissions at a time.")] = 1,
    tutorials: OriginalsOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Keep what --output has, and grade the others.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run the checks of the tutorials' exercises on every notebook below a folder.

    A submission runs without network, in a process of its own, and the checks are those of the original tutorial.
    """
    with _working(f"{output} has what is graded; the same command with --resume goes on."):
        if output.exists() and not resume:
            raise FileExistsError(f"{output} is there already: add --resume to go on with it, or name another --output")
        rows = grading.read_rows(output) if output.exists() else []
        graded = grading.grade(
            folder,
            tutorials or original_tutorials(),
            limits=grading.Limits(timeout, memory * 1e9),
            jobs=jobs,
            done={row.submission for row in rows},
        )
        n_all, n_done = len(grading.submissions(folder)), len({row.submission for row in rows})
        with grading.table(output, rows) as add, closing(graded):
            for found in graded:
                add(found)
                rows += found
                n_done += 1
                [entry] = grading.summary(found)
                typer.echo(f"[{n_done}/{n_all}] {_points(entry)}", err=True)
    entries = grading.summary(rows)
    document = {"output": output, "submissions": entries, "rows": [row._asdict() for row in rows]}
    _print(as_json, document, "\n".join([*map(_points, entries), f"The table is in {output}"]))


def _points(entry: Mapping[str, Any]) -> str:
    states = entry["states"]
    others = [f"{states.count(state)} {state}" for state in dict.fromkeys(states) if state != "passed"]
    points = f"{entry['points']} of {entry['of']}" if entry["of"] else "-"
    return f"{entry['submission']}  {points}" + (f"  ({', '.join(others)})" if others else "")


@app.command()
def handout(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder to write to.")],
    tutorials: OriginalsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy the tutorials for a course, without their solutions and outputs."""
    with _working():
        written = grading.handout(tutorials or original_tutorials(), folder)
    _print(as_json, {"written": written}, "\n".join(["Without solutions and outputs:", *map(str, written)]))


if __name__ == "__main__":
    app()
