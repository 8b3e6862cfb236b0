#!/usr/bin/env bash
# SQLite 3.54.1 (apsw 3.54.1.0): FTS5's default tokenizer ends a word at every vowel sign, so Hindi "day" finds "gift".
#
# unicode61 takes the Unicode categories L*, N* and Co for parts of a word. Vowel signs, viramas and tone marks of Indic and South
# East Asian scripts are of category Mn or Mc, so they separate words and are dropped: दिन (day) and दान (gift) are both the two terms
# द and न, and even the exact phrase "दिन" finds a text with दान alone. Nothing is reported, and English never shows it. With
# categories 'L* M* N* Co' marks stay in the word; accents on Latin letters are removed as before.
#
# Seen with SQLite 3.54.1:
#   unicode61                                   terms ['द', 'न']  दिन finds ['दान']  cafe finds ['cafe\u0301']
#   unicode61 categories 'L* M* N* Co'          terms ['दान']     दिन finds []       cafe finds ['cafe\u0301']
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q apsw==3.54.1.0
cat > "$folder/vowels.py" <<'PYTHON'
import sys

import apsw

print(f"SQLite {apsw.sqlite_lib_version()}")
seen = {}
for tokenizer in ("unicode61", "unicode61 categories 'L* M* N* Co'"):
    database = apsw.Connection(":memory:")
    database.execute(f'CREATE VIRTUAL TABLE texts USING fts5 (text, tokenize="{tokenizer}")')
    database.execute("CREATE VIRTUAL TABLE terms USING fts5vocab (texts, row)")
    database.execute("INSERT INTO texts VALUES ('दान')")
    terms = [term for (term,) in database.execute("SELECT term FROM terms ORDER BY term")]
    database.execute("INSERT INTO texts VALUES (?)", ("cafe\u0301",))

    def finds(word: str) -> list:
        return [text for (text,) in database.execute("SELECT text FROM texts WHERE texts MATCH ?", (f'"{word}"',))]

    seen[tokenizer] = terms, finds("दिन"), finds("cafe")
    print(f"{tokenizer:40} terms {terms}  दिन finds {seen[tokenizer][1]}  cafe finds {seen[tokenizer][2]!a}")
expected = [(["द", "न"], ["दान"], ["cafe\u0301"]), (["दान"], [], ["cafe\u0301"])]
sys.exit(list(seen.values()) != expected)
PYTHON
"$folder/venv/bin/python" "$folder/vowels.py" && echo "as described"
