#!/usr/bin/env bash
# lxml 6.1.3: lxml.html.fromstring gives a page without what stands behind a picture of 10 MB inside it, or behind 256 open elements, and
# neither raises nor warns. BeautifulSoup over the same parser gives all of it.
#
# HTML is parsed in the mode that recovers from errors, and a limit that is reached counts as one: the tree ends there. Saved pages hold
# their pictures inside, exported notebooks their scripts and plots, so 10 MB of one attribute or script are common. Depth comes from
# font tags that nobody closes. The error stands in parser.error_log only. huge_tree=True, which BeautifulSoup gives, reads on, down
# to 2,048 elements; whoever replaces BeautifulSoup by lxml because it is faster loses the ends of pages from search.
#
# Seen with lxml 6.1.3, beautifulsoup4 4.15.0, pages of a first paragraph, something, and a last paragraph:
#   picture: lxml ['first'], BeautifulSoup ['first', 'last'], lxml with huge_tree ['first', 'last']
#   script, open elements: the same
#   error_log: ERR_RESOURCE_LIMIT
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile lxml==6.1.3 beautifulsoup4==4.15.0
cat > "$folder/rest.py" <<'PYTHON'
import sys

from bs4 import BeautifulSoup
from lxml.html import HTMLParser, fromstring

SOMETHING = {
    "picture": f"<img src='data:image/png;base64,{'A' * 11_000_000}'>",
    "script": f"<script>{'x = 1; ' * 2_000_000}</script>",
    "open elements": "<font>" * 300,
}


def paragraphs(page: str, parser: HTMLParser) -> list[str]:
    return [paragraph.text_content() for paragraph in fromstring(page, parser=parser).iter("p")]


as_described = True
for name, something in SOMETHING.items():
    page = f"<html><body><p>first</p>{something}<p>last</p></body></html>"
    usual, huge = HTMLParser(), HTMLParser(huge_tree=True)
    soup = [paragraph.text for paragraph in BeautifulSoup(page, "lxml").find_all("p")]
    found = paragraphs(page, usual), soup, paragraphs(page, huge)
    told = [error.type_name for error in usual.error_log]
    print(f"{name}: lxml {found[0]}, BeautifulSoup {found[1]}, lxml with huge_tree {found[2]}; error_log: {told}")
    whole = ["first", "last"]
    as_described &= found == (["first"], whole, whole) and "ERR_RESOURCE_LIMIT" in told
sys.exit(not as_described)
PYTHON
"$folder/venv/bin/python" "$folder/rest.py" && echo "as described"
