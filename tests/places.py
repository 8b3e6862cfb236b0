"""Questions that share one word with their own passage and none with another, for tests of measurements."""

PLACES = ["Osk", "Ruv", "Tal", "Wem", "Yor", "Zan"]

QUESTION_ROWS = [
    {"id": f"q{n}", "question": f"{place}?", "passage": f"{place} has {n} owls.", "answers": [f"{n} owls"]}
    for n, place in enumerate(PLACES)
]
