#!/usr/bin/env bash
# transformers 5.23.0 makes of a GGUF file a tokenizer with one id more than the model has embeddings.
#
# A byte-level vocabulary ("gpt2") becomes a GPT2Tokenizer, whose unknown, first and last token are "<|endoftext|>" by
# default. Where the file has no token of that name, it is added behind the last id, though the file names its own first and
# last token and byte-level tokenizers have no use for an unknown one. The name is then cut out of any text as a control
# token, and its id is out of range in the embedding.
#
# Seen with transformers 5.23.0, gguf 0.19.0, torch 2.13.0:
#   258 tokens in the file and 258 embeddings; len(tokenizer) 259; "a<|endoftext|>" has the ids [x, 258]
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.4 transformers==5.23.0 gguf==0.19.0 safetensors==0.8.0 accelerate==1.15.0
cat > "$folder/tokens.py" <<'PYTHON'
import sys
from pathlib import Path

import gguf
from tokenizers import pre_tokenizers
from transformers import AutoConfig, AutoTokenizer

folder = Path(sys.argv[1])
tokens = ["<s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġt"]
writer = gguf.GGUFWriter(folder / "tiny.gguf", "llama")
writer.add_context_length(64)
writer.add_embedding_length(32)
writer.add_block_count(1)
writer.add_head_count(4)
writer.add_head_count_kv(2)
writer.add_feed_forward_length(32)
writer.add_vocab_size(len(tokens))
writer.add_tokenizer_model("gpt2")
writer.add_token_list(tokens)
writer.add_token_types([gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * (len(tokens) - 1))
writer.add_token_merges(["Ġ t"])
writer.add_bos_token_id(0)
writer.add_eos_token_id(0)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file="tiny.gguf")
rows = AutoConfig.from_pretrained(folder, gguf_file="tiny.gguf").vocab_size
ids = tokenizer("a<|endoftext|>", add_special_tokens=False)["input_ids"]
print(f"{len(tokens)} tokens in the file, {rows} embeddings, len(tokenizer) {len(tokenizer)}; ids {ids}")
if not (rows == len(tokens) == len(tokenizer) - 1 and ids[-1] == rows):
    sys.exit("the behaviour has changed")
PYTHON
"$folder/venv/bin/python" "$folder/tokens.py" "$folder"
