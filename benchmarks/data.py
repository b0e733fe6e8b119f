"""How fast data are prepared and read, against what they are made of, side by side in one run.

    python benchmarks/data.py TEXT.parquet[:column=NAME] ...  # tokens/s of `prepare` and encode_batch
    python benchmarks/data.py --memory TEXT.parquet           # peak memory for 1 GB of jsonl, no dedup
    python benchmarks/data.py --loader TEXT.parquet           # tokens/s of the loader from the page cache

SmolLM2's tokenizer (elite112m tokenizer fetch). Each figure is the median of `--repeats` alternating runs.
"""

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path

os.environ["IN_TEST"] = "1"  # no progress bars


def prepare_in(folder, sources, **data):
    from elite112m.core.runs import run_stage
    from elite112m.data.prepare import prepare

    settings = {"data.sources": sources, "data.curriculum": 0, "data.tokens": 10**10, "data.val_fraction": 0.01} | {
        f"data.{k}": v for k, v in data.items()
    }
    return run_stage(prepare, folder, "elite112m", settings, force=True).folder


def rates(sources, repeats):
    from elite112m.data.documents import read_documents
    from elite112m.data.tokenizer import load_tokenizer

    tok, texts = load_tokenizer("smollm2"), [t for s in sources for t in read_documents(s)]
    tok.core.encode_batch(texts[:100])
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        n = sum(len(e.ids) for e in tok.core.encode_batch(texts, add_special_tokens=False))
        theirs, start = n / (time.perf_counter() - start), time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            manifest = json.loads((prepare_in(folder, sources) / "manifest.json").read_text())
            ours = sum(s["tokens"] for s in manifest["splits"].values()) / (time.perf_counter() - start)
        print(
            f"  encode_batch {theirs:12,.0f} tok/s   prepare, from file to checked shards {ours:12,.0f} tok/s   "
            f"ratio {ours / theirs:.2f}",
            flush=True,
        )
        found.append(ours / theirs)
    print(
        f"{', '.join(sources)}: {n:,} tokens, prepare/encode_batch, median of {repeats}: {statistics.median(found):.2f}"
    )


def memory(source, gigabytes=1.0):
    import psutil

    from elite112m.data.documents import read_documents

    with tempfile.TemporaryDirectory() as folder:
        path, size = Path(folder) / "big.jsonl", 0
        with open(path, "w") as f:
            while size < gigabytes * 1e9:
                for t in read_documents(source):
                    size += f.write(json.dumps({"text": t}) + "\n")
        print(f"{path.name}: {path.stat().st_size / 1e9:.2f} GB", flush=True)
        peak, done, me = [0, 0], threading.Event(), psutil.Process()

        def watch():
            while not done.wait(0.2):
                each = [me.memory_info().rss]
                for p in me.children(recursive=True):
                    try:
                        each.append(p.memory_info().rss)
                    except psutil.NoSuchProcess:
                        pass
                peak[:] = max(peak[0], sum(each)), max(peak[1], max(each))

        threading.Thread(target=watch, daemon=True).start()
        start = time.perf_counter()
        manifest = json.loads(
            (prepare_in(Path(folder) / "run", [str(path)], dedup=False) / "manifest.json").read_text()
        )
        done.set()
        n = sum(s["tokens"] for s in manifest["splits"].values())
        print(
            f"{n:,} tokens in {time.perf_counter() - start:.0f} s; peak of all processes together "
            f"{peak[0] / 2**30:.2f} GiB (shared pages counted in each), of the largest {peak[1] / 2**30:.2f} GiB"
        )


def loader(source, repeats):
    from elite112m.core.config import PACKINGS
    from elite112m.data.batches import Batches

    with tempfile.TemporaryDirectory() as folder:
        data = prepare_in(folder, [source])
        for packing in PACKINGS:
            for context, size in ((256, 64), (2048, 128)):
                for doc_mask in (False, True):
                    b, found = Batches(data, "train", context, size, packing=packing, doc_mask=doc_mask), []
                    for _ in range(repeats):
                        start, n = time.perf_counter(), 0
                        while time.perf_counter() - start < 1:
                            b[n]
                            n += 1
                        found.append(n * size * context / (time.perf_counter() - start))
                    rate = statistics.median(found) / 1e6
                    shape = f"{packing:10} context {context:5} x {size:4}  document ids {str(doc_mask):5}"
                    print(f"{shape}: {rate:7.0f} M tok/s", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--repeats", type=int, default=3)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--memory", action="store_true")
    what.add_argument("--loader", action="store_true")
    a = parser.parse_args()
    sources = [str(Path(s.partition(":")[0]).resolve()) + s[len(s.partition(":")[0]) :] for s in a.sources]
    if a.memory:
        memory(sources[0])
    elif a.loader:
        loader(sources[0], a.repeats)
    else:
        rates(sources, a.repeats)
