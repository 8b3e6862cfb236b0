"""Laws of cross-batch memory: more negatives, no gradients, never a query's own document, and a fixed size."""

from collections.abc import Callable

import pytest
import torch
from torch.nn.functional import normalize

from gritrag.model.grit import GritModel
from gritrag.train.config import TrainConfig
from gritrag.train.data.mixture import Mixture
from gritrag.train.objectives.config import ContrastiveConfig
from gritrag.train.objectives.cross_batch_memory import CrossBatchMemory
from gritrag.train.objectives.losses import Contrastive
from gritrag.train.read_once import ReadOnce

Recipe = Callable[..., TrainConfig]


def vectors(rows: int, seed: int) -> torch.Tensor:
    return normalize(torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_it_keeps_the_latest_and_each_document_once() -> None:
    memory = CrossBatchMemory(4)
    memory.add(vectors(3, 0), [1, 2, 3])
    memory.add(vectors(2, 1), [2, 4])
    assert memory.identities == [1, 3, 2, 4]
    torch.testing.assert_close(memory.vectors_MD, torch.cat([vectors(3, 0)[[0, 2]], vectors(2, 1)]))
    memory.add(vectors(1, 2), [5])
    assert memory.identities == [3, 2, 4, 5]
    again = CrossBatchMemory(4)
    again.restore(memory.tensors())
    assert again.identities == memory.identities
    assert torch.equal(again.vectors_MD, memory.vectors_MD)


def test_a_query_is_not_held_against_its_own_document_of_an_earlier_step() -> None:
    memory = CrossBatchMemory(4)
    memory.add(vectors(3, 0), [1, 2, 3])
    assert memory.negatives([2, 9]).tolist() == [[True, False, True], [True, True, True]]


def test_without_a_size_nothing_is_remembered() -> None:
    memory = CrossBatchMemory(0)
    memory.add(vectors(3, 0), [1, 2, 3])
    assert memory.identities == []
    assert memory.tensors() == {}


def test_remembered_documents_are_negatives_of_the_next_step(recipe: Recipe) -> None:
    """The loss of the second step is that over its documents and those of the first, its own passages aside."""
    config = recipe(
        contrastive={"cross_batch_memory": 100, "false_negative_margin": None},
        generative={"weight": 0, "p_chat": 0.0},
        data={"tokens_per_step": 150, "chat": []},
    )
    model = GritModel.from_pretrained(config.base, dtype="float32", device="cpu")
    read_once, mixture = ReadOnce(model, config), Mixture(config, model)
    first, second = (next(s for s in map(mixture.step, range(start, 50)) if s.queries) for start in (0, 1))
    assert len(first.identities) == len(first.documents)
    read_once(first)
    losses = read_once(second).losses

    with torch.no_grad():
        old, new, queries = (
            read_once.read(prompts, with_states=False).vectors
            for prompts in (first.documents, second.documents, second.queries)
        )
    strange = [[identity != second.identities[row] for identity in first.identities] for row in second.positives]
    allowed = torch.cat([torch.ones(len(queries), len(new), dtype=torch.bool), torch.tensor(strange)], dim=1)
    repeated = [row for row, identity in enumerate(first.identities) if identity in second.identities]
    assert len(repeated) < len(old), "the steps must differ, or nothing is shown"
    loss = Contrastive(ContrastiveConfig(false_negative_margin=None))
    want = loss(queries, torch.cat([new, old]), torch.tensor(second.positives), allowed)
    assert losses["contrastive"] == pytest.approx(want.item(), rel=1e-5)
    alone = loss(queries, new, torch.tensor(second.positives))
    assert losses["contrastive"] > alone.item() + 1e-3
    assert not read_once.memory.vectors_MD.requires_grad
