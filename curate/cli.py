"""The command line: each command parses, calls one function of the library and prints.

Nothing heavy is imported here: `curate --help` answers before torch would have loaded. What takes seconds to import is
imported where the progress display shows already that something is going on.
"""

import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from curate import completion, program
from curate.config import (
    Config,
    DistillConfig,
    DrcConfig,
    LdmConfig,
    NasConfig,
    Option,
    TrainConfig,
    options_of,
    plan,
    settle,
)
from curate.errors import UsageError, counted, listed, one_line

if TYPE_CHECKING:
    import pyarrow as pa

    from curate.engine import Part

__all__ = ["app", "entry", "main"]


def _share(text: str | float) -> float:
    """`0.5`, or `50%`: the same number."""
    from decimal import Decimal, InvalidOperation

    number = str(text).strip()
    try:
        return float(Decimal(number.removesuffix("%")) / (100 if number.endswith("%") else 1))
    except InvalidOperation:
        raise UsageError(f"a share should be a number such as 0.5, or 50%, found '{one_line(text)}'") from None


app = program.Verbs(
    name="curate",
    help="Choose what super-resolution models train on.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

# A place is text: of the two slashes of a URL a Path would leave one.
StoreArgument = Annotated[str, typer.Argument(metavar="STORE", help="A folder or URL made by 'curate ingest'.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...", autocompletion=completion.devices)]
EngineOption = Annotated[Literal["local", "ray"], typer.Option(help="This process, or workers on a Ray cluster.")]
WorkersOption = Annotated[int | None, typer.Option(help="Ray's workers (as many as it can have).")]
PartOption = Annotated[str | None, typer.Option(metavar="i/N", help="One of N runs that do this together: 1/4.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON, for programs.")]

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
_LISTED = 10  # refusals that are listed
_TABLE_ROWS = 1000  # rows of an answer that are drawn as a table; other formats stream without a limit


def entry() -> None:
    """`main` as a program."""
    program.entry(main)


def main() -> None:
    """Run the command line; a mistake of the user's is one line and exit code 2, anything else on disk 1."""
    program.run(app)


def _say_version(wanted: bool) -> None:
    if wanted:
        from curate import __version__, display

        display.answer(f"curate {__version__}")
        raise typer.Exit


@app.callback()
def _version(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say which curate this is.")
    ] = False,
) -> None:
    """Choose what super-resolution models train on."""


@app.command()
def ingest(
    photos: Annotated[list[str], typer.Argument(metavar="PHOTOS", help="Folders, files, tar files, fsspec URLs.")],
    store: Annotated[str, typer.Argument(metavar="STORE", help="The store to add to; made if it is not there.")],
    patch: Annotated[int | None, typer.Option(help="Side of a window, px (480 for a new store).")] = None,
    step: Annotated[int | None, typer.Option(help="From window to window, px (half a patch for a new store).")] = None,
    shard_size: Annotated[str, typer.Option(help="Bytes of a tar shard: 256MB, 1GB.")] = "256MB",
    lr: Annotated[list[str] | None, typer.Option(metavar="SCALE=DIR", help="LR images that belong to them.")] = None,
    split: Annotated[str, typer.Option(help="Written beside each image, for SQL.")] = "train",
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Only what was refused, looked at anew.")
    ] = False,
    engine: EngineOption = "local",
    workers: WorkersOption = None,
    part: PartOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put photographs into a store.

    Bytes verbatim, every image proven whole, windows laid out. Exit code 1 if all of them are refused.
    """
    from curate import display
    from curate.engine import Engine
    from curate.ingestion import ingest as run

    folders = dict(_lr_folder(item) for item in lr or [])
    with display.progress("ingest", "files") as progress:
        report = run(
            photos,
            store,
            patch=patch,
            step=step,
            shard_size=_bytes(shard_size),
            lr=folders,
            split=split,
            retry_failed=retry_failed,
            engine=Engine(engine, workers),
            part=_part(part),
            progress=progress,
        )
    if as_json:
        display.record(report)
        raise typer.Exit(int(report.is_in_vain))
    if report.missing:
        display.answer(
            f"this part is done; {report.missing} chunks are left to others, the last of whom writes the store"
        )
        return
    for name, reason in report.refused[:_LISTED]:
        display.note(f"refused {one_line(name)}: {one_line(reason)}")
    if len(report.refused) > _LISTED:
        query = "select name, status from images where status <> 'ok'"
        display.note(f'and {len(report.refused) - _LISTED} more: curate sql {one_line(store)} "{query}"')
    _notes([line for line in (report.suspicion(), report.advice()) if line])
    if report.without_lr:
        images = counted(report.without_lr, "image")
        display.note(f"there already without an LR image of this scale, and left so: {images}; make a new store")
    if report.other_lr:
        images = counted(report.other_lr, "image")
        display.note(f"there already with another LR image, and left so: {images}; make a new store")
    if report.other_version:
        shards = counted(report.other_version, "shard")
        display.note(f"written by another version of ingest, and left as they are: {shards}")
    display.answer(report.in_words(again=retry_failed))
    raise typer.Exit(int(report.is_in_vain))


@app.command()
def duplicates(store: StoreArgument, as_json: JsonOption = False) -> None:
    """Find images that show the same picture. One of each is kept, 'select' leaves the others out."""
    from curate import display
    from curate.duplication import duplicates as run

    with display.progress("duplicates", "images") as progress:
        report = run(store, progress=progress)
    _notes(report.why)
    _show(report.pairs, as_json)
    if not as_json:
        flagged = counted(report.flagged, "near-duplicate")
        display.answer(f"{flagged} of others flagged, {_newly(report.images)}")


@app.command()
def leaks(
    store: StoreArgument,
    folder: Annotated[
        str | None, typer.Argument(metavar="FOLDER", help="HR test images, or a benchmark with HR in it.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What to call the test set (its folder's name).")] = None,
    forget: Annotated[
        str | None, typer.Option(metavar="NAME", help="Remove what was found of this test set instead.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Find training images that overlap a test set. Cropped or re-encoded ones too; 'select' leaves them out."""
    from curate import display
    from curate.leakage import leaks as run

    if forget is not None and (folder, name) == (None, None):
        _forget(store, forget, as_json)
        return
    if folder is None or forget is not None:
        found = "neither" if folder is None and forget is None else "more"
        raise UsageError(f"leaks takes a FOLDER of test images to look for, or --forget NAME alone, found {found}")
    with display.progress("leaks", "images") as progress:
        report = run(store, folder, name=name, progress=progress)
    _notes(report.why)
    for test in report.featureless:
        display.note(f"{one_line(test)} has little to be recognised by: a copy of it may not be found")
    if report.warning:
        display.note(report.warning)
    if as_json:
        display.record(report.leaks.to_pylist())
        return
    _show(report.summary(), as_json)
    count, tests = (len(set(report.leaks[column].to_pylist())) for column in ("image_id", "test"))
    overlap = f"{counted(count, 'image')} {'overlaps' if count == 1 else 'overlap'}"
    left_out = "; 'curate select' leaves them out" if count else ""
    display.answer(f"{overlap} {tests} of {counted(report.tests, 'test image')}, {_newly(report.images)}{left_out}")


def _forget(store: str, name: str, as_json: bool) -> None:
    from curate import display
    from curate.leakage import forget

    done = forget(store, name)
    if as_json:
        display.record(done)
        return
    left = f"; there are findings of: {listed(done.left)}" if done.left else ", and there are no others"
    display.answer(f"{counted(done.findings, 'finding')} of {one_line(name)} forgotten{left}")


@app.command(cls=program.OfSpecs)
def score(
    store: StoreArgument,
    scorers: Annotated[
        list[str],
        typer.Argument(metavar="SCORER", help="srcnn, srcnn:scale=3, sobel, ...", autocompletion=completion.scorers),
    ],
    device: DeviceOption = "auto",
    engine: EngineOption = "local",
    workers: WorkersOption = None,
    part: PartOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score every patch; what is done already is skipped."""
    from curate import display
    from curate.engine import Engine

    with display.progress("score", "patches") as progress:
        from curate.scoring import score as run

        report = run(store, scorers, device=device, engine=Engine(engine, workers), part=_part(part), progress=progress)
    _notes(report.why)
    if as_json:
        display.record(report)
        return
    display.answer(report.in_words())


@app.command(cls=program.OfSpecs)
def select(
    store: StoreArgument,
    strategy: Annotated[
        str, typer.Argument(help="asc, des, refined, random:seed=1, ...", autocompletion=completion.strategies)
    ],
    out: Annotated[str, typer.Option("-o", "--out", help="The manifest to write: NAME.parquet.")],
    by: Annotated[
        str | None,
        typer.Option(
            help="The score: srcnn, sobel, ... (needed if there are several).", autocompletion=completion.scores
        ),
    ] = None,
    keep: Annotated[
        float, typer.Option(parser=_share, metavar="SHARE", help="Of the candidates, to be kept: 0.5 or 50%.")
    ] = 0.5,
    unit: Annotated[Literal["patches", "pixels"], typer.Option(help="What --keep counts; pixels once.")] = "patches",
    drop_top: Annotated[
        float | None,
        typer.Option(parser=_share, metavar="SHARE", help="Of the hardest, to be passed over (refined: 0.05)."),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(metavar="SQL", help="A condition on the candidates.", autocompletion=completion.condition),
    ] = None,
    with_flagged: Annotated[bool, typer.Option("--with-flagged", help="Also from near-duplicates and leaks.")] = False,
    memory: Annotated[str, typer.Option(help="For sorting; asc, des, refined and window need no more.")] = "1GB",
    as_json: JsonOption = False,
) -> None:
    """Choose a core-set and write it as a manifest."""
    from curate import display
    from curate.selection import write

    options: dict[str, Any] = {} if drop_top is None else {"drop_top": drop_top}
    notes: list[str] = []
    with display.progress("select", "patches") as progress:
        recipe = write(
            store,
            out,
            strategy,
            by=by,
            keep=keep,
            unit=unit,
            where=where,
            with_flagged=with_flagged,
            memory=memory,
            progress=progress,
            note=notes.append,
            **options,
        )
    _notes(notes)
    counts = recipe.counts
    if counts["flagged"]:
        look = f'curate sql {one_line(store)} "select image_id, reason from flags"'
        left_out = f"{counted(counts['flagged'], 'patch')} of flagged images left out"
        display.note(f"{left_out}, which --with-flagged takes; why: {look}")
    if counts["unchecked"]:
        are = "is" if counts["unchecked"] == 1 else "are"
        unseen = counted(counts["unchecked"], "candidate")
        display.note(f"{unseen} {are} of shards that a check has not seen: run it again")
    if as_json:
        display.record({"manifest": out, "recipe": recipe})
        return
    without = counts["without_finite_score"]
    left_out = f" ({without} without a finite score left out)" if without else ""
    candidates = counted(counts["candidates"], "patch")
    display.answer(f"{counts['selected']} of {candidates} selected{left_out}: {one_line(out)}")


@app.command()
def sql(
    store: StoreArgument,
    query: Annotated[
        str | None,
        typer.Argument(help="One SELECT; without it, a prompt.", autocompletion=completion.query),
    ] = None,
    manifest: Annotated[list[str] | None, typer.Option("-m", "--manifest", help="Seen under its file's name.")] = None,
    form: Annotated[
        Literal["table", "csv", "json", "parquet"], typer.Option("--format", help="All but the table stream.")
    ] = "table",
    out: Annotated[str | None, typer.Option("-o", "--out", help="A file for the answer (csv, json, parquet).")] = None,
    memory: Annotated[str | None, typer.Option(help="At most: 1GB (80 % of the machine's).")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="At most (all).")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds at most (no limit).")] = None,
    as_json: JsonOption = False,
) -> None:
    """Ask in SQL: scores, images, patches, manifests.

    Read-only, by DuckDB. Without QUERY at a terminal it is a prompt; elsewhere queries come from standard input, each
    ended by a semicolon.
    """
    from curate import limits, storage
    from curate import sql as engine
    from curate.answers import Answers, asked
    from curate.manifest import Manifest
    from curate.store import Store

    if as_json and form not in ("table", "json"):
        raise UsageError(f"--json and --format {form} are two forms: give one")
    most = None if memory is None else _bytes(memory, "--memory")
    named, limit = Manifest.named(manifest or []), None if most is None else f"{most}B"
    connection = Store.open(store).connect(named, memory=limit, threads=threads, watched=True)
    if out is not None and form == "table":  # a file's ending says what it is
        form = next((known for known in engine.FORMATS if out.endswith(f".{known}")), form)
    answers = Answers(connection, "json" if as_json else form, out, timeout)
    limits.memory(most)
    if query is None and sys.stdin is not None and sys.stdin.isatty() and (sys.stdout.isatty() or sys.stderr.isatty()):
        if out is not None or form == "parquet":
            raise UsageError(f"{'-o' if out else '--format parquet'} should go with a query, found none")
        from curate import history
        from curate.prompt import prompt

        prompt(connection, answers.of, history.History(history.place()), name=storage.place(store, "a store").name)
        return
    answers.of_all([query] if query is not None else engine.statements(connection, asked()))


@app.command()
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A manifest.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another one.")],
    out: Annotated[str | None, typer.Option("-o", "--out", help="Parquet: a row a patch of either.")] = None,
    store: Annotated[str | None, typer.Option(help="Where their store is, if it has moved.")] = None,
    memory: Annotated[str, typer.Option(help="For joining and sorting.")] = "1GB",
    as_json: JsonOption = False,
) -> None:
    """Say how two core-sets differ. Overlap, order, what entered and left, by image and by score."""
    from curate import display
    from curate.comparison import summary

    with display.progress("diff", "patches") as progress:
        found = summary(a, b, out, store=store, memory=memory, progress=progress)
    _notes(found.notes)
    if as_json:
        tables = {"by_score": found.by_score.to_pylist(), "by_image": found.by_image.to_pylist()}
        display.record({**found.counts, **tables})
        return
    display.answer(f"from A, {one_line(a)}, to B, {one_line(b)}: 'left' is in A alone, 'entered' in B alone\n")
    display.answer("\n".join(display.tree(found.counts)))
    for title, table in found.titled(_LISTED).items():
        display.answer(f"\n{title}")
        display.table(table.column_names, [tuple(row.values()) for row in table.to_pylist()])


@app.command()
def report(
    manifests: Annotated[list[str], typer.Argument(metavar="MANIFEST", help="Files made by 'curate select'.")],
    out: Annotated[str, typer.Option("-o", "--out", help="The page to write: NAME.html.")],
    png: Annotated[str | None, typer.Option(metavar="DIR", help="Figures and patches as PNG files too.")] = None,
    store: Annotated[str | None, typer.Option(help="Where their store is, if it has moved.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what was chosen and why, on one page that opens offline."""
    from curate import display

    with display.progress("report", "photographs") as progress:
        from curate.reporting import report as run

        record = run(manifests, out, store=store, png=png, progress=progress)
    if as_json:
        display.record(record)
        return
    names = ", ".join(manifest.name for manifest in record.manifests)
    display.answer(one_line(f"{names}: {out}; open it in any browser"))


@app.command()
def info(
    path: Annotated[str, typer.Argument(help="A store, a manifest, a checkpoint or a genotype.")],
    size: Annotated[
        str | None, typer.Option(metavar="WxH", help="Count multiply-adds for an answer of 1280x720.")
    ] = None,
    arch: Annotated[
        str | None,
        typer.Option(help="For a checkpoint that does not say: srcnn:scale=2.", autocompletion=completion.archs),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a path is, its counts and its recipe."""
    from curate import display
    from curate.inspection import info as describe
    from curate.inspection import parse_size

    content = describe(path, size=parse_size(size) if size else None, arch=arch)
    if as_json:
        display.record(content)
        return
    display.answer("\n".join(display.description(content)))


@app.command()
def verify(
    paths: Annotated[list[str], typer.Argument(metavar="PATH", help="Stores, manifests, checkpoints, exports.")],
    deep: Annotated[bool, typer.Option("--deep", help="Read every byte, and compare it.")] = False,
    against: Annotated[
        list[str] | None, typer.Option(metavar="PHOTOS", help="Have these photographs changed? May be repeated.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say whether all is whole, and if not, what is hit. Exit code 1 for damage."""
    from curate import display
    from curate.verification import describe
    from curate.verification import verify as run

    with display.progress("verify", "files") as progress:
        record = run(*paths, deep=deep, against=against or (), progress=progress)
    if as_json:
        display.record(record)
    else:
        display.answer("\n".join(describe(record)))
    raise typer.Exit(0 if record.whole else 1)


@app.command()
def repair(
    path: Annotated[str, typer.Argument(help="A store, a checkpoint or an export.")],
    source: Annotated[
        list[str] | None, typer.Option("--from", metavar="PATH", help="Photographs, or a copy of the store; several.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make again what is damaged, and name what is lost. Byte for byte; exit code 1 if anything is left."""
    from curate import display
    from curate.repairing import repair as run
    from curate.verification import describe

    with display.progress("repair", "files") as progress:
        report = run(path, sources=source or [], progress=progress)
    if as_json:
        display.record(report)
        raise typer.Exit(0 if report.left.whole else 1)
    for word, changes in (("rebuilt", report.rebuilt), ("removed", report.removed)):
        for name, how in changes:
            display.answer(f"{word}  {one_line(name)}: {one_line(how)}")
    for command in report.again:
        display.answer(f"run      {command}")
    display.answer("\n".join(describe(report.left)))
    raise typer.Exit(0 if report.left.whole else 1)


def _with_options_of(config: type[Config]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command gets an option for every field of a config in place of its **options; None where not given."""
    return lambda command: _with(command, options_of(config))


def _with(command: Callable[..., None], options: list[Option]) -> Callable[..., None]:
    fixed = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD]
    made = [
        inspect.Parameter(
            option.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                _on_the_command_line(option),
                typer.Option(
                    help=_help(option),
                    autocompletion=_COMPLETED.get(option.name),
                ),
            ],
        )
        for option in options
    ]
    command.__signature__ = inspect.Signature([*fixed, *made])  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in (*fixed, *made)}
    return command


_COMPLETED = {"degrade": completion.degradations, "arch": completion.archs}


def _on_the_command_line(option: Option) -> Any:
    """The type of an option that may be left out; a list of numbers is one text with commas, bytes have a unit."""
    return str | None if option.type == tuple[int, ...] or option.name == "bytes" else option.type | None


def _help(option: Option) -> str:
    return option.help if option.default in (None, "", ()) else f"{option.help} [{option.default}]"


@app.command()
@_with_options_of(TrainConfig)
def train(
    manifest: Annotated[str, typer.Argument(metavar="MANIFEST", help="A file made by 'curate select'.")],
    *,
    out: Annotated[str, typer.Option("-o", "--out", metavar="RUN", help="Its folder or URL; made, or gone on with.")],
    arch: Annotated[
        str | None,
        typer.Option(help="fsrcnn:scale=2, swinir:scale=2,variant=light, ...", autocompletion=completion.archs),
    ] = None,
    recipe: Annotated[Path | None, typer.Option(metavar="TOML", help="Arch and options; those given here win.")] = None,
    init: Annotated[str | None, typer.Option(metavar="CHECKPOINT", help="Weights to start from.")] = None,
    teacher: Annotated[str | None, typer.Option(metavar="CHECKPOINT", help="A trained network to resemble.")] = None,
    validate: Annotated[str | None, typer.Option(metavar="FOLDER", help="HR images; the best is kept.")] = None,
    store: Annotated[str | None, typer.Option(help="Where the manifest's store is, if it has moved.")] = None,
    wandb: Annotated[str | None, typer.Option(metavar="PROJECT", help="Curves to Weights & Biases too.")] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
    **options: Any,
) -> None:
    """Train a network on a core-set. The same command goes on with a run that was stopped or killed."""
    from curate import display, storage

    given = {name: value for name, value in options.items() if value is not None}
    if "milestones" in given:
        given["milestones"] = _numbers(given["milestones"])
    spec, config = plan(recipe, arch, given)
    with display.progress("train", "steps") as progress:
        from curate.training import train as run

        made = run(
            spec,
            manifest,
            config,
            out,
            init=init,
            teacher=teacher,
            store=store,
            validate=validate,
            wandb=wandb,
            device=device,
            progress=progress,
        )
    if as_json:
        display.record({"run": out, "recipe": made.recipe})
        return
    last, best = made.recipe["last"], made.recipe["best"]
    result = f"loss {last['loss']:.5f}, {last['psnr']:.2f} dB on the last training crops"
    if best is not None:
        result += f", best validation {best['psnr']:.2f} dB after {best['step']}"
    display.answer(f"{made.recipe['steps']} steps, {result}: {one_line(out)}")
    if storage.is_url(out):
        display.note("TensorBoard's curves are not written to a URL; --wandb PROJECT keeps some")


@app.command()
@_with_options_of(DistillConfig)
def distill(
    manifest: Annotated[
        str | None, typer.Argument(metavar="MANIFEST", help="A file made by 'curate select': a core-set is best.")
    ] = None,
    *,
    out: Annotated[str, typer.Option("-o", "--out", metavar="STORE2", help="The new store; made, or gone on with.")],
    source: Annotated[
        str | None, typer.Option("--from", metavar="MANIFEST", help="Another way to name the manifest.")
    ] = None,
    recipe: Annotated[Path | None, typer.Option(metavar="TOML", help="Options; those given here win.")] = None,
    store: Annotated[str | None, typer.Option(help="Where the manifest's store is, if it has moved.")] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
    **options: Any,
) -> None:
    """Distil a core-set into a few new patches. They are a store with a manifest, like any other.

    The same command goes on with a run that was stopped or killed.
    """
    from curate import display

    if (manifest is None) == (source is None):
        found = "neither" if manifest is None else f"{one_line(manifest)} and {one_line(source)}"
        raise UsageError(
            f"which manifest to distil? One of MANIFEST and --from MANIFEST should be given, found {found}"
        )
    given = {name: value for name, value in options.items() if value is not None}
    if "bytes" in given:
        given["bytes"] = _bytes(given["bytes"], "--bytes")
    config = settle(DistillConfig, recipe, given, {"patches", "bytes"})
    with display.progress("distill", "steps") as progress:
        from curate.distillation import distill as run

        report = run(manifest or source or "", config, out, store=store, device=device, progress=progress)
    if as_json:
        display.record(report._asdict())
        return
    how = "" if report.value is None else f", objective {report.value:.5g}"
    how += "" if report.moved is None else f", {report.moved:.2f} dB from the real ones that they were"
    display.answer(f"{counted(report.patches, 'patch')}, {report.bytes / 1e6:.2f} MB{how}: {one_line(report.manifest)}")


_ldm = program.Verbs(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(_ldm, name="ldm", help="Train latent diffusion models, and draw from them.")


@_ldm.command("train")
@_with_options_of(LdmConfig)
def ldm_train(
    store: StoreArgument,
    *,
    out: Annotated[str, typer.Option("-o", "--out", metavar="FOLDER", help="Of the model; made, or gone on with.")],
    recipe: Annotated[Path | None, typer.Option(metavar="TOML", help="Options; those given here win.")] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
    **options: Any,
) -> None:
    """Train a small one on a store's patches. An autoencoder, and the denoiser of its latents; diffusers reads it too.

    The same command goes on with a run that was stopped or killed.
    """
    from curate import display

    given = {name: value for name, value in options.items() if value is not None}
    config = settle(LdmConfig, recipe, given)
    with display.progress("ldm train", "steps") as progress:
        from curate.ldm_training import train as run

        made = run(store, config, out, device=device, progress=progress)
    if as_json:
        display.record({"model": out, "recipe": made})
        return
    last = made["last"]
    result = f"crops rebuilt at {last['psnr']:.2f} dB"
    result += f", error of the noise {last['noise_loss']:.4f}" if "noise_loss" in last else ""
    display.answer(f"{counted(made['steps'], 'step')}, {result}: {one_line(out)}")


@_ldm.command("sample")
def ldm_sample(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="A folder or hub name; without it, the bundled one.")
    ] = None,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="PNG", help="The picture to write.")] = Path(
        "samples.png"
    ),
    size: Annotated[int | None, typer.Option(help="Side of a sample, px (what the model was trained on).")] = None,
    number: Annotated[int, typer.Option(help="How many.")] = 16,
    steps: Annotated[int, typer.Option(help="Of the diffusion.")] = 50,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Draw patches from noise, as a picture."""
    from curate import display

    with display.progress("ldm sample", "steps") as progress:
        from curate.sampling import sample as run

        run(model, out, size=size, number=number, steps=steps, seed=seed, device=device, progress=progress)
    if as_json:
        display.record({"picture": out, "samples": number})
        return
    display.answer(f"{counted(number, 'sample')}: {one_line(out)}")


_nas = program.Verbs(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(_nas, name="nas", help="Search for light networks, and draw what was found.")


@_nas.command("dlsr")
@_with_options_of(NasConfig)
def nas_dlsr(
    manifest: Annotated[str, typer.Argument(metavar="MANIFEST", help="A file made by 'curate select'.")],
    *,
    out: Annotated[str, typer.Option("-o", "--out", metavar="RUN", help="Its folder or URL; made, or gone on with.")],
    recipe: Annotated[Path | None, typer.Option(metavar="TOML", help="Options; those given here win.")] = None,
    store: Annotated[str | None, typer.Option(help="Where the manifest's store is, if it has moved.")] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
    **options: Any,
) -> None:
    """Search DLSR's space. What is found trains with --arch dlsr:genotype=RUN/genotype.json.

    The same command goes on with a search that was stopped or killed.
    """
    from curate import display

    given = {name: value for name, value in options.items() if value is not None}
    if "snapshots" in given:
        given["snapshots"] = _numbers(given["snapshots"], "--snapshots")
    config = settle(NasConfig, recipe, given)
    with display.progress("nas dlsr", "steps") as progress:
        from curate.nas import search

        report = search(manifest, config, out, store=store, device=device, progress=progress)
    if as_json:
        display.record({**report._asdict(), "genotype": str(report.genotype)})
        return
    size = f"{report.parameters:,} parameters, {report.multiply_adds / 1e9:.2f} G multiply-adds for 1280x720"
    display.answer(f"{report.genotype}: {size}: {one_line(report.path)}")


@_nas.command("draw")
def nas_draw(
    genotype: Annotated[str, typer.Argument(metavar="GENOTYPE", help="dlsr, dlsr-div, a file, or as text.")],
    out: Annotated[str, typer.Option("-o", "--out", metavar="SVG", help="The picture to write.")] = "genotype.svg",
    as_json: JsonOption = False,
) -> None:
    """Draw a network of DLSR's space as a graph. A published one, a file of a search, or one written as text."""
    from curate import display, storage
    from curate.genotype import Genotype

    found = Genotype.parse(genotype)
    place = storage.place_for(out, "a picture", "genotype.svg")
    with display.progress("nas draw", "pictures"):
        from curate.nas import pictures

        storage.publish_bytes(place, pictures.genotype(found).encode())
    if as_json:
        display.record({"picture": place, "genotype": str(found)})
        return
    display.answer(f"{found}: {one_line(place)}")


_drc = program.Verbs(cls=program.WithDefault, no_args_is_help=True, rich_markup_mode=None)
app.add_typer(_drc, name="drc", help="Compress a network: what stands alone is for 'compress'.")
ArchOption = Annotated[
    str | None, typer.Option(help="For a file that does not say: edsr:scale=2.", autocompletion=completion.archs)
]


@_drc.command(program.WithDefault.default)
@_with_options_of(DrcConfig)
def drc_compress(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="A run's folder, or a file.")],
    manifest: Annotated[str, typer.Argument(metavar="MANIFEST", help="A file made by 'curate select'.")],
    *,
    out: Annotated[str, typer.Option("-o", "--out", metavar="RUN", help="Its folder or URL; made, or gone on with.")],
    stage: Annotated[
        Literal["channels", "prune", "finetune"] | None, typer.Option(help="One of the three alone, in this order.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(metavar="CHECKPOINT", help="Finetune towards this one's maps too.")
    ] = None,
    recipe: Annotated[Path | None, typer.Option(metavar="TOML", help="Options; those given here win.")] = None,
    validate: Annotated[str | None, typer.Option(metavar="FOLDER", help="HR images; the best is kept.")] = None,
    arch: ArchOption = None,
    store: Annotated[str | None, typer.Option(help="Where the manifest's store is, if it has moved.")] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
    **options: Any,
) -> None:
    """Compress a network by DRC, in three stages. The word `compress` may be left out.

    How many maps of each unit stay, which ones, and a training of what is left. The same command goes on with a run
    that was stopped or killed.
    """
    from curate import display

    given = {name: value for name, value in options.items() if value is not None}
    config = settle(DrcConfig, recipe, given)
    with display.progress("drc", "steps") as progress:
        from curate.drc import compress, measured

        report = compress(
            checkpoint,
            manifest,
            config,
            out,
            stage=stage,
            teacher=teacher,
            store=store,
            validate=validate,
            arch=arch,
            device=device,
            progress=progress,
        )
        speed = measured(report, device)
    if as_json:
        from curate.plugins import spec_of

        archs = {"arch": spec_of(report.arch), "before": spec_of(report.before)}
        display.record({**report._asdict(), **archs, "latency": speed._asdict()})
        return
    numbers = "{:,} -> {:,} parameters".format(*report.parameters)
    products = "{:.2f} -> {:.2f} G multiply-adds for 1280x720".format(*(count / 1e9 for count in report.multiply_adds))
    times = "{:.3g} -> {:.3g} ms".format(*speed.milliseconds) + f" for {speed.size} on {speed.device}"
    display.answer(f"{numbers}, {products}, {times}: {one_line(report.path)}")


@_drc.command("slim")
def drc_slim(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="A run's folder, or a file.")],
    config: Annotated[str, typer.Option(metavar="FILE", help="A number a line, as published, or text: 12.20.36.")],
    out: Annotated[str, typer.Option("-o", "--out", metavar="FOLDER", help="Of the smaller checkpoint.")],
    arch: ArchOption = None,
    as_json: JsonOption = False,
) -> None:
    """Keep known numbers of maps, the largest. Without a training."""
    from curate import display

    with display.progress("drc slim", "units"):
        from curate.drc import slimmed

        report = slimmed(checkpoint, config, out, arch)
    if as_json:
        from curate.plugins import spec_of

        display.record({**report._asdict(), "arch": spec_of(report.arch)})
        return
    whole = report.parameters + report.dual_parameters
    size = f"{report.parameters:,} parameters, {whole:,} with dual networks"
    products = f"{report.multiply_adds / 1e9:.2f} G multiply-adds for 1280x720"
    display.answer(f"{size}, {products}: {one_line(report.path)}")


@app.command("eval")
def evaluate(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="A run's folder, or a file.")],
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="HR images, or a benchmark's HR and LR_bicubic.")],
    lr: Annotated[str | None, typer.Option(metavar="FOLDER", help="Their LR images; made if there are none.")] = None,
    arch: Annotated[
        str | None,
        typer.Option(help="For a file that does not say: srcnn:scale=2,kernel=9-1-5.", autocompletion=completion.archs),
    ] = None,
    protocol: Annotated[
        Literal["y", "luma", "rgb"], typer.Option(help="y: most tables; luma: SRCNN's; rgb: EDSR's.")
    ] = "y",
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Measure PSNR and SSIM. By the field's protocols, per image and on average."""
    from curate import display

    with display.progress("eval", "images") as progress:
        from curate.evaluation import averages, summary
        from curate.evaluation import evaluate as run

        table = run(checkpoint, folder, lr=lr, arch=arch, protocol=protocol, device=device, progress=progress)
    if as_json:
        display.record(summary(table))
        return
    rows = [(row["name"], f"{row['psnr']:.2f}", f"{row['ssim']:.4f}") for row in table.to_pylist()]
    mean = averages(table)
    display.table(("image", "PSNR", "SSIM"), [*rows, ("average", f"{mean['psnr']:.2f}", f"{mean['ssim']:.4f}")])
    display.note(summary(table)["protocol"])


@app.command()
def pack(
    manifest: Annotated[str, typer.Argument(metavar="MANIFEST", help="A file made by 'curate select'.")],
    out: Annotated[str, typer.Argument(metavar="STORE2", help="A new folder, or one of the same pack.")],
    store: Annotated[str | None, typer.Option(help="Where the manifest's store is, if it has moved.")] = None,
    shard_size: Annotated[str, typer.Option(help="Bytes of a tar shard: 256MB, 1GB.")] = "256MB",
    cells: Annotated[
        Literal["webp", "png"], typer.Option(help="Files of pixels: webp is smaller, png is decoded faster.")
    ] = "webp",
    engine: EngineOption = "local",
    workers: WorkersOption = None,
    part: PartOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a smaller store of the chosen pixels. Lossless, each pixel once, with a manifest of its own."""
    from curate import display
    from curate.engine import Engine

    with display.progress("pack", "images") as progress:
        from curate.packing import pack as do

        report = do(
            manifest,
            out,
            store=store,
            shard_size=_bytes(shard_size),
            cells=cells,
            engine=Engine(engine, workers),
            part=_part(part),
            progress=progress,
        )
    if as_json:
        display.record(report)
        return
    if report.missing:
        left = f"{counted(report.missing, 'shard')} {'is' if report.missing == 1 else 'are'} left to others"
        display.answer(f"this part is done; {left}, the last of whom writes the end")
        return
    display.answer(
        f"{counted(report.patches, 'patch')} of {counted(report.images, 'image')} in {report.bytes / 1e6:.1f} MB, "
        f"of the source's {report.source_bytes / 1e6:.1f} ({counted(report.kept, 'file')} kept, "
        f"{counted(report.cells, 'cell')}): {one_line(report.manifest)}"
    )


@app.command()
def export(
    manifest: Annotated[str, typer.Argument(metavar="MANIFEST", help="A file made by 'curate select'.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="A new folder, or one of the same export.")],
    to: Annotated[
        Literal["folder", "basicsr", "neosr", "trainner", "lmdb", "webdataset", "hf"],
        typer.Option(help="Whose layout; folder is KAIR's and EDSR's."),
    ],
    scale: Annotated[Literal["2", "3", "4", "none"], typer.Option(help="Of the LR beside; none for HR alone.")] = "2",
    store: Annotated[str | None, typer.Option(help="Where the manifest's store is, if it has moved.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Cut the chosen windows out for other trainers. Each with a stub of its configuration."""
    from curate import display

    with display.progress("export", "windows") as progress:
        from curate.exporting import export as do

        report = do(manifest, out, to=to, scale=None if scale == "none" else int(scale), store=store, progress=progress)
    if report.weights_unread:
        display.note("the manifest weights its windows; this target's readers do not look (webdataset's and hf's may)")
    if as_json:
        display.record(report)
        return
    there = f"{report.kept} there already, " if report.kept else ""
    display.answer(
        f"{counted(report.windows, 'window')} exported ({there}{report.bytes / 1e6:.1f} MB), "
        f"with {', '.join(path.name for path in report.stubs)}: {one_line(out)}"
    )


@app.command()
def run(
    pipeline: Annotated[Path, typer.Argument(metavar="TOML", help="pipelines/pruning_study.toml, ...")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the study; made, or gone on with.")],
    photos: Annotated[list[str], typer.Argument(metavar="PHOTOS", help="Folders, files, tar files, fsspec URLs.")],
    test: Annotated[list[Path] | None, typer.Option(metavar="FOLDER", help="HR images to measure on; several.")] = None,
    plugin: Annotated[list[str] | None, typer.Option(metavar="MODULE", help="Code of yours that it may name.")] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Do a whole study from one file. Ingest, score, select, train, search, compress, measure, and one result table."""
    from curate import display

    with display.progress("run", "steps") as progress:
        from curate.pipeline import results
        from curate.pipeline import run as do

        do(pipeline, out, photos, test or [], modules=plugin or [], device=device, progress=progress)
    there = results(out)
    if as_json:
        display.record([row for table in there.values() for row in table.to_pylist()])
        return
    for name in there:
        display.answer((out / f"{name}.md").read_text("utf-8"))
    display.answer(f"{one_line(out)}: {', '.join(f'{name}.parquet, {name}.md, {name}.svg' for name in there)}")


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where to put what it makes.")] = Path("curate-demo"),
    steps: Annotated[int, typer.Option(help="Training steps of each network.")] = 1500,
    as_json: JsonOption = False,
) -> None:
    """Do all of the above on four sample photographs. Two minutes on two idle cores."""
    from curate import display
    from curate.demo import demo as run

    say = display.note if as_json else display.answer
    result = run(folder, steps=steps, say=say, progress=display.progress)
    if as_json:
        display.record(result)


def _show(rows: "pa.Table", as_json: bool) -> None:
    """A table of findings, if there are any; all of them as JSON."""
    from curate import display

    if as_json:
        display.record(rows.to_pylist())
    elif rows.num_rows:
        display.table(rows.column_names, [tuple(row.values()) for row in rows.slice(0, _TABLE_ROWS).to_pylist()])
        if rows.num_rows > _TABLE_ROWS:
            display.note(f"the first {_TABLE_ROWS} rows; --json gives them all")


def _list_command(kind: Literal["scorers", "strategies", "archs"]) -> None:
    def command(as_json: JsonOption = False) -> None:
        from curate import display, plugins

        found = plugins.describe(kind)
        if as_json:
            display.record(found)
            return
        display.table(("name", "what it is"), list(found.items()))

    app.command(kind, help=f"List the {kind} that there are.")(command)


_list_command("scorers")
_list_command("strategies")
_list_command("archs")


def _newly(images: int) -> str:
    """How many images a check looked at that it had not seen."""
    return f"{counted(images, 'image')} newly looked at" if images else "all were looked at before"


def _notes(lines: list[str]) -> None:
    from curate import display

    for line in lines:
        display.note(line)


def _lr_folder(item: str) -> tuple[int, str]:
    scale, equals, folder = item.partition("=")
    if not equals or not folder or scale not in ("2", "3", "4"):
        raise UsageError(f"--lr should be SCALE=DIR with scale 2, 3 or 4, found '{one_line(item)}'")
    return int(scale), folder


def _part(text: str | None) -> "Part":
    from curate.engine import WHOLE, Part

    return WHOLE if text is None else Part.parse(text)


def _numbers(text: str, option: str = "--milestones") -> tuple[int, ...]:
    if not re.fullmatch(r"\d{1,18}(,\d{1,18})*", text):
        raise UsageError(f"{option} should be steps such as 250000,400000, found '{one_line(text)}'")
    return tuple(int(number) for number in text.split(","))


def _bytes(text: str, option: str = "--shard-size") -> int:
    match = re.fullmatch(r"(\d{1,18}(?:\.\d{1,18})?) *([KMG]?)B?", text.strip(), re.IGNORECASE)
    if not match:
        raise UsageError(f"{option} should be a number of bytes such as 256MB or 1GB, found '{one_line(text)}'")
    return int(float(match[1]) * _UNITS[match[2].upper()])
