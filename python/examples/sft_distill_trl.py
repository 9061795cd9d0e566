#!/usr/bin/env python3
"""Distils a run of tdgen into a student with TRL's SFTTrainer.

    sft_distill_trl.py RUN STUDENT OUT     pip install './python[torch,export]' trl
"""

import argparse

from trl import SFTConfig, SFTTrainer

import tdgen


class KDTrainer(tdgen.KDMixin, SFTTrainer):
    """Its loss is that of the run's record."""


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("run", help="output folder of tdgen")
    p.add_argument("student", help="model to start from, with the teacher's tokenizer")
    p.add_argument("out", help="folder for the trained student")
    p.add_argument("--temperature", type=float, default=1.0, help="1, or one of capture.temperatures (1)")
    p.add_argument("--epochs", type=float, default=1)
    p.add_argument("--lr", type=float, default=1e-4)
    a = p.parse_args()

    data = tdgen.open(a.run).torch_dataset(temperature=a.temperature)
    args = SFTConfig(a.out, num_train_epochs=a.epochs, learning_rate=a.lr, per_device_train_batch_size=8, logging_steps=5,
                     save_strategy="no", report_to="none", seed=0, bf16=False,
                     dataset_kwargs={"skip_prepare_dataset": True})  # the record is tokens already
    trainer = KDTrainer(a.student, args, train_dataset=data.to_hf())
    trainer.train()
    trainer.save_model()
    trainer.save_state()


if __name__ == "__main__":
    main()
