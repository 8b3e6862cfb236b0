"""Words: what the full-text index holds of a text, and what it is asked for.

Words of scripts with spaces are left to SQLite's tokenizer. Chinese, Japanese, Thai and others are written without
spaces, and Korean glues particles to its words. Runs of these scripts become pairs of neighbouring characters, as in
Lucene's CJKBigramFilter; ideographs, each of which may be a word, stand alone too: ``Python机器学习`` is
``python 机 器 学 习 机器 器学 学习``. Of other runs the last character stands alone, so that each begins a term.
"""

import re
import unicodedata
from collections.abc import Iterator
from itertools import groupby
from operator import add

__all__ = ["FORM", "match_expression", "plain_expression", "searchable"]

FORM = f"pairs, Unicode {unicodedata.unidata_version}"
"""Of the terms that `searchable` makes. An index with terms of another form has to make them anew before it changes."""

HAN = (
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3031-\u3035\u3038-\u303b"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
KANA = "\u3041-\u3096\u3099-\u309a\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\U0001aff0-\U0001b16f"
BOPOMOFO_AND_YI = "\u3105-\u312f\u31a0-\u31bf\ua000-\ua4cf"
HANGUL = "\u1100-\u11ff\u3131-\u318e\ua960-\ua97f\uac00-\ud7ff"
SOUTH_EAST_ASIAN = (
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e80-\u0ece\u0edc-\u0eff"  # Thai, Lao
    "\u1000-\u103f\u1050-\u108f\u109a-\u109d\ua9e0-\ua9ef\ua9fa-\ua9fe\uaa60-\uaa7f"  # Burmese and its kin
    "\u1780-\u17d3\u17d7\u17dc-\u17dd"  # Khmer
    "\u1950-\u1974\u1980-\u19c9\u1a00-\u1a1b\u1a20-\u1a7c\uaa80-\uaadf"  # the Tai scripts, Buginese
    "\u1b00-\u1b4c\ua980-\ua9c0"  # Balinese, Javanese
)
"""Unicode's line-breaking class SA and the like. Digits and punctuation are left out: they are no part of a run."""

WITHOUT_SPACES = HAN + KANA + BOPOMOFO_AND_YI + SOUTH_EAST_ASIAN


def _marks(ranges: str) -> str:
    """Those that stand on or around the character before them."""
    blocks = re.findall(r"(.)(?:-(.))?", ranges)
    characters = (chr(code) for first, last in blocks for code in range(ord(first), ord(last or first) + 1))
    return "".join(character for character in characters if unicodedata.category(character)[0] == "M")


RUN = re.compile(f"([{WITHOUT_SPACES}{HANGUL}]+)")
CHARACTER = re.compile(f".[{_marks(SOUTH_EAST_ASIAN)}]*")
IDEOGRAPH = re.compile(f"[{HAN}]")
WRAPPED = re.compile(f"(?<=[{WITHOUT_SPACES}])[ \t]*\r?\n[ \t]*(?=[{WITHOUT_SPACES}])")
"""A line break within a run is where the line was full, not where a word ends."""

IGNORED = re.compile("[\u00ad\u034f\u061c\u180b-\u180f\u200c-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff]+")
"""Nothing that is seen: soft hyphens, joiners, directions, variation selectors."""

APART = str.maketrans({"\u2122": " ", "\u2120": " ", "\u200b": " "})
"""Signs of a trade mark are no letters of the name; a space of no width is a space."""

DECOMPOSED = re.compile("[\u0370-\u03ff\u1f00-\u1fff\u0590-\u05ff\u0600-\u074f]+")
"""Greek, Hebrew, Arabic and Syriac, of which SQLite removes no accents."""

MARKS = re.compile(
    "[\u0300-\u036f"
    "\u0591-\u05c7"
    "\u0610-\u061a\u0640\u064b-\u065f\u0670\u06d6-\u06dc\u06df-\u06e8\u06ea-\u06ed\u0711\u0730-\u074a]+"
)
"""Accents; the vowels of Semitic scripts, which are mostly left out; the stroke that makes an Arabic word longer."""

PLAIN_WORD = re.compile(r"[^\W_]+")


def searchable(text: str) -> str:
    """A text whose words, as SQLite's tokenizer cuts it, are the terms to index.

    Case is folded (``Straße`` is ``strasse``), and so are compatibility forms such as wide letters and ligatures.
    SQLite removes the accents of Latin letters.
    """
    return text if text.isascii() else RUN.sub(_spaced, _folded(text))


def match_expression(query: str) -> str:
    """The FTS5 expression for any of the query's words; each is quoted, so no word is ever syntax."""
    words: dict[str, None] = {}
    for number, piece in enumerate(RUN.split(_folded(query))):
        if number % 2 == 0:
            words.update((f'"{word}"', None) for word in _words(piece))
        elif terms := _terms(CHARACTER.findall(piece)):
            words.update((f'"{term}"', None) for term in terms)
        else:  # one character, which begins a term wherever it stands
            words[f'"{piece}"*'] = None
    return " OR ".join(words) or '""'


def plain_expression(query: str) -> str:
    """As `match_expression`, for an index of format 3, which holds the words of the text as it is."""
    words = dict.fromkeys(PLAIN_WORD.findall(unicodedata.normalize("NFC", query)))
    return " OR ".join(f'"{word}"' for word in words) or '""'


def _folded(text: str) -> str:
    if text.isascii():
        return text
    text = unicodedata.normalize("NFKC", IGNORED.sub("", text.translate(APART)))
    text = unicodedata.normalize("NFKC", text.casefold()).replace("\u0451", "\u0435")
    return WRAPPED.sub("", DECOMPOSED.sub(_without_marks, text))


def _without_marks(word: re.Match[str]) -> str:
    return MARKS.sub("", unicodedata.normalize("NFD", word[0]))


def _spaced(run: re.Match[str]) -> str:
    characters = CHARACTER.findall(run[0])
    last = [] if IDEOGRAPH.match(characters[-1]) else characters[-1:]
    return f" {' '.join([*_terms(characters), *last])} "


def _terms(characters: list[str]) -> list[str]:
    """Ideographs and pairs of neighbours, of a run whose marks are with the characters that carry them."""
    return [*IDEOGRAPH.findall("".join(characters)), *map(add, characters, characters[1:])]


def _words(text: str) -> Iterator[str]:
    """Runs of letters, digits and the marks on them."""
    for is_word, characters in groupby(text, lambda each: each.isalnum() or unicodedata.category(each)[0] == "M"):
        if is_word:
            yield "".join(characters)
