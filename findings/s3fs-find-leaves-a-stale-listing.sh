#!/usr/bin/env bash
# s3fs 2026.9.0: find() asks the server and tells the files as they are now, and open() of a file that it has just told fails, since find()
# puts listings into the cache but never renews one that is there.
#
# The first find() of a process keeps what it saw of each folder. A later one asks anew and says so, new files and new sizes, but leaves the
# cache as it was, and open() and info() read the cache. A file that was replaced meanwhile cannot be opened (FileExpired), a new one is not
# there (FileNotFoundError), for the rest of the process and however often one tries again. cat() of the replaced one gives it. A service
# that indexes a bucket now and then works once after each start. Filesystem objects are shared, so another part of the program may
# have listed. Call invalidate_cache() before find(), or make the filesystem with use_listings_cache=False.
#
# Seen with s3fs 2026.9.0, fsspec 2026.9.0, aiobotocore 3.10.0 and a server of moto 5.2.5, where a.txt was replaced and b.txt added:
#   find: {'bucket/notes/a.txt': 18, 'bucket/notes/b.txt': 3}; info of a.txt: 3
#   open: FileExpired, FileNotFoundError; cat of a.txt: 18 bytes
#   with use_listings_cache=False: 18 and 3 bytes
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile s3fs==2026.9.0 fsspec==2026.9.0 aiobotocore==3.10.0 "moto[server]==5.2.5"
cat > "$folder/listing.py" <<'PYTHON'
import sys

import boto3
import s3fs
from moto.server import ThreadedMotoServer

server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
host, port = server.get_host_and_port()
login = {"endpoint_url": f"http://{host}:{port}"}
writer = boto3.client("s3", aws_access_key_id="x", aws_secret_access_key="x", region_name="us-east-1", **login)
writer.create_bucket(Bucket="bucket")


def opened(files: s3fs.S3FileSystem, path: str) -> str:
    try:
        with files.open(path) as file:
            return f"{len(file.read())} bytes"
    except OSError as error:
        return type(error).__name__


def second_look(**options) -> tuple:
    """What a process sees that has listed the folder before it changed: sizes by find, by info, opened, opened again, one by cat."""
    for file in writer.list_objects_v2(Bucket="bucket").get("Contents", []):
        writer.delete_object(Bucket="bucket", Key=file["Key"])
    writer.put_object(Bucket="bucket", Key="notes/a.txt", Body=b"old")
    files = s3fs.S3FileSystem(key="x", secret="x", skip_instance_cache=True, **login, **options)
    files.find("bucket/notes")
    writer.put_object(Bucket="bucket", Key="notes/a.txt", Body=b"new and now longer")
    writer.put_object(Bucket="bucket", Key="notes/b.txt", Body=b"new")
    found = {path: about["size"] for path, about in files.find("bucket/notes", detail=True).items()}
    first, again = ([opened(files, path) for path in found] for _ in range(2))
    return found, files.info("bucket/notes/a.txt")["size"], first, again, len(files.cat("bucket/notes/a.txt"))


by_default, uncached = second_look(), second_look(use_listings_cache=False)
for name, (found, size, first, again, read) in (("by default", by_default), ("without a cache", uncached)):
    print(f"{name}: find: {found}; info: {size}; open: {first}, again: {again}; cat: {read}")
server.stop()
now = {"bucket/notes/a.txt": 18, "bucket/notes/b.txt": 3}
errors = ["FileExpired", "FileNotFoundError"]
sizes = ["18 bytes", "3 bytes"]
sys.exit((by_default, uncached) != ((now, 3, errors, errors, 18), (now, 18, sizes, sizes, 18)))
PYTHON
"$folder/venv/bin/python" "$folder/listing.py" 2> "$folder/log" && echo "as described"
