"""Commands that do what the library does: harvest, train, sweep, evaluate, export."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer

import saelab
from saelab.cli.options import (
    SWEPT,
    AblationOption,
    Architecture,
    ConfigOption,
    DeviceOption,
    DSaeOption,
    Dtype,
    HookOption,
    JsonOption,
    PresetOption,
    SAEArgument,
    StoreArgument,
    each_of,
    find_device,
    given_fields,
    new_sae,
    split_training,
    with_training_options,
    write_configuration,
)
from saelab.cli.output import command_line, print_result, shows_progress, working
from saelab.data.shards import INDEX, read_index
from saelab.devices import automatic_device
from saelab.errors import InputError
from saelab.evaluation.controls import CONTROLS
from saelab.files.other_libraries import Format
from saelab.files.tensor_files import write_atomically
from saelab.sae.base import ARCHITECTURES
from saelab.training.checkpoints import CHECKPOINT

if TYPE_CHECKING:
    from accelerate import Accelerator

DEFAULT_TEXT = "reviews-4l"
DEFAULT_N_TEXTS = 128
FROM_SCRATCH = [name for name, cls in ARCHITECTURES.items() if cls.trains_from_scratch]


def read_text(name: str) -> list[str]:
    """Read a text by its name in `saelab.load_text`, or from a file."""
    path = Path(name)
    if path.suffix not in (".txt", ".jsonl"):
        if path.suffix and path.is_file():
            raise InputError(f"{path} is neither .txt (one text a line) nor .jsonl (an object with text a line)")
        return saelab.load_text(name)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with path.open(encoding="utf-8-sig") as file:
            lines = [(number, line.rstrip("\n")) for number, line in enumerate(file, start=1) if line.strip()]
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error}") from error
    return [line if path.suffix == ".txt" else _text_of(line, f"{path}, line {number}") for number, line in lines]


def _text_of(line: str, where: str) -> str:
    """Read the field ``text`` of a line of JSON; ``where`` names the line in errors."""
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f'{where}: expected a JSON object with a field "text", not {line[:60]!r}') from error
    if not isinstance(text, str):
        raise InputError(f'{where}: its field "text" must be a string, not {text!r:.60}')
    return text


def _load_sae(path: Path, device: str = "auto") -> "saelab.SparseAutoencoder":
    """Load an SAE from its file, the folder of a run, or a folder of another library."""
    run = path / CHECKPOINT
    return saelab.load(run if run.is_file() else path, device=find_device(device) or automatic_device())


def harvest(
    context: typer.Context,
    store: Annotated[Path, typer.Argument(metavar="STORE", help="Folder to write the activations to.")],
    hook: Annotated[
        list[str], typer.Option(help="Place in the model, such as blocks.1.hook_resid_post. May be repeated.")
    ],
    model: Annotated[
        str, typer.Option(help="reviews-4l (inside the package), a Hugging Face folder, or a name on the hub.")
    ] = "reviews-4l",
    text: Annotated[
        str,
        typer.Option(help="reviews-4l, imdb, a .txt file with one text per line, or a .jsonl file with a field text."),
    ] = DEFAULT_TEXT,
    n_tokens: Annotated[
        int | None, typer.Option(show_default="all of the text", help="Number of tokens to stop after.")
    ] = None,
    context_length: Annotated[
        int | None,
        typer.Option(
            "--context",
            show_default="128, or the model's limit if that is lower",
            help="Number of tokens that the model sees at once, including BOS.",
        ),
    ] = None,
    dtype: Annotated[
        Dtype, typer.Option(help="Type in which activations are stored; 16 bits take half the space.")
    ] = "float32",
    special_tokens: Annotated[bool, typer.Option(help="Keep the activations at BOS, EOS and padding as well.")] = False,
    scale_of: Annotated[
        Path | None,
        typer.Option(help="Store whose scale to use, for activations held out from the SAEs trained on it."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Number of texts per forward pass.")] = 32,
    device: DeviceOption = "auto",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a language model over text and store activations at hooks.

    After an interruption, the same command goes on.
    """
    with working("The same command goes on from what is on disk."):
        begun = (store / INDEX).exists()
        whole = begun and read_index(store)["complete"]
        scales = {name: saelab.ActivationStore.open(scale_of, name).scale for name in hook} if scale_of else None
        texts = read_text(text)
        try:
            stores = saelab.harvest_many(
                saelab.load_language_model(model, device=find_device(device)),
                hook,
                texts,
                store=store,
                n_tokens=n_tokens,
                context=context_length,
                scales=scales,
                dtype=getattr(torch, dtype),
                special_tokens=special_tokens,
                batch_size=batch_size,
                progress=shows_progress(),
            )
        except KeyboardInterrupt:
            # Only if this command began the store: it may have stopped before it found another one in the folder.
            if not begun and (store / INDEX).exists():
                write_configuration(context, store)
            raise
        configuration = store / f"saelab-{context.info_name}.json"
        if not configuration.exists():
            write_configuration(context, store)
    status = "whole already" if whole else "completed" if begun else "harvested"
    hooks = {name: {"d_in": s.d_in, "scale": s.scale} for name, s in stores.items()}
    n = len(next(iter(stores.values())))
    lines = [f"{store}: {n:,} activations, {status}"]
    lines += [f"  {name}: width {found['d_in']}, scale {found['scale']:.6g}" for name, found in hooks.items()]
    which = ["--hook", hook[0]] if len(hook) > 1 else []
    document = {"store": store, "status": status, "n_activations": n, "hooks": hooks, "config": configuration}
    print_result(as_json, document, "\n".join([*lines, f"Next: {command_line('train', store, 'FOLDER', *which)}"]))


def _accelerator() -> "Accelerator | None":
    """Connect the processes started by ``accelerate launch`` or ``torchrun``; None for a single process."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        if "ACCELERATE_MIXED_PRECISION" in os.environ:  # launched, but accelerate counts all CPUs as one device
            typer.echo("Note: accelerate started one process; for several without GPUs add --multi_gpu.", err=True)
        return None
    from accelerate import Accelerator

    return Accelerator(cpu=not torch.cuda.is_available())


def _settings(trainer: "saelab.Trainer") -> dict[str, Any]:
    """Fields of a configuration whose values a run holds itself."""
    sae = trainer.sae.settings()
    own = {"architecture": trainer.sae.architecture, "ablation": sae.get("ablations", [])}
    return {**own, "d_sae": sae["d_sae"], "preset": sae["preset"], **trainer.knobs, **asdict(trainer.config)}


def _check_given(context: typer.Context, trainer: "saelab.Trainer", where: Path) -> None:
    """Raise if the user set an option to another value than that of the run, or of the SAE it starts from."""
    settings, given = _settings(trainer), given_fields(context)
    for field in settings.keys() & given.keys():
        value = sorted(given[field] or ()) if field == "ablation" else given[field]
        if value != settings[field]:
            option = f"--{field.replace('_', '-')}"
            raise InputError(
                f"{where} has {option} {settings[field]}; leave {option} {value} out, or begin another run"
            )


@with_training_options()
def train(
    context: typer.Context,
    store: StoreArgument,
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="Folder of the run, where its checkpoint, the SAE's file, is written."),
    ],
    architecture: Annotated[
        Architecture, typer.Option(help="Kind of SAE; rescale_shift starts from the standard one given by --from.")
    ] = "gated",
    d_sae: DSaeOption = 1024,
    preset: PresetOption = "paper",
    ablation: AblationOption = None,
    standard: Annotated[
        Path | None, typer.Option("--from", help="Standard SAE that a rescale_shift one starts from.")
    ] = None,
    hook: HookOption = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in FOLDER, or begin it if there is none yet.")
    ] = False,
    device: DeviceOption = "auto",
    config: ConfigOption = None,
    as_json: JsonOption = False,
    **training: Any,
) -> None:
    """Train an SAE on a store of activations. After an interruption, it goes on with --resume.

    In several processes: accelerate launch --multi_gpu --num_processes 2 -m saelab train ...
    """
    which = ["--hook", hook] if hook else []
    with working(f"Go on with: {command_line('train', store, folder, *which, '--resume')}"):
        accelerator = _accelerator()
        if accelerator is not None and device != "auto":
            context.fail("several processes are on the devices that accelerate gives them; leave --device out")
        if ARCHITECTURES[architecture].trains_from_scratch == (standard is not None):
            context.fail("--architecture rescale_shift and --from, its standard SAE, go together")
        activations = saelab.ActivationStore.open(store, hook)
        checkpoint = folder / CHECKPOINT
        resumes = checkpoint.exists()
        if resumes and not resume:
            raise FileExistsError(f"{folder} holds a run: add --resume to go on with it, or name another folder")
        if resumes:
            trainer = saelab.Trainer.resume(folder, activations, device=find_device(device), accelerator=accelerator)
        else:
            config_of_run, knobs = split_training(training)
            sae: saelab.SparseAutoencoder
            if standard is not None:
                loaded = _load_sae(standard, device)
                if not isinstance(loaded, saelab.StandardSAE):
                    raise InputError(f"{standard} holds a {loaded.architecture} SAE; --from takes a standard one")
                sae = saelab.RescaleShiftSAE.from_standard(loaded)
            else:
                sae = new_sae(
                    architecture,
                    activations.d_in,
                    d_sae,
                    preset,
                    ablation or (),
                    seed=training["seed"],
                    device=find_device(device) or "auto",
                )
            trainer = saelab.Trainer(sae, activations, config_of_run, folder=folder, accelerator=accelerator, **knobs)
        _check_given(context, trainer, folder if resumes else standard or folder)
        is_main = accelerator is None or accelerator.is_main_process
        if is_main and not resumes:
            write_configuration(context, folder, **_settings(trainer))
        trainer.run(progress=shows_progress())
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
        **last.as_dict(),
    }
    text = (
        f"Step {last.step}: loss {last.loss:.4g}, L0 {last.l0:.4g}, FVU {last.fvu:.4g}, gamma {last.gamma:.4g}, "
        f"{last.n_dead} of {trainer.sae.d_sae} features dead\n"
        f"The SAE is in {checkpoint}\nNext: {command_line('evaluate', folder, store, '--loss-recovered')}"
    )
    print_result(as_json, document, text)


@with_training_options(sweeps=True)
def sweep(
    context: typer.Context,
    store: StoreArgument,
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder for the SAEs, one file each, and table.csv.")
    ],
    architecture: Annotated[
        list[str] | None,
        typer.Option(
            callback=each_of(FROM_SCRATCH),
            show_default="gated",
            help=f"{', '.join(FROM_SCRATCH)}. May be repeated.",
        ),
    ] = None,
    d_sae: DSaeOption = 1024,
    preset: PresetOption = "paper",
    ablation: AblationOption = None,
    test: Annotated[
        Path | None, typer.Option(show_default="STORE", help="Store of activations to evaluate on.")
    ] = None,
    seeds: Annotated[
        list[int] | None,
        typer.Option(
            show_default="the one given by --seed",
            help="Train each SAE with this seed of its initialisation and of the order of the data. May be repeated.",
        ),
    ] = None,
    control: Annotated[
        list[str] | None,
        typer.Option(
            callback=each_of(list(CONTROLS)),
            help=f"Train each SAE also as this control: {', '.join(CONTROLS)}. May be repeated.",
        ),
    ] = None,
    jobs: Annotated[
        int, typer.Option(help="SAEs trained at the same time, each on one core; -1 for as many as there are cores.")
    ] = 1,
    hook: HookOption = None,
    device: DeviceOption = "auto",
    config: ConfigOption = None,
    as_json: JsonOption = False,
    **training: Any,
) -> None:
    """Train and evaluate an SAE at each value of its sparsity knob.

    That knob is --l1-coefficient for standard and gated SAEs; the help of each option says which architectures have it.
    After an interruption, the same command goes on.
    """
    with working("The same command goes on where this one was."):
        import pandas as pd

        activations = saelab.ActivationStore.open(store, hook)
        held_out = saelab.ActivationStore.open(test, hook) if test else None
        where = find_device(device) or "auto"

        def maker(architecture: str) -> "Callable[..., saelab.SparseAutoencoder]":
            d_in = activations.d_in
            return lambda seed=training["seed"]: new_sae(
                architecture, d_in, d_sae, preset, ablation or (), seed=seed, device=where
            )

        architectures = architecture or ["gated"]
        training_config, knobs = split_training(training)
        runs = _sweeps(context, architectures, knobs)
        for name in architectures:
            maker(name)()  # so that a mistake shows before the first SAE has trained
        write_configuration(context, folder, architecture=architectures)
        table = pd.concat(
            [
                saelab.sweep(
                    maker(name),
                    activations,
                    values,
                    seeds=seeds,
                    controls=control or (),
                    n_jobs=jobs,
                    config=training_config,
                    test=held_out,
                    folder=folder,
                    progress=shows_progress(),
                    **more,
                )
                for name, values, more in runs
            ],
            ignore_index=True,
        )
        path = write_atomically(folder / "table.csv", lambda unfinished: table.to_csv(unfinished, index=False))
    swept = [name for name in table if name in SWEPT]
    several = [name for name in ("control", "seed") if len(set(table[name])) > 1]
    shown = table[["architecture", *several, *swept, "l0", "fvu", "gamma", "n_dead", "path"]]
    document = {"folder": folder, "table": path, "rows": table.to_dict("records")}
    print_result(
        as_json, document, f"{shown.to_string(index=False, float_format='{:.4g}'.format)}\nThe table is in {path}"
    )


def _sweeps(
    context: typer.Context, architectures: Sequence[str], knobs: Mapping[str, Any]
) -> list[tuple[str, Sequence[float], dict[str, Any]]]:
    """For each architecture the values of its sparsity knob, and its other knobs."""
    found = []
    unused = set(knobs)
    for name in architectures:
        own = ARCHITECTURES[name].knobs().keys() & knobs.keys()
        unused -= own
        knob = ARCHITECTURES[name].sparsity_knob
        if knob is None or knob.name not in own:
            wanted = f"give --{knob.name.replace('_', '-')}, once or more" if knob else "it has no knob for sparsity"
            context.fail(f"a sweep of {name} SAEs needs values to try: {wanted}")
        found.append((name, knobs[knob.name], {other: knobs[other] for other in own - {knob.name}}))
    if unused:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(unused))
        context.fail(f"{options}: none of {', '.join(architectures)} has such a knob; leave it out")
    return found


def _store_for(store: Path, sae: "saelab.SparseAutoencoder", hook: str | None) -> "saelab.ActivationStore":
    """Open the store at ``hook``, or by default at the hook that the SAE was trained on."""
    hooks = read_index(store)["recipe"]["hooks"]
    if hook is None and sae.trained_on and len(hooks) > 1 and sae.trained_on.hook in hooks:
        hook = sae.trained_on.hook
    activations = saelab.ActivationStore.open(store, hook)
    if sae.trained_on and sae.trained_on != activations.trained_on:
        found = ", ".join(f"{name} {value}" for name, value in activations.trained_on._asdict().items())
        asked = ", ".join(f"{name} {value}" for name, value in sae.trained_on._asdict().items())
        typer.echo(f"Note: the SAE was trained on {asked}; this store has {found}.", err=True)
    return activations


def evaluate(
    context: typer.Context,
    sae_path: SAEArgument,
    store: StoreArgument,
    loss_recovered: Annotated[
        bool, typer.Option("--loss-recovered", help="Measure the model's loss when it runs on reconstructions.")
    ] = False,
    text: Annotated[
        str | None,
        typer.Option(
            show_default=DEFAULT_TEXT,
            help="Text for --loss-recovered, as in saelab harvest; preferably not the training text.",
        ),
    ] = None,
    n_texts: Annotated[
        int | None,
        typer.Option(
            min=1,
            show_default=str(DEFAULT_N_TEXTS),
            help="Number of texts for --loss-recovered, taken from the end, where harvest --n-tokens does not reach.",
        ),
    ] = None,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe", help="Train a sentiment probe on the codes, and one on the activations for comparison."
        ),
    ] = False,
    hook: HookOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Measure an SAE on a store of activations, preferably not the one that it was trained on."""
    if not loss_recovered and (text or n_texts):
        context.fail("--text and --n-texts are for --loss-recovered; add that")
    with working():
        sae = _load_sae(sae_path, device)
        activations = _store_for(store, sae, hook)
        metrics = saelab.evaluate(sae, activations, progress=shows_progress())
        document = {"sae": sae_path, "store": store, "hook": activations.hook, "metrics": metrics.as_dict()}
        texts = [str(metrics)]
        if loss_recovered or probe:
            model = saelab.load_language_model(activations.model_name, device=find_device(device))
        if loss_recovered:
            recovered = saelab.loss_recovered(
                model,
                activations.hook,
                sae,
                read_text(text or DEFAULT_TEXT)[-(n_texts or DEFAULT_N_TEXTS) :],
                scale=activations.scale,
                context=read_index(store)["recipe"]["context"],
                progress=shows_progress(),
            )
            document["loss_recovered"] = recovered.as_dict()
            texts.append(f"Loss recovered\n{recovered}")
        if probe:
            reports = _probes(sae, model, activations)
            document["probe"] = {name: report.as_dict() for name, report in reports.items()}
            lines = [f"{name:<11}  {report.test_accuracy:.3f} on held-out texts" for name, report in reports.items()]
            texts.append("\n".join(["Accuracy of a sentiment probe", *lines]))
    print_result(as_json, document, "\n\n".join(texts))


def _probes(
    sae: "saelab.SparseAutoencoder", model: Any, store: "saelab.ActivationStore"
) -> "dict[str, saelab.ProbeReport]":
    """Train the sentiment probe on the SAE's codes, and on the activations themselves."""
    split = saelab.sentiment_set(model, store.hook, scale=store.scale, progress=shows_progress()).split()
    with torch.no_grad():
        codes = [part._replace(x=sae.encode(part.x.to(sae.W_enc)).cpu()) for part in split]
    return {"codes": saelab.probe(*codes), "activations": saelab.probe(*split)}


def export(
    sae_path: SAEArgument,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder to write; it must be new or empty.")],
    format: Annotated[Format, typer.Option(help="Library to export to.")],
    as_jumprelu: Annotated[
        bool,
        typer.Option(
            "--as-jumprelu", help="Write a JumpReLU SAE with the same codes, for tools that read no gated one."
        ),
    ] = False,
    scale: Annotated[
        float | None,
        typer.Option(
            show_default="that of the store it was trained on",
            help="Factor by which the model's activations were multiplied; it is folded into the weights.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write an SAE for another library. The exported SAE takes the model's unscaled activations."""
    with working():
        sae = _load_sae(sae_path, "cpu")
        written = saelab.export(sae, folder, format, scale=scale, as_jumprelu=as_jumprelu)
        files = sorted(file.name for file in written.iterdir())
    print_result(as_json, {"folder": folder, "format": format, "files": files}, f"Wrote {folder}: {', '.join(files)}")
