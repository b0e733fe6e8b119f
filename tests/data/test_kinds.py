"What people's folders and files are like: links, other extensions, streams that change, text without spaces, turns."

import base64
import bz2
import gzip
import json
import os
import random
from collections import Counter
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import here

from elite112m.core.config import InputError
from elite112m.core.locate import find_model, is_gguf, made_absolute
from elite112m.core.provenance import absolute, fingerprint, parse_source, walk
from elite112m.data.conversations import check_conversations, conversations, messages_of
from elite112m.data.documents import check_sources, read_documents, reader
from elite112m.data.tokenizer import load_tokenizer, train_tokenizer

TEXTS = ["The first row.", "The second, a row.", "A third row."]
LINES = "".join(json.dumps({"text": t, "id": i}) + "\n" for i, t in enumerate(TEXTS)).encode()


def read(spec):
    return list(read_documents(str(spec)))


def linked(folder, name, data):
    "A file in the layout of the hub's cache: a name that leads to a blob without one."
    (folder / "blobs").mkdir(exist_ok=True)
    (folder / "blobs/0a1b2c").write_bytes(data)
    (folder / "snapshots").mkdir(exist_ok=True)
    (folder / "snapshots" / name).symlink_to("../blobs/0a1b2c")
    return folder / "snapshots" / name


# ---- links


@pytest.mark.parametrize("name,data", [("t.jsonl", LINES), ("t.jsonl.gz", gzip.compress(LINES))], ids=["plain", "gzip"])
def test_a_link_is_judged_by_its_own_name(tmp_path, name, data):
    link = linked(tmp_path, name, data)
    assert absolute(f"{link}:weight=2") == f"{link}:weight=2"
    assert read(absolute(str(link))) == TEXTS and read(tmp_path / "blobs/0a1b2c") == TEXTS


def test_paths_stay_what_they_were_for_plain_files(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d/a.txt").write_text("x")
    (tmp_path / "l").symlink_to("d")
    for path in ("d/a.txt", "d/../d/a.txt", "l/a.txt", "l", "d/.", "d/.."):
        assert made_absolute(tmp_path / path) == (tmp_path / path).resolve()


def test_a_linked_source_in_a_command(tmp_path, tiny):
    rows = "".join(json.dumps({"text": f"{i} is before {i + 1}, and that before {i + 2}."}) + "\n" for i in range(3000))
    link = linked(tmp_path, "train.jsonl", rows.encode())
    done = here("elite112m", "prepare", "--run", tmp_path / "r", "--preset", "nano", *tiny, "--data", link)
    assert done.returncode == 0 and "train.jsonl: 1,396 documents" in done.stderr, done.stderr


def test_linked_models_are_found(tmp_path):
    link = linked(tmp_path, "model.gguf", b"GGUF\x03\0\0\0")
    assert find_model(link) == link and made_absolute(find_model(link)) == link
    assert is_gguf(tmp_path / "blobs/0a1b2c") and find_model(tmp_path / "blobs/0a1b2c")
    assert not is_gguf(tmp_path / "blobs")


def test_linked_folders_are_followed_once(tmp_path):
    (tmp_path / "far/deep").mkdir(parents=True)
    (tmp_path / "far/deep/b.txt").write_text("Far away.")
    home = tmp_path / "home"
    (home / "own").mkdir(parents=True)
    (home / "own/a.txt").write_text("At home.")
    before = fingerprint([home])
    (home / "again").symlink_to("own")  # comes before the real one, which keeps its name
    assert fingerprint([home]) == before
    (home / "up").symlink_to("..")
    (home / "own/cycle").symlink_to("..")
    (home / "gone.txt").symlink_to("nowhere")
    (home / "x").symlink_to("../far")
    (home / "y").symlink_to("../far/deep")
    (tmp_path / "far/back").symlink_to("../home")
    lost = []
    assert walk(home, lost) == [home / "own/a.txt", home / "x/deep/b.txt"]
    assert sorted(f.name for f in lost) == ["gone.txt", "up"]
    assert sorted(read(home)) == ["At home.", "Far away."]
    assert any("2 broken links" in note for note in reader(parse_source(str(home))).notes)


# ---- kinds


CONTENTS = {
    "part-00000": LINES,
    "t.jsonlines": LINES,
    "t.ndjson": LINES,
    "T.JSONL": LINES,
    "t.jsonl.bak": LINES,
    "t.jsonl.txt": LINES,
    "t.jsonl.1": LINES,
    "blob": gzip.compress(LINES),
    "blob2": pa.compress(LINES, "zstd", asbytes=True),
    "t.jsonl.bz2": bz2.compress(LINES),
    "array": json.dumps([{"text": t} for t in TEXTS], indent=1).encode(),
    "array.JSON": json.dumps([{"text": t} for t in TEXTS]).encode(),
    "bom": b"\xef\xbb\xbf" + LINES,
    "t.csv": b'id,text\n1,The first row.\n2,"The second, a row."\n3,A third row.\n',
    "T.TSV": b"text\tid\nThe first row.\t1\nThe second, a row.\t2\nA third row.\t3\n",
    "semi.csv": b"id;text\n1;The first row.\n2;The second, a row.\n3;A third row.\n",
    "part-00001": b'id,text\r\n1,The first row.\r\n2,"The second, a row."\r\n3,A third row.\r\n',
}


@pytest.mark.parametrize("name", CONTENTS)
def test_rows_are_read_as_rows_whatever_they_are_called(tmp_path, name):
    (tmp_path / name).write_bytes(CONTENTS[name])
    assert read(tmp_path / name) == TEXTS
    stream = reader(parse_source(str(tmp_path / name)))
    first = list(islice(stream, 1))
    assert first + list(reader(stream.source, stream.position())) == TEXTS


def test_a_parquet_file_without_a_name(tmp_path):
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "blob")
    assert read(tmp_path / "blob") == TEXTS


@pytest.mark.parametrize("name", ["t.text", "t.rst", "NOTES.TXT", "README", "t.log", "t.md"])
def test_text_stays_text(tmp_path, name):
    text = "Prose, with commas.\n{not JSON}\n[1] a note"
    (tmp_path / name).write_text(text)
    assert read(tmp_path / name) == [text]


@pytest.mark.parametrize(
    "name,data,why",
    [
        ("x", b"PK\x03\x04" + bytes(99), "zip"),
        ("x.txt", b"%PDF-1.7\n" + b"text " * 99, "PDF"),
        ("x", b"[{&quot;text&quot;: &quot;a&quot;}]", "escaped for HTML"),
        ("x", b'{"body": "a"}\n' * 9, "it has body"),
        ("x.csv", b"a,b\n1,2\n", "it has a, b"),
        ("x.csv", b"a,text\n1,2,3\n", "row 1"),
        ("x", b'{\n "text": "a"\n}\n', "many lines"),
    ],
)
def test_what_cannot_be_read_is_refused_by_what_it_is(tmp_path, name, data, why):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=why):
        check_sources([str(tmp_path / name)])


def test_a_folder_says_what_is_left_out(tmp_path):
    (tmp_path / "a.txt").write_text("A text.")
    (tmp_path / "part-0").write_bytes(LINES)
    (tmp_path / "LICENSE").write_text("Some rights, text")
    (tmp_path / "x.html").write_text("<p>")
    (tmp_path / "log.txt").write_text('{"level": "info"}\n' * 3)
    (tmp_path / "numbers.csv").write_text("a,b\n1,2\n")
    (tmp_path / "settings.json").write_text("{}")
    stream = reader(parse_source(str(tmp_path)))
    assert sorted(stream) == sorted([*TEXTS, "A text."])
    told = " ".join(stream.notes)
    assert "4 files" in told and ".html" in told and "name a .json file itself" in told and "log.txt" in told


# ---- streams


def hub(folder, *tables):
    folder.mkdir()
    for i, t in enumerate(tables):
        if isinstance(t, pa.Table):
            pq.write_table(t, folder / f"{i}.parquet")
        else:
            (folder / f"{i}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in t))
    return f"hf:{folder}"


def test_streams_whose_schema_changes(tmp_path):
    a, b = (
        pa.table({"text": ["a"] * 3, "note": pa.nulls(3)}),
        pa.table({"text": ["b"] * 3, "note": ["x"] * 3, "n": [1] * 3}),
    )
    assert read(hub(tmp_path / "1", a, b)) == ["a"] * 3 + ["b"] * 3
    empty = pa.table({"text": pa.nulls(3)})
    assert read(hub(tmp_path / "2", empty, b, empty)) == ["b"] * 3
    assert read(hub(tmp_path / "3", a.to_pylist(), b.to_pylist())) == ["a"] * 3 + ["b"] * 3
    without = pa.table({"note": ["no text here"]})
    assert read(hub(tmp_path / "4", b, without, a)) == ["b"] * 3 + ["a"] * 3
    with pytest.raises(InputError, match="text holds int"):
        read(hub(tmp_path / "5", a, pa.table({"text": [1, 2]})))


def test_conversations_from_a_stream_whose_schema_changes(tmp_path):
    pair = lambda n, **more: [{"prompt": f"Say {i}", "completion": str(i), **more} for i in range(n, n + 200)]
    spec = hub(tmp_path / "h", pair(0, source=None), pair(200, source="web", score=1.5))
    check_conversations([spec])
    assert sum(1 for s in ("train", "val") for _ in conversations(parse_source(spec), s, 0, Counter())) == 400


def test_an_error_of_the_library_is_one_line(tmp_path):
    spec = hub(tmp_path / "h", [{"text": "a"}])
    (tmp_path / "h/1.jsonl").write_text('{"text": \n')
    with pytest.raises(InputError) as e:
        read(spec)
    assert spec in str(e.value) and "\n" not in str(e.value)


# ---- vocabularies


def test_ordinary_text_has_the_vocabulary_it_had():
    "Bounded words change nothing where no word is long: trained beside the same trainer without the bound."
    from tokenizers import models, pre_tokenizers, trainers

    from elite112m.data.tokenizer import SPECIAL, byte_level_bpe

    texts = list(islice(read_documents("stdlib"), 120)) + ["你好，世界。" * 50, "x" * 200, "-" * 79 + "\n" + " " * 120]
    core = byte_level_bpe(models.BPE())
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = dict(show_progress=False, initial_alphabet=alphabet, max_token_length=32)
    core.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=1500, special_tokens=list(SPECIAL), **options))
    assert train_tokenizer(texts, 1500).core.to_str() == core.to_str()


def test_text_without_spaces_can_be_learnt(tmp_path):
    r = random.Random(3)
    for text in (
        "".join(r.choices("ACGT", k=1_000_000)),
        base64.b64encode(r.randbytes(300_000)).decode(),
        "".join(chr(r.randrange(0x4E00, 0x4F00)) for _ in range(200_000)),
        "x" * 1_000_000,
    ):
        tok = train_tokenizer([text], 600)
        assert tok.vocab_size <= 600 and tok.decode(tok.encode(text[:5000])) == text[:5000]
    tok.save(tmp_path)
    assert "240" not in json.dumps(json.loads((tmp_path / "tokenizer.json").read_text())["pre_tokenizer"])
    assert load_tokenizer(tmp_path).fingerprint == tok.fingerprint


def test_errors_in_the_texts_end_a_training():
    def texts():
        yield "a text"
        raise InputError("a bad source")

    with pytest.raises(InputError, match="a bad source"):
        train_tokenizer(texts(), 300)


# ---- conversations


ASKED = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "USER", "content": "Hi"}, {"role": "Assistant", "content": "Hello"}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
                {"role": "model", "content": "Hello"},
            ]
        },
        {"messages": [{"role": "user", "content": ["H", "i"]}, {"role": "bot", "content": "Hello"}]},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        {"conversations": [{"from": "Human", "value": "Hi", "role": None}, {"from": "GPT", "value": "Hello"}]},
        {"conversation": ASKED, "id": 3},
        {"prompt": "Hi", "completion": "Hello"},
        {"prompt": "Hi", "response": "Hello"},
        {"query": "Hi", "response": "Hello"},
        {"input": "Hi", "output": "Hello"},
        {"prompt": ASKED[:1], "completion": ASKED[1:]},
        {"messages": [*ASKED, {"role": "user", "content": None}, {"role": "assistant", "content": ""}]},
    ],
)
def test_forms_that_are_unambiguous(row):
    assert messages_of(row, "here", Counter()) == ASKED


PICTURE = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": "x"}}]


@pytest.mark.parametrize(
    "messages,why",
    [
        ([{"role": "user", "content": PICTURE}, ASKED[1]], "picture"),
        ([ASKED[1], *ASKED], "assistant speaks first"),
        ([*ASKED, {"role": "system", "content": "Be kind."}, *ASKED], "system message in the middle"),
        ([ASKED[0], {"role": "tool", "content": "12"}], "tool turn"),
        ([{"role": "narrator", "content": "Once"}, ASKED[0]], "unknown role (narrator)"),
        ([ASKED[0], {"role": "assistant", "content": None}], "empty turn"),
    ],
)
def test_others_are_refused_by_their_true_reason(tmp_path, messages, why):
    (tmp_path / "c.jsonl").write_text((json.dumps({"messages": messages}) + "\n") * 40)
    with pytest.raises(InputError) as e:
        check_conversations([str(tmp_path / "c.jsonl")])
    assert why in str(e.value) and "40" in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("layout", ["a list a line", "a list of lists", "one list", "no extension"])
def test_lists_of_turns(tmp_path, layout):
    talks = [[{"role": "user", "content": f"Hi {i}"}, ASKED[1]] for i in range(1 if layout == "one list" else 60)]
    path = tmp_path / ("talks" if layout == "no extension" else "talks.jsonl")
    whole = json.dumps(talks if layout == "a list of lists" else talks[0])
    path.write_text(
        whole if layout in ("a list of lists", "one list") else "".join(json.dumps(t) + "\n" for t in talks)
    )
    found = [m for s in ("train", "val") for m in conversations(parse_source(str(path)), s, 0, Counter())]
    assert len(found) == len(talks)


def test_a_list_a_line_is_no_document(tmp_path):
    (tmp_path / "c.jsonl").write_text((json.dumps(ASKED) + "\n") * 3)
    with pytest.raises(InputError, match="line 1 of .* is not a JSON object, but a list"):
        read(tmp_path / "c.jsonl")


def test_a_csv_file_of_pairs_and_a_linked_one(tmp_path):
    (tmp_path / "p.csv").write_text("prompt,completion\n" + "".join(f"Say {i},{i}\n" for i in range(60)))
    check_conversations([str(tmp_path / "p.csv")])
    rows = "".join(json.dumps({"query": f"Say {i}", "response": str(i)}) + "\n" for i in range(60))
    check_conversations([absolute(str(linked(tmp_path, "c.jsonl", rows.encode())))])
    assert os.path.islink(tmp_path / "snapshots/c.jsonl")
