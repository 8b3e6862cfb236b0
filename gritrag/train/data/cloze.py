"""Questions that are made from a document itself: a sentence, in part, with a few of its words asked for.

The words that are left out are the answer. A question word takes their place or opens the question, and some of the
other words are dropped, so that it is not found by its wording alone (the noisy clozes of Lewis et al. 2019,
arXiv 1906.04980, section 2.3; the choice of spans and question words is ours). No file of questions is large enough not
to be learnt by heart by what reads it for many epochs, and a made question is another one each time.
"""

import random
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

from gritrag.train.data.rows import Question
from gritrag.train.data.sentences import sentence_ends

YEAR = re.compile(r"1\d{3}|20\d\d")
EDGES = ".,;:!?()[]\"'`\u201c\u201d\u2018\u2019-\u2013\u2014*"
SMALL_WORDS = frozenset(
    """a an the of and or to in on at by for with from as is was are were be been it its that""".split()  # noqa: SIM905
)
LONG_WORD = 5
"""Letters of a word that may be asked for though it is neither a name nor a number."""

SENTENCE_WORDS = (6, 80)
WORDS_BEFORE, WORDS_AFTER = (6, 16), (0, 8)
"""Fewest and most words that a question keeps before and behind its gap, as far as the sentence has them."""

FEWEST_WORDS = 6
P_DROPPED, P_IN_PLACE, P_LOWER, P_PLAIN = 0.1, 0.5, 0.4, 0.15
"""Shares: of words dropped, of gaps whose question word stands in their place, of questions in lower case, of gaps that
are common words where there are names or numbers too."""

Span = tuple[int, int]
"""First word of a gap and the one behind its last."""


def ask(text: str, count: int, rng: random.Random) -> list[Question]:
    """At most `count` questions on a text, no two with the same answer; fewer where it has no sentences that do.

    Args:
        text: a document.
        count: how many are wanted.
        rng: every choice is taken from it.
    """
    gaps = [(words, span) for words in _sentences(text) for span in _spans(words)]
    special = [gap for gap in gaps if _kind(gap[0], gap[1]) != "word"]
    plain = [gap for gap in gaps if _kind(gap[0], gap[1]) == "word"]
    rng.shuffle(special)
    rng.shuffle(plain)
    questions: dict[str, Question] = {}
    while len(questions) < count and (special or plain):
        words, span = (plain if plain and (not special or rng.random() < P_PLAIN) else special).pop()
        answer = " ".join(words[span[0] : span[1]]).strip(EDGES)
        question = _question(words, span, rng)
        if question and answer.lower() not in question.lower() and answer.lower() not in questions:
            questions[answer.lower()] = Question(question, answer, None, (), is_made=True)
    return list(questions.values())


def _sentences(text: str) -> Iterator[list[str]]:
    for start, end in pairwise([0, *sentence_ends(text), len(text)]):
        words = text[start:end].split()
        if SENTENCE_WORDS[0] <= len(words) <= SENTENCE_WORDS[1]:
            yield words


def _spans(words: Sequence[str]) -> Iterator[Span]:
    """Names, numbers with the word behind them, and long common words with the one before them."""
    place = 0
    while place < len(words):
        end = place + 1
        if _is_name(words[place]):
            while end < len(words) and _is_name(words[end]) and not _closes(words[end - 1]):
                end += 1
            if place > 0 or end > 1:  # a sentence begins with a capital letter anyway
                yield place, end
        elif _is_number(words[place]):
            is_counted = end < len(words) and not _closes(words[place]) and words[end].islower()
            is_year = YEAR.fullmatch(words[place].strip(EDGES))
            yield place, end + (is_counted and not is_year and words[end] not in SMALL_WORDS)
        elif len(words[place].strip(EDGES)) >= LONG_WORD and words[place].strip(EDGES).isalpha():
            is_led = place > 0 and words[place - 1].isalpha() and words[place - 1].lower() not in SMALL_WORDS
            yield place - bool(is_led), end
        place = end


def _question(words: Sequence[str], span: Span, rng: random.Random) -> str:
    """The words around a gap as a question; empty where too few are left."""
    before = list(words[: span[0]])[-rng.randint(*WORDS_BEFORE) :]
    after = list(words[span[1] :])[: rng.randint(*WORDS_AFTER)]
    if _closes(words[span[1] - 1]):
        after = []
    before, after = ([word for word in side if rng.random() >= P_DROPPED] for side in (before, after))
    if len(before) + len(after) < FEWEST_WORDS:
        return ""
    asked = _question_word(words, span, rng)
    told = [*before, asked, *after] if rng.random() < P_IN_PLACE else [asked, *before, *after]
    question = " ".join(told).strip(EDGES + " ") + "?"
    return question.lower() if rng.random() < P_LOWER else question[0].upper() + question[1:]


def _question_word(words: Sequence[str], span: Span, rng: random.Random) -> str:
    if _kind(words, span) == "name":
        return rng.choice(("who", "what", "which", "where", "what name"))
    if _kind(words, span) == "number":
        is_year = YEAR.fullmatch(words[span[0]].strip(EDGES))
        return rng.choice(("when", "what year", "which year") if is_year else ("how many", "how much", "what number"))
    return "what"


def _kind(words: Sequence[str], span: Span) -> str:
    first = words[span[0]]
    return "name" if _is_name(first) else "number" if _is_number(first) else "word"


def _is_name(word: str) -> bool:
    bare = word.strip(EDGES)
    return len(bare) > 1 and bare[0].isupper() and bare.lower() not in SMALL_WORDS


def _is_number(word: str) -> bool:
    return any(letter.isdigit() for letter in word)


def _closes(word: str) -> bool:
    """Whether a phrase ends with this word."""
    return word[-1] in ".,;:!?)"
