"""Where sentences end: near enough to cut a document there, or to ask about one of them."""

import re

END = re.compile(r"[.!?][\"')\]\u201d\u2019]*\s+")


def sentence_ends(text: str) -> list[int]:
    """Characters behind which a sentence and the white space after it end, ascending; the end of the text is not among
    them unless white space stands there. Abbreviations count as ends."""
    return [match.end() for match in END.finditer(text)]
