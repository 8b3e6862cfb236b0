#!/usr/bin/env bash
# semantic-text-splitter 0.33.1: a tokenizer whose file says truncation counts no chunk longer than that, so whoever asks for chunks of at
# least as many tokens gets the whole text as one chunk, whatever its length.
#
# The splitter counts with the tokenizer as it is. One that truncates keeps what it cut off as overflow, and the splitter counted that too,
# up to 0.30.1. The tokenizers library, from 0.23, stops reading where it truncates, and no longer tells of any overflow; the splitter
# is built with it from 0.31.0 on. The tokenizer.json of many models of embeddings says truncation: that of all-MiniLM-L6-v2 cuts at 128
# tokens, the model reads 256. With chunks of 127 all is well, with chunks of 128 a book is one chunk, of which a model then reads the
# beginning. transformers loses the windows of return_overflowing_tokens for the same reason.
#
# Seen with semantic-text-splitter 0.33.1, tokenizers 0.23.3, a text of 330 tokens, a tokenizer that truncates at 16:
#   chunks of at most 15: 22 chunks; of at most 16: 1 chunk of 330 tokens; of at most 16 after no_truncation(): 21 chunks
#   0.30.1, chunks of at most 16: 21 chunks
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q semantic-text-splitter==0.33.1 tokenizers==0.23.3
cat > "$folder/split.py" <<'PYTHON'
import sys

from semantic_text_splitter import TextSplitter
from tokenizers import Tokenizer, models, pre_tokenizers

words = [f"word{number}" for number in range(50)]
tokenizer = Tokenizer(models.WordLevel({word: id for id, word in enumerate(["[UNK]", ".", *words])}, unk_token="[UNK]"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
text = " ".join(" ".join(words[sentence : sentence + 10]) + "." for sentence in range(30))


def lengths(most: int, truncates: bool) -> list[int]:
    """Tokens of each chunk."""
    if truncates:
        tokenizer.enable_truncation(16)
    chunks = TextSplitter.from_huggingface_tokenizer(tokenizer, most).chunks(text)
    tokenizer.no_truncation()
    return [len(tokenizer.encode(chunk).ids) for chunk in chunks]


below, at, whole = lengths(15, True), lengths(16, True), lengths(16, False)
for name, found in (("15, truncates at 16", below), ("16, truncates at 16", at), ("16, no truncation", whole)):
    print(f"at most {name}: {len(found)} chunks, the longest of {max(found)} tokens")
if len(sys.argv) > 1:  # the release before
    sys.exit(max(at) > 16)
sys.exit(not (max(below) <= 15 and max(whole) <= 16 and at == [330]))
PYTHON
"$folder/venv/bin/python" "$folder/split.py"
"$folder/venv/bin/pip" install -q semantic-text-splitter==0.30.1
echo "0.30.1:"
"$folder/venv/bin/python" "$folder/split.py" before && echo "as described"
