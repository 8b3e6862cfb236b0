#!/usr/bin/env bash
# torch 2.13.0: a thread that calls torch.set_num_threads and has not computed anything yet loses that number when another
# thread calls it too. The call sets OpenMP's number for the calling thread and a default for the process; at its first
# parallel operation (or torch.get_num_threads()) a thread takes over the default, whatever it has set for itself before.
#
# Seen with torch 2.13.0 on a processor, one thread that sets 2, then another that sets 1, then the first asks:
#   the engine's thread set 2 and has 1
#
# A server whose compute thread asks for all processors at its start, and whose workers ask for one each, computes with one
# processor, or with all, by who comes first. So call torch.get_num_threads() in a thread before torch.set_num_threads(n).
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.4
cat > "$folder/threads.py" <<'PYTHON'
import sys
import threading

import torch

has_set, others_have_set = threading.Event(), threading.Event()
seen: list[int] = []


def engine() -> None:
    torch.set_num_threads(2)
    has_set.set()
    others_have_set.wait()
    seen.append(torch.get_num_threads())


def worker() -> None:
    torch.set_num_threads(1)


thread = threading.Thread(target=engine)
thread.start()
has_set.wait()
other = threading.Thread(target=worker)
other.start()
other.join()
others_have_set.set()
thread.join()
print("torch", torch.__version__)
print("the engine's thread set 2 and has", seen[0])
sys.exit(0 if seen == [1] else 1)
PYTHON
"$folder/venv/bin/python" "$folder/threads.py"
