#!/usr/bin/env python3
"""Writes a tiny checkpoint (Hugging Face layout, Llama architecture) as GGUF, the file that llama.cpp reads.

The weights are those of tests/golden/llama-tiny, bit for bit, so that one model is measured in process and
over HTTP; any of --hidden, --layers and --seed draws random ones instead, for a model that takes longer per
token and shows each token as one event. The tokenizer is the folder's byte-level BPE. Needs numpy and gguf.
"""

import argparse
import json
import re
import struct
from pathlib import Path

import gguf
import numpy as np

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "llama-tiny"
HEAD_DIM = 64
# Control tokens frame the turns, none of those that make llama.cpp take a template for Harmony's. With
# `enable_thinking` the answer begins inside a thinking block, which the server gives as `reasoning_content`.
CHAT_TEMPLATE = """\
{% for m in messages %}<|startoftext|>{{ m.role }}
{% if m.reasoning_content %}<think>
{{ m.reasoning_content }}
</think>

{% endif %}{{ m.content }}<|endoftext|>
{% endfor %}{% if add_generation_prompt %}<|startoftext|>assistant
{% if enable_thinking %}<think>
{% endif %}{% endif %}"""


def read_tensors(path):
    """Yields (name, f32 array) of a safetensors file of F32 and BF16 tensors."""
    data = path.read_bytes()
    (header_bytes,) = struct.unpack("<Q", data[:8])
    for name, entry in json.loads(data[8 : 8 + header_bytes]).items():
        if name == "__metadata__":
            continue
        start, end = (8 + header_bytes + offset for offset in entry["data_offsets"])
        match entry["dtype"]:
            case "F32":
                values = np.frombuffer(data[start:end], "<f4")
            case "BF16":  # the upper half of an f32
                values = (np.frombuffer(data[start:end], "<u2").astype("<u4") << 16).view("<f4")
            case other:
                raise SystemExit(f"error: tensor `{name}` has dtype {other}, expected F32 or BF16")
        yield name, values.reshape(entry["shape"])


def draw_tensors(config, visible, seed):
    """Yields (name, f32 array) of random weights with the shapes of `config`.

    Tokens that are not `visible` get a logit of zero, which neither greedy decoding nor the server's own
    top-k of 40 takes. So every token shows as one event; half a character would wait for its other half.
    """
    rng = np.random.default_rng(seed)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"] * HEAD_DIM
    groups = config["num_key_value_heads"] * HEAD_DIM

    def matrix(rows, columns):
        return (rng.standard_normal((rows, columns)) / np.sqrt(columns)).astype("<f4")

    yield "model.embed_tokens.weight", matrix(config["vocab_size"], hidden) * np.float32(np.sqrt(hidden))
    for layer in range(config["num_hidden_layers"]):
        block = f"model.layers.{layer}"
        yield f"{block}.input_layernorm.weight", np.ones(hidden, "<f4")
        yield f"{block}.post_attention_layernorm.weight", np.ones(hidden, "<f4")
        for name, rows, columns in [
            ("self_attn.q_proj", heads, hidden),
            ("self_attn.k_proj", groups, hidden),
            ("self_attn.v_proj", groups, hidden),
            ("self_attn.o_proj", hidden, heads),
            ("mlp.gate_proj", inner, hidden),
            ("mlp.up_proj", inner, hidden),
            ("mlp.down_proj", hidden, inner),
        ]:
            yield f"{block}.{name}.weight", matrix(rows, columns)
    yield "model.norm.weight", np.ones(hidden, "<f4")
    head = matrix(config["vocab_size"], hidden) * np.float32(3.0)
    yield "lm_head.weight", np.where(visible[:, None], head, np.float32(0.0))


def interleave(weight, heads):
    """Rows of a q or k projection as llama.cpp wants them: it rotates neighbours, transformers the halves."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def add_weights(writer, config, tensors):
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, weight in tensors:
        if name.endswith("q_proj.weight"):
            weight = interleave(weight, config["num_attention_heads"])
        elif name.endswith("k_proj.weight"):
            weight = interleave(weight, config["num_key_value_heads"])
        target = names.get_name(name, try_suffixes=(".weight",))
        if target is None:
            raise SystemExit(f"error: tensor `{name}` has no place in GGUF's Llama architecture")
        writer.add_tensor(target, np.ascontiguousarray(weight))


def add_config(writer, config):
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    writer.add_name("tiny")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)


def visible_tokens(tokenizer, vocab_size):
    """Which ids are printable ASCII on their own; byte-level BPE writes a space as U+0120."""
    visible = np.zeros(vocab_size, bool)
    for text, index in tokenizer["model"]["vocab"].items():
        visible[index] = re.fullmatch("[!-~\u0120]+", text) is not None
    return visible


def add_tokenizer(writer, tokenizer, config):
    tokens = [f"<|unused_{i}|>" for i in range(config["vocab_size"])]
    kinds = [gguf.TokenType.UNUSED] * config["vocab_size"]
    for text, index in tokenizer["model"]["vocab"].items():
        tokens[index], kinds[index] = text, gguf.TokenType.NORMAL
    for added in tokenizer["added_tokens"]:
        tokens[added["id"]], kinds[added["id"]] = added["content"], gguf.TokenType.CONTROL
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-4o")  # splits as o200k does, from which these vocabularies are cut
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def scaled(config, hidden, layers):
    """`config` with the width and depth asked for."""
    if hidden % HEAD_DIM:
        raise SystemExit(f"error: --hidden {hidden} is not a multiple of {HEAD_DIM}, the width of a head")
    return config | {
        "hidden_size": hidden,
        "head_dim": HEAD_DIM,
        "intermediate_size": 3 * hidden,
        "num_attention_heads": hidden // HEAD_DIM,
        "num_key_value_heads": 1,
        "num_hidden_layers": layers,
    }


def main():
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("out", type=Path, help="the GGUF file to write")
    parser.add_argument("--checkpoint", type=Path, default=GOLDEN, help="default: tests/golden/llama-tiny")
    parser.add_argument("--hidden", type=int, help="draw weights of this width (default: 320)")
    parser.add_argument("--layers", type=int, help="draw weights of this depth (default: 5)")
    parser.add_argument("--seed", type=int, help="draw weights from this seed (default: 1)")
    args = parser.parse_args()

    config = json.loads((args.checkpoint / "config.json").read_text())
    tokenizer = json.loads((args.checkpoint / "tokenizer.json").read_text())
    if config["model_type"] != "llama":
        raise SystemExit(f"error: {args.checkpoint} is a `{config['model_type']}`, expected a `llama`")
    if args.hidden or args.layers or args.seed is not None:
        config = scaled(config, args.hidden or 320, args.layers or 5)
        visible = visible_tokens(tokenizer, config["vocab_size"])
        tensors = draw_tensors(config, visible, 1 if args.seed is None else args.seed)
    else:
        tensors = read_tensors(args.checkpoint / "model.safetensors")

    writer = gguf.GGUFWriter(args.out, "llama")
    add_config(writer, config)
    add_tokenizer(writer, tokenizer, config)
    add_weights(writer, config, tensors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    print(args.out)


if __name__ == "__main__":
    main()
