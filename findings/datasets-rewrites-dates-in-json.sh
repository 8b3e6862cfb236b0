#!/usr/bin/env bash
# datasets 5.2.0: load_dataset("json") makes times of texts that look like dates, and gives back other texts, also where the caller says
# that the column is text, and also in some rows only.
#
# A column whose texts in a block of the file are all ISO dates is read as times by the parser underneath. Where the whole file is so, the
# column comes back as datetime objects, and to_json writes milliseconds. Naming features with Value("string") turns the times back into
# text, but not into the text of the file: "1999-05-12" is "1999-05-12 00:00:00". The same happens without features in a file of
# several blocks (10 MB each by default): a block that happens to hold dates only is rewritten to fit the text of the first. Answers
# to "when" questions then match no prediction; whether they do depends on their order. Dates before others in the file are an error.
#
# Seen with datasets 5.2.0, pyarrow 26.0.1:
#   dates only: datetime.datetime(1999, 5, 12, 0, 0); with features of text: '1999-05-12 00:00:00'
#   with one answer that is no date: '1999-05-12'
#   several blocks, a text first: answers to the same question '1999-05-12' and '1999-05-12 00:00:00'
#   written with to_json: {"answer":926467200000}
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile datasets==5.2.0 pyarrow==26.0.1 numpy==2.4.6
cat > "$folder/dates.py" <<'PYTHON'
import json
import sys
from datetime import datetime
from pathlib import Path

from datasets import Features, Value, disable_progress_bars, load_dataset

folder = Path(sys.argv[1])
disable_progress_bars()
DATE = "1999-05-12"


def answers(name: str, texts: list[str], **options):
    """What the column holds when a file of these texts is loaded."""
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps({"answer": text}) + "\n" for text in texts))
    return load_dataset("json", data_files=str(path), split="train", cache_dir=str(folder / "cache"), **options)


dates = answers("dates", [DATE, "1066-10-14"])
told = answers("told", [DATE, "1066-10-14"], features=Features({"answer": Value("string")}))
mixed = answers("mixed", [DATE, "in May"])
blocks = answers("blocks", [DATE, "in May", *[DATE] * 5000], chunksize=1 << 14)
dates.to_json(folder / "written.jsonl")
written = (folder / "written.jsonl").read_text().splitlines()[0]
print("dates only:", repr(dates[0]["answer"]), "with features of text:", repr(told[0]["answer"]))
print("with one that is no date:", repr(mixed[0]["answer"]))
print("several blocks, a text in the first:", sorted(set(blocks["answer"])))
print("written with to_json:", written)
as_described = (
    dates[0]["answer"] == datetime(1999, 5, 12)
    and told[0]["answer"] == f"{DATE} 00:00:00"
    and mixed[0]["answer"] == DATE
    and set(blocks["answer"]) == {DATE, "in May", f"{DATE} 00:00:00"}
    and json.loads(written)["answer"] == 926467200000
)
sys.exit(not as_described)
PYTHON
HF_HOME="$folder/home" HF_HUB_OFFLINE=1 "$folder/venv/bin/python" "$folder/dates.py" "$folder" && echo "as described"
