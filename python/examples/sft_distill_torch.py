#!/usr/bin/env python3
"""Distils a run of tdgen into a student, as a plain PyTorch loop.

    sft_distill_torch.py RUN STUDENT OUT [--temperature T] [--epochs N]     pip install './python[torch]' transformers
"""

import argparse

import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

import tdgen


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("run", help="output folder of tdgen")
    p.add_argument("student", help="model to start from, of the teacher's tokenizer")
    p.add_argument("out", help="folder for the trained student")
    p.add_argument("--temperature", type=float, default=1.0, help="1, or one of capture.temperatures (1)")
    p.add_argument("--hard-weight", type=float, default=0.0, help="0 to 1: part of cross entropy with the data (0)")
    p.add_argument("--epochs", type=int, default=1)
    p.add_argument("--batch-size", type=int, default=8)
    p.add_argument("--lr", type=float, default=1e-4)
    a = p.parse_args()

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(a.student, dtype=torch.float32).to(device).train()
    run = tdgen.open(a.run)
    print(run)
    data = run.torch_dataset(temperature=a.temperature, student_vocab=model.config.vocab_size)
    loader = DataLoader(data, batch_size=a.batch_size, shuffle=True, collate_fn=tdgen.Collator())
    optimiser = torch.optim.AdamW(model.parameters(), lr=a.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, a.lr, epochs=a.epochs, steps_per_epoch=len(loader))

    for epoch in range(a.epochs):
        total = rows = 0
        for batch in loader:
            batch = {k: v.to(device) if torch.is_tensor(v) else v for k, v in batch.items()}
            logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            logits = logits[batch["row_sample"], batch["position"]]  # [R, V] of the recorded positions
            loss = tdgen.kd_loss(logits, batch)
            total, rows = total + float(loss.detach()) * len(logits), rows + len(logits)
            if a.hard_weight:
                hard = torch.nn.functional.cross_entropy(logits.float(), batch["target"])
                loss = (1 - a.hard_weight) * loss + a.hard_weight * hard
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
        print(f"epoch {epoch + 1}: KL to the teacher {total / rows:.4f} over {rows:,} positions")
    model.save_pretrained(a.out)


if __name__ == "__main__":
    main()
