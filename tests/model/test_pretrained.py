"Model folders with something missing or odd in their config: each is opened, or refused in one line."

import json

import pytest
import torch
import transformers
from conftest import here

from elite112m.core.config import InputError, ModelConfig
from elite112m.data.tokenizer import train_tokenizer
from elite112m.model.pretrained import load_model, read_shape, save_model
from elite112m.model.third_party import open_model
from elite112m.model.transformer import CausalLM

NAMES = dict(vocab_size=300, bos_token_id=0, eos_token_id=0)
SIZES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64)
THIRD_PARTY = {
    "gpt2": ("GPT2LMHeadModel", NAMES | dict(n_embd=32, n_layer=2, n_head=4, n_positions=64)),
    "qwen2": ("Qwen2ForCausalLM", NAMES | SIZES | dict(max_position_embeddings=64)),
}
GONE = object()
ODD = {
    "missing": GONE,
    "null": None,
    "text": "many",
    "no text": "",
    "list": [1],
    "texts": ["x"],
    "table": {"a": 1},
    "true": True,
    "fraction": 1.5,
    "zero": 0,
    "negative": -1,
    "large": 10**9,
    "huge": 10**30,
    "infinite": float("inf"),
    "no number": float("nan"),
}


@pytest.fixture
def folder(request, tmp_path):
    "A small model of the family that is asked for."
    torch.manual_seed(0)
    place = tmp_path / "m"
    if request.param == "llama":
        save_model(CausalLM(ModelConfig(300, 2, 32, 2, 1, 64, 64)), place)
    else:
        name, config = THIRD_PARTY[request.param]
        kind = getattr(transformers, name)
        kind(kind.config_class(**config)).save_pretrained(place)
    return place


FIELDS = {
    "llama": """model_type vocab_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads head_dim
    intermediate_size max_position_embeddings rms_norm_eps rope_theta rope_parameters rope_scaling hidden_act
    attention_bias tie_word_embeddings""".split(),
    "gpt2": "model_type vocab_size n_embd n_layer n_head n_positions layer_norm_epsilon pad_token_id dtype".split(),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("folder, fields", list(FIELDS.items()), indirect=["folder"], ids=FIELDS)
def test_every_field_of_a_config_is_right_or_refused_in_one_line(folder, fields):
    path = folder / "config.json"
    whole, opened = json.loads(path.read_text()), 0
    for key in fields:
        for what, value in ODD.items():
            changed = whole | {key: value}
            path.write_text(json.dumps({k: v for k, v in changed.items() if v is not GONE}))
            for use in (read_shape, open_model):
                try:
                    model = use(folder)
                except InputError as e:
                    assert len(str(e)) < 400 + len(str(folder)) and "\n" not in str(e), (key, what)
                    continue
                if use is open_model:
                    opened += 1
                    assert model(torch.tensor([[1, 2, 3]])).isfinite().all() and model.config.context > 0, (key, what)
    assert opened > 20, "what does not matter is no reason to refuse"


LLAMA = json.loads("""{"model_type": "llama", "vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2,
 "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 64, "tie_word_embeddings": true}""")


@pytest.mark.parametrize(
    "key, value, says",
    [
        ("vocab_size", GONE, "it has no vocab_size"),
        ("hidden_size", GONE, "it has no hidden_size"),
        ("vocab_size", "many", "vocab_size=many is not a whole number"),
        ("num_hidden_layers", -2, "num_hidden_layers=-2 is not a whole number above 0"),
        ("num_hidden_layers", 10**9, "cannot be 1,000,000,000 layers"),
        ("intermediate_size", 10**9, "do not fit its config"),
        ("rms_norm_eps", [1], "rms_norm_eps=[1] is not a number above 0"),
        ("num_key_value_heads", 3, "config.json: model.n_kv_heads=3 does not divide"),
        ("rope_scaling", "linear", "rope_scaling=linear is not a table"),
        ("rope_theta", "far", "rope_theta=far is not a number"),
    ],
)
@pytest.mark.parametrize("folder", ["llama"], indirect=True)
def test_the_line_names_the_field(folder, key, value, says):
    changed = LLAMA | {key: value}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in changed.items() if v is not GONE}))
    with pytest.raises(InputError) as refused:
        open_model(folder)
    assert says in str(refused.value) and str(folder) in str(refused.value)


@pytest.mark.parametrize("folder", ["llama"], indirect=True)
def test_what_may_stand_in_a_config(folder):
    "Whole numbers as text or with a point, null for what has a default: as before."
    want = load_model(folder).config
    plain = LLAMA | {"vocab_size": "300", "hidden_size": 32.0, "num_key_value_heads": "1"}
    (folder / "config.json").write_text(json.dumps(plain | {"max_position_embeddings": 64, "rms_norm_eps": None}))
    assert load_model(folder).config == want
    (folder / "config.json").write_text(json.dumps(LLAMA | {"max_position_embeddings": None, "head_dim": None}))
    assert load_model(folder).config.context == 2048


@pytest.mark.parametrize("text", ["3", "[]", "{}", "null", '"llama"', "{", "", '{"model_type": ["llama"]}', "\x00"])
@pytest.mark.parametrize("folder", ["llama"], indirect=True)
def test_files_that_are_no_config_or_no_index(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(InputError):
        open_model(folder)
    (folder / "config.json").write_text(json.dumps(LLAMA))
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(InputError):
        open_model(folder)


@pytest.mark.parametrize("files", ['"a.safetensors"', '["a.safetensors"]', '{"x": 3}', '{"x": ["a"]}', "null", "{}"])
@pytest.mark.parametrize("folder", ["llama", "qwen2"], indirect=True)
def test_an_index_of_another_form(folder, files):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(f'{{"weight_map": {files}}}')
    with pytest.raises(InputError, match="does not say which files") as refused:
        open_model(folder)
    assert "\n" not in str(refused.value)


GGUF = {
    "block_count": 2,
    "embedding_length": 32,
    "feed_forward_length": 64,
    "context_length": 64,
    "attention.head_count": 2,
    "attention.head_count_kv": 1,
}


@pytest.mark.parametrize("key", [*GGUF, "rope.freq_base"])
def test_metadata_of_a_gguf_file(key, tmp_path):
    import gguf

    net, names = CausalLM(ModelConfig(300, 2, 32, 2, 1, 64, 64)), gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for value in (None, 0, -1, 2**31 - 1, "many", True, float("nan"), GGUF.get(key, 1e4)):
        out = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
        for k, v in (GGUF | {key: value}).items():
            add = {bool: out.add_bool, str: out.add_string, float: out.add_float32, int: out.add_int32}.get(type(v))
            if v is not None:
                add(f"llama.{k}", v)
        for n, t in net.state_dict().items():
            out.add_tensor(names.get_name(n, try_suffixes=(".weight",)), t.numpy())
        out.write_header_to_file()
        out.write_kv_data_to_file()
        out.write_tensors_to_file()
        out.close()
        try:
            opened = load_model(tmp_path / "m.gguf")
        except InputError as e:
            assert "m.gguf" in str(e) and "\n" not in str(e)
        else:
            assert key == "rope.freq_base" or value == GGUF[key]
            assert opened(torch.tensor([[1, 2, 3]])).shape == (1, 3, 300)


@pytest.mark.parametrize("folder", ["qwen2"], indirect=True)
def test_the_command_says_one_line(folder, tmp_path):
    "Weights of another size than the config's: transformers would print a report of many lines."
    train_tokenizer(["a b c d e"] * 4, 300).save(folder)
    config = json.loads((folder / "config.json").read_text())
    for key, value in (("vocab_size", 310), ("intermediate_size", 48), ("num_hidden_layers", 3)):
        changed = config | {key: value} | ({"layer_types": None} if key == "num_hidden_layers" else {})
        (folder / "config.json").write_text(json.dumps(changed))
        done = here("elite112m", "evaluate", "--model", folder, "--out", tmp_path / "o", "--device", "cpu")
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and "do not fit its config" in done.stderr
        assert not (tmp_path / "o").exists()
