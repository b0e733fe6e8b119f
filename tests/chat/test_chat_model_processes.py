"A folder that is not Llama-shaped, through the command line."

from conftest import sh


def test_a_gpt2_folder_chats(tmp_path):
    "A folder that only transformers can open, through the command line; one of its files damaged is one line."
    from transformers import GPT2Config, GPT2LMHeadModel

    from elite112m.data.tokenizer import train_tokenizer

    train_tokenizer(["a b c d e"] * 4, 300).save(tmp_path)
    GPT2LMHeadModel(
        GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=64, vocab_size=300, bos_token_id=0, eos_token_id=0)
    ).save_pretrained(tmp_path)
    chat = "elite112m", "chat", "--model", tmp_path, "--input", "a b", "--max-new-tokens", "8", "--device", "cpu"
    done = sh(*chat)
    assert done.returncode == 0, done.stderr
    (tmp_path / "model.safetensors").write_bytes(b"no")
    done = sh(*chat)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "transformers cannot open" in done.stderr, (
        done.stderr
    )
