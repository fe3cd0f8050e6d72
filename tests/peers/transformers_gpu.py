#!/usr/bin/env python3
"""Measures Hugging Face transformers on one NVIDIA GPU: a model of a given config.json with random weights.

    python3 transformers_gpu.py CONFIG.json [--device 0] [--prompts 128,512,1024,2048] [--output 64] [--json FILE]

Time to first token (a prefill whose last position is unembedded) and time per output token (a greedy step over the KV
cache), each by CUDA events, batch 1, bf16. Needs torch with CUDA and transformers, and no network: exits with 4 and says
what is missing otherwise. It stops before --seconds are over and keeps what it has.

Experts are bf16 here, as transformers computes them without the kernels that it fetches for MXFP4: a gpt-oss that does not
fit so is refused.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

MISSING = 4


def missing(reason):
    print(f"missing: {reason}; no peer was measured")
    sys.exit(MISSING)


def packages():
    try:
        import torch
    except ImportError as error:
        missing(f"torch ({error})")
    try:
        import transformers
    except ImportError as error:
        missing(f"transformers ({error})")
    if not torch.cuda.is_available():
        missing("a GPU that torch can use")
    return torch, transformers


def config_of(path, transformers):
    values = json.loads(Path(path).read_text())
    # As random bf16 weights: nothing is loaded that would be quantized.
    values.pop("quantization_config", None)
    config = transformers.AutoConfig.for_model(**values)
    return config


def parameters_of(torch, transformers, config):
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    return sum(p.numel() for p in model.parameters())


def build(torch, transformers, config, attention):
    torch.set_default_dtype(torch.bfloat16)
    # On the GPU from the start: drawing twenty billion weights on the host would take minutes.
    with torch.device("cuda"):
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    return model.eval()


def events(torch, work):
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    result = work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end), result


def run_cell(torch, model, prompt, output):
    """Milliseconds of the prefill, and of each step after it."""
    ids = torch.randint(0, model.config.vocab_size, (1, prompt), device="cuda")

    def prefill():
        return model(input_ids=ids, use_cache=True, logits_to_keep=1)

    ttft_ms, answer = events(torch, prefill)
    cache, steps_ms = answer.past_key_values, []
    token = answer.logits[:, -1].argmax(-1, keepdim=True)
    for _ in range(output - 1):
        step_ms, answer = events(torch, lambda: model(input_ids=token, past_key_values=cache, use_cache=True))
        token = answer.logits[:, -1].argmax(-1, keepdim=True)
        steps_ms.append(step_ms)
    return ttft_ms, steps_ms


def measure(torch, model, args, deadline):
    cells = []
    for prompt in args.prompts:
        ttft, tpot = [], []
        torch.cuda.reset_peak_memory_stats()
        # The first is a warm-up of the shape itself.
        for repeat in range(args.repeats + 1):
            if time.monotonic() > deadline:
                break
            first, steps = run_cell(torch, model, prompt, args.output)
            if repeat > 0:
                ttft.append(first)
                tpot.append(statistics.fmean(steps))
        cell = {
            "prompt_tokens": prompt,
            "output_tokens": args.output,
            "ttft_ms": ttft,
            "tpot_ms": tpot,
            "peak_bytes": torch.cuda.max_memory_allocated(),
        }
        cells.append(cell)
        if ttft:
            first, step = statistics.median(ttft), statistics.median(tpot)
            rate = 1e3 / step
            print(f"prompt {prompt:5}: ttft {first:8.2f} ms, tpot {step:7.3f} ms, {rate:7.1f} tok/s, n {len(ttft)}")
        else:
            print(f"prompt {prompt:5}: no time left")
    return cells


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--device", type=int, default=0)
    numbers = lambda text: [int(n) for n in text.split(",")]
    parser.add_argument("--prompts", type=numbers, default=[128, 512, 1024, 2048])
    parser.add_argument("--output", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=150.0)
    parser.add_argument("--attention", default=None, help="attn_implementation; transformers' own choice if absent")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main():
    begin = time.monotonic()
    args = arguments()
    torch, transformers = packages()
    torch.cuda.set_device(args.device)
    config = config_of(args.config, transformers)
    properties = torch.cuda.get_device_properties(args.device)
    report = {
        "config": args.config.name,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "transformers": transformers.__version__,
        "gpu": properties.name,
        "dtype": "bfloat16",
        "batch": 1,
        "error": None,
        "cells": [],
    }
    try:
        parameters = parameters_of(torch, transformers, config)
        report["parameters"] = parameters
        free, _ = torch.cuda.mem_get_info()
        if 2 * parameters > 0.95 * free:
            raise MemoryError(f"{2 * parameters} bytes of weights in bf16, {free} bytes are free")
        with torch.inference_mode():
            torch.manual_seed(42)
            model = build(torch, transformers, config, args.attention)
            print(f"{args.config.stem}: {parameters} parameters after {time.monotonic() - begin:.1f} s")
            report["attention"] = getattr(model.config, "_attn_implementation", None)
            report["experts"] = getattr(model.config, "_experts_implementation", None)
            report["cells"] = measure(torch, model, args, begin + args.seconds)
    except Exception as error:  # what was measured before is kept, and the reason with it
        report["error"] = f"{type(error).__name__}: {error}"
        print(f"error: {report['error']}", file=sys.stderr)
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")
    sys.exit(0 if report["error"] is None else 1)


if __name__ == "__main__":
    main()
