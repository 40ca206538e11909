"""The command line: words go to standard error, data to standard output; exit codes 0, 1 (error), 2 (usage)."""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from rich.text import Text

from pqc import (
    __version__,
    cli_check,
    cli_export,
    cli_fit,
    cli_import,
    cli_schedule,
    cli_search,
    cli_track,
    interrupts,
    tables,
)
from pqc.cli_options import PATH, Group, Verb, settings_option, track_option
from pqc.errors import Interrupted, PqcError, UsageError

if TYPE_CHECKING:
    from pqc.workflows.firmware import Backend, IoType


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="pqc")
@click.option("-v", "--verbose", count=True, help="Say why passes change or leave nodes; -vv also shows tracebacks.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
@click.pass_context
def cli(context: click.Context, verbose: int, quiet: bool) -> None:
    """Prune and quantize ONNX networks, and hand them to FPGAs bit for bit.

    \b
    Examples:
      pqc run jet_tagger --out build/demo
      pqc run model.onnx --schedule cs --data folder --out build/mine
      pqc opt model.onnx -p 'normalize,insert-quant{weights=1,0,7}' -o quantized.onnx
    """
    context.obj = {"quiet": quiet}
    _listen_to_notes(quiet)
    if verbose:
        _listen_to_explanations()


cli.add_command(cli_import.import_)
cli.add_command(cli_fit.fit)


def _training_options(verb: Verb) -> Verb:
    options = (
        click.argument("model"),
        click.option("-s", "--schedule", help="A schedule file, the name of a shipped one, or a PQuantML config."),
        click.option("-d", "--data", type=PATH, help="Data: a folder with train and test, or one file."),
        click.option("-o", "--out", type=PATH, required=True, help="The folder to write to."),
        settings_option,
        track_option,
        click.option("--resume", is_flag=True, help="Go on from the checkpoint in the output folder, if there is one."),
        click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True),
        click.option("--threads", type=click.IntRange(1, 1024), default=1, show_default=True),
        click.option(
            "--verify-each/--no-verify-each",
            default=None,
            help="Check each pass by running the model before and after.  [default: where it is cheap]",
        ),
    )
    for option in reversed(options):
        verb = option(verb)
    return verb


def _hls_options(verb: Verb) -> Verb:
    verb = click.option("--io-type", type=click.Choice(["io_parallel", "io_stream"]), default="io_parallel")(verb)
    return click.option("--backend", type=click.Choice(["Vitis", "Vivado"]), default="Vitis", show_default=True)(verb)


@cli.command()
@_training_options
@_hls_options
@click.option("--no-hls", is_flag=True, help="Stop at the clean QONNX model.")
@click.pass_obj
def run(
    flags: dict[str, Any],
    /,
    model: str,
    schedule: str | None,
    data: Path | None,
    out: Path,
    settings: dict[str, str],
    track: str | None,
    no_hls: bool,
    **options: Any,
) -> None:
    """Do the whole chain: compress MODEL, train, fold, make the firmware, compare, report.

    MODEL is an ONNX file or the name of a reference model, which brings its own data. Exits with 1 if the clean model
    or the firmware computes anything else than what was trained.

    \b
    Examples:
      pqc run jet_tagger --schedule cs-demo --out build/demo
      pqc run model.onnx --data jets --out build/mine --set training.batch=512
    """
    from pqc import workflows

    reporter = _reporter(flags)
    try:
        source = workflows.resolve(model)
        plan = workflows.load_plan(schedule, source, settings)
        with workflows.tracked(workflows.track_settings(plan, track), out, reporter) as listener:
            summary = workflows.run(source, plan, data, out, workflows.RunOptions(hls=not no_hls, **options), listener)
    finally:
        reporter.close()
    if not flags["quiet"]:
        tables.say_summary(summary, out)
    click.echo(out / "summary.json")
    exact = summary["clean_equals_trained"] and not (summary["hls"] or {}).get("mismatches")
    click.get_current_context().exit(0 if exact else 1)


cli.add_command(cli_search.search)


@cli.command()
@_training_options
@click.pass_obj
def train(
    flags: dict[str, Any],
    /,
    model: str,
    schedule: str | None,
    data: Path | None,
    out: Path,
    settings: dict[str, str],
    track: str | None,
    **options: Any,
) -> None:
    """Compress MODEL and train it; write trained.onnx, history.json and a checkpoint.

    \b
    Examples:
      pqc train jet_tagger --schedule cs-demo --out build/train
      pqc train jet_tagger --schedule cs-demo --out build/train --resume
    """
    from pqc import workflows

    reporter = _reporter(flags)
    try:
        source = workflows.resolve(model)
        plan = workflows.load_plan(schedule, source, settings)
        with workflows.tracked(workflows.track_settings(plan, track), out, reporter) as listener:
            workflows.train(source, plan, data, out, workflows.RunOptions(**options), listener)
    finally:
        reporter.close()
    click.echo(out / "trained.onnx")


@cli.command()
@click.argument("model")
@click.option("-o", "--out", type=PATH, required=True, help="The clean model's file.")
def finalize(model: str, out: Path) -> None:
    """Fold masks and weights of a trained MODEL into a clean QONNX graph.

    \b
    Example:
      pqc finalize build/train/trained.onnx -o clean.onnx
    """
    from pqc import graph, workflows

    clean, steps = workflows.finalize(workflows.resolve(model).load())
    graph.save(clean, out)
    tables.say_steps(steps)
    click.echo(out)


@cli.command()
@click.argument("model")
@click.option("-o", "--out", type=PATH, required=True, help="The project's folder.")
@click.option("-d", "--data", type=PATH, help="Samples to compare on; random ones by default.")
@_hls_options
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def hls(
    context: click.Context, model: str, out: Path, data: Path | None, backend: Backend, io_type: IoType, as_json: bool
) -> None:
    """Write the hls4ml project of a clean MODEL, compile its emulation, compare bit for bit.

    Exits with 1 if a single output differs.

    \b
    Example:
      pqc hls build/demo/clean.onnx --out build/hls --io-type io_stream
    """
    from pqc import workflows

    result = workflows.hls(workflows.resolve(model), out, data, backend=backend, io_type=io_type)
    if as_json:
        click.echo(json.dumps(result, indent=2))
    else:
        tables.say_precisions(result)
        click.echo(f"{result['mismatches']} mismatches in {result['samples']} samples")
    context.exit(1 if result["mismatches"] else 0)


@cli.command()
@click.argument("model")
@click.option("-p", "--passes", required=True, help="Pipeline text.")
@click.option("-o", "--out", type=PATH, help="The file to write; the graph's text goes to standard output without it.")
@click.option("--explain", is_flag=True, help="Say why passes changed or left nodes.")
@click.option("--print-after-change", is_flag=True, help="Print the graph after each pass that changed it.")
@click.option("--time", "timing", is_flag=True, help="Say what each pass changed and how long it took.")
@click.option("--verify-each", is_flag=True, help="Run the model before and after each pass.")
def opt(
    model: str,
    passes: str,
    out: Path | None,
    explain: bool,
    print_after_change: bool,
    timing: bool,
    verify_each: bool,
) -> None:
    """Run passes on MODEL.

    \b
    Examples:
      pqc opt jet_tagger -p normalize,lower-gemm
      pqc opt jet_tagger -p 'normalize,insert-quant{weights=1,0,7}' -o q.onnx --time --verify-each
    """
    from pqc import pipeline, workflows

    if explain:
        _listen_to_explanations()

    def print_graph(one: Any, changed: Any) -> None:
        tables.ERRORS.print(Text(f"// after {one.title}\n{pipeline.to_text(changed)}"))

    result, steps = workflows.opt(
        model, passes, out, verify_each=verify_each, after_change=print_graph if print_after_change else None
    )
    if timing or verify_each:
        tables.say_steps(steps)
    click.echo(pipeline.to_text(result) if out is None else out)


@cli.command()
@click.argument("model")
@click.option("--ebops", is_flag=True, help="Print the bit operations of each node instead.")
@click.option("--convention", default="products+additions", show_default=True, help="How --ebops counts.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def show(model: str, ebops: bool, convention: str, as_json: bool) -> None:
    """Print MODEL in numbers: inputs, outputs, layers, bits, EBOPs.

    Bit operations are counted by one of the conventions products, products+additions, hgq2 and reference.

    \b
    Examples:
      pqc show build/demo/clean.onnx --json
      pqc show build/demo/clean.onnx --ebops --convention hgq2
    """
    from pqc import workflows
    from pqc.workflows import inspection

    found = inspection.ebops(model, convention) if ebops else workflows.show(model)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    if ebops:
        tables.ebops_table(found)
        return
    for key in ("inputs", "outputs"):
        for value in found[key]:
            tables.OUTPUT.print(Text(f"{key[:-1]:8}{value['name']}: {value['type']} {value['shape']}"))
    names = ", ".join(f"{count} {name}" for name, count in found["operators"].items())
    tables.OUTPUT.print(Text(f"opset   {found['opset']}\nnodes   {names}"))
    tables.layer_table(found["layers"])
    if "unread" in found:
        tables.OUTPUT.print(Text(f"layers were not read: {found['unread']}"))
        return
    share = f"{100 * found['keep_ratio']:.2f} % of the weights are not zero"
    tables.OUTPUT.print(Text(f"{found['parameters']} parameters, {share}, {tables.number(found['ebops'])} EBOPs"))


@cli.command()
@click.argument("a")
@click.argument("b")
@click.option("-d", "--data", type=PATH, help="An .npz of arrays by input name; random ones by default.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.pass_context
def diff(context: click.Context, a: str, b: str, data: Path | None, as_json: bool) -> None:
    """Run models A and B on the same inputs and compare; exits with 1 if a value differs.

    \b
    Example:
      pqc diff jet_tagger build/demo/clean.onnx --data models/jet_tagger/data/test.npz
    """
    from pqc import workflows

    found = workflows.diff(a, b, data)
    if as_json:
        click.echo(json.dumps([asdict(one) for one in found], indent=2))
    else:
        for one in found:
            click.echo(f"{one.output}: {one.different} of {one.values} values differ, by {one.largest:g} at most")
    context.exit(1 if any(one.different for one in found) else 0)


@cli.command("list")
@click.argument("kind", type=click.Choice(["passes", "methods", "schedules", "models"]))
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def list_(kind: str, as_json: bool) -> None:
    """List passes, methods, schedules or models.

    \b
    Example:
      pqc list schedules
    """
    from pqc import workflows

    found = workflows.catalogue(kind)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    width = max(len(name) for name in found)
    for name, summary in found.items():
        click.echo(f"{name:{width}}  {summary}")


cli.add_command(cli_schedule.schedule)
cli.add_command(cli_check.check_quant)
cli.add_command(cli_export.export)
cli.add_command(cli_track.track)


@cli.command()
@click.option("--repair", is_flag=True, help="Reinstall the training build of the engine if it was overwritten.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Which build.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.pass_context
def doctor(context: click.Context, repair: bool, device: str, as_json: bool) -> None:
    """Check Python, the engine, the packages and the compiler; exits with 1 if something is wrong.

    \b
    Example:
      pqc doctor --repair
    """
    from pqc import workflows

    found = workflows.doctor(repair=repair, device=device)
    if as_json:
        click.echo(json.dumps([asdict(one) for one in found], indent=2))
    else:
        for one in found:
            click.echo(f"{'ok ' if one.ok else 'BAD'}  {one.name:8} {one.found}")
            if one.hint:
                click.echo(f"     hint: {one.hint}")
    context.exit(0 if all(one.ok for one in found) else 1)


def _reporter(flags: dict[str, Any]) -> Any:
    from pqc.progress import Reporter

    return Reporter(tables.ERRORS, quiet=flags["quiet"])


class _Explanations(logging.Handler):
    """Writes to standard error as it is at the time: a caller in the same process may have closed an earlier one."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(record.getMessage(), err=True)


def _listen_to_explanations() -> None:
    logger = logging.getLogger("pqc.explain")
    logger.handlers = [_Explanations()]
    logger.setLevel(logging.INFO)
    logger.propagate = False


class _Notes(logging.Handler):
    """Writes notes where the live line of a run is, so that neither tears the other."""

    def emit(self, record: logging.LogRecord) -> None:
        tables.ERRORS.print(Text(f"note: {record.getMessage()}"))


def _listen_to_notes(quiet: bool) -> None:
    logger = logging.getLogger("pqc.notes")
    logger.handlers = [] if quiet else [_Notes()]
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    logger.propagate = False


def main() -> NoReturn:
    """Run the command line and exit."""
    if not (3, 10) <= sys.version_info[:2] <= (3, 12):
        sys.exit(f"pqc needs Python 3.10 to 3.12 (its engine has no build beyond); this is {sys.version.split()[0]}")
    _replace_closed_streams()
    verbose = any(argument in ("-vv", "-vvv") for argument in sys.argv[1:]) or sys.argv.count("-v") > 1
    try:
        interrupts.listen()
        code = cli.main(standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(UsageError.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("pqc: error: stopped", err=True)
        sys.exit(1)
    except PqcError as error:
        sys.exit(_fail(error, verbose))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody listens: spare the exit a second error
        sys.exit(1)
    except MemoryError:
        sys.exit(_fail(PqcError("there is not enough memory", hint="use a smaller model, batch or data set"), verbose))
    except OSError as error:
        place = str(error.filename) if error.filename else None
        hint = "check the path, its permissions and the free space"
        sys.exit(_fail(PqcError(error.strerror or str(error), at=place, hint=hint), verbose))
    except Exception as error:  # the last boundary: a user sees a paragraph, a developer -vv
        hint = "this is a defect of pqc; run again with -vv and report what it prints"
        sys.exit(_fail(PqcError(f"{type(error).__name__}: {error}", hint=hint), verbose))
    sys.exit(code if isinstance(code, int) else 0)


def _replace_closed_streams() -> None:
    """Lead them nowhere: the next file to be opened would have their number, and get what libraries print."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))


def _fail(error: PqcError, verbose: bool) -> int:
    if verbose:
        traceback.print_exc()
    if interrupts.requested() and not isinstance(error, Interrupted):
        click.echo("pqc: error: stopped", err=True)  # what failed, such as an import, was only interrupted
        return PqcError.exit_code
    click.echo(f"pqc: {error.label}: {error}", err=True)
    return error.exit_code
