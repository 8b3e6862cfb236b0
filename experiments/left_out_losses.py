"""How a model in training does on files of questions that it has not seen: recall@1, and loss of right answers.

    python -m experiments.left_out_losses gritrag-smollm2-135m runs/mixture/step-00000033/weights.safetensors \
        --data-dir FOLDER --file timeqa.validation.jsonl --file dolly-context.validation.jsonl

Prints a line of JSON for each model: what `gritrag.train.validate` looks at, on the same questions.
"""

import argparse
import json
import tempfile
from pathlib import Path

from gritrag.train.config import TrainConfig
from gritrag.train.loop import Trainer


def losses(
    init: str, data_dir: Path, files: list[str], sizes: dict[str, int], base: str = "smollm2-135m"
) -> dict[str, float]:
    """Figures of one model, named as `TrainConfig.init` names it."""
    with tempfile.TemporaryDirectory() as runs:
        config = TrainConfig.model_validate(
            {
                "name": "losses",
                "base": base,
                "init": init or None,
                "template": "gritrag",
                "runs_dir": runs,
                "data": {"data_dir": str(data_dir.resolve()), "sources": [{"path": files[0], "cloze_questions": 1}]},
                "validation": {"paths": files, **sizes},
            }
        )
        return Trainer(config).validation()


def main() -> None:
    """Compare models, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="checkpoints, or weights of snapshots; '' for the base")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--file", action="append", required=True)
    parser.add_argument("--documents", type=int, default=24)
    parser.add_argument("--answers", type=int, default=20)
    parser.add_argument("--distractors", type=int, default=3)
    given = parser.parse_args()
    sizes = {"documents": given.documents, "answers": given.answers, "distractors": given.distractors}
    for model in given.models:
        found = losses(model, given.data_dir, given.file, sizes)
        print(json.dumps({"model": model, **found}), flush=True)


if __name__ == "__main__":
    main()
