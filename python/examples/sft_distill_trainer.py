#!/usr/bin/env python3
"""Distils a run of tdgen into a student with transformers' Trainer.

    sft_distill_trainer.py RUN STUDENT OUT     pip install './python[torch]' transformers accelerate
"""

import argparse

import torch
from torch.utils.data import random_split
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import tdgen


class KDTrainer(tdgen.KDMixin, Trainer):
    """Its loss is that of the run's record."""


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("run", help="output folder of tdgen")
    p.add_argument("student", help="model to start from, of the teacher's tokenizer")
    p.add_argument("out", help="folder for the trained student")
    p.add_argument("--temperature", type=float, default=1.0, help="1, or one of capture.temperatures (1)")
    p.add_argument("--epochs", type=float, default=1)
    p.add_argument("--lr", type=float, default=1e-4)
    a = p.parse_args()

    model = AutoModelForCausalLM.from_pretrained(a.student)
    data = tdgen.open(a.run).torch_dataset(temperature=a.temperature, student_vocab=model.config.vocab_size)
    train, held_out = random_split(data, [0.9, 0.1], torch.Generator().manual_seed(0))
    args = TrainingArguments(a.out, num_train_epochs=a.epochs, learning_rate=a.lr, per_device_train_batch_size=4,
                             gradient_accumulation_steps=2, warmup_steps=5, logging_steps=5, eval_strategy="epoch",
                             save_strategy="no", report_to="none", seed=0)
    trainer = KDTrainer(model, args, train_dataset=train, eval_dataset=held_out, hard_weight=0.1)
    trainer.train()
    trainer.save_model()
    trainer.save_state()


if __name__ == "__main__":
    main()
