"""The command line. Nothing heavy is imported before a command runs, so that ``--help`` answers at once."""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

TASK, NETWORK, OPTIMIZER = "Task", "Network", "Optimizer"
"""Under which heads --help lists the options of train."""

app = typer.Typer(
    help="Recurrent networks with TransformerLens hook points: train them on modular addition, and measure the paper's claims.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Entry point of the ``hooked-rnn`` command."""
    # Threads that wait for each other should sleep: on a busy machine spinning costs several times the work.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    app()


def _print_version(wanted: bool) -> bool:
    if wanted:
        print(f"hooked-rnn {metadata.version('hooked-rnn')}")
        raise typer.Exit
    return wanted


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def report(
    model: Annotated[
        str, typer.Argument(help="An embedded model, a run directory, a Hub id, or a checkpoint file.")
    ] = "mod-add-113",
    out: Annotated[Path | None, typer.Option(help="Directory for report.json, report.html and the figures.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print report.json instead of the table.")] = False,
) -> None:
    """Measure the paper's claims C1 to C7 on a model."""
    with clear_errors():
        from analyses.report import make_report
        from analyses.terminal import print_report

        result = make_report(model, out)
        if as_json:
            print(result.to_json())
        else:
            print_report(result, out)


@app.command()
def train(
    recipe: Annotated[
        str, typer.Option(help="fast (orthogonal gradient, then AdamW) or adamw (AdamW alone).")
    ] = "fast",
    modulus: Annotated[int, typer.Option(help="p: the numbers are 0 to p - 1.", rich_help_panel=TASK)] = 113,
    operands: Annotated[int, typer.Option(help="How many numbers are added.", rich_help_panel=TASK)] = 2,
    equals_token: Annotated[bool, typer.Option(help="End every sequence in '='.", rich_help_panel=TASK)] = False,
    fraction: Annotated[
        float | None, typer.Option(help="Share of the sequences to train on.", rich_help_panel=TASK)
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the initial weights, the split and the minibatches.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps in all.", rich_help_panel=OPTIMIZER)] = None,
    orthogonal_steps: Annotated[
        int | None, typer.Option(help="How many of them use the orthogonal gradient.", rich_help_panel=OPTIMIZER)
    ] = None,
    orthogonal_lr: Annotated[
        float | None, typer.Option(help="Learning rate of those.", rich_help_panel=OPTIMIZER)
    ] = None,
    orthogonal_weight_decay: Annotated[
        float | None, typer.Option(help="Weight decay of those.", rich_help_panel=OPTIMIZER)
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate of the others.", rich_help_panel=OPTIMIZER)] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="Weight decay of the others.", rich_help_panel=OPTIMIZER)
    ] = None,
    betas: Annotated[
        tuple[float, float] | None, typer.Option(help="AdamW's two betas.", rich_help_panel=OPTIMIZER)
    ] = None,
    eps: Annotated[float | None, typer.Option(help="AdamW's eps.", rich_help_panel=OPTIMIZER)] = None,
    warmup_steps: Annotated[
        int | None, typer.Option(help="Steps of linear warm-up at the start of each phase.", rich_help_panel=OPTIMIZER)
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Sequences in a step (default: all of them).", rich_help_panel=OPTIMIZER)
    ] = None,
    model: Annotated[str, typer.Option(help="rnn, transformer or mlp.", rich_help_panel=NETWORK)] = "rnn",
    d_model: Annotated[
        int | None, typer.Option(help="Width of the embedding (default: 128).", rich_help_panel=NETWORK)
    ] = None,
    d_hidden: Annotated[
        int | None, typer.Option(help="rnn: width of the recurrent state (default: 256).", rich_help_panel=NETWORK)
    ] = None,
    layers: Annotated[
        int | None, typer.Option(help="rnn, transformer: how many (default: 1).", rich_help_panel=NETWORK)
    ] = None,
    cell: Annotated[
        str | None, typer.Option(help="rnn: rnn, gru or lstm (default: rnn).", rich_help_panel=NETWORK)
    ] = None,
    heads: Annotated[
        int | None, typer.Option(help="transformer: attention heads (default: 4).", rich_help_panel=NETWORK)
    ] = None,
    d_mlp: Annotated[
        int | None, typer.Option(help="transformer, mlp: neurons (default: 512).", rich_help_panel=NETWORK)
    ] = None,
    combine: Annotated[
        str | None,
        typer.Option(help="mlp: concat or sum of the embeddings (default: concat).", rich_help_panel=NETWORK),
    ] = None,
    act_fn: Annotated[
        str | None, typer.Option(help="relu or another that the model has (default: relu).", rich_help_panel=NETWORK)
    ] = None,
    bias: Annotated[bool | None, typer.Option(help="Give every layer biases.", rich_help_panel=NETWORK)] = None,
    init_scale: Annotated[
        float | None,
        typer.Option(help="Initial standard deviation, in the model's own (default: 1).", rich_help_panel=NETWORK),
    ] = None,
    eval_every: Annotated[int | None, typer.Option(help="Evaluate after every so many steps.")] = None,
    checkpoint_every: Annotated[int | None, typer.Option(help="Save after every so many steps.")] = None,
    stop_at: Annotated[
        list[str] | None,
        typer.Option(help="Stop at the first evaluation that fulfils this, such as accuracy=0.99; may be repeated."),
    ] = None,
    log: Annotated[str | None, typer.Option(help="Write the history to this too: tensorboard.")] = None,
    threads: Annotated[
        int, typer.Option(min=1, help="Torch threads; the same seed and threads give the same bits.")
    ] = 1,  # so that a seed gives the same bits whatever the machine; two are faster, by docs/benchmarks.md
    out: Annotated[
        Path | None,
        typer.Option(
            help="Run directory (default: runs/mod-add-MODULUS-RECIPE-seed-SEED; of other models, -MODEL after MODULUS)."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in the run directory, if it holds one.")
    ] = False,
) -> None:
    """Train a recurrent network, a transformer or an MLP on modular addition. What is not given is the recipe's."""
    with clear_errors():
        import torch

        from analyses.networks import network_config
        from hooked_rnn import ModularAddition, TrainConfig, build_model
        from hooked_rnn import train as run_training

        torch.set_num_threads(threads)
        given = {
            "train_fraction": fraction,
            "steps": steps,
            "orthogonal_steps": orthogonal_steps,
            "orthogonal_lr": orthogonal_lr,
            "orthogonal_weight_decay": orthogonal_weight_decay,
            "lr": lr,
            "weight_decay": weight_decay,
            "betas": betas,
            "eps": eps,
            "warmup_steps": warmup_steps,
            "batch_size": batch_size,
            "eval_every": eval_every,
            "checkpoint_every": checkpoint_every,
            "stop_at": stop_at,
        }
        config = TrainConfig.recipe(recipe, seed=seed, **{k: v for k, v in given.items() if v is not None})
        task = ModularAddition(modulus, operands, equals_token)
        network = {
            "d_model": d_model,
            "d_hidden": d_hidden,
            "layers": layers,
            "cell": cell,
            "heads": heads,
            "d_mlp": d_mlp,
            "combine": combine,
            "act_fn": act_fn,
            "bias": bias,
            "init_scale": init_scale,
        }
        cfg = network_config(model, task, seed, network)
        kind = "" if model == "rnn" else f"-{model}"
        out = out or Path("runs") / f"mod-add-{modulus}{kind}-{recipe}-seed-{seed}"
        run = run_training(build_model(cfg), task, config, out, resume=resume, log=log)
        last = run.history[-1]
        test = "none" if last["test_accuracy"] is None else f"{last['test_accuracy']:.2%}"
        print(f"{out}: {last['step']} steps, accuracy {last['train_accuracy']:.2%} on train and {test} on test pairs")


@app.command()
def circuit(
    model: Annotated[
        str, typer.Argument(help="An embedded model, a run directory, a Hub id, or a checkpoint file.")
    ] = "mod-add-113",
) -> None:
    """Read the circuit step by step, and tell whether it is a clock or a pizza."""
    with clear_errors():
        from analyses.adder import Adder
        from analyses.circuit import read_circuit
        from analyses.clock_pizza import clock_or_pizza
        from analyses.measure import key_frequencies_of, load_subject
        from analyses.terminal import print_circuit

        subject = load_subject(model)
        key = key_frequencies_of(subject.model, subject.task)
        read = read_circuit(subject.model, subject.task, key.by_share)
        print_circuit(read, clock_or_pizza(Adder(subject.model, subject.task)))


@app.command()
def progress(
    run_dir: Annotated[Path, typer.Argument(help="A run directory, finished or not.")],
    out: Annotated[Path | None, typer.Option(help="Directory for progress.csv and progress.png.")] = None,
) -> None:
    """Measure every checkpoint of a run: key frequencies, restricted and excluded loss, clock or pizza."""
    with clear_errors():
        from analyses.progress_report import make_progress
        from analyses.terminal import print_progress

        print_progress(make_progress(run_dir, out), out)


@app.command()
def compare(
    models: Annotated[
        list[str], typer.Argument(help="Two or more: embedded models, run directories, Hub ids, checkpoint files.")
    ],
    out: Annotated[Path | None, typer.Option(help="Directory for compare.json, compare.html and the figures.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print compare.json instead of the table.")] = False,
    swap: Annotated[
        int,
        typer.Option(min=0, help="In how many splits of the pairs to put one model's last state in the other's place."),
    ] = 0,
    control: Annotated[
        bool, typer.Option("--control", help="Lay a copy of the reference with random weights beside them.")
    ] = False,
) -> None:
    """Lay models side by side on the same measures: does each share the strategy of the first transformer among them?"""
    with clear_errors():
        from analyses.comparison_report import make_comparison
        from analyses.comparison_table import print_comparison

        result = make_comparison(models, out, swap, control)
        if as_json:
            print(result.to_json())
        else:
            print_comparison(result, out)


@app.command()
def models() -> None:
    """List the embedded models with their figures."""
    with clear_errors():
        from analyses.terminal import print_embedded

        print_embedded()


@app.command()
def seeds(
    runs: Annotated[list[str], typer.Argument(help="Run directories that differ in the seed alone.")],
    csv: Annotated[Path | None, typer.Option(help="Write the table to this file too.")] = None,
) -> None:
    """Measure several runs side by side: one row for each, with every metric of the report."""
    with clear_errors():
        from analyses.seeds import tabulate, write_csv
        from analyses.terminal import print_rows

        rows = tabulate(runs)
        if csv is not None:
            write_csv(rows, csv)
        print_rows(rows)


def _print_warning(message: Warning | str, category: type[Warning], *where: object) -> None:
    print(f"hooked-rnn: warning: {message}", file=sys.stderr)


@contextmanager
def clear_errors() -> Iterator[None]:
    """Turn our own warnings and errors into lines on standard error, errors into exit status 1, Ctrl-C into 130."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _print_warning  # type: ignore[assignment]
            yield
    except KeyboardInterrupt as interrupt:
        print(f"\n{interrupt}" if interrupt.args else "\ninterrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        from hooked_rnn.errors import HookedRNNError

        if not isinstance(error, HookedRNNError):
            raise
        print(f"hooked-rnn: {error}", file=sys.stderr)
        sys.exit(1)
