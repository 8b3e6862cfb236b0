"""Encoders to compare with or to learn from: what gives vectors of texts, whether or not it also reads and answers.

`minilm` is all-MiniLM-L6-v2 (Wang et al. 2020; mean pooling as in Reimers and Gurevych 2019), an encoder of 22 million
parameters that only embeds. It comes in a package of its own.

Shape letters: `N` texts, `Q` queries, `B` batch, `T` tokens, `D` length of a vector.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from gritrag.model.grit import GritModel
from gritrag.model.hardware import pick_device
from gritrag.model.identity import hash_files, hash_tokenizer
from gritrag.model.names import ENCODERS, locate
from gritrag.model.pooling import mean
from gritrag.model.state import Reading
from gritrag.progress import ProgressBar
from gritrag.records import Document, Fingerprint, as_document
from gritrag.tokens import length_sorted_batches

MINILM = "minilm"
FILES = "all-minilm-l6-v2"
TOKENS_PER_BATCH = 4096


class MiniLM:
    """A sentence encoder in the shape of a `Reader`: an index of vectors can be built with it, one of states cannot.

    Longer texts are cut at 256 tokens, as its makers do.

    Args:
        folder: of its files; that of the installed package, or from the hub, where None.
        device: ``auto`` or a torch device.

    Raises:
        ValueError: neither is to be had.
    """

    max_document_tokens = 256
    state_elements_per_token = 0
    dtype = torch.float32

    def __init__(self, folder: Path | None = None, device: str = "auto") -> None:
        folder = folder or locate(FILES, ENCODERS)
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._encoder = AutoModel.from_pretrained(folder, dtype=self.dtype).to(pick_device(device)).eval()
        self.device: torch.device = self._encoder.device
        self.dim = int(self._encoder.config.hidden_size)
        self.loaded_as: Mapping[str, Any] = {}
        self.fingerprint = Fingerprint(
            {"weights": hash_files(folder), "tokenizer": hash_tokenizer(self._tokenizer), "pooling": "mean"}
        )

    def encode_query(self, texts: Sequence[str], instruction: str | None = None) -> np.ndarray:
        """float32 `[Q, D]`, normalised. It was trained without instructions, so one that is given is not read."""
        return self.encode_document(texts)

    def encode_document(self, texts: Sequence[str | Document], *, show_progress_bar: bool = False) -> np.ndarray:
        """float32 `[N, D]`, normalised."""
        ids = [self.document_token_ids(text) for text in texts]
        vectors = np.empty((len(ids), self.dim), np.float32)
        with ProgressBar(total=len(ids), desc="embedding", unit="text", disable=not show_progress_bar) as bar:
            for rows in length_sorted_batches([len(each) for each in ids], 64, TOKENS_PER_BATCH):
                vectors[rows] = self._embed([ids[row] for row in rows]).cpu().numpy()
                bar.update(len(rows))
        return vectors

    def document_token_ids(self, document: str | Document) -> list[int]:
        """The ids that are read, the first and last special token included: `[T]`."""
        text = as_document(document).content
        ids: list[int] = self._tokenizer(text, truncation=True, max_length=self.max_document_tokens)["input_ids"]
        return ids

    def read_documents(self, texts: Sequence[str | Document], *, show_progress_bar: bool = False) -> list[Reading]:
        """Refused.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{MINILM} only embeds: it has no states; build its index with states='none'")

    @torch.no_grad()
    def _embed(self, ids: list[list[int]]) -> torch.Tensor:
        batch = self._tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(self._encoder.device)
        hidden_BTD = self._encoder(**batch).last_hidden_state
        return torch.nn.functional.normalize(mean(hidden_BTD, batch["attention_mask"].bool()), dim=-1)


Encoder = GritModel | MiniLM


def check_names(names: Iterable[str]) -> None:
    """Find every model before the first is measured: what took an hour is not lost to the misspelling of the last.

    Raises:
        ValueError: there is no model of some name.
    """
    for name in names:
        if name == MINILM:
            continue
        try:
            locate(name)
        except ValueError as error:
            told = f", and {MINILM}, which only embeds" if str(error).startswith("no model") else ""
            raise ValueError(f"{error}{told}") from None


def load_encoder(name: str, dtype: str = "auto", device: str = "auto") -> Encoder:
    """`minilm`, or any name that `GritModel.from_pretrained` takes.

    Raises:
        ValueError: nothing of that name.
    """
    return MiniLM(device=device) if name == MINILM else GritModel.from_pretrained(name, dtype=dtype, device=device)
