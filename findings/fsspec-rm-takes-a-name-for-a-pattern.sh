#!/usr/bin/env bash
# fsspec 2026.9.0, s3fs 2026.9.0: rm() of the file "report[1].txt" removes "report1.txt" and leaves the file that was named, without an error.
#
# rm, cat, get, copy and mv look for a pattern in every path, and brackets are one: [1] is the character 1. There is no look whether a file of
# exactly that name is there, though exists, isfile, info and open take the name as it is. So a path that ls() or find() has just given
# back may stand for another file: a program that checks first, or goes through a listing, removes, moves or reads the wrong one. Browsers
# and mail programs name a second download so. The local file system removes by name, but reads by pattern. With recursive=True it is
# a whole folder. rm_file, cat_file, get_file and cp_file take names; glob.escape does not help rm.
#
# Seen with fsspec 2026.9.0, s3fs 2026.9.0 and a server of moto 5.2.5, with files report1.txt (b"one") and report[1].txt (b"other"):
#   s3:     exists True, cat_file b'other', cat {'bucket/report1.txt': b'one'}; after rm there is ['bucket/report[1].txt']
#   memory: exists True, cat_file b'other', cat {'/bucket/report1.txt': b'one'}; after rm there is ['/bucket/report[1].txt']
#   s3, mv of report[1].txt to kept/: b'one' is there; rm of every file that find() tells, one after another: FileNotFoundError
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile s3fs==2026.9.0 fsspec==2026.9.0 aiobotocore==3.10.0 "moto[server]==5.2.5"
cat > "$folder/names.py" <<'PYTHON'
import sys
from typing import Any

import fsspec
from moto.server import ThreadedMotoServer

NAME, OTHER = "bucket/report[1].txt", "bucket/report1.txt"


def filled(files: Any) -> Any:
    """With both files in the bucket, and nothing else."""
    if files.exists("bucket"):
        for path in files.find("bucket"):
            files.rm_file(path)
    else:
        files.mkdir("bucket")
    files.pipe_file(OTHER, b"one")
    files.pipe_file(NAME, b"other")
    return files


def removed(files: Any) -> tuple:
    filled(files)
    seen = files.exists(NAME), files.cat_file(NAME), files.cat(NAME)
    files.rm(NAME)
    files.invalidate_cache()
    return *seen, files.find("bucket")


def moved(files: Any) -> list[bytes]:
    filled(files).mv(NAME, "bucket/kept/")
    files.invalidate_cache()
    return [files.cat_file(path) for path in files.find("bucket/kept")]


def emptied(files: Any) -> str:
    """What becomes of a loop that removes all that is listed."""
    try:
        for path in filled(files).find("bucket"):
            files.rm(path)
    except OSError as error:
        return type(error).__name__
    return "nothing is left"


server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
url = "http://{}:{}".format(*server.get_host_and_port())
s3 = fsspec.filesystem("s3", key="x", secret="x", endpoint_url=url)
on_s3, in_memory = removed(s3), removed(fsspec.filesystem("memory"))
kept, loop = moved(s3), emptied(s3)
server.stop()
for where, (exists, by_name, read, left) in (("s3", on_s3), ("memory", in_memory)):
    print(f"{where}: exists {exists}, cat_file {by_name}, cat {read}; after rm there is {left}")
print(f"s3: mv of {NAME} to kept/: {kept}; rm of each file that find() tells: {loop}")
as_described = on_s3 == (True, b"other", {OTHER: b"one"}, [NAME])
as_described &= in_memory == (True, b"other", {f"/{OTHER}": b"one"}, [f"/{NAME}"])
sys.exit(not (as_described and kept == [b"one"] and loop == "FileNotFoundError"))
PYTHON
"$folder/venv/bin/python" "$folder/names.py" && echo "as described"
