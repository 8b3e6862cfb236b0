"""Losses against their definitions, written out."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from gritrag.train.objectives.config import ContrastiveConfig, GenerativeConfig
from gritrag.train.objectives.losses import Contrastive, Generative


def unit(*rows: tuple[float, ...]) -> torch.Tensor:
    return normalize(torch.tensor(rows, dtype=torch.float32), dim=-1)


def by_hand(similarity: list[float], positive: int, temperature: float) -> float:
    return -math.log(math.exp(similarity[positive] / temperature) / sum(math.exp(s / temperature) for s in similarity))


QUERIES = unit((1, 0, 0), (0, 1, 0.2), (0.3, 1, 0))
DOCUMENTS = unit((0.9, 0.3, 0), (0.2, 1, 0.1), (0, 0.4, 1))
PLAIN = {"temperature": 0.2, "false_negative_margin": None}


def test_info_nce_is_its_definition_and_two_queries_may_share_a_document() -> None:
    loss = Contrastive(ContrastiveConfig(**PLAIN))(QUERIES, DOCUMENTS, torch.tensor([0, 1, 1]))
    rows = (QUERIES @ DOCUMENTS.T).tolist()
    want = [by_hand(row, positive, 0.2) for row, positive in zip(rows, (0, 1, 1), strict=True)]
    assert loss.item() == pytest.approx(sum(want) / 3, abs=1e-5)


def test_without_in_batch_negatives_only_candidates_count() -> None:
    candidates = torch.tensor([[True, False, True], [False, True, True], [False, True, False]])
    loss = Contrastive(ContrastiveConfig(**PLAIN))(QUERIES, DOCUMENTS, torch.tensor([0, 1, 1]), candidates)
    rows = (QUERIES @ DOCUMENTS.T).tolist()
    want = [by_hand([rows[0][0], rows[0][2]], 0, 0.2), by_hand([rows[1][1], rows[1][2]], 0, 0.2), 0.0]
    assert loss.item() == pytest.approx(sum(want) / 3, abs=1e-5)


def test_a_document_far_nearer_than_the_positive_is_no_negative() -> None:
    queries, documents = unit((1, 0)), unit((0.5, 1), (1, 0.01), (0, 1))
    masked = Contrastive(ContrastiveConfig(temperature=0.2, false_negative_margin=0.1))
    similarity = (queries @ documents.T)[0].tolist()
    loss = masked(queries, documents, torch.tensor([0]))
    assert loss.item() == pytest.approx(by_hand([similarity[0], similarity[2]], 0, 0.2), abs=1e-5)
    near = unit((1, 0.2), (1, 0.1), (0, 1))  # the second is nearer, but within the margin
    similarity = (queries @ near.T)[0].tolist()
    assert masked(queries, near, torch.tensor([0])).item() == pytest.approx(by_hand(similarity, 0, 0.2), abs=1e-5)


def test_matryoshka_is_the_mean_over_cut_vectors() -> None:
    positive = torch.tensor([0, 1, 1])
    both = Contrastive(ContrastiveConfig(**PLAIN, matryoshka_dims=(2, 3)))(QUERIES, DOCUMENTS, positive)
    plain = Contrastive(ContrastiveConfig(**PLAIN))
    cut = plain(normalize(QUERIES[:, :2], dim=-1), normalize(DOCUMENTS[:, :2], dim=-1), positive)
    assert both.item() == pytest.approx((cut + plain(QUERIES, DOCUMENTS, positive)).item() / 2, abs=1e-5)
    with pytest.raises(ValueError, match=r"go to 8, the vectors have 3"):
        Contrastive(ContrastiveConfig(matryoshka_dims=(8,)))(QUERIES, DOCUMENTS, positive)


def test_symmetric_adds_the_way_back_with_all_queries_of_a_document_as_positives() -> None:
    positive = torch.tensor([0, 1, 1])
    loss = Contrastive(ContrastiveConfig(**PLAIN, symmetric=True))(QUERIES, DOCUMENTS, positive)
    e = ((QUERIES @ DOCUMENTS.T) / 0.2).exp().tolist()
    back = [
        -math.log(e[0][0] / (e[0][0] + e[1][0] + e[2][0])),
        -math.log((e[1][1] + e[2][1]) / (e[0][1] + e[1][1] + e[2][1])),
    ]
    forth = Contrastive(ContrastiveConfig(**PLAIN))(QUERIES, DOCUMENTS, positive).item()
    assert loss.item() == pytest.approx((forth + sum(back) / 2) / 2, abs=1e-5)


@pytest.mark.parametrize(
    ("weighting", "want"),
    [
        ("token", [[1 / 10, 1 / 10], [1 / 10]]),
        ("sample", [[1 / 3, 1 / 9], [1 / 18]]),
        ("mixed", [[1 / 8, 1 / 8], [1 / 12]]),
    ],
)
def test_weights_of_all_tokens_of_a_step_add_up_to_one(weighting: str, want: list[list[float]]) -> None:
    lengths = [[1, 3], [6]]
    weights = Generative(GenerativeConfig(weighting=weighting)).weights(lengths)
    for got, expected in zip(weights, want, strict=True):
        assert got == pytest.approx(expected)
    total = sum(n * w for chunk, each in zip(lengths, weights, strict=True) for n, w in zip(chunk, each, strict=True))
    assert total == pytest.approx(1)


def test_generative_is_weighted_cross_entropy() -> None:
    logits, targets = torch.randn(4, 7), torch.tensor([1, 0, 6, 3])
    weights = torch.tensor([0.4, 0.3, 0.2, 0.1])
    want = sum(-w * row.log_softmax(-1)[t] for w, row, t in zip(weights, logits, targets, strict=True))
    assert Generative(GenerativeConfig())(logits, targets, weights).item() == pytest.approx(want.item(), abs=1e-5)
