#!/usr/bin/env python3
"""tdgen.kd_loss with PyTorch, and what trains with it.

- For every mode, tail and temperature its value and gradient are those of python/examples/kd_numpy.py, and hold what
  test_kd.py proves of that one: the derivative, the bound 2 T r of truncation, the expectation of draws.
- A student that is the teacher (demo/teacher by transformers, float32) has a loss below 1e-4 in each mode that can.
- Batches are their samples; KDMixin's accumulated gradient is that of one large batch.
- The examples, as a user runs them, train a small student: plain PyTorch, transformers' Trainer, TRL's SFTTrainer.
- A user's code that uses the package passes mypy --strict.
(--tdgen, $TDGEN or build/release/src/tdgen.)
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # small models: more threads wait for each other
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
sys.path[:0] = [os.path.join(ROOT, "python", "src"), os.path.join(ROOT, "python", "examples"), os.path.join(ROOT, "test", "python")]
import _synth  # noqa: E402
import kd_numpy  # noqa: E402
import numpy as np  # noqa: E402
import tdgen  # noqa: E402
import test_kd  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from tdgen.logits import LmHead  # noqa: E402

os.environ["PYTHONPATH"] = sys.path[0]
TEACHER = os.path.join(ROOT, "demo", "teacher")
transformers.logging.set_verbosity_error()


def torch_loss(record, logits, temperature=1.0, tail="bucket", source=None, **options):
    """kd_loss in the manner of kd_numpy.loss."""
    z = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    value = tdgen.kd_loss(z, record, mode=source, temperature=temperature, tail=tail, reduction="none", **options)
    if not len(value):
        return np.zeros(0), np.zeros(logits.shape)
    value.sum().backward()
    return value.detach().numpy(), z.grad.numpy()


def refused(call, *words):
    try:
        call()
    except (ValueError, tdgen.RecordError) as e:
        assert all(w in str(e) for w in words), (words, str(e))
        return
    raise AssertionError(f"not refused ({words})")


def same_as_numpy(tmp):
    teacher, worst, n = _synth.Teacher(vocab=60, n=9, sharp=4.0), 0.0, 0
    table = test_kd.student(teacher, 4)
    for mode in tdgen.MODES:
        _synth.write_run(f"{tmp}/{mode}", teacher, mode, dtype="f32", dense_dtype="f32")
        head = (lambda states: states @ teacher.head.T) if mode == "hidden" else None
        for source in ("topk+sample", "topk", "sample") if mode == "topk+sample" else (None,):
            for tail in tdgen.TAILS:
                for T in (1.0, 2.0, 0.5):
                    run = tdgen.open(f"{tmp}/{mode}")
                    data = run.torch_dataset(T, tail, lm_head=head, source={"topk+sample": "combined"}.get(source, source))
                    batch = tdgen.collate([data[i] for i in range(len(data))], pad_id=7)
                    z = torch.tensor(table[batch["input_ids"].numpy()], requires_grad=True)  # [B, L, V]
                    tdgen.kd_loss(z, batch, reduction="sum").backward()
                    total, b = 0.0, 0
                    for record in run:
                        tokens = record["input_ids"]
                        rows = table[tokens[record["row_position"]]]
                        options = {"source": {"topk+sample": "combined"}.get(source, source), "lm_head": head}
                        want, gradient = kd_numpy.loss(record, rows, T, tail, **options)
                        value, ours = torch_loss(record, rows, T, tail, source, lm_head=head)
                        worst = max(worst, np.abs(value - want).max(initial=0), np.abs(ours - gradient).max(initial=0))
                        total, n = total + want.sum(), n + len(want)
                        if len(want):
                            part = z.grad[b].numpy()[record["row_position"]]
                            worst = max(worst, np.abs(part - gradient).max())
                            b += 1
                            whole = torch.tensor(table[tokens])
                            for logits in (whole, whole[None]):  # of all tokens
                                got = tdgen.kd_loss(logits, record, source, T, tail, lm_head=head)
                                assert abs(float(got) - want.mean()) < 2e-6 * max(1, abs(want.mean()))
                    got = float(tdgen.kd_loss(z.detach(), batch, reduction="sum"))
                    assert abs(got - total) < 2e-6 * max(1, abs(total)), (mode, source, tail, T, got, total)
    assert worst < 2e-6, worst
    print(f"   kd_loss: {n:,} rows of all modes, tails and temperatures within {worst:.0e} of kd_numpy, value and gradient")


def edges(tmp):
    teacher = _synth.Teacher(vocab=60, n=9)
    _synth.write_run(tmp + "/topk", teacher, "topk", dtype="f32")
    _synth.write_run(tmp + "/full", teacher, "full", dense_dtype="f32")
    run = tdgen.open(tmp + "/topk")
    record = run[0]
    z = torch.randn(len(record["input_ids"]), 60)
    # bfloat16 logits are computed with in float32, whatever the caller's.
    low = tdgen.kd_loss(z.bfloat16(), record)
    assert low.dtype == torch.float32 and abs(low - tdgen.kd_loss(z.bfloat16().float(), record)) < 1e-6
    # A student of no probability on padding, with all of its own in the teacher's set: no NaN, in value or gradient.
    masked = z.clone()
    masked[:, 50:] = -torch.inf
    closed = torch.full_like(z, -torch.inf)
    at = torch.from_numpy(record["row_position"].astype(np.int64))
    closed[at[:, None], torch.from_numpy(record["topk_ids"].astype(np.int64))] = 0.0
    for logits in (masked, closed):
        if any(int(i) >= 50 for i in record["topk_ids"].ravel()) and logits is masked:
            continue
        logits = logits.requires_grad_()
        value = tdgen.kd_loss(logits, record, temperature=2.0)
        value.backward()
        assert torch.isfinite(value) and torch.isfinite(logits.grad).all()
    # A tail that float32 cannot see as 1 - sum: value and gradient follow the logits.
    sharp = torch.zeros(len(at), 60)
    sharp.scatter_(1, torch.from_numpy(record["topk_ids"].astype(np.int64)), 25.0)
    sharp.requires_grad_()
    tdgen.kd_loss(sharp, record).backward()
    _, exact = kd_numpy.loss(record, sharp.detach().numpy())
    assert np.abs(sharp.grad.numpy() * len(at) - exact).max() < 1e-5
    refused(lambda: tdgen.kd_loss(z, record, temperature=3.0), "temperature 3.0 was not recorded")
    refused(lambda: tdgen.kd_loss(z, record, mode="sample"), "mode topk")
    refused(lambda: tdgen.kd_loss(z, record, tail="drop"), "bucket")
    refused(lambda: tdgen.kd_loss(z, record, reduction="all"), "reduction")
    refused(lambda: tdgen.kd_loss(z[:1], record), "do not fit")
    data = run.torch_dataset()
    batch = tdgen.collate([data[0], data[1]])
    refused(lambda: tdgen.kd_loss(z[None], batch, temperature=2.0), "torch_dataset")
    small = torch.randn(len(record["input_ids"]), 40)
    refused(lambda: tdgen.kd_loss(small, record), "the student 40", "cut=True")
    refused(lambda: tdgen.kd_loss(torch.randn(len(batch["position"]), 40), batch), "the student 40 ids", "cut=True")
    assert torch.isfinite(tdgen.kd_loss(small, record, cut=True))
    assert (batch["labels"] == torch.where(batch["labels"] >= 0, batch["input_ids"], -100)).all() and batch["labels"].max() >= 0
    assert int((batch["labels"][:, 1:] >= 0).sum()) == len(batch["position"])  # what Trainer counts
    # All ids: one row of them in memory, in batches too.
    dense = tdgen.collate([tdgen.open(tmp + "/full").torch_dataset()[i] for i in range(3)])
    assert dense["ids"].stride(0) == 0 and dense["ids"].shape == (len(dense["position"]), 60)
    # Workers of a DataLoader, started anew: the dataset goes there by pickle.
    loader = torch.utils.data.DataLoader(data, batch_size=4, collate_fn=tdgen.Collator(), num_workers=1,
                                         multiprocessing_context="spawn")
    assert sum(len(b["position"]) for b in loader) == run.n_positions
    hf = data.to_hf()
    again = tdgen.collate([hf[0], hf[1]])
    assert all(torch.equal(again[k], v) if torch.is_tensor(v) else again[k] == v for k, v in batch.items())


def truncation(tmp):
    test_kd.LOSS = torch_loss
    test_kd.truncation(tmp)


def expectation(tmp):
    test_kd.LOSS = torch_loss
    test_kd.expectation(tmp)


def generate(program, out, *overrides):
    subprocess.run([program, "-c", ROOT + "/conf/demo.ini", f"output.dir={out}", f"model.path={TEACHER}",
                    f"data.path={ROOT}/demo/demo.jsonl", *overrides], check=True, capture_output=True)


def teacher_is_student(tmp, program):
    """A loss below 1e-4 with the teacher's own logits, by transformers in float32."""
    model = transformers.AutoModelForCausalLM.from_pretrained(TEACHER, dtype=torch.float32).eval()
    told = []
    for mode, tails, options in (
            ("topk", ("bucket", "ignore"), ["capture.logprob_dtype=f32"]),
            ("topk", ("bucket", "ignore"), ["capture.logprob_dtype=f16"]),
            ("topp", ("bucket", "ignore"), ["capture.logprob_dtype=f32", "capture.top_k=64", "capture.top_p=0.9"]),
            ("topk+sample", ("bucket", "ignore"), ["capture.logprob_dtype=f32", "capture.n_draws=8"]),
            ("full", tdgen.TAILS, ["capture.dense_dtype=f32"]),
            ("hidden", tdgen.TAILS, ["capture.dense_dtype=f32"])):
        out = f"{tmp}/{mode}-{len(told)}"
        temperatures = [] if mode == "hidden" else ["capture.temperatures=2"]
        generate(program, out, f"capture.mode={mode}", "model.compute=f32", "data.max_samples=12", *options, *temperatures)
        run = tdgen.open(out)
        head = LmHead(TEACHER, "f32") if mode == "hidden" else None
        losses, moved, part = {}, 0.0, "topk" if mode == "topk+sample" else None
        for record in run:
            with torch.no_grad():
                z = model(torch.from_numpy(record["input_ids"].astype(np.int64))[None]).logits
            for T in (1.0, 2.0):
                for tail in tails:
                    losses.setdefault((T, tail), []).append(tdgen.kd_loss(z, record, part, T, tail, "none", head))
            moved = max(moved, float(tdgen.kd_loss(z.roll(1, dims=1), record, part, lm_head=head)))  # not 0 by itself
        worst = 0.0
        for key, values in losses.items():
            values = torch.cat(values)
            worst = max(worst, abs(float(values.mean())))
            if "f16" not in options[0]:
                assert values.abs().max() < 1e-4, (mode, key, float(values.abs().max()))
        assert worst < 1e-4 and moved > 0.5, (mode, worst, moved)
        told.append(f"{mode} {options[0].split('=')[1]} {worst:.0e}")
    print(f"   the teacher as its own student, largest mean loss: {', '.join(told)}")


def small_student(path):
    torch.manual_seed(1)
    config = transformers.LlamaConfig(vocab_size=2048, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                                      num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, bos_token_id=0,
                                      eos_token_id=1)
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(os.path.join(TEACHER, name), path)


def accumulation(tmp, run, student):
    """Four steps of two samples are one of eight, whose rows differ in number; hard labels are the model's own loss."""
    class KDTrainer(tdgen.KDMixin, transformers.Trainer):
        pass

    data, weights = tdgen.open(run).torch_dataset(), []
    for size, steps in ((8, 1), (2, 4)):
        torch.manual_seed(0)
        args = transformers.TrainingArguments(tmp + "/acc", per_device_train_batch_size=size, gradient_accumulation_steps=steps,
                                              max_steps=2, learning_rate=1e-2, report_to="none", save_strategy="no", seed=0,
                                              optim="sgd", lr_scheduler_type="constant", max_grad_norm=0, logging_steps=1,
                                              disable_tqdm=True)
        model = transformers.AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32)
        before = [p.detach().clone() for p in model.parameters()]
        trainer = KDTrainer(model, args, train_dataset=data)
        trainer.train()
        weights.append([a.detach() - b for a, b in zip(model.parameters(), before)])
        losses = [x["loss"] for x in trainer.state.log_history if "loss" in x]
    apart = max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(*weights))
    assert apart < 1e-3, apart
    batch = tdgen.collate([data[i] for i in range(4)])
    args = transformers.TrainingArguments(tmp + "/hard", report_to="none")
    hard = KDTrainer(model, args, train_dataset=data, hard_weight=1.0).compute_loss(model, batch)
    own = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"]).loss
    assert abs(hard.item() - own.item()) < 1e-5, (hard, own)
    print(f"   KDMixin: updates of 4 x 2 samples within {apart:.0e} of those of 8, logged loss {losses[0]:.2f}")


def examples(tmp, run, student):
    def start(name, *more):
        done = subprocess.run([sys.executable, f"{ROOT}/python/examples/{name}", run, student, f"{tmp}/{name}", "--lr", "3e-3", *more],
                              capture_output=True, text=True, env={**os.environ, "HF_DATASETS_OFFLINE": "1"})
        assert done.returncode == 0, (name, done.stdout[-2000:], done.stderr[-4000:])
        assert transformers.AutoModelForCausalLM.from_pretrained(f"{tmp}/{name}").config.vocab_size == 2048
        return done.stdout

    first, *_, last = (float(x) for x in re.findall(r"teacher ([\d.]+) over [\d,]+ pos",
                                                    start("sft_distill_torch.py", "--epochs", "2", "--hard-weight", "0.1")))
    assert last < first - 0.3, (first, last)
    told = [f"PyTorch {first:.2f} to {last:.2f}"]
    for name, label in (("sft_distill_trainer.py", "Trainer"), ("sft_distill_trl.py", "SFTTrainer")):
        start(name, "--epochs", "2")
        log = json.load(open(f"{tmp}/{name}/trainer_state.json", encoding="utf-8"))["log_history"]
        losses = [x["loss"] for x in log if "loss" in x]
        # The loss of a student that knows nothing is log V less the teacher's entropy: some 5 nats.
        assert 3.5 < losses[0] < 6.5 and losses[-1] < losses[0] - 1, (name, losses)
        told.append(f"{label} {losses[0]:.2f} to {losses[-1]:.2f}")
        if label == "Trainer":
            assert [x["eval_loss"] for x in log if "eval_loss" in x][-1] < losses[0]
    print(f"   examples, loss before and after two passes: {', '.join(told)}")


USER_CODE = """
import numpy as np
import tdgen
import tdgen.plot
from tdgen.logits import FullRun, LmHead

run = tdgen.open("out", partial=True)
record = run[0]
part = run[1:3]
for r in part:
    ids, probs = tdgen.to_targets(r, temperature=2.0, tail="ignore")
    total: float = float(probs.sum()) + len(ids)
dense = tdgen.to_targets(record, dense=True)
width: int = dense.shape[1]
text: str = run.decode(record["input_ids"]) + run.tokens([1])[0]
data = run.torch_dataset(temperature=2.0)
batch = tdgen.Collator(pad_id=0)([data[0], data[1]])
loss: float = float(tdgen.kd_loss(batch["probs"], batch))
tdgen.plot.figure([run]).savefig("a.png")
head = LmHead("teacher", "bf16")
ok: bool = run.complete is True
reveal_type(run.sample(0, dense=False))
reveal_type(FullRun("out", "teacher").mode)
"""


def typed(tmp):
    with open(tmp + "/user.py", "w", encoding="utf-8") as f:
        f.write(USER_CODE)
    done = subprocess.run([sys.executable, "-m", "mypy", "--strict", "--cache-dir", tmp + "/cache", tmp + "/user.py"],
                          capture_output=True, text=True, env={**os.environ, "MYPYPATH": ROOT + "/python/src"})
    assert done.returncode == 0 and 'is "dict[' in done.stdout and 'is "str"' in done.stdout, done.stdout + done.stderr
    bad = subprocess.run([sys.executable, "-m", "mypy", "--cache-dir", tmp + "/cache", "-c",
                          "import tdgen\nx: int = tdgen.open('a').decode([1])\ntdgen.open(3)"],
                         capture_output=True, text=True, env={**os.environ, "MYPYPATH": ROOT + "/python/src"})
    assert bad.returncode == 1 and "Found 2 errors" in bad.stdout, bad.stdout


def main():
    program = _synth.program(__doc__)
    with tempfile.TemporaryDirectory() as tmp:
        def own(name):
            os.makedirs(f"{tmp}/{name}")
            return f"{tmp}/{name}"

        for part in (same_as_numpy, edges, truncation, expectation, typed):
            part(own(part.__name__))
        teacher_is_student(own("same"), program)
        generate(program, tmp + "/demo", "data.max_samples=100")
        small_student(own("student"))
        accumulation(own("accumulation"), tmp + "/demo", tmp + "/student")
        examples(own("examples"), tmp + "/demo", tmp + "/student")
    print("OK")


if __name__ == "__main__":
    main()
