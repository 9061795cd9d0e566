#!/usr/bin/env python3
"""An axolotl export through Axolotl's own collators and loss (PyPI's axolotl and liger-kernel, on the CPU).

The student is the teacher: its states and lm_head give the teacher's logits at every position. Then the
loss is 0 if, and only if, every target row stands where the loss looks for it; a student whose states are
moved by one position shows that it is not 0 by itself.

Axolotl as a whole does not install beside the rest (it pins PyTorch and needs GPU packages). So its kd plugin's trainer
runs over transformers' Trainer instead of Axolotl's own base class: a small student learns from an export of a run,
with what python/examples/axolotl.yaml says. ($TDGEN or build/release/src/tdgen.)
"""

import dataclasses
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import types

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
sys.path[:0] = [os.path.join(ROOT, "python", "src"), os.path.join(ROOT, "test", "python")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # small models: more threads wait for each other
import _synth  # noqa: E402
import datasets  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402


def hollow(*names):
    """Packages whose __init__ would import all of Axolotl: their modules alone are wanted."""
    for name in names:
        parent, _, leaf = name.rpartition(".")
        where = importlib.util.find_spec(parent).submodule_search_locations
        module = types.ModuleType(name)
        module.__path__ = [os.path.join(w, leaf) for w in where]
        module.__spec__ = importlib.util.spec_from_loader(name, None, is_package=True)
        module.__spec__.submodule_search_locations = module.__path__
        sys.modules[name] = module


hollow("axolotl.integrations", "axolotl.integrations.kd", "axolotl.integrations.kd.kernels", "axolotl.utils.collators")
from axolotl.integrations.kd.collator import DataCollatorForKD, KDBatchSamplerDataCollatorForSeq2Seq  # noqa: E402
from axolotl.integrations.kd.kernels.liger import LigerFusedLinearKLTopKLogprobLoss  # noqa: E402


def loss_of(states, head, batch, normalise, temperature=1.0):
    fn = LigerFusedLinearKLTopKLogprobLoss(0.0, 1.0, temperature=temperature, beta=0.0, compiled=False, chunk_size=16,
                                           compute_ce_loss=False, normalize_topk=normalise)
    states = states.clone().requires_grad_(True)
    weight = head.clone().requires_grad_(True)
    value = fn(weight, states, batch["target_token_ids"], batch["target_logprobs"], batch["target_mask"],
               true_labels=batch["labels"])
    value.backward()
    assert torch.isfinite(states.grad).all() and torch.isfinite(weight.grad).all()
    return float(value.detach())


def states_of(teacher, chosen, length):
    """[B, length, C]: where the record has a row, the state that gives its logits."""
    out = torch.zeros(len(chosen), length, teacher.head.shape[1])
    for b, s in enumerate(chosen):
        out[b, torch.from_numpy(s["rows"].astype(np.int64))] = torch.from_numpy(s["state"])
    return out


def train(tmp):
    """The plugin's trainer class, collator, arguments and loss, over the example's settings."""
    import yaml
    from axolotl.integrations.kd.args import KDArgs, KDTrainingArgsMixin

    base = types.ModuleType("axolotl.core.trainers.base")
    base.AxolotlTrainer = transformers.Trainer
    sys.modules.update({"axolotl.core.trainers": types.ModuleType("axolotl.core.trainers"), "axolotl.core.trainers.base": base})
    from axolotl.integrations.kd.trainer import AxolotlKDTrainer

    program = os.path.abspath(os.environ.get("TDGEN") or ROOT + "/build/release/src/tdgen")
    teacher = ROOT + "/demo/teacher"
    subprocess.run([program, "-c", ROOT + "/conf/demo.ini", f"output.dir={tmp}/run", f"model.path={teacher}",
                    f"data.path={ROOT}/demo/demo.jsonl", "data.max_samples=80"], check=True, capture_output=True)
    with open(ROOT + "/python/examples/axolotl.yaml", encoding="utf-8") as f:
        text = f.read()
    config = yaml.safe_load(text)
    command = re.search(r"tdgen-export (axolotl .*)", text)[1].replace("out/run", tmp + "/run").replace("STUDENT_DIR", teacher)
    subprocess.run([sys.executable, ROOT + "/tools/tdgen_export", *command.replace("axolotl-data", tmp + "/data").split()],
                   check=True, capture_output=True)
    assert config["plugins"] == ["axolotl.integrations.kd.KDPlugin"] and config["kd_trainer"] is True
    known = {k: v for k, v in config.items() if k.startswith("kd_")}
    assert set(known) <= set(KDArgs.model_fields), known
    KDArgs(**known)

    @dataclasses.dataclass
    class Arguments(KDTrainingArgsMixin, transformers.TrainingArguments):
        pass

    del known["kd_trainer"]
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=2048, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512))
    tokenizer = transformers.AutoTokenizer.from_pretrained(teacher)
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.pad_token or tokenizer.eos_token, "right"
    args = Arguments(tmp + "/out", per_device_train_batch_size=config["micro_batch_size"], num_train_epochs=2, learning_rate=3e-3,
                     gradient_accumulation_steps=config["gradient_accumulation_steps"], logging_steps=5, report_to="none",
                     save_strategy="no", seed=0, disable_tqdm=True, **known)
    data = datasets.load_from_disk(tmp + "/data")
    trainer = AxolotlKDTrainer(model, args, train_dataset=data, data_collator=DataCollatorForKD(tokenizer))
    trainer.train()
    losses = [x["loss"] for x in trainer.state.log_history if "loss" in x]
    print(f"   its kd trainer over axolotl.yaml's settings: loss {losses[0]:.2f} to {losses[-1]:.2f}")
    assert losses[-1] < 0.9 * losses[0], losses


def main():
    teacher = _synth.Teacher(vocab=61, n=12)
    head = torch.from_numpy(teacher.head)
    tokenizer = transformers.AutoTokenizer.from_pretrained(os.path.join(ROOT, "demo", "teacher"))
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.padding_side = "right"
    used = [s for s in teacher.samples if len(s["rows"])]
    with tempfile.TemporaryDirectory() as tmp:
        for mode, tail, normalise, temperature in (("topk", "ignore", False, 1.0), ("topk", "renormalise", True, 1.0),
                                                   ("topp", "ignore", False, 1.0), ("topk", "ignore", False, 2.0)):
            run, out = f"{tmp}/{mode}", f"{tmp}/{mode}-{tail}-{temperature}"
            if not os.path.exists(run):
                _synth.write_run(run, teacher, mode, dtype="f32")
            subprocess.run([sys.executable, ROOT + "/tools/tdgen_export", "axolotl", run, out, "--tail", tail,
                            "--temperature", str(temperature)], check=True, capture_output=True)
            data = datasets.load_from_disk(out)
            # plain batches, padded by the collator
            batch = DataCollatorForKD(tokenizer)([data[i] for i in range(len(data))])
            n = batch["input_ids"].shape[1]
            assert batch["target_token_ids"].shape[:2] == batch["labels"].shape == (len(used), n)
            states = states_of(teacher, used, n)
            right = loss_of(states, head, batch, normalise, temperature)
            moved = loss_of(states.roll(1, dims=1), head, batch, normalise, temperature)
            # packed batches: two rows of all samples end to end
            half = len(data) // 2
            packs = [list(range(half)), list(range(half, len(data)))]
            packed = KDBatchSamplerDataCollatorForSeq2Seq(tokenizer)([[data[i] for i in p] for p in packs])
            m = packed["input_ids"].shape[1]
            flat = torch.zeros(2, m, head.shape[1])
            for b, p in enumerate(packs):
                at = 0
                for i in p:
                    k = len(used[i]["ids"])
                    flat[b, at : at + k] = states_of(teacher, [used[i]], k)[0]
                    at += k
            together = loss_of(flat, head, packed, normalise, temperature)
            rows = sum(len(s["rows"]) for s in used)
            print(f"   {mode}, {tail}, T = {temperature}: loss per position {right / rows:.1e}, packed {together / rows:.1e}, "
                  f"moved by one position {moved / rows:.2f}")
            assert abs(right) / rows < 1e-5 and abs(together) / rows < 1e-5 and moved / rows > 0.5
        train(tmp)
    print("OK")


if __name__ == "__main__":
    main()
