"""Where the repository lies, and the tiny models that it holds: for tests of commands, which take names of folders."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
TINY = str(ROOT / "configs" / "tiny" / "model")
ENCODER = str(ROOT / "configs" / "tiny" / "encoder")
