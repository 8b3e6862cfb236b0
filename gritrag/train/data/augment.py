"""Pairs from plain texts: a text and a changed copy of it, by rules that a source of data names.

``noise`` drops, doubles and swaps words. ``rewrite`` asks the model itself, as it is before training, for other words.
``translate`` hands texts to a function of the user's, such as one that translates there and back. What a model wrote is
kept in the run's folder: it is asked once, and a run that is resumed trains on the same words (Roth et al. 2025,
arXiv 2507.22729, make their pairs in these three ways; the wording of the request is ours).
"""

import json
import pkgutil
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from gritrag.model.grit import GritModel
from gritrag.progress import ProgressBar
from gritrag.train.config import TrainConfig
from gritrag.train.data.rows import Passage, Question

REQUEST = "Say the following in other words. Keep its meaning and its length.\n\n{}"
BARE_REQUEST = "Text: {}\nThe same in other words:"
BATCH = 8

Rule = Callable[[list[str]], list[str]]


class Augmenter:
    """Gives passages queries that are changed copies of themselves.

    Args:
        config: the recipe.
        model: rewrites; it must not have been trained yet.
        writes: keep what rules wrote; one process of a run does.
    """

    def __init__(self, config: TrainConfig, model: GritModel, writes: bool = True) -> None:
        self._data, self._seed, self._model, self._writes = config.data, config.seed, model, writes
        self._folder = Path(config.runs_dir) / config.name / "augmented"

    def __call__(self, passages: list[Passage], rules: Sequence[str]) -> list[Passage]:
        """The passages, each with one query per rule; as they are where there is no rule.

        Raises:
            ValueError: the rule ``translate`` without a translator that can be imported.
        """
        if not rules:
            return passages
        texts = list(dict.fromkeys(passage.text for passage in passages))
        changed = [self._changed(rule, texts) for rule in rules]
        return [
            Passage(p.text, "", tuple(Question(copies[p.text], "", None, ()) for copies in changed)) for p in passages
        ]

    def _changed(self, rule: str, texts: Sequence[str]) -> dict[str, str]:
        """A changed copy of every text. What came back unchanged or empty gets noise instead."""
        noisy = {text: word_noise(text, self._data.word_noise, random.Random(f"{self._seed}/{text}")) for text in texts}
        if rule == "noise":
            return noisy
        written = self._kept(rule, texts, self._rewrite if rule == "rewrite" else self._translator())
        return {text: written[text] if written[text] not in ("", text) else noisy[text] for text in texts}

    def _kept(self, rule: str, texts: Sequence[str], apply: Rule) -> dict[str, str]:
        """What a rule wrote, from the run's folder where it is there."""
        path = self._folder / f"{rule}.jsonl"
        lines = path.read_text("utf-8").splitlines(keepends=True) if path.is_file() else []
        if lines and not lines[-1].endswith("\n"):  # torn by a crash
            path.write_text("".join(lines := lines[:-1]), "utf-8")
        found = dict(json.loads(line) for line in lines)
        missing = [text for text in texts if text not in found]
        for start in ProgressBar(range(0, len(missing), BATCH), desc=rule, unit="batch", disable=not missing):
            batch = missing[start : start + BATCH]
            new = dict(zip(batch, (copy.strip() for copy in apply(batch)), strict=True))
            found |= new
            if self._writes:
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("a", encoding="utf-8") as file:
                    file.write("".join(json.dumps(pair) + "\n" for pair in new.items()))
        return found

    def _rewrite(self, texts: list[str]) -> list[str]:
        room = 2 * max(self._model.count_tokens(text) for text in texts)
        if self._model.tokenizer.chat_template:
            chats = [[{"role": "user", "content": REQUEST.format(text)}] for text in texts]
            return list(self._model.generate(chats, max_new_tokens=room))
        return list(self._model.generate([BARE_REQUEST.format(text) for text in texts], max_new_tokens=room, stop="\n"))

    def _translator(self) -> Rule:
        name = self._data.translator
        try:
            return pkgutil.resolve_name(name)
        except (ValueError, ImportError, AttributeError) as error:
            raise ValueError(
                f"the rule translate needs data.translator: module:function, from a list of texts to a list of their "
                f"back-translations; got {name!r} ({error})"
            ) from None


def word_noise(text: str, share: float, rng: random.Random) -> str:
    """Drop, double, or swap with the next about this share of the words, and at least one."""
    words = text.split()
    for _ in range(max(1, round(share * len(words)))):
        place, kind = rng.randrange(len(words)), rng.choice(("drop", "double", "swap"))
        if len(words) == 1 or kind == "double":
            words.insert(place, words[place])
        elif kind == "drop":
            del words[place]
        else:
            other = (place + 1) % len(words)
            words[place], words[other] = words[other], words[place]
    return " ".join(words)
