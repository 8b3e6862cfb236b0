"""The application that commands register with, and how it says what went wrong."""

import json
import sys
from io import TextIOWrapper
from itertools import takewhile
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from gritrag import __version__, render

UsageError: Any = typer.BadParameter.__mro__[1]  # an option that there is not, or a value that it does not take


class CleanErrors(TyperGroup):
    """What the user did wrong is said in one line, without a traceback; anything else is our bug and keeps its own.

    With `--json` the standard output has it too, as ``{"error": "..."}``: a program that reads JSON there always can.
    """

    def invoke(self, ctx: Any) -> Any:
        takes_json = "--json" in takewhile("--".__ne__, (*ctx._protected_args, *ctx.args))
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # `gritrag search ... | head`: nobody is left to tell
        except UsageError as error:
            if takes_json:
                typer.echo(json.dumps({"error": error.format_message()}))
            raise
        except (ValueError, OSError) as error:
            if ctx.params.get("debug"):
                raise
            typer.echo(f"error: {error}", err=True)
            if takes_json:
                typer.echo(json.dumps({"error": str(error)}))
            raise typer.Exit(2) from None


class Evaluations(TyperGroup):
    """`gritrag eval FILE` is short for `gritrag eval questions FILE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        is_short = bool(args) and args[0] not in (*self.commands, "--help")
        return super().parse_args(ctx, ["questions", *args] if is_short else args)


app = typer.Typer(cls=CleanErrors, no_args_is_help=True, pretty_exceptions_enable=False)
bench = typer.Typer(no_args_is_help=True, help="Measure speed, codecs and modes on this machine.")
app.add_typer(bench, name="bench")
evaluation = typer.Typer(cls=Evaluations, no_args_is_help=True, help="Score retrieval, answers and vectors.")
app.add_typer(evaluation, name="eval")


def _show_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"gritrag {__version__}")
        raise typer.Exit


@app.callback()
def main(
    debug: Annotated[bool, typer.Option(help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Say which version this is.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Retrieval-augmented generation with one language model that reads every document once."""
    if isinstance(sys.stdout, TextIOWrapper) and not render.holds_all(sys.stdout):
        sys.stdout.reconfigure(errors="replace")  # a character that it lacks is no reason to lose an answer
