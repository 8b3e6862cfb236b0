#!/usr/bin/env bash
# torch 2.13.0: torch.nn.attention.sdpa_kernel is a context manager, but what it sets is one switch for the whole process.
# Two threads that overlap undo each other: when the first leaves, the second goes on with every kernel allowed, inside its
# own block; and when the second leaves, it "restores" what it found, which is the restriction of the first. Flash,
# memory-efficient and cuDNN attention then stay switched off in the process, for everybody and for good.
#
# Seen with torch 2.13.0 (a build for processors shows it too, since the flags are there):
#   before:  flash True  efficient True  cudnn True
#   inside the second thread's block, which allows only "math": flash True efficient True cudnn True
#   after both threads have left: flash False efficient False cudnn False
#
# A server that embeds in one thread and generates in another loses its fast kernels without a word. So whoever wants a kernel
# left out has to count the threads inside, and to give the switch back when the last one leaves.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.4
cat > "$folder/threads.py" <<'PYTHON'
import sys
import threading

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


def allowed() -> dict[str, bool]:
    cuda = torch.backends.cuda
    return {
        "flash": cuda.flash_sdp_enabled(),
        "efficient": cuda.mem_efficient_sdp_enabled(),
        "cudnn": cuda.cudnn_sdp_enabled(),
    }


first_is_in, second_is_in, first_is_out = (threading.Event() for _ in range(3))
inside: dict[str, bool] = {}


def first() -> None:
    with sdpa_kernel(SDPBackend.MATH):
        first_is_in.set()
        second_is_in.wait()
    first_is_out.set()


def second() -> None:
    first_is_in.wait()
    with sdpa_kernel(SDPBackend.MATH):
        second_is_in.set()
        first_is_out.wait()
        inside.update(allowed())


before = allowed()
threads = [threading.Thread(target=work) for work in (first, second)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
after = allowed()
print("torch", torch.__version__)
print("before:", before)
print("inside the second thread's block:", inside)
print("after both threads have left:", after)
is_as_described = all(before.values()) and all(inside.values()) and not any(after.values())
sys.exit(0 if is_as_described else 1)
PYTHON
"$folder/venv/bin/python" "$folder/threads.py"
