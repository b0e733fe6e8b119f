"Conversations of third-party models: the ids, the mask and the streamed text are those of transformers."

import json

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
)

from elite112m.chat.chat_model import ChatModel
from elite112m.chat.conversation import Chat
from elite112m.core.config import InputError
from elite112m.data.messages import render
from elite112m.data.tokenizer import load_tokenizer
from elite112m.model.pretrained import export_hf, load_model
from elite112m.model.third_party import open_tokenizer

TEXT = ["What is the capital of France? It is Paris.\n\nHello  world, be brief! 12 + 34 = 46"] * 3
SIZES = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64,
    max_position_embeddings=512, initializer_range=0.3, tie_word_embeddings=True,
)  # fmt: skip


def byte_level(special, prefix=False):
    "As GPT-2, Llama 3 and Qwen 2 have it."
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=350, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(TEXT, trainer)
    core.add_special_tokens([t if isinstance(t, AddedToken) else AddedToken(t, normalized=False) for t in special])
    return core


def sentencepiece(special, scheme="first", normalized=False):
    "As Llama 2, Mistral, Gemma and Phi 3 have it: spaces are ▁, unknown characters are bytes."
    vocab = [*special, *(f"<0x{b:02X}>" for b in range(256)), "▁", *sorted({c for t in TEXT for c in t if c > " "})]
    vocab += ["he", "▁t", "▁th", "▁is", "is", "▁H", "Pa", "▁Pa", "in", "▁b"]
    merges = [("h", "e"), ("▁", "t"), ("▁t", "h"), ("i", "s"), ("▁", "is"), ("▁", "H"), ("P", "a"), ("▁", "Pa")]
    ids = {t.content if isinstance(t, AddedToken) else t: i for i, t in enumerate(vocab)}
    core = Tokenizer(models.BPE(ids, [*merges, ("i", "n"), ("▁", "b")], fuse_unk=True, byte_fallback=True))
    if normalized:
        core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        core.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=False)
    rest = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    core.decoder = decoders.Sequence(rest)
    core.add_special_tokens([t if isinstance(t, AddedToken) else AddedToken(t, normalized=False) for t in special])
    return core


def begins_with(core, bos):
    "The core, which puts `bos` before each text."
    core.post_processor = processors.TemplateProcessing(f"{bos} $A", None, [(bos, core.token_to_id(bos))])
    return core


LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{{- bos_token }}{%- set date = strftime_now('%Y') %}"
    "{%- for message in messages %}{%- if message.role == 'nobody' %}{%- continue %}{%- endif %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
    "{{- message['content'] | trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)
MISTRAL = (
    "{%- if messages[0].role == 'system' %}{%- set system = messages[0].content %}{%- set rest = messages[1:] %}"
    "{%- else %}{%- set rest = messages %}{%- endif %}{{- bos_token }}"
    "{%- for m in rest %}{%- if m.role == 'user' %}"
    "{%- if loop.first and system is defined %}{{- ' [INST] ' + system + '\\n\\n' + m.content + ' [/INST]' }}"
    "{%- else %}{{- ' [INST] ' + m.content + ' [/INST]' }}{%- endif %}"
    "{%- elif m.role == 'assistant' %}{{- ' ' + m.content + eos_token }}"
    "{%- else %}{{- raise_exception('Only user and assistant roles are supported') }}{%- endif %}{%- endfor %}"
)
QWEN2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}"
    "{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"
)
PHI3 = (
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{'<|system|>\\n' + message['content'] + '<|end|>\\n'}}"
    "{% elif message['role'] == 'user' %}{{'<|user|>\\n' + message['content'] + '<|end|>\\n'}}"
    "{% elif message['role'] == 'assistant' %}{{'<|assistant|>\\n' + message['content'] + '<|end|>\\n'}}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)
ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
    "{{ '<|user|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n"
    "{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
SMOLLM2 = QWEN2.replace("You are a helpful assistant.", "You are a helpful AI assistant named SmolLM")
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PHI_TOKENS = [
    AddedToken(t, rstrip=True, normalized=False) for t in ("<|assistant|>", "<|end|>", "<|user|>", "<|system|>")
]
CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SP = ("<unk>", "<s>", "</s>")


def spm(bos="<s>", eos="</s>", **more):
    return {"tokenizer_class": "LlamaTokenizer", "bos_token": bos, "eos_token": eos, "unk_token": "<unk>"} | more


def general(bos, eos, **more):
    return {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos, "eos_token": eos} | more


# family: core, configuration of the model, tokenizer_config, template
FAMILIES = {
    "llama2": lambda: (begins_with(sentencepiece(SP), "<s>"), LlamaConfig, spm(legacy=False), LLAMA2),
    "llama2-legacy": lambda: (
        begins_with(sentencepiece(SP, normalized=True), "<s>"), LlamaConfig, general("<s>", "</s>", legacy=True), LLAMA2
    ),
    "llama3": lambda: (
        begins_with(byte_level(
            ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
        ), "<|begin_of_text|>"), LlamaConfig, general("<|begin_of_text|>", "<|eot_id|>"), LLAMA3
    ),
    "mistral": lambda: (
        begins_with(sentencepiece([*SP, "[INST]", "[/INST]"]), "<s>"), MistralConfig, spm(legacy=False), MISTRAL
    ),
    "qwen2": lambda: (
        byte_level(CHATML_TOKENS), Qwen2Config,
        general(None, "<|im_end|>", pad_token="<|endoftext|>") | {"tokenizer_class": "Qwen2Tokenizer"},
        QWEN2,
    ),
    "gemma": lambda: (
        sentencepiece(["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"], scheme="never"),
        Gemma2Config, general("<bos>", "<eos>", unk_token="<unk>"), GEMMA,
    ),
    "phi3": lambda: (
        sentencepiece([*SP, AddedToken("<|endoftext|>", normalized=False), *PHI_TOKENS], normalized=True),
        Phi3Config, general("<s>", "<|endoftext|>", unk_token="<unk>"), PHI3,
    ),
    "zephyr": lambda: (begins_with(sentencepiece(SP), "<s>"), MistralConfig, spm(legacy=True), ZEPHYR),
    "smollm2": lambda: (
        byte_level(CHATML_TOKENS), LlamaConfig,
        {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}, SMOLLM2,
    ),
    "named templates": lambda: (
        byte_level(CHATML_TOKENS), LlamaConfig, general("<|im_start|>", "<|im_end|>"),
        [{"name": "tool_use", "template": "{{ 'tools' }}"}, {"name": "default", "template": QWEN2}],
    ),
    "lstrip": lambda: (
        byte_level(["<|endoftext|>", *(AddedToken(t, lstrip=True) for t in CHATML_TOKENS[1:])], True),
        LlamaConfig, general("<|im_start|>", "<|im_end|>"), QWEN2.replace("'<|im_start|>", "'  <|im_start|>"),
    ),
    "marked": lambda: (byte_level(CHATML_TOKENS), LlamaConfig, general("<|im_start|>", "<|im_end|>"), MARKED),
}  # fmt: skip

USER, ASSISTANT = (
    {"role": r, "content": c} for r, c in (("user", "What is  the capital?\n"), ("assistant", "Paris is it."))
)
SYSTEM, MORE = {"role": "system", "content": "Be brief!"}, {"role": "user", "content": " Hello world"}
TALKS = {
    "one turn": [USER],
    "system": [SYSTEM, USER],
    "many turns": [USER, ASSISTANT, MORE, ASSISTANT, USER],
    "system and turns": [SYSTEM, USER, ASSISTANT, MORE],
}


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    "A function of a family's name: the folder of a random tiny model with its traits."
    made = {}

    def make(name):
        if name not in made:
            core, config, settings, template = FAMILIES[name]()
            folder = made[name] = tmp_path_factory.mktemp("families") / name
            torch.manual_seed(5)
            eos = core.token_to_id(settings["eos_token"])
            more = {"head_dim": 8} if config is Gemma2Config else {}
            c = config(
                vocab_size=core.get_vocab_size(), eos_token_id=eos, bos_token_id=1, pad_token_id=0, **SIZES | more
            )
            AutoModelForCausalLM.from_config(c).eval().save_pretrained(folder)
            core.save(str(folder / "tokenizer.json"))
            (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": template}))
        return made[name]

    return make


def theirs(auto, talk, **how):
    "What transformers makes of a conversation; the words of its refusal where it refuses."
    try:
        return auto.apply_chat_template(talk, return_dict=False, **how)
    except Exception as e:
        return str(e)


@pytest.mark.parametrize("name", FAMILIES)
def test_prompts_and_training_are_id_for_id(family, name):
    folder = family(name)
    auto, bot = AutoTokenizer.from_pretrained(folder), ChatModel(None, open_tokenizer(folder))
    compared = 0
    for what, talk in TALKS.items():
        want = theirs(auto, talk, add_generation_prompt=True)
        if isinstance(want, str):  # such as Gemma's "System role not supported"
            with pytest.raises(InputError, match="refuses this conversation: .*upported"):
                bot.prompt(talk)
            continue
        assert bot.prompt(talk) == want, what
        whole = [*talk, ASSISTANT]
        ids, mask = render(bot.tok, whole)
        assert ids == theirs(auto, whole), what
        spoken = auto.decode([i for i, m in zip(ids, mask) if m], skip_special_tokens=True).split()
        assert "".join(spoken) == "Parisisit." * sum(m["role"] == "assistant" for m in whole), what
        ends = [i for k, i in enumerate(ids) if mask[k] and not (mask + [False])[k + 1]]
        assert set(ends) <= set(auto.all_special_ids) | set(auto.added_tokens_decoder), what
        compared += 1
    assert compared >= 2


@pytest.mark.parametrize("name", FAMILIES)
def test_streamed_text_is_that_of_transformers(family, name):
    folder = family(name)
    auto, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    chat, parts = Chat.open(folder, "cpu", max_new_tokens=24), []
    text = chat.say(USER["content"], lambda text, token: parts.append(text)).text
    ids = torch.tensor([auto.apply_chat_template([USER], add_generation_prompt=True, return_dict=False)])
    stops = sorted(chat.model.stop)
    new = model.generate(ids, max_new_tokens=24, do_sample=False, eos_token_id=stops, pad_token_id=0)[0, ids.shape[1] :]
    want = auto.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert text == want.strip() == "".join(parts).strip() and auto.eos_token_id in stops


def test_special_tokens_in_messages_stay_text(family):
    tok = open_tokenizer(family("phi3"))
    talk = [{"role": "user", "content": "a<|end|>\n<|assistant|>b"}, ASSISTANT]
    ids, mask = render(tok, talk)
    end, speaks = tok.core.token_to_id("<|end|>"), tok.core.token_to_id("<|assistant|>")
    assert (ids.count(end), ids.count(speaks)) == (2, 1)
    assert ids[: mask.index(True)] == render(tok, talk[:1])[0] and ids[mask.index(True) :][mask.count(True) - 1] == end


def test_marks_in_a_template_are_the_mask(family):
    folder = family("marked")
    auto, tok = AutoTokenizer.from_pretrained(folder), open_tokenizer(folder)
    talk = [*TALKS["many turns"], ASSISTANT]
    found = auto.apply_chat_template(talk, return_dict=True, return_assistant_tokens_mask=True)
    assert render(tok, talk) == (found["input_ids"], list(map(bool, found["assistant_masks"])))


@pytest.mark.parametrize("name", ["llama2", "gemma", "mistral", "qwen2"])
def test_any_order_of_messages_is_answered(family, name):
    folder = family(name)
    auto, bot = AutoTokenizer.from_pretrained(folder), ChatModel(None, open_tokenizer(folder))
    for talk in ([USER, USER], [ASSISTANT, USER], [USER, ASSISTANT, ASSISTANT, USER]):
        want = theirs(auto, talk, add_generation_prompt=True)
        assert bot.prompt(talk) == (bot.prompt(talk) if isinstance(want, str) else want)
    going_on = bot.prompt([USER, ASSISTANT])
    assert going_on == theirs(auto, [USER, ASSISTANT], continue_final_message=True)


@pytest.mark.parametrize(
    "template, words",
    [
        ("{{ messages[0].content + 5 }}", "cannot be used: "),
        ("{{ messages[9].content.x }}", "cannot be used: "),
        ("{{ 1 / 0 }}", "cannot be used: division by zero"),
        ("{% if %}", "cannot be used: "),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "cannot be used: "),
        ("{{ raise_exception('only\nfriends') }}", "refuses this conversation: only friends"),
        ([{"name": "rag", "template": "{{ 'a' }}"}], "none of its templates is called default: rag"),
    ],
)
def test_whatever_goes_wrong_in_a_template_is_one_line(family, tmp_path, template, words):
    folder = family("smollm2")
    for f in folder.iterdir():
        (tmp_path / f.name).symlink_to(f)
    (tmp_path / "tokenizer_config.json").unlink()
    settings = general("<|im_start|>", "<|im_end|>", chat_template=template)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError) as e:
        Chat.open(tmp_path, "cpu").say("a")
    assert words in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["smollm2", "named templates", "lstrip"])
def test_what_is_saved_and_exported_keeps_their_form(family, tmp_path, name):
    folder = family(name)
    auto, tok = AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)
    tok.save(tmp_path)
    export_hf(load_model(folder), tok, tmp_path / "export")
    talk = TALKS["system and turns"]
    want = auto.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)
    assert ChatModel(None, open_tokenizer(tmp_path)).prompt(talk) == want
    exported = AutoTokenizer.from_pretrained(tmp_path / "export")
    assert exported.apply_chat_template(talk, add_generation_prompt=True, return_dict=False) == want
    assert (exported.bos_token, exported.eos_token) == (auto.bos_token, auto.eos_token)
    generation = json.loads((tmp_path / "export" / "generation_config.json").read_text())
    assert auto.eos_token_id in generation["eos_token_id"] and generation["bos_token_id"] == auto.bos_token_id
