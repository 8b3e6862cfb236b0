#!/usr/bin/env bash
# tqdm 4.70.1: in a terminal that says it has 0 rows and 0 columns a bar is never drawn, also where ncols says how wide it is.
#
# Pseudo-terminals are 0 x 0 until somebody sets their size, and in some containers and CI consoles nobody does. tqdm counts as many rows as
# the terminal has, less one: -1 here. A bar is drawn where its position is below that, so none is, not even the first, and ncols=80 changes
# nothing: the rows hide the bar. nrows must be given too.
#
# Seen with tqdm 4.70.1, the characters that each wrote beside line breaks and carriage returns:
#   plain: 0
#   ncols=80: 0
#   nrows=24: more than 0
#   ncols=80, nrows=24: more than 0
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q tqdm==4.70.1
cat > "$folder/bars.py" <<'PYTHON'
import os
import pty
import subprocess
import sys

found = {}
for options in ("", "ncols=80", "nrows=24", "ncols=80, nrows=24"):
    ours, theirs = pty.openpty()
    script = f"from tqdm import tqdm\nfor _ in tqdm(range(3), {options}): pass"
    subprocess.run([sys.executable, "-c", script], stderr=theirs, check=True)
    os.close(theirs)
    written = b""
    try:
        while data := os.read(ours, 4096):
            written += data
    except OSError:
        pass
    os.close(ours)
    found[options] = len(written.translate(None, b"\r\n"))
    print(f"{options or 'plain'}: {found[options]}")
plain, ncols, nrows, both = found.values()
sys.exit((plain, ncols) != (0, 0) or not (nrows and both))
PYTHON
"$folder/venv/bin/python" "$folder/bars.py" && echo "as described"
