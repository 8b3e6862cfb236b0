"""The command line. Heavy imports stand inside the commands, so that `gritrag --help` is instant."""

from gritrag.cli import agents, asking, benches, evaluations, indexes, indexing, project, serving
from gritrag.cli.app import app

__all__ = ["agents", "app", "asking", "benches", "evaluations", "indexes", "indexing", "project", "serving"]
