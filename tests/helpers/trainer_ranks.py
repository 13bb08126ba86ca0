"""One rank of a Trainer on two processes, for ``test_callback.py``: writes what it drew and where it stopped."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import TrainerCallback

from stopwise.integrations import callback as module
from stopwise.integrations.callback import StopwiseCallback
from trainer_runs import make


class Drawn(TrainerCallback):
    """Forget what was collated before training began."""

    def __init__(self):
        self.trainer = None

    def on_train_begin(self, *_, **__):
        self.trainer.data_collator.seen.clear()


def main(folder: str) -> None:
    """Train and write; the second rank must not read a kernel."""
    torch.set_num_threads(1)
    rank, read, steps = int(os.environ["RANK"]), [], []
    own_read = module.read_stop

    def reading(run, **options):
        read.append(rank)
        return own_read(run, **options)

    module.read_stop = reading
    answer, drawn = StopwiseCallback(stop=False), Drawn()
    values = {"gradient_accumulation_steps": 2, "ddp_backend": "gloo", "per_device_train_batch_size": 2}
    trainer = make("words", folder, [answer, drawn], dtype="float32", **values)
    drawn.trainer = trainer
    if rank == 0:
        from stopwise.integrations.trainer_schedule import drawn_steps

        loader = trainer.get_train_dataloader()
        found = drawn_steps(loader, trainer.args, 2 * -(-len(loader) // 2))
        steps = [sorted(map(int, np.concatenate(micro))) for micro in found]
    trainer.train()
    seen = [batch.tolist() for batch in trainer.data_collator.seen]
    row = answer.answer.row() if answer.answer else None
    out = {"rank": rank, "seen": seen, "steps": steps, "answer": row, "read": read}
    Path(folder, f"rank-{rank}.json").write_text(json.dumps(out))


if __name__ == "__main__":
    main(sys.argv[1])
