"""Train a small language model from raw text to chat, in notebooks you can read.

`import elite112m as e` is light: what is named below is imported when it is first used. `from elite112m.all import *`
gives the same names in a notebook. Everything else is imported by its full path, such as `elite112m.model.loss`.
"""

import os

# OpenMP's threads wait passively, unless the user says otherwise: actively waiting ones starve when another program
# takes a core away. It counts where torch is imported after this package.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"

NAMES = {  # what a notebook user wants most, and where it is
    "preset": "elite112m.core.presets",
    "override": "elite112m.core.presets",
    "Run": "elite112m.core.runs",
    "run_stage": "elite112m.core.runs",
    "ModelConfig": "elite112m.core.config",
    "load_tokenizer": "elite112m.data.tokenizer",
    "train_tokenizer": "elite112m.data.tokenizer",
    "Batches": "elite112m.data.batches",
    "browse": "elite112m.data.explore",
    "prepare": "elite112m.data.prepare",
    "CausalLM": "elite112m.model.transformer",
    "open_model": "elite112m.model.third_party",
    "Trainer": "elite112m.training.trainer",
    "pretrain": "elite112m.training.pretrain",
    "sft": "elite112m.training.sft",
    "read_metrics": "elite112m.training.metrics",
    "plot_metrics": "elite112m.training.metrics",
    "generate": "elite112m.chat.generate",
    "ChatModel": "elite112m.chat.chat_model",
    "Chat": "elite112m.chat.conversation",
    "chat_ui": "elite112m.chat.widgets",
    "compare_ui": "elite112m.chat.widgets",
    "suite": "elite112m.evaluation.suite",
    "check": "elite112m.evaluation.checks",
    "evaluate": "elite112m.evaluation.evaluate",
    "export": "elite112m.sharing.export",
}
__all__ = list(NAMES)


def __getattr__(name):
    if name not in NAMES:
        raise AttributeError(f"module 'elite112m' has no attribute {name!r}; by name there are {', '.join(NAMES)}")
    from importlib import import_module

    globals()[name] = found = getattr(import_module(NAMES[name]), name)
    return found


def __dir__():
    return sorted({*globals(), *NAMES})
