"""Vectors of documents of earlier steps, as further negatives (cross-batch memory; Wang et al. 2020, section 3.2).

Shape letters: `M` remembered documents, `N` documents, `Q` queries, `D` dim.
"""

from collections.abc import Sequence

import torch


class CrossBatchMemory:
    """The vectors of the last `size` documents, without gradients. They are a little stale: the model has moved on.

    Args:
        size: how many are kept; with 0, none ever is.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.vectors_MD = torch.empty(0, 0)
        self.identities: list[int] = []

    def negatives(self, identities: Sequence[int]) -> torch.Tensor:
        """bool `[Q, M]`: what may be held against a query. Its own document, met before, may not.

        Args:
            identities: of the document of each query; see `gritrag.train.data.steps.RetrievalStep`.
        """
        own_Q, known_M = (torch.tensor(list(numbers), dtype=torch.long) for numbers in (identities, self.identities))
        return own_Q[:, None] != known_M

    def beside(
        self, documents_ND: torch.Tensor, identities: Sequence[int], positive_Q: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The documents of a step and, behind them, those of earlier ones, `[N + M, D]`; and what queries are compared
        with, bool `[Q, N + M]`. The step's own are remembered from now on.

        Args:
            identities: of the documents of the step.
            positive_Q: rows of the queries' own documents among them.
        """
        negatives_QM = self.negatives([identities[row] for row in positive_Q])
        in_step_QN = torch.ones(len(positive_Q), len(documents_ND), dtype=torch.bool)
        compared = [documents_ND, self.vectors_MD.to(documents_ND)] if self.identities else [documents_ND]
        self.add(documents_ND, identities)
        return torch.cat(compared), torch.cat([in_step_QN, negatives_QM], dim=1)

    def add(self, vectors_ND: torch.Tensor, identities: Sequence[int]) -> None:
        """Remember documents, and forget the oldest. A document that is met again is remembered as it is now."""
        if not self.size:
            return
        new = set(identities)
        kept = [row for row, known in enumerate(self.identities) if known not in new]
        rows = [vectors_ND.detach().float()]
        if kept:
            rows.insert(0, self.vectors_MD[kept].to(vectors_ND.device))
        self.identities = [*(self.identities[row] for row in kept), *identities][-self.size :]
        self.vectors_MD = torch.cat(rows)[-self.size :]

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a snapshot keeps: float32 `[M, D]` and int64 `[M]`. Empty where nothing is remembered."""
        if not self.identities:
            return {}
        return {"vectors": self.vectors_MD.cpu().contiguous(), "identities": torch.tensor(self.identities)}

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Remember what a snapshot kept."""
        if tensors:
            self.vectors_MD, self.identities = tensors["vectors"], tensors["identities"].tolist()
