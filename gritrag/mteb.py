"""A GritModel as `mteb` evaluates it: `mteb.evaluate(MtebEncoder("gritrag-smollm2-135m"), tasks)`.

Documents of a retrieval task are read as documents, with their titles; every other text is embedded as a query, which
may carry an instruction. Nothing imports this module.
"""

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from gritrag.model.grit import GritModel
from gritrag.records import Document
from gritrag.tokens import chunk_documents

try:
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.models import ModelMeta
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ScoringFunction
    from mteb.types import PromptType
    from torch.utils.data import DataLoader
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"this needs {error.name}, which is not installed; run: pip install 'gritrag[mteb]'", name=error.name
    ) from error


class MtebEncoder(AbsEncoder):
    """What `mteb.evaluate` takes. Results are filed under the model's name and its fingerprint, and apart where the
    instructions of tasks are read.

    Longer texts are cut to what the model reads, as in other models of the benchmark. A text without a single letter
    has the zero vector, which is like nothing.

    Args:
        model_name: a model, or a name that `GritModel.from_pretrained` takes.
        revision: what results are filed under; the fingerprint where None.
        device: of a model that is loaded by name.
        task_instructions: put the instruction of each task before its queries. Otherwise the checkpoint's own is used,
            which is right for one that was trained with one, or with none.
        **loading: further arguments of `GritModel.from_pretrained`.
    """

    def __init__(
        self,
        model_name: GritModel | str,
        revision: str | None = None,
        *,
        device: str | None = None,
        task_instructions: bool = False,
        **loading: Any,
    ) -> None:
        if isinstance(model_name, GritModel):
            model, name = model_name, model_name.config.base
        else:
            model, name = GritModel.from_pretrained(model_name, device=device or "auto", **loading), model_name
        self.model = model
        self._task_instructions = task_instructions
        self.mteb_model_meta = ModelMeta(
            loader=MtebEncoder,
            name=f"gritrag/{Path(name).name or 'model'}",
            revision=revision or model.fingerprint.digest,
            release_date=None,
            languages=None,
            n_parameters=sum(parameter.numel() for parameter in model.lm.parameters()),
            memory_usage_mb=None,
            max_tokens=model.max_document_tokens,
            embed_dim=model.dim,
            license=None,
            open_weights=True,
            public_training_code=None,
            public_training_data=None,
            framework=["PyTorch", "Transformers"],
            similarity_fn_name=ScoringFunction.COSINE,
            use_instructions=task_instructions,
            experiment_kwargs={"task_instructions": True} if task_instructions else None,
            training_datasets=None,
        )

    def encode(
        self,
        inputs: DataLoader,
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        batch_size: int = 32,
        show_progress_bar: bool = False,
        **kwargs: Any,
    ) -> np.ndarray:
        """float32 `[N, dim]`, normalised.

        Args:
            inputs: batches of texts; of documents, with `title` and `body` where they have them.
            task_metadata: whose instruction is read, if it is asked for.
            hf_split, hf_subset: of the task; not needed.
            prompt_type: documents are told from everything else.
            batch_size, show_progress_bar: see `GritModel.encode_document`.
            **kwargs: for other kinds of models; not needed.
        """
        told = {"batch_size": batch_size, "show_progress_bar": show_progress_bar}
        if prompt_type == PromptType.document:
            documents = [document for batch in inputs for document in _documents(batch)]
            return self._vectors(documents, lambda some: self.model.encode_document(some, **told))
        instruction = self.get_instruction(task_metadata, prompt_type) if self._task_instructions else None
        queries = [Document(text) for batch in inputs for text in batch["text"]]
        return self._vectors(
            queries, lambda some: self.model.encode_query([each.text for each in some], instruction, **told)
        )

    def _vectors(self, documents: Sequence[Document], encode: Callable[[Sequence[Document]], np.ndarray]) -> np.ndarray:
        vectors = np.zeros((len(documents), self.model.dim), np.float32)
        rows = [row for row, document in enumerate(documents) if document.content]
        if rows:
            vectors[rows] = encode([self._cut(documents[row]) for row in rows])
        return vectors

    def _cut(self, document: Document) -> Document:
        """The first chunk that leaves room for scaffold and an instruction."""
        room = self.model.max_document_tokens * 3 // 4
        return next(islice(chunk_documents([document], self.model.count_tokens, room), 1))


def _documents(batch: dict[str, list[str]]) -> list[Document]:
    """`text` is title and body in one; apart, they can be read as they are in an index."""
    if "title" not in batch or "body" not in batch:
        return [Document(text) for text in batch["text"]]
    return [Document(body, title=title or "") for title, body in zip(batch["title"], batch["body"], strict=True)]
