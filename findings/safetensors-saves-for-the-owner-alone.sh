#!/usr/bin/env bash
# safetensors 0.8.0: save_file makes a new file with rights 0600 in the place of the old one, whatever umask and the old file say.
#
# Up to 0.7 the file was opened and written like any other: rights by umask, and a file that was there kept its own, as did links to it.
# 0.8.0 writes a temporary file beside it and renames that. So nobody but the owner reads what is saved (checkpoints of transformers and
# peft too, while config.json beside the weights is readable: a server that runs as another user finds the model and cannot open it); rights
# that a group had been given are gone with the next save; a symbolic link, as to a larger disk, becomes a file on the disk of the link, and
# what it pointed to stays as it was; and a hard link keeps the old numbers.
#
# Seen with safetensors 0.8.0, umask 022:
#   new file: 0600, a file of open(): 0644
#   rights of a file that had 0664, once it is saved again: 0600
#   saved through a symbolic link: still a link False, what it pointed to holds 1.0, the file in its place 2.0
#   4.0 saved over a file whose hard link held 3.0: the link holds 3.0
# and with safetensors 0.7.0:
#   new file: 0644, a file of open(): 0644
#   rights of a file that had 0664, once it is saved again: 0664
#   saved through a symbolic link: still a link True, what it pointed to holds 2.0, the file in its place 2.0
#   4.0 saved over a file whose hard link held 3.0: the link holds 4.0
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q safetensors==0.8.0 numpy==2.3.5
cat > "$folder/save.py" <<'PYTHON'
import os
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

os.umask(0o022)
folder = Path(sys.argv[1])
folder.mkdir()
file, plain, link, twin = (folder / name for name in ("a.safetensors", "plain", "link.safetensors", "twin.safetensors"))


def save(number: float, path: Path) -> None:
    save_file({"a": np.full(1, number)}, path)


def held(path: Path) -> float:
    return float(load_file(path)["a"][0])


def rights(path: Path) -> str:
    return f"{path.stat().st_mode & 0o777:04o}"


save(1.0, file)
open(plain, "w").close()
new = (rights(file), rights(plain))
print(f"new file: {new[0]}, a file of open(): {new[1]}")

file.chmod(0o664)
save(1.0, file)
again = rights(file)
print(f"rights of a file that had 0664, once it is saved again: {again}")

link.symlink_to(file)
save(2.0, link)
linked = (link.is_symlink(), held(file), held(link))
print(f"saved through a symbolic link: still a link {linked[0]}, what it pointed to holds {linked[1]}, the file in its place {linked[2]}")

save(3.0, file)
os.link(file, twin)
save(4.0, file)
other = held(twin)
print(f"{held(file)} saved over a file whose hard link held 3.0: the link holds {other}")
sys.exit((new, again, linked, other) != (("0600", "0644"), "0600", (False, 1.0, 2.0), 3.0))
PYTHON
"$folder/venv/bin/python" "$folder/save.py" "$folder/saved" && echo "as described"
