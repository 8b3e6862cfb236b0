"""Word search in every script: a question's words find the sentence that holds them, and no other script is harmed."""
# ruff: noqa: RUF001

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from hash_reader import HashReader
from hypothesis import given, settings
from hypothesis import strategies as st

from gritrag.index.index import Index
from gritrag.index.storage import manifest, schema
from gritrag.index.storage.checksums import first_checksums
from gritrag.index.words import match_expression, searchable
from gritrag.records import Document

Make = Callable[..., Index]

# For each script a sentence about a cat at the fish market, one about a train that is late, one about rain in the
# mountains; and questions with the number of the sentence that has to be found first.
SCRIPTS: dict[str, tuple[list[str], list[tuple[str, int]]]] = {
    "Chinese": (
        ["我家的黑猫每天去市场买鱼", "开往北京的火车今天晚了三个小时", "山里下了一整夜的雨"],
        [("猫", 0), ("北京的火车为什么晚", 1), ("雨", 2), ("山里下雨了吗", 2)],
    ),
    "Japanese": (
        ["うちの黒い猫は魚市場へ行く", "東京行きの電車が三時間遅れた", "山のコンピューターは雨に濡れた"],
        [("猫はどこへ", 0), ("東京", 1), ("電車の遅れ", 1), ("ｺﾝﾋﾟｭｰﾀｰ", 2)],
    ),
    "Korean": (
        ["우리 고양이는 어시장에서 생선을 산다", "서울로 가는 기차가 세 시간 늦었다", "산에는 밤새도록 비가 내렸다"],
        [("고양이", 0), ("서울", 1), ("기차는 언제", 1), ("비", 2), ("산에서 비가", 2)],
    ),
    "Thai": (
        ["แมวดำของฉันไปตลาดปลาทุกวัน", "รถไฟไปกรุงเทพช้าสามชั่วโมง", "ฝนตกบนภูเขาทั้งคืน"],
        [("แมว", 0), ("ตลาดปลาอยู่ที่ไหน", 0), ("รถไฟ", 1), ("ฝน", 2)],
    ),
    "Lao": (
        ["ແມວດຳຂອງຂ້ອຍໄປຕະຫຼາດປາທຸກມື້", "ລົດໄຟໄປວຽງຈັນຊ້າສາມຊົ່ວໂມງ", "ຝົນຕົກເທິງພູໝົດຄືນ"],
        [("ແມວ", 0), ("ລົດໄຟ", 1), ("ຝົນຕົກ", 2)],
    ),
    "Khmer": (
        ["ឆ្មាខ្មៅរបស់ខ្ញុំទៅផ្សារត្រីរាល់ថ្ងៃ", "រថភ្លើងទៅភ្នំពេញយឺតបីម៉ោង", "ភ្លៀងធ្លាក់នៅលើភ្នំពេញមួយយប់"],
        [("ឆ្មា", 0), ("រថភ្លើង", 1), ("ភ្លៀងធ្លាក់", 2)],
    ),
    "Burmese": (
        ["ကျွန်မရဲ့ကြောင်က ငါးဈေးကို နေ့တိုင်းသွားတယ်", "ရန်ကုန်ရထားက သုံးနာရီနောက်ကျတယ်", "တောင်ပေါ်မှာ တစ်ညလုံးမိုးရွာတယ်"],
        [("ကြောင်", 0), ("ရထား", 1), ("မိုးရွာ", 2)],
    ),
    "Devanagari": (
        ["मेरी काली बिल्ली मछली बाज़ार जाती है", "दिल्ली की रेलगाड़ी तीन घंटे देर से आई", "पहाड़ों पर रात भर बारिश हुई"],
        [("बिल्ली", 0), ("दिल्ली", 1), ("बारिश", 2)],
    ),
    "Arabic": (
        ["تذهب قطتي السوداء إلى سوق السمك", "تأخر القطار إلى القاهرة ثلاث ساعات", "هطل المطر في الجبال طوال الليل"],
        [("قِطَّتي", 0), ("القـــاهرة", 1), ("الى", 0), ("المَطَر", 2)],
    ),
    "Hebrew": (
        ["החתול השחור שלי הולך לשוק הדגים", "הרכבת לירושלים איחרה בשלוש שעות", "גשם ירד בהרים כל הלילה"],
        [("הֶחָתוּל", 0), ("לירושלים", 1), ("גֶּשֶׁם", 2)],
    ),
    "Greek": (
        ["Η μαύρη γάτα μου πηγαίνει στην ψαραγορά", "Το τρένο για την Αθήνα άργησε τρεις ώρες", "Έβρεχε στα βουνά"],
        [("ΓΑΤΑ", 0), ("Αθηνα", 1), ("ώρας ωρεσ", 1), ("εβρεχε", 2)],
    ),
    "Cyrillic": (
        ["Моя чёрная кошка ходит на рыбный рынок", "Поезд в Москву опоздал на три часа", "В горах всю ночь шёл дождь"],
        [("ЧЕРНАЯ", 0), ("поезд", 1), ("шел", 2)],
    ),
    "Latin": (
        ["Die Katze geht über die Straße", "Le train de İstanbul est en retard à l’aéroport", "Der Fluß ﬂießt, ﬁnally"],
        [
            ("strasse", 0),
            ("STRASSE", 0),
            ("ISTANBUL", 1),
            ("aeroport", 1),
            ("fliesst", 2),
            ("finally", 2),
            ("ｆｌｕｓｓ", 2),
        ],
    ),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_words_are_found_in(make: Make, script: str) -> None:
    """Among the sentences of all scripts; Chinese and Japanese have a cat in common."""
    index = make(states="none")
    for name, (sentences, _) in SCRIPTS.items():
        index.add([Document(sentence, id=f"{name} {number}") for number, sentence in enumerate(sentences)])
    for question, number in SCRIPTS[script][1]:
        found = [hit.document.id for hit in index.search(question, 5, mode="sparse")]
        assert found[0] == f"{script} {number}" or (question == "猫" and "Chinese 0" in found[:2]), (question, found)


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("请用Python编写程序", "python"),
        ("東京でWi-Fiを使う", "wi-fi"),
        ("삼성Galaxy를 샀다", "galaxy"),
        ("ใช้GPSนำทาง", "GPS"),
        ("他生于1984年", "1984"),
        ("ＡＢＣ商店", "abc"),
        ("이것은NVIDIA의칩", "nvidia"),
    ],
)
def test_latin_words_and_numbers_glued_to_other_scripts(make: Make, text: str, question: str) -> None:
    index = make(states="none")
    index.add(
        [Document(text, id="it"), Document("Something else in 1985", id="other"), Document("别的事情", id="else")]
    )
    assert [hit.document.id for hit in index.search(question, 3, mode="sparse")] == ["it"]


def test_the_document_with_the_whole_word_comes_before_those_with_its_characters(make: Make) -> None:
    index = make(states="none")
    index.add([Document("学会使用机器的人", id="apart"), Document("机器学习的历史", id="together")])
    assert [hit.document.id for hit in index.search("机器学习", 2, mode="sparse")] == ["together", "apart"]


def test_a_full_line_ends_no_word(make: Make) -> None:
    index = make(states="none")
    index.add([Document("这本书讲的是机\n器学习", id="wrapped"), Document("机会和器官的一本书", id="apart")])
    assert index.search("机器", 2, mode="sparse")[0].document.id == "wrapped"
    assert searchable("ab\ncd é") == "ab\ncd é"


def test_what_is_not_seen_ends_no_word(make: Make) -> None:
    index = make(states="none")
    index.add(
        [Document("Donau\u00addampf", id="soft"), Document("نمی\u200cخواهم", id="persian"), Document("Java™", id="tm")]
    )
    for question, id in (("Donaudampf", "soft"), ("نمیخواهم", "persian"), ("java", "tm")):
        assert [hit.document.id for hit in index.search(question, 2, mode="sparse")] == [id]


def test_the_terms_of_a_run() -> None:
    assert searchable("Python机器学习!").split() == ["python", *"机器学习", "机器", "器学", "学习", "!"]
    assert searchable("ネコの目").split() == ["目", "ネコ", "コの", "の目"]
    assert searchable("ที่นี่").split() == ["ที่นี่", "นี่"], "a mark belongs to its letter"
    assert match_expression("机器") == '"机" OR "器" OR "机器"'
    assert match_expression("ネコ") == '"ネコ"'
    assert match_expression("ネ") == '"ネ"*'
    assert match_expression('"猫" AND (x*)') == '"猫" OR "and" OR "x"'


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=30))
def test_any_text_is_asked_for_without_an_error_of_syntax(text: str) -> None:
    database = sqlite3.connect(":memory:")
    database.execute("CREATE VIRTUAL TABLE words USING fts5 (text)")
    database.execute("INSERT INTO words VALUES (?)", (searchable(text),))
    database.execute("SELECT rowid FROM words WHERE words MATCH ?", (match_expression(text),)).fetchall()


def test_an_index_of_format_3_is_read_as_it_is_and_renewed_by_its_writer(
    make: Make, reader: HashReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = make(states="none")
    index.add([Document("The bridges of Straße", id="a", title="Brücke"), Document("机器学习", id="b")])
    index.close()
    to_format_3(index.path, monkeypatch)
    with Index.open(index.path, model=reader) as old:
        assert [hit.document.id for hit in old.search("a bridge", mode="sparse")] == ["a"]
        assert [hit.document.id for hit in old.search("Straße", mode="sparse")] == ["a"]
        assert old.search("strasse", mode="sparse") == []
    for _ in range(2):
        with Index.open(index.path, model=reader, mode="rw") as new:
            assert new.verify() == ([], [])
            for question, id in (("strasse", "a"), ("brucke", "a"), ("机器", "b")):
                assert [hit.document.id for hit in new.search(question, mode="sparse")] == [id]
            new.add([Document("東京", id="c")])
            new.delete(["c"])
    assert json.loads((index.path / "manifest.json").read_text())["version"] == 4
    assert reader.documents_read == 4


def test_terms_of_another_unicode_are_made_anew(
    make: Make, reader: HashReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a delete would take other terms out than were put in, and leave words of what is gone."""
    index = make(states="none")
    index.add([Document("Straße", id="a")])
    index.close()
    with monkeypatch.context() as patch:
        patch.setattr(schema, "searchable", lambda text: "".join(reversed(text)))
        patch.setattr("gritrag.index.storage.catalog.FORM", "of another Python")
        patch.setattr(
            "gritrag.index.storage.catalog.WORDS",
            [*schema.WORDS[:-1], "INSERT OR REPLACE INTO meta VALUES ('words', 'of another Python')"],
        )
        with Index.open(index.path, model=reader, mode="rw") as other:
            assert other.verify().problems == []
            assert other.search("strasse", mode="sparse") == []
    with Index.open(index.path, model=reader, mode="rw") as ours:
        assert ours.verify().problems == []
        assert len(ours.search("strasse", mode="sparse")) == 1
        ours.delete(["a"])
        assert ours.verify().problems == []


def to_format_3(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same documents as the version before wrote them: words as they are, and a manifest that says so."""
    database = schema.connect(path / "catalog.sqlite", "rw")
    for statement in schema.WORDS[:4]:
        database.execute(statement)
    database.executescript(
        """
        CREATE VIRTUAL TABLE words USING fts5 (
            title, text, content='contents', content_rowid='row', tokenize='porter unicode61 remove_diacritics 2'
        );
        CREATE TRIGGER contents_insert AFTER INSERT ON contents BEGIN
            INSERT INTO words (rowid, title, text) VALUES (new.row, new.title, new.text);
        END;
        CREATE TRIGGER documents_delete AFTER DELETE ON documents BEGIN
            INSERT INTO words (words, rowid, title, text)
                SELECT 'delete', row, title, text FROM contents WHERE row = old.row;
            DELETE FROM contents WHERE row = old.row;
            DELETE FROM fields WHERE row = old.row;
        END;
        INSERT INTO words (words) VALUES ('rebuild');
        DELETE FROM meta WHERE name = 'words';
        """
    )
    database.execute("PRAGMA wal_checkpoint (TRUNCATE)")
    database.close()
    first_checksums(path / "catalog.sqlite")
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "VERSION", 3)
        manifest.Manifest.load(path).save(path)
