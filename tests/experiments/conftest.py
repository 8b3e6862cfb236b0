"""What several experiments are tried on."""

import json
from pathlib import Path

import pytest
from places import PLACES


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A file of questions, each on a passage of its own."""
    path = tmp_path / "rows.jsonl"
    made = [
        {"question": f"How many owls has {p}?", "passage": f"{p} has {n} owls.", "answers": [f"{n} owls", f"{n}"]}
        for n, p in enumerate(PLACES[:6])
    ]
    path.write_text("\n".join(map(json.dumps, made)))
    return path
