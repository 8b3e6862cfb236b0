#!/usr/bin/env bash
# transformers 5.23.0, tokenizers 0.23.3: what one call asks of a fast tokenizer stays in it, and is saved with it.
#
# tokenizer(text, truncation=True, max_length=3) sets the truncation of the Rust tokenizer underneath, and does not take it back. The next
# call of the transformers object resets it, so calls alone never show it. But whoever uses tokenizer.backend_tokenizer meanwhile gets
# three tokens of every text; save_pretrained writes the truncation into tokenizer.json, where tokenizers and every engine that reads that
# file directly cut all texts; and to_str(), of which one may make an identity, differs before and after the call. Padding stays the same way.
#
# Seen with transformers 5.23.0, tokenizers 0.23.3:
#   backend before the call: 6 tokens, after it: 3, after a plain call: 6
#   same to_str before and after: False
#   truncation in the saved file: 3; tokens of the file read by tokenizers: 3
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q transformers==5.23.0 tokenizers==0.23.3
cat > "$folder/call.py" <<'PYTHON'
import json
import sys

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

words = ["[UNK]", "one", "two", "three", "four", "five", "six"]
rust = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
rust.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=rust, unk_token="[UNK]")
text = "one two three four five six"


def length() -> int:
    return len(tokenizer.backend_tokenizer.encode(text).ids)


before, described = length(), tokenizer.backend_tokenizer.to_str()
tokenizer(text, truncation=True, max_length=3)
after, same = length(), described == tokenizer.backend_tokenizer.to_str()
tokenizer.save_pretrained(sys.argv[1])
saved = json.load(open(f"{sys.argv[1]}/tokenizer.json"))["truncation"]["max_length"]
read = len(Tokenizer.from_file(f"{sys.argv[1]}/tokenizer.json").encode(text).ids)
tokenizer(text)
again = length()
print(f"backend before the call: {before} tokens, after it: {after}, after a plain call: {again}")
print("same to_str before and after:", same)
print(f"truncation in the saved file: {saved}; tokens of the file read by tokenizers: {read}")
sys.exit((before, after, again, same, saved, read) != (6, 3, 6, False, 3, 3))
PYTHON
"$folder/venv/bin/python" "$folder/call.py" "$folder/saved" && echo "as described"
