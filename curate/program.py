"""The program around the commands: what all of them share, errors as one line, exit codes, and a quick end."""

import atexit
import contextlib
import errno
import functools
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup

from curate import display, shells, stopping
from curate.errors import CurateError, UsageError, meant, one_line

__all__ = ["OfSpecs", "Verbs", "WithDefault", "entry", "run"]

_QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but the result.")]
_DebugOption = Annotated[bool, typer.Option("--debug", help="Show where in curate an error comes from.")]
_debugging = False


class Verbs(typer.Typer):
    """An app whose commands all have --quiet and --debug."""

    def command(self, *arguments: Any, **options: Any) -> Callable[..., Any]:
        register = super().command(*arguments, **options)

        def add(function: Callable[..., None]) -> Callable[..., None]:
            register(_with_common_options(function))
            return function

        return add


class OfSpecs(TyperCommand):
    """A command that takes specs: an option of a plugin's own belongs there, and not on the command line."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = {"help"}.union(*({name.lstrip("-") for name in param.opts} for param in self.params))
        for arg in takewhile(lambda arg: arg != "--", args):
            option = arg.removeprefix("--").partition("=")[0]
            if arg.startswith("--") and option not in known and not meant(option, known):
                how = "srcnn:scale=3" if self.name == "score" else "refined:drop_top=0.1"
                own = f"a {'scorer' if self.name == 'score' else 'strategy'}'s own options are part of its name"
                raise UsageError(f"{self.name} has no option '--{one_line(option)}'; {own}: {how}")
        return super().parse_args(ctx, args)


class WithDefault(TyperGroup):
    """A group whose first command is meant where none of its commands is named."""

    default: ClassVar[str] = "compress"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in self.get_help_option_names(ctx):
            args = [self.default, *args]
        return super().parse_args(ctx, args)


def _with_common_options(function: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(function)
    def command(*arguments: Any, quiet: bool, debug: bool, **options: Any) -> None:
        global _debugging
        _debugging = debug
        display.quiet(quiet)
        function(*arguments, **options)

    own = inspect.signature(function, eval_str=True)
    common = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
        for name, annotation in (("quiet", _QuietOption), ("debug", _DebugOption))
    ]
    command.__signature__ = own.replace(parameters=[*own.parameters.values(), *common])  # type: ignore[attr-defined]
    command.__annotations__ = {
        parameter.name: parameter.annotation for parameter in (*own.parameters.values(), *common)
    }
    return command


def entry(main: Callable[[], None]) -> None:
    """Run `main` as a program: when all is done, leave at once. Python's own end would take a tenth of a second."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # started with it closed, as by a daemon: what is said is said to nobody
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - to the end
    status = [1]
    atexit.register(_leave, status)  # the first one registered is the last one called
    stopping.listen()
    try:
        main()
        status[0] = 0
    except SystemExit as leaving:
        status[0] = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        if stopping.caught():
            atexit._run_exitfuncs()  # Python's own end would first wait for what threads are doing
        raise


def _leave(status: list[int]) -> None:
    try:
        sys.stderr.flush()
        sys.stdout.flush()
    except OSError:
        if not status[0]:  # nobody reads any more: Python says so in its own way
            return
    os._exit(status[0])  # where it failed before, that has been said


def run(app: typer.Typer) -> None:
    """Run the command line `app`, or answer a shell that asks what could come next.

    It ends in SystemExit: 0, 2 for a mistake of the user's, 1 for anything else, 128 and more for a signal; errors are
    one line on standard error, after the traceback where --debug was given.
    """
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "true")  # to look for some takes 20 ms of every command
    try:
        shells.serve(app)
        _to_the_end(app)
    except BaseException as error:
        done = isinstance(error, SystemExit) and not error.code  # before it could be stopped
        if _debugging and not isinstance(error, SystemExit):
            traceback.print_exception(error)
        if stopping.caught() and not done:
            _fail(stopping.line(), stopping.code())
        if isinstance(error, CurateError):
            _fail(str(error), error.exit_code)
        if isinstance(error, OSError):
            _fail(_reason(error), 1)
        if isinstance(error, MemoryError):
            _fail("there is not enough memory for this", 1)
        if isinstance(error, Exception):
            _fail(_bug(error), 1)
        raise


def _to_the_end(app: typer.Typer) -> None:
    """Run it, and see that what it has answered is out: a full disk behind a pipe or a file says so only then."""
    try:
        app()
    except SystemExit as leaving:
        if not leaving.code:
            with contextlib.suppress(BrokenPipeError), display.named_output():  # who reads a pipe may have had enough
                sys.stdout.flush()
        raise


def _bug(error: Exception) -> str:
    """Anything else is a mistake of ours: what it is, where it was, and how to see more."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(last.filename).name}, line {last.lineno}"
    more = "" if _debugging else "; the same command with --debug shows the way there, for a report"
    return f"an error of curate's own: {type(error).__name__}: {error} ({where}){more}"


def _reason(error: OSError) -> str:
    """`No space left on device: 'store/shards/000003.tar'`, and how to go on."""
    name = error.filename if error.filename2 is None else error.filename2
    where = "" if name is None else f": '{os.fsdecode(name) if isinstance(name, bytes) else name}'"
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return f"{error.strerror or error}{where}{'; make room, and the same command goes on' if full else ''}"


def _fail(message: str, code: int) -> None:
    sys.stderr.write(f"curate: {one_line(message)}\n")
    raise SystemExit(code)
