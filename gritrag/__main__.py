"""`python -m gritrag` is `gritrag`."""

from gritrag.cli import app

app(prog_name="gritrag")
