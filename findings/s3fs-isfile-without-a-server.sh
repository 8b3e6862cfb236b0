#!/usr/bin/env bash
# s3fs 2026.9.0: where no server answers, isfile() says False, exists() and isdir() raise, and what they raise is no OSError.
#
# Everything else that s3fs refuses comes as an OSError (FileNotFoundError, PermissionError), as fsspec's other file systems have it.
# A connection that fails is botocore's EndpointConnectionError instead, so `except OSError` does not see it, and `isfile` hides it: it
# answers for a file that may well be there as if it were not. `cat` of several paths with on_error="omit" gives an empty dict.
# Who takes "not there" for a reason to compute or write again does so whenever the network is away.
#
# Seen with s3fs 2026.9.0, fsspec 2026.9.0, aiobotocore 3.10.0, botocore 1.43.117, against a port on which nothing listens:
#   isfile   False
#   exists   EndpointConnectionError, OSError: False
#   isdir    EndpointConnectionError, OSError: False
#   info     EndpointConnectionError, OSError: False
#   cat_file EndpointConnectionError, OSError: False
#   cat omit {}
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q s3fs==2026.9.0 fsspec==2026.9.0 aiobotocore==3.10.0 botocore==1.43.117
cat > "$folder/away.py" <<'PYTHON'
import socket
import sys

import s3fs

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
away = s3fs.S3FileSystem(
    key="a", secret="b", endpoint_url=f"http://127.0.0.1:{port}", skip_instance_cache=True,
    config_kwargs={"connect_timeout": 2, "retries": {"max_attempts": 0}},
)
path = "bucket/file"
calls = {
    "isfile": lambda: away.isfile(path), "exists": lambda: away.exists(path), "isdir": lambda: away.isdir(path),
    "info": lambda: away.info(path), "cat_file": lambda: away.cat_file(path),
    "cat omit": lambda: away.cat([path, "bucket/other"], on_error="omit"),
}
found = {}
for name, call in calls.items():
    try:
        found[name] = repr(call())
    except Exception as error:
        found[name] = f"{type(error).__name__}, OSError: {isinstance(error, OSError)}"
    print(f"{name:8} {found[name]}")
raised = "EndpointConnectionError, OSError: False"
sys.exit(found != {"isfile": "False", "cat omit": "{}"} | dict.fromkeys(("exists", "isdir", "info", "cat_file"), raised))
PYTHON
"$folder/venv/bin/python" "$folder/away.py" && echo "as described"
