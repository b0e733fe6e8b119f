"Right, wrong, empty and rambling replies to every item of the suite, and which of them its checks accept."

import random
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from zlib import crc32

from elite112m.curriculum import lessons as curriculum
from elite112m.evaluation.checks import CODE_KINDS, check
from elite112m.evaluation.suite import suite

ITEMS = suite(30)
TAUGHT = [i for i in ITEMS if i.wording == "taught"]
TEXT = [i for i in ITEMS if i.check["kind"] not in CODE_KINDS]
# These start processes, about a tenth of a second each: no check of an exercise twice.
CODE = list({(i.key, repr(i.check)): i for i in reversed(ITEMS) if i.check["kind"] in CODE_KINDS}.values())


def every_third(items):
    return [i for i in items if crc32(i.key.encode()) % 3 == 0]


def verdicts(pairs):
    "Of many (item, reply) pairs, which pass."
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda p: check(p[1], p[0].check, p[0].prompt), pairs))


def passing(pairs):
    "The pairs that pass and should not."
    pairs = list(pairs)
    assert pairs
    return [(i.category, i.prompt, reply[:200]) for (i, reply), ok in zip(pairs, verdicts(pairs)) if ok]


def failing(pairs):
    "The pairs that fail and should not."
    pairs = list(pairs)
    assert pairs
    return [(i.category, i.prompt, reply[:200]) for (i, reply), ok in zip(pairs, verdicts(pairs)) if not ok]


def dressed(i):
    "The reference as another model may write it that never saw our format: stars, an introduction, an explanation."
    if i.check["kind"] in CODE_KINDS:
        return f"Sure! Here is the code:\n\n```python\n{i.reply}\n```\n\nIt does what you asked for."
    if i.check["kind"] in ("lines", "haiku"):
        return f"Here is a poem:\n\n{i.reply}"
    if i.check["kind"] in ("list", "sequence"):
        return "Here you are:\n\n" + "\n".join(f"{n}. **{x}**" for n, x in enumerate(i.reply.split(", "), 1))
    if i.check["kind"] in ("exact", "name"):
        return f"The answer is: **{i.reply}**"
    return f"  {i.reply.partition('####')[0].strip()}\n"


def answers(i):
    "The answers of an item, folded."
    given = i.check.get("answer", i.reply)
    return {str(a).casefold() for a in (given if isinstance(given, list) else [given])}


def stranger(i):
    "The reference of another item with another answer, of the same category if it is wrong there, or else of another."
    same = [j for j in TAUGHT if j.category == i.category and j.check != i.check and not answers(i) & answers(j)]
    if i.check["kind"] == "text":  # "The month after September is October" answers what comes before October
        same = [j for j in same if not any(a.lower() in j.reply.lower() for a in i.check["answer"])]
    if i.check["kind"] == "name" or not same:
        same = [j for j in TAUGHT if j.category == "Geography"]
    if i.check["kind"] == "keywords":
        same = [j for j in same if j.key.partition("#")[0] != i.key.partition("#")[0]]
    if i.check["kind"] == "list":
        same = [j for j in same if j.key.split(":")[2] != i.key.split(":")[2]]
    return random.Random(i.key).choice(same).reply


def listed(i):
    "Every option there is, the right one among them."
    k = i.check
    match k["kind"]:
        case "text":
            options = [*k["others"][:30], *k["answer"]]
        case "number":
            options = [str(k["answer"] + d) for d in range(-3, 4)]
        case "sequence":
            return ", ".join([*k["items"], *reversed(k["items"])])
        case "list":
            options = k["members"] if len(k["members"]) > k["n"] else [*k["members"], "stone"]
        case "keywords":
            options = [w for g in k["groups"] for w in g]
        case "name":
            options = ["Milo", "Luna", "Bella", "Rocky"]
        case "lines" | "haiku":
            return "\n".join(j.reply for j in TAUGHT if j.category == i.category)
        case _:
            options = [i.reply, *[j.reply for j in TAUGHT if j.category == i.category and j.reply != i.reply][:20]]
    return ", ".join(options)


def make_models(folder):
    "A small random model as `folder`/model, and beside it, in `folder`/run, as a training that was stopped."
    from elite112m.core.config import ModelConfig
    from elite112m.data.tokenizer import train_tokenizer
    from elite112m.model.pretrained import save_model
    from elite112m.model.transformer import CausalLM
    from elite112m.training.checkpoint import write_checkpoint

    tok = train_tokenizer(list(islice(curriculum.lesson_documents(), 200)), 400)
    shape = ModelConfig(vocab_size=400, n_layers=1, d_model=32, n_heads=2, n_kv_heads=1, d_ff=48, context=256)
    net = CausalLM(shape).eval()
    save_model(net, folder / "model")
    tok.save(folder / "model")
    checkpoint = folder / "run/pretrain/checkpoints/step-00000005"
    write_checkpoint(checkpoint, {"model": net.state_dict()}, net.config, {"step": 5})
    (folder / "run/data").mkdir()
    tok.save(folder / "run/data")
    return folder
