#!/usr/bin/env bash
# mteb 2.26.24: evaluate() of a model that lies in a folder gives the score of the first such model that was ever evaluated on this machine.
#
# Results are kept in ~/.cache/mteb, under the model's name and revision, and found there again by default ("only-missing"). A SentenceTransformer
# that comes from a folder, or was put together in memory, has neither in its model card: all are filed as no_model_name/available,
# no_revision_available. So the second is not evaluated at all; what comes back is a result of the first, in another process and
# weeks later too, and nothing warns. One that was trained from a base whose name its card has is filed as that base. Whoever compares
# checkpoints this way finds that training changes nothing. Give cache=None, overwrite_strategy="always", or a name.
#
# Seen with mteb 2.26.24, sentence-transformers 6.2.0, four models of random vectors, STS of five pairs (Spearman):
#   as evaluated by default: 0.3, 0.3, 0.3, 0.3
#   with cache=None:         0.3, 0.6, 0.7, 0.9
#   two whose cards name the same base: 0.7, 0.7; with cache=None: 0.7, 0.9
#   warnings that name the cache: 0
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile torch==2.13.0 numpy==2.4.6 mteb==2.26.24 sentence-transformers==6.2.0 transformers==5.23.0 datasets==5.2.0
cat > "$folder/scores.py" <<'PYTHON'
import logging
import sys
from pathlib import Path

import mteb
import torch
from datasets import Dataset
from mteb.mocks.mock_tasks.sts import MockSTSTask
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers

PAIRS = {
    "sentence1": ["owls click", "the clock leans", "gulls nest here", "rye bread is sold", "the well is deep"],
    "sentence2": ["owls click here", "a tower leans", "the well is deep", "bread of rye is for sale", "a deep tower"],
    "score": [5.0, 3.0, 0.5, 4.0, 1.0],
}
WORDS = sorted({word for side in ("sentence1", "sentence2") for text in PAIRS[side] for word in text.split()})
told: list[str] = []


class Told(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        told.append(record.getMessage())


class Pairs(MockSTSTask):
    metadata = MockSTSTask.metadata.model_copy(update={"name": "Pairs"})
    min_score, max_score = 0, 5

    def load_data(self, **options) -> None:
        self.dataset, self.data_loaded = {"test": Dataset.from_dict(PAIRS)}, True


def saved(seed: int, folder: Path) -> SentenceTransformer:
    """A model of random vectors, as it comes back from its folder."""
    words = Tokenizer(models.WordLevel({word: id for id, word in enumerate(["[UNK]", *WORDS])}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    weights = torch.randn(len(WORDS) + 1, 16, generator=torch.Generator().manual_seed(seed)).numpy()
    path = str(folder / f"model-{seed}")
    SentenceTransformer(modules=[StaticEmbedding(words, embedding_weights=weights)], device="cpu").save(path)
    return SentenceTransformer(path, device="cpu")


def score(model: SentenceTransformer, **options) -> float:
    result = mteb.evaluate(model, Pairs(), co2_tracker=False, show_progress_bar=False, **options)
    return round(float(result.task_results[0].get_score()), 2)


logging.getLogger().addHandler(Told(logging.WARNING))
nameless = [saved(seed, Path(sys.argv[1])) for seed in (1, 2, 3, 4)]
by_default = [score(model) for model in nameless]
evaluated = [score(model, cache=None) for model in nameless]
trained = nameless[2:]
for model in trained:
    model.model_card_data.base_model = "somebody/base"
of_base = [score(model) for model in trained]
warned = sum("cache" in message.lower() for message in told)
print("as evaluated by default:", *by_default)
print("with cache=None:", *evaluated)
print("two whose cards name the same base:", *of_base)
print("warnings that name the cache:", warned)
as_described = len(set(evaluated)) == 4 and by_default == evaluated[:1] * 4 and of_base == evaluated[2:3] * 2
sys.exit(not (as_described and not warned))
PYTHON
MTEB_CACHE="$folder/cache" HF_HOME="$folder/home" HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -W ignore "$folder/scores.py" "$folder" 2> "$folder/errors" \
    && echo "as described" || { tail -5 "$folder/errors"; exit 1; }
