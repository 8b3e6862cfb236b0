#!/usr/bin/env bash
# transformers 5.23.0 reads a GGUF file without how its rotary angles are scaled, and says nothing.
#
# A GGUF file tells linear and YaRN scaling in llama.rope.scaling.*, and that of Llama 3 as a tensor, rope_freqs.weight, by
# which llama.cpp divides the frequencies. transformers maps rope.freq_base only. The model loads without a warning, with
# plain angles, and gives other logits than the one that was converted: short texts look well, long ones do not.
#
# Seen with transformers 5.23.0, gguf 0.19.0, torch 2.13.0:
#   linear, yarn, llama3: rope_type read as "default" each time; logits off by more than 0.1 of the largest one
#   with config= that holds the scaling: the same logits
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.4 transformers==5.23.0 gguf==0.19.0 safetensors==0.8.0 accelerate==1.15.0
cat > "$folder/scaling.py" <<'PYTHON'
import sys
from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

folder = Path(sys.argv[1])
KINDS = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}


def written(model, path, kind):
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if kind == "llama3":  # as convert_hf_to_gguf.py writes it
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, None)
        plain = config.rope_parameters["rope_theta"] ** -(torch.arange(0, config.head_dim, 2) / config.head_dim)
        writer.add_tensor("rope_freqs.weight", (plain / scaled).numpy().astype(np.float32))
    else:
        writer.add_rope_scaling_type(gguf.RopeScalingType[kind.upper()])
        writer.add_rope_scaling_factor(4.0)
        if kind == "yarn":
            writer.add_rope_scaling_orig_ctx_len(128)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        array = weight.numpy()
        for part, count in heads.items():
            if part in name:  # llama.cpp rotates neighbouring pairs
                rows, columns = array.shape
                array = array.reshape(count, 2, rows // count // 2, columns).swapaxes(1, 2).reshape(rows, columns)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), array)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{number}" for number in range(config.vocab_size)])
    writer.add_token_merges(["t 0"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


changed = False
ids = torch.arange(300)[None] % 64
for kind, scaling in KINDS.items():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True, initializer_range=0.2,
        rope_parameters={"rope_theta": 1e4, **scaling},
    )
    model = LlamaForCausalLM(config).eval()
    name = f"{kind}.gguf"
    written(model, folder / name, kind)
    read = AutoConfig.from_pretrained(folder, gguf_file=name).rope_parameters["rope_type"]
    with torch.inference_mode():
        right = model(ids).logits
        loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)(ids).logits
        given = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32, config=config)(ids).logits
    off, same = (float((logits - right).abs().max() / right.abs().max()) for logits in (loaded, given))
    print(f"{kind}: the file is read as {read!r}; logits off by {off:.2f} of the largest, with config= by {same:.0e}")
    changed |= not (read == "default" and off > 0.05 and same < 1e-3)
if changed:
    sys.exit("the behaviour has changed")
PYTHON
"$folder/venv/bin/python" "$folder/scaling.py" "$folder" 2>&1 | grep -v "it/s\|config.rope_parameters\['factor'\]"
