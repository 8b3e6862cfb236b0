#!/usr/bin/env bash
# httpx 0.28.1: `next(response.iter_lines())` inside `with httpx.stream(...)` closes the connection, though the block goes on.
#
# The iterator is a generator that nobody holds once the first line is taken, so Python closes it, and httpx takes that for the wish to read
# no more: it hangs up on the server at once, long before the `with` block ends. Nothing says so: the response is not marked as closed, and
# the server sees a client that went away. A test that takes the first event of a stream to be sure that it runs, and then looks at the
# server, looks at a server that is already giving the work up. Holding the iterator (lines = response.iter_lines(); next(lines)) keeps it.
#
# Seen with httpx 0.28.1, a server that writes 20 lines in a second:
#   next(response.iter_lines()): hung up within half a second: True, is_closed: False
#   next(lines): hung up within half a second: False, is_closed: False, and 19 more lines
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q httpx==0.28.1
cat > "$folder/lines.py" <<'PYTHON'
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

hung_up = threading.Event()


class Lines(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        try:
            for number in range(20):
                self.wfile.write(f"line {number}\n".encode())
                self.wfile.flush()
                time.sleep(0.05)
        except OSError:
            hung_up.set()

    def log_message(self, *args):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Lines)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}"

with httpx.stream("GET", url) as response:
    next(response.iter_lines())
    ended = hung_up.wait(0.5)
    print(f"next(response.iter_lines()): hung up within half a second: {ended}, is_closed: {response.is_closed}")
    is_closed = response.is_closed
hung_up.clear()
with httpx.stream("GET", url) as response:
    lines = response.iter_lines()
    next(lines)
    ends_too = hung_up.wait(0.5)
    print(f"next(lines): hung up within half a second: {ends_too}, is_closed: {response.is_closed}", end=", and ")
    more = len(list(lines))
    print(f"{more} more lines")
sys.exit((ended, is_closed, ends_too, more) != (True, False, False, 19))
PYTHON
"$folder/venv/bin/python" "$folder/lines.py" && echo "as described"
