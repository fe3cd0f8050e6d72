"""FNV-1a 64 of the generated weights of the tiny presets, seed 42, in numpy alone: an independent implementation
of crates/bench-engine/src/dummy.rs. Run: python dummy_fingerprint.py; the two numbers stand in presets.rs."""
import json
import math
import pathlib

import numpy as np

M = (1 << 64) - 1
PRESETS = pathlib.Path(__file__).parents[2] / "crates/bench-engine/src/presets"


def mix(z):
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & M
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & M
    return z ^ (z >> 31)


def fnv(data, h=0xCBF29CE484222325):
    for b in data:
        h = ((h ^ b) * 0x100000001B3) & M
    return h


def words(seed, name, nbytes):
    key = mix(mix(seed) ^ fnv(name.encode()))
    n = (nbytes + 7) // 8
    return np.array([mix((key + (i + 1) * 0x9E3779B97F4A7C15) & M) for i in range(n)], dtype="<u8").tobytes()[:nbytes]


def bf16(x):
    """Round to nearest, ties to even."""
    u = x.view(np.uint32).astype(np.uint64)
    return ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype("<u2").tobytes()


def uniform(seed, name, shape, std, mean=0.0):
    lanes = np.frombuffer(words(seed, name, 2 * math.prod(shape)), dtype="<i2").astype(np.float32)
    scale = np.float32(std) * (np.sqrt(np.float32(12)) / np.float32(65536))
    return bf16(np.float32(mean) + (lanes + np.float32(0.5)) * scale)


def scales(seed, name, shape):
    target, low, square = 1.0 / (32 * shape[2] * (68.5 / 8.0)), 127, 1.0
    while square > target:
        low, square = low - 1, square / 4
    high = int((target / square - 1) / 3 * 256)
    bytes_ = np.frombuffer(words(seed, name, math.prod(shape)), dtype=np.uint8)
    return (low + (bytes_ < high)).astype(np.uint8).tobytes()


def fingerprint(preset, seed):
    c = json.loads((PRESETS / f"{preset}.json").read_text())
    h, i, d, v = c["hidden_size"], c["intermediate_size"], c["head_dim"], c["vocab_size"]
    q, kv = c["num_attention_heads"] * d, c["num_key_value_heads"] * d
    total = fnv(uniform(seed, "model.embed_tokens.weight", [v, h], 1.0))
    inv = lambda n, gain=1.0: np.float32(gain / math.sqrt(n))
    for l in range(c["num_hidden_layers"]):
        p = f"model.layers.{l}."
        parts = [uniform(seed, p + "input_layernorm.weight", [h], np.float32(0.1), 1.0)]
        for name, out, inp in [("q", q, h), ("k", kv, h), ("v", kv, h), ("o", h, q)]:
            parts.append(uniform(seed, f"{p}self_attn.{name}_proj.weight", [out, inp], inv(inp)))
            if c["attention_bias"]:
                parts.append(uniform(seed, f"{p}self_attn.{name}_proj.bias", [out], np.float32(0.02)))
        moe = c["model_type"] == "gpt_oss"
        if moe:
            parts.append(uniform(seed, p + "self_attn.sinks", [c["num_attention_heads"]], 1.0, 0.5))
        else:
            parts += [uniform(seed, f"{p}self_attn.{n}_norm.weight", [d], np.float32(0.1), 1.0) for n in "qk"]
        parts.append(uniform(seed, p + "post_attention_layernorm.weight", [h], np.float32(0.1), 1.0))
        if moe:
            e = c["num_local_experts"]
            parts.append(uniform(seed, p + "mlp.router.weight", [e, h], inv(h, 2.0)))
            parts.append(uniform(seed, p + "mlp.router.bias", [e], np.float32(0.02)))
            for name, out, inp in [("gate_up_proj", 2 * i, h), ("down_proj", h, i)]:
                n = f"{p}mlp.experts.{name}"
                parts.append(words(seed, n + "_blocks", e * out * inp // 2))
                parts.append(scales(seed, n + "_scales", [e, out, inp // 32]))
                parts.append(uniform(seed, n + "_bias", [e, out], np.float32(0.02)))
        else:
            for name, out, inp in [("gate", i, h), ("up", i, h), ("down", h, i)]:
                parts.append(uniform(seed, f"{p}mlp.{name}_proj.weight", [out, inp], inv(inp)))
        for part in parts:
            total = fnv(part, total)
    total = fnv(uniform(seed, "model.norm.weight", [h], np.float32(0.1), 1.0), total)
    return fnv(uniform(seed, "lm_head.weight", [v, h], inv(h, 3.0)), total)


for preset in ["gpt-oss-tiny", "dense-tiny"]:
    print(preset, hex(fingerprint(preset, 42)))
