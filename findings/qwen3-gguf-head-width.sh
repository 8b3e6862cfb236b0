#!/usr/bin/env bash
# transformers 5.23.0 reads a Qwen3 model from a GGUF file with heads of 128, whatever the file says.
#
# A GGUF file of a Qwen3 model tells the width of its heads in qwen3.attention.key_length and value_length, because it is not
# hidden size / heads. llama.cpp reads it there. transformers takes over hidden size, layers and heads, drops the width, and
# falls back to the default of Qwen3Config, 128. Weights then do not fit, and from_pretrained reports mismatches of q_proj,
# k_proj, v_proj and o_proj, which looks like a broken file. Giving config= loads the same file.
#
# Seen with transformers 5.23.0, gguf 0.19.0, accelerate 1.15.0, torch 2.13.0:
#   the file says 16, AutoConfig says 128
#   loading: RuntimeError, "You set `ignore_mismatched_sizes` to `False`"; with config= of the right width: the same logits
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.4 transformers==5.23.0 gguf==0.19.0 safetensors==0.8.0 accelerate==1.15.0
cat > "$folder/heads.py" <<'PYTHON'
import sys
from pathlib import Path

import gguf
import torch
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

folder = Path(sys.argv[1])
config = Qwen3Config(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, tie_word_embeddings=True, max_position_embeddings=128,
)
torch.manual_seed(0)
model = Qwen3ForCausalLM(config).eval()

writer = gguf.GGUFWriter(folder / "qwen3.gguf", "qwen3")
writer.add_context_length(128)
writer.add_embedding_length(32)
writer.add_block_count(2)
writer.add_feed_forward_length(64)
writer.add_head_count(4)
writer.add_head_count_kv(2)
writer.add_key_length(16)
writer.add_value_length(16)
writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
writer.add_layer_norm_rms_eps(config.rms_norm_eps)
writer.add_vocab_size(64)
names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, 2)
for name, weight in model.state_dict().items():
    if name != "lm_head.weight":
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), weight.numpy())
writer.add_tokenizer_model("gpt2")
writer.add_token_list([f"t{number}" for number in range(64)])
writer.add_token_merges(["t 0"])
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

read = AutoConfig.from_pretrained(folder, gguf_file="qwen3.gguf").head_dim
print(f"the file says 16, AutoConfig says {read}")
try:
    AutoModelForCausalLM.from_pretrained(folder, gguf_file="qwen3.gguf")
    mismatch = False
except RuntimeError as error:
    mismatch = True
    print("loading:", str(error).splitlines()[0])
given = AutoModelForCausalLM.from_pretrained(folder, gguf_file="qwen3.gguf", config=config, dtype=torch.float32)
ids = torch.arange(20)[None]
with torch.inference_mode():
    same = torch.allclose(given(ids).logits, model(ids).logits, atol=1e-4)
print("loading with the right config: the same logits", same)
if not (read == 128 and mismatch and same):
    sys.exit("the behaviour has changed")
PYTHON
"$folder/venv/bin/python" "$folder/heads.py" "$folder"
