#!/usr/bin/env bash
# python-docx 1.2.0: Document.paragraphs, Document.iter_inner_content() and Paragraph.text leave out text that Word shows.
#
# A tracked insertion (w:ins) is part of the text while changes are shown, which is the default; a content control (w:sdt) is a
# field of a form, such as a title, a date or an address in most templates. Neither raises or warns: a sentence loses words, a
# paragraph is not in the list at all. Who takes a document's text for search or for a language model loses them silently.
#
# Seen with python-docx 1.2.0, lxml 6.1.3:
#   words in the file:    The rent is 900 euros since March. | Address: 7 Harbour Lane
#   Paragraph.text:       ['The rent is  euros since March.']
#   iter_inner_content(): ['The rent is  euros since March.']
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q python-docx==1.2.0 lxml==6.1.3
cat > "$folder/read.py" <<'PYTHON'
import sys

import docx
from docx.oxml import parse_xml
from docx.oxml.ns import qn

W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
path = f"{sys.argv[1]}/contract.docx"
document = docx.Document()
body = document.element.body
body.insert(0, parse_xml(
    f'<w:p {W}><w:r><w:t xml:space="preserve">The rent is </w:t></w:r>'
    '<w:ins w:id="1" w:author="landlord" w:date="2026-03-01T00:00:00Z"><w:r><w:t>900</w:t></w:r></w:ins>'
    '<w:r><w:t xml:space="preserve"> euros since March.</w:t></w:r></w:p>'
))
body.insert(1, parse_xml(
    f'<w:sdt {W}><w:sdtPr><w:alias w:val="Address"/><w:text/></w:sdtPr><w:sdtContent>'
    "<w:p><w:r><w:t>Address: 7 Harbour Lane</w:t></w:r></w:p></w:sdtContent></w:sdt>"
))
document.save(path)

document = docx.Document(path)
words = ["".join(t.text for t in p.iter(qn("w:t"))) for p in document.element.body.iter(qn("w:p"))]
paragraphs = [paragraph.text for paragraph in document.paragraphs]
inner = [block.text for block in document.iter_inner_content()]
print("words in the file:   ", " | ".join(words))
print("Paragraph.text:      ", paragraphs)
print("iter_inner_content():", inner)
left_out = ["The rent is  euros since March."]
sys.exit(not (words == ["The rent is 900 euros since March.", "Address: 7 Harbour Lane"] and paragraphs == inner == left_out))
PYTHON
"$folder/venv/bin/python" "$folder/read.py" "$folder" && echo "as described"
