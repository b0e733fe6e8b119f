"The trainer when memory runs out, when the disk is late, and when a checkpoint is resumed."

import tempfile
import threading

import pytest
import torch


def batch():
    ids = torch.randint(0, 64, (4, 32), generator=torch.Generator().manual_seed(0))
    labels = ids.roll(-1, 1)
    labels[2:, 5:] = -100
    return ids, labels, None


def trainer(folder=None):
    from elite112m.core.config import ModelConfig
    from elite112m.core.presets import preset
    from elite112m.core.runs import Job, Run
    from elite112m.model.transformer import CausalLM
    from elite112m.training.plan import plan_for
    from elite112m.training.trainer import Trainer

    job = Job(Run(folder or tempfile.mkdtemp()), "pretrain", preset("nano", {"pretrain.batch_size": 2}), "start")
    torch.manual_seed(0)
    t = Trainer(job, CausalLM(ModelConfig(64, 2, 32, 2, 1, 64, 32)), None, torch.device("cpu"))
    t.start(plan_for(t.cfg, 10))
    return t


def cramped(t, most):
    "Let the model refuse more than `most` sequences, as CUDA's allocator does."
    forward = t.forward

    def refuse(ids, **kw):
        if len(ids) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(ids, **kw)

    t.forward = refuse
    return t


def test_a_batch_that_does_not_fit_is_done_in_smaller_parts():
    t, small = trainer(), cramped(trainer(), 1)
    for each in (t, small):
        each.update(batch())
    assert (t.micro, small.micro) == (2, 1)
    torch.testing.assert_close(t.model.model.norm.weight, small.model.model.norm.weight, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("guess", [1, 2, 4])
def test_the_largest_micro_batch_is_found_and_changes_only_the_order_of_summation(guess, capsys):
    "The step is the same whatever fits; nothing of the trial is left in the model."
    plain, other = trainer(), cramped(trainer(), 3)
    other.find_micro_batch(batch(), guess)
    assert other.micro == 2 and "micro-batches of 2 sequences, 2 a step" in capsys.readouterr().out
    assert all(p.grad is None for p in other.model.parameters()) and not other.opts[0].state
    for each in (plain, other):
        each.update(batch())
    torch.testing.assert_close(plain.model.state_dict(), other.model.state_dict(), atol=0, rtol=0)
    whole = trainer()
    whole.find_micro_batch(batch(), guess)
    assert whole.micro == 4
    whole.update(batch())
    torch.testing.assert_close(plain.model.state_dict(), whole.model.state_dict(), atol=1e-5, rtol=1e-4)


def test_room_on_a_gpu_counts_the_moments_that_are_still_to_come(monkeypatch):
    "The arithmetic alone, with pretended figures of CUDA: it has not been run on a GPU."
    from elite112m.core.presets import moment_bytes

    t, peak = trainer(), 1e9
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: peak)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2e8)
    moments = moment_bytes(t.model.config, "muon")
    for free, fits in ((1.1 * (peak + moments) - 2e8 + 1, True), (1.1 * (peak + moments) - 2e8 - 1, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 8e10))
        assert t._peak_fits() is fits
    t.update(batch())  # now the moments exist, and are in the peak
    assert t._peak_fits()


def test_a_resumed_run_keeps_its_micro_batch_on_the_same_device(tmp_path, monkeypatch):
    from elite112m.training import trainer as module

    t = trainer(tmp_path / "run")
    t.find_micro_batch(batch(), 4)
    t.update(batch())
    t.save()
    t.saver.finish()
    again = trainer(tmp_path / "run")
    assert (again.micro, again.micro_found) == (4, True)
    monkeypatch.setattr(module, "device_name", lambda device: "NVIDIA L4")
    elsewhere = trainer(tmp_path / "run")
    assert (elsewhere.micro, elsewhere.micro_found) == (2, False)


def test_where_one_sequence_does_not_fit_the_message_says_its_tokens(tmp_path):
    from elite112m.core.config import InputError

    t = trainer(tmp_path / "run")
    t.update(batch())
    t.save()
    t.saver.finish()
    for each in (t, trainer(tmp_path / "run")):  # the second one is resumed
        assert each.context == 32
        with pytest.raises(InputError, match="1 sequences of 32 tokens do not fit"):
            cramped(each, 0).update(batch())


def test_losses_since_the_last_log_point_are_resumed(tmp_path):
    from elite112m.core.files import read_json

    t = trainer(tmp_path / "run")
    t.update(batch())
    t.save()
    t.saver.finish()
    saved = read_json(t.folder / "checkpoints/step-00000001/state.json")
    assert trainer(tmp_path / "run").recent_losses == saved["window"] == t.recent_losses and len(saved["window"]) == 1


def test_a_checkpoint_holds_the_step_at_which_it_was_begun():
    "However late the disk is: the writing thread is kept busy while training goes on."
    from elite112m.core.files import read_json

    t, late = trainer(), threading.Event()
    t.saver._start(late.wait)
    t.update(batch())
    t.save()
    t.update(batch())
    t.log(1)
    late.set()
    t.saver.finish()
    state = read_json(t.folder / "checkpoints/step-00000001/state.json")
    assert (state["step"], len(state["window"]), len(state["guard"][0])) == (1, 1, 1)
