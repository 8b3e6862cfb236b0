"""A file of questions."""

import json
from pathlib import Path

import pytest
from places import QUESTION_ROWS


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """See `places`."""
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, QUESTION_ROWS)))
    return path
