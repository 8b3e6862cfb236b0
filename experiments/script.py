"""The command line of an experiment: options as in `gritrag`, and what the user did wrong in one line."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import typer


def application(command: Callable[..., None]) -> typer.Typer:
    """A command with its options; a mistake of the user exits with status 2."""

    @wraps(command)
    def told(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except (ValueError, OSError) as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(2) from None

    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(told)
    return app


def run(command: Callable[..., None]) -> None:
    """Run the command of a script."""
    application(command)()
