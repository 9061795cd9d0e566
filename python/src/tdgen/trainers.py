"""Distillation in transformers' Trainer and what is built on it, such as TRL's SFTTrainer (the extra [torch])."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import cross_entropy

from .batches import Collator
from .losses import kd_loss

__all__ = ["KDMixin"]


class KDMixin:
    """Gives a Trainer the loss of a run's record:

        class KDTrainer(tdgen.KDMixin, Trainer):
            pass

        KDTrainer(model, args, train_dataset=run.torch_dataset(temperature=2.0), hard_weight=0.1).train()

    Datasets are those of run.torch_dataset(), which decide temperature and tail, for SFTTrainer their to_hf() with
    dataset_kwargs={"skip_prepare_dataset": True}; the collator is Collator, unless another is given. hard_weight: the part of the loss, 0 to 1, that is cross entropy with the data's own tokens.
    remove_unused_columns is switched off: the record is what a Trainer takes for unused columns.
    """

    def __init__(self, model: Any = None, args: Any = None, *more: Any, hard_weight: float = 0.0, **options: Any) -> None:
        if not 0 <= hard_weight <= 1:
            raise ValueError(f"hard_weight={hard_weight}, expected 0 to 1")
        self.hard_weight = hard_weight
        if args is not None:
            args.remove_unused_columns = False
        if not more and options.get("data_collator") is None:
            options["data_collator"] = Collator()
        super().__init__(model, args, *more, **options)
        self.args.remove_unused_columns = False  # type: ignore[attr-defined]

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False,
                     num_items_in_batch: Any = None, **_: Any) -> Any:
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        z = outputs.logits[inputs["row_sample"], inputs["position"]]
        # The recorded positions are the labels that Trainer counts over its accumulation steps.
        how = "mean" if num_items_in_batch is None else "sum"
        loss = (1 - self.hard_weight) * kd_loss(z, inputs, reduction=how)
        if self.hard_weight:
            loss = loss + self.hard_weight * cross_entropy(z.float(), inputs["target"], reduction=how)
        if num_items_in_batch is not None:
            loss = loss / torch.as_tensor(num_items_in_batch, device=loss.device)
            if self.args.average_tokens_across_devices:  # type: ignore[attr-defined]
                loss = loss * self.accelerator.num_processes  # type: ignore[attr-defined]
        return (loss, outputs) if return_outputs else loss
