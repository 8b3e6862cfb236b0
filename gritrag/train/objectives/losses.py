"""The losses, one small class each. They know vectors, logits and targets, and nothing of models or data.

Shape letters: `Q` queries, `N` documents, `D` dim, `A` answer tokens of a chunk, `V` vocabulary.
"""

import random
from collections.abc import Sequence

import torch
from torch.nn.functional import cross_entropy, normalize, one_hot

from gritrag.tokens import TokenIds
from gritrag.train.objectives.config import ContrastiveConfig, GenerativeConfig, MaskedConfig, ViewsConfig


class Contrastive:
    """InfoNCE from queries to documents (van den Oord et al. 2018; with an instruction on queries: GritLM, section 2).

    Args (`ContrastiveConfig`):
        temperature: similarities are divided by it.
        false_negative_margin: a document that is nearer to the query than its positive by more than this is taken for
            an unmarked positive, and no negative (Qwen3-Embedding, section 3). None for no such mask.
        matryoshka_dims: the loss is the mean over vectors cut to these lengths, normalised again (Kusupati et al.
            2022); empty for the whole vector.
        symmetric: add the loss from documents to queries, with all queries of a document as its positives.
    """

    def __init__(self, config: ContrastiveConfig) -> None:
        self.config = config

    def __call__(
        self,
        queries_QD: torch.Tensor,
        documents_ND: torch.Tensor,
        positive_Q: torch.Tensor,
        candidates_QN: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The loss, a scalar.

        Args:
            queries_QD, documents_ND: L2-normalised vectors.
            positive_Q: int64, row of each query's document. Several queries may share one.
            candidates_QN: bool, which documents a query is compared with, its positive among them; all where None.

        Raises:
            ValueError: a Matryoshka length that the vectors do not have.
        """
        dims = self.config.matryoshka_dims or (queries_QD.shape[1],)
        if max(dims) > queries_QD.shape[1]:
            raise ValueError(f"matryoshka_dims go to {max(dims)}, the vectors have {queries_QD.shape[1]} dimensions")
        losses = []
        with torch.autocast(queries_QD.device.type, enabled=False):  # bfloat16 cannot tell near similarities apart
            for dim in dims:
                queries, documents = (normalize(v[:, :dim].float(), dim=-1) for v in (queries_QD, documents_ND))
                losses.append(self._loss(queries @ documents.T, positive_Q, candidates_QN))
        return torch.stack(losses).mean()

    def _loss(
        self, similarity_QN: torch.Tensor, positive_Q: torch.Tensor, candidates_QN: torch.Tensor | None
    ) -> torch.Tensor:
        is_positive_QN = one_hot(positive_Q, similarity_QN.shape[1]).bool()
        allowed_QN = torch.ones_like(is_positive_QN) if candidates_QN is None else candidates_QN | is_positive_QN
        if self.config.false_negative_margin is not None:
            limit_Q1 = similarity_QN.gather(1, positive_Q[:, None]).detach() + self.config.false_negative_margin
            allowed_QN = allowed_QN & ((similarity_QN <= limit_Q1) | is_positive_QN)
        logits_QN = (similarity_QN / self.config.temperature).masked_fill(~allowed_QN, -torch.inf)
        loss = cross_entropy(logits_QN, positive_Q)
        if self.config.symmetric:
            asked_N = is_positive_QN.any(0)
            to_positives_N = logits_QN.masked_fill(~is_positive_QN, -torch.inf)[:, asked_N].logsumexp(0)
            loss = (loss + (logits_QN[:, asked_N].logsumexp(0) - to_positives_N).mean()) / 2
        return loss


class Generative:
    """Cross-entropy of answer tokens (GritLM, section 2 and appendix on loss weighting).

    Args (`GenerativeConfig`):
        weighting: ``token``: every token of the step weighs alike; ``sample``: every answer does; ``mixed``: tokens
            weigh alike within a chunk, and chunks alike.
    """

    def __init__(self, config: GenerativeConfig) -> None:
        self.weighting = config.weighting

    def weights(self, chunks: Sequence[Sequence[int]]) -> list[list[float]]:
        """What each token weighs, from the numbers of tokens of each answer of each chunk of the step.

        Weights of all tokens of a step add up to 1, so losses of chunks are added, never averaged.

        Returns:
            one weight for each answer of each chunk, for every one of its tokens.
        """
        size = self.size(chunks)
        if self.weighting == "token":
            return [[1 / size for _ in chunk] for chunk in chunks]
        if self.weighting == "sample":
            return [[1 / (size * length) for length in chunk] for chunk in chunks]
        return [[1 / (size * sum(chunk)) for _ in chunk] for chunk in chunks]

    def size(self, chunks: Sequence[Sequence[int]]) -> int:
        """How many tokens, samples or chunks share the weight of 1."""
        if self.weighting == "mixed":
            return len(chunks)
        return sum(map(len, chunks)) if self.weighting == "sample" else sum(map(sum, chunks))

    def __call__(self, logits_AV: torch.Tensor, target_A: torch.Tensor, weight_A: torch.Tensor) -> torch.Tensor:
        """Weighted sum over tokens, a scalar."""
        return (cross_entropy(logits_AV.float(), target_A, reduction="none") * weight_A).sum()


class MaskedNextToken:
    """Masked next token prediction (MNTP; LLM2Vec, section 2.2): what a causal model needs to read bidirectionally.

    A token is masked at its own position i and predicted at position i - 1, where a causal model has learnt to say it.

    Args (`MaskedConfig`):
        share: of the content of a text that is masked, drawn anew for each text from this range (20% to 80%, the two
            ends of what LLM2Vec uses).
        mask: the text of the token that masks; "_" in LLM2Vec, for causal models have none.

    Raises:
        ValueError: a range that is none.
    """

    def __init__(self, config: MaskedConfig) -> None:
        low, high = config.share
        if not 0 < low <= high <= 1:
            raise ValueError(f"masked.share goes from above 0 to at most 1, got {low} to {high}")
        self.config = config

    def mask(self, prompt: TokenIds, mask_id: int, rng: random.Random) -> tuple[TokenIds, list[int]]:
        """The prompt with some of its content masked, at least one token, and the columns that were.

        The first token of a prompt is never masked: nothing stands before it that could predict it.
        """
        columns = [column for column, is_content in enumerate(prompt.is_pooled) if is_content and column > 0]
        count = min(len(columns), max(1, round(rng.uniform(*self.config.share) * len(columns))))
        masked = sorted(rng.sample(columns, count))
        ids = list(prompt.ids)
        for column in masked:
            ids[column] = mask_id
        return TokenIds(ids, prompt.is_pooled), masked

    def __call__(self, logits_AV: torch.Tensor, target_A: torch.Tensor) -> torch.Tensor:
        """Sum over masked tokens, a scalar; row a of the logits is of the position before that of target a."""
        return cross_entropy(logits_AV.float(), target_A, reduction="sum")


class Views:
    """Unsupervised SimCSE (Gao et al. 2021; LLM2Vec, section 2.3): two readings of a text that differ by dropout alone
    are each other's positives, those of other texts negatives.

    Args (`ViewsConfig`):
        temperature: similarities are divided by it.
        dropout: share of the numbers of input embeddings that are dropped. LLM2Vec drops attention weights; few
            decoders have a dropout layer of their own (SmolLM2 has none), but all have input embeddings.
    """

    def __init__(self, config: ViewsConfig) -> None:
        self.config = config
        self._contrastive = Contrastive(ContrastiveConfig(temperature=config.temperature, false_negative_margin=None))

    def __call__(self, first_ND: torch.Tensor, second_ND: torch.Tensor, contents: Sequence[int] = ()) -> torch.Tensor:
        """InfoNCE from first to second views, a scalar. `contents` are numbers of the texts, equal for copies of one,
        which are no negatives of each other."""
        rows, device = range(len(first_ND)), first_ND.device
        others_NN = without_copies(None, contents, rows)
        return self._contrastive(
            first_ND, second_ND, torch.tensor(rows, device=device), None if others_NN is None else others_NN.to(device)
        )


def without_copies(
    candidates_QN: torch.Tensor | None, contents: Sequence[int], positive_Q: Sequence[int]
) -> torch.Tensor | None:
    """What queries are compared with, but for further copies of their own documents, which answer them as well: one may
    be the negative of another row. `contents` are those of the first columns, or empty."""
    if len(set(contents)) == len(contents):
        return candidates_QN
    content_N = torch.tensor(list(contents))
    is_other_QN = content_N[list(positive_Q)][:, None] != content_N
    if candidates_QN is None:
        return is_other_QN
    candidates_QN[:, : len(contents)] &= is_other_QN
    return candidates_QN
