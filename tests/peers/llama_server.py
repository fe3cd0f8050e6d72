#!/usr/bin/env python3
"""Serves a GGUF file with llama.cpp's own HTTP server, as the wheel `xllamacpp` ships it.

Prints the base URL on one line when the server answers, then serves until it is interrupted or, with
--until-eof, until its standard input closes: who started it takes it along. The log goes to stderr.
"""

import argparse
import signal
import sys
import threading
from pathlib import Path

import xllamacpp


def params_of(args):
    params = xllamacpp.CommonParams()
    params.model.path = str(args.model)
    params.model_alias = {args.name or args.model.stem}
    params.hostnames = ["127.0.0.1"]
    params.port = args.port
    params.n_parallel = args.slots
    params.n_ctx = args.context * args.slots  # llama.cpp divides the context among the slots
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = args.threads
    params.cpuparams_batch.n_threads = args.threads
    params.n_threads_http = args.http_threads  # an open connection holds one, also while it is idle
    params.endpoint_metrics = True
    params.enable_reasoning = 0  # unless a request asks: "chat_template_kwargs": {"enable_thinking": true}
    params.cache_ram_mib = 0  # no second cache of evicted prompts in memory
    params.fit_params = False
    params.verbosity = 1  # errors
    return params


def main():
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("model", type=Path, help="the GGUF file")
    parser.add_argument("--port", type=int, default=0, help="default: any free one")
    parser.add_argument("--slots", type=int, default=4, help="requests served at once (default: 4)")
    parser.add_argument("--context", type=int, default=4096, help="tokens per slot (default: 4096)")
    parser.add_argument("--threads", type=int, default=1, help="threads that compute (default: 1)")
    parser.add_argument("--http-threads", type=int, default=-1, help="default: llama.cpp's own choice")
    parser.add_argument("--name", help="name of the model in the API (default: the file's, without .gguf)")
    parser.add_argument("--until-eof", action="store_true", help="stop when standard input closes")
    args = parser.parse_args()

    stop = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: stop.set())
    try:
        server = xllamacpp.Server(params_of(args))
    except RuntimeError:  # it says why in its log only
        raise SystemExit(f"error: llama.cpp did not start with {args.model}, see the lines above") from None
    print(server.listening_address, flush=True)
    if args.until_eof:
        threading.Thread(target=lambda: (sys.stdin.buffer.read(), stop.set()), daemon=True).start()
    while not stop.wait(timeout=0.5):  # a bare wait() would hold signals back
        pass


if __name__ == "__main__":
    main()
