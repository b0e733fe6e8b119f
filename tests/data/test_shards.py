"Every kind of damage to a prepared folder is found, and named."

import os
import shutil

import numpy as np
import pytest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A finished folder of 36 documents, in several shards."
    from elite112m.core.files import write_json
    from elite112m.data.shards import MANIFEST_FORMAT, SplitWriter, with_checksum
    from elite112m.data.tokenizer import train_tokenizer

    out = tmp_path_factory.mktemp("shards")
    tok = train_tokenizer(["one two three four five six seven"] * 9, 300)
    texts = [f"{a} {b} {a}" for a in ("one", "two", "three") for b in ("four", "five", "six", "seven")] * 3
    writers = {split: SplitWriter(out, split, 100) for split in ("train", "val")}
    for writer in writers.values():
        for i, text in enumerate(texts):
            writer.write(np.array(tok.encode(text) + [tok.eot], np.uint16).tobytes(), i % 2)
    about = {"format": MANIFEST_FORMAT, "dtype": "uint16", "vocab_size": tok.vocab_size, "tokenizer": tok.fingerprint}
    splits = {split: writer.finish() for split, writer in writers.items()}
    about |= {"eot": tok.eot, "splits": splits, "sources": {"a": {}, "b": {}}}
    write_json(out / "manifest.json", with_checksum(about))
    tok.save(out)
    return out


def flip(path):
    data = bytearray(path.read_bytes())
    data[31] ^= 4
    path.write_bytes(data)


def edit_manifest(d):
    text = (d / "manifest.json").read_text()
    assert '"documents": 36' in text
    (d / "manifest.json").write_text(text.replace('"documents": 36', '"documents": 35'))


def other_tokenizer(d):
    from elite112m.data.tokenizer import train_tokenizer

    train_tokenizer(["a b c"], 301).save(d)


DAMAGE = {
    "train-00001.bin has other contents": lambda d: flip(d / "train-00001.bin"),
    "train-00000.bin has 20 bytes": lambda d: os.truncate(d / "train-00000.bin", 20),
    "train.offsets.bin has other contents": lambda d: flip(d / "train.offsets.bin"),
    "train-00001.bin is missing": lambda d: (d / "train-00001.bin").unlink(),
    "manifest.json has been changed": edit_manifest,
    "no manifest.json": lambda d: (d / "manifest.json").unlink(),
    "not the tokenizer": other_tokenizer,
    "no tokenizer at": lambda d: (d / "tokenizer.json").unlink(),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_damage_is_named(folder, tmp_path, message):
    from elite112m.core.config import InputError
    from elite112m.data.shards import Split

    shutil.copytree(folder, tmp_path / "damaged")
    DAMAGE[message](tmp_path / "damaged")
    with pytest.raises(InputError, match=message):
        Split(tmp_path / "damaged", "train")
