"""One small step of training with answers over contexts of every kind, and the gradients that a step leaves."""

import torch

from gritrag.model.grit import GritModel
from gritrag.train.config import TrainConfig
from gritrag.train.data.collate import Collator
from gritrag.train.data.steps import RetrievalStep

TEXTS = ["Varn lighthouse was built in 1871.", "Osk harbour freezes.", "The ferry carries ninety people, and no more."]


def retrieval_step(model: GritModel, config: TrainConfig) -> RetrievalStep:
    """Three documents of different lengths, a query each, and answers over contexts of every size and order."""
    dress = Collator(model, config)
    answers = [
        dress.prompted("when?", "1871", (0,)),
        dress.prompted("how many people?", "ninety", (2, 0, 1)),
        dress.prompted("does it?", "yes, it does", (1, 0), start=7),
    ]
    queries = [dress.query(text, "Find it") for text in ("when?", "does it?", "how many people?")]
    return RetrievalStep("test", [dress.document(t) for t in TEXTS], queries, [0, 1, 2], None, answers)


def gradients(model: GritModel) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.lm.named_parameters() if p.grad is not None}
    model.lm.zero_grad()
    return found


def assert_equal_gradients(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor], atol: float) -> None:
    assert got.keys() == want.keys()
    for name in want:
        torch.testing.assert_close(got[name], want[name], atol=atol, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")
