#!/usr/bin/env bash
# tokenizers 0.23.3: a copy of a tokenizer (copy.deepcopy, pickle, to_str) forgets encode_special_tokens, and makes control tokens of text.
#
# With encode_special_tokens = True a tokenizer takes the characters "<|end|>" in a user's text for plain text. The switch is not part of
# what is serialised, and deepcopy and pickle serialise: the copy has False again and turns the same text into the control token. So a
# tokenizer that is safe in one process is not in a worker that it was sent to (multiprocessing, Ray, a DataLoader), and nothing says so.
# The other settings that change results, such as truncation and padding, do survive.
#
# Seen with tokenizers 0.23.3:
#   original True [3, 1, 2, 4, 2, 5]
#   deepcopy False [3, 7]
#   pickle   False [3, 7]
#   to_str   False [3, 7]
#   truncation after pickle: 3
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q tokenizers==0.23.3
cat > "$folder/copies.py" <<'PYTHON'
import copy
import pickle
import sys

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

vocabulary = {"[UNK]": 0, "<": 1, "|": 2, "a": 3, "end": 4, ">": 5, "b": 6}
tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
tokenizer.pre_tokenizer = pre_tokenizers.Punctuation()
tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
tokenizer.encode_special_tokens = True
copies = {
    "original": tokenizer,
    "deepcopy": copy.deepcopy(tokenizer),
    "pickle": pickle.loads(pickle.dumps(tokenizer)),
    "to_str": Tokenizer.from_str(tokenizer.to_str()),
}
found = {name: (each.encode_special_tokens, each.encode("a<|end|>").ids) for name, each in copies.items()}
for name, (switch, ids) in found.items():
    print(f"{name:8} {switch} {ids}")
tokenizer.enable_truncation(3)
truncation = pickle.loads(pickle.dumps(tokenizer)).truncation["max_length"]
print("truncation after pickle:", truncation)
expected = dict.fromkeys(("deepcopy", "pickle", "to_str"), (False, [3, 7])) | {"original": (True, [3, 1, 2, 4, 2, 5])}
sys.exit(found != expected or truncation != 3)
PYTHON
"$folder/venv/bin/python" "$folder/copies.py" && echo "as described"
