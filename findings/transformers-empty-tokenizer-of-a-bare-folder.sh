#!/usr/bin/env bash
# transformers 5.5.4: a folder without any tokenizer file gives a tokenizer, with eight tokens, and no word is said.
#
# AutoTokenizer.from_pretrained looks at config.json, finds that the model is a Llama, and builds the tokenizer of that class from nothing:
# no vocabulary, no merges. Every text becomes the same few ids, the model reads them without complaint, and vectors and answers mean nothing.
# Who copies only config.json and the weights (or loses tokenizer.json on the way) is not told. Since 5.6.0 the same call raises ValueError.
#
# Seen with transformers 5.5.4:
#   CodeLlamaTokenizer, 8 tokens; "the river" and "owls click" have the same ids: True
# and with transformers 5.6.0: ValueError
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q transformers==5.5.4
cat > "$folder/load.py" <<'PYTHON'
import sys

from transformers import AutoTokenizer, LlamaConfig

LlamaConfig(vocab_size=259).save_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
size = len(tokenizer.get_vocab())
same = tokenizer("the river")["input_ids"] == tokenizer("owls click")["input_ids"]
print(f"{type(tokenizer).__name__}, {size} tokens; \"the river\" and \"owls click\" have the same ids: {same}")
sys.exit((size, same) != (8, True))
PYTHON
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" "$folder/load.py" "$folder/saved" && echo "as described"
