"""A run read after its warm-up: the kernel of the weights and of AdamW's own moments as they are then."""

import numpy as np
import pytest
import torch

from stopwise.network.forward import class_outputs
from stopwise.network.quiet import untouched
from stopwise.stopping.scheduled import trained_path
from trainer_runs import Reader, jacobian, make

WARM = 3


class Late(Reader):
    """Read after some steps; keep J, f0 and AdamW's moments of then, and the outputs of the next three steps."""

    kind, outputs = "words", ()

    def on_step_end(self, args, state, control, **given):
        if state.global_step == self.at:
            given = {k: given[k] for k in ("model", "optimizer", "lr_scheduler", "train_dataloader")}
            self.keep(args, state, **given)
            self.outputs, self.then = [], self.moments(given["optimizer"])
        if self.read is not None and len(self.outputs) < 4:
            model = self.trainer.model
            with untouched(model), torch.no_grad():
                self.outputs.append(class_outputs(model, self.read[0].batch).double().numpy())

    def moments(self, optimizer):
        """J, f0, m and D = 1/(sqrt(v_hat) + eps) of the trained parameters in name order, from torch's state."""
        chosen = dict(sorted((name, p) for name, p in self.trainer.model.named_parameters() if p.requires_grad))
        with untouched(self.trainer.model):
            kind = self.kind.removeprefix("lora-")
            j, f0 = jacobian(self.trainer.model, self.trainer.train_dataset, list(chosen.values()), kind=kind)
        inner = getattr(optimizer, "optimizer", optimizer)
        states = [inner.state[p] for p in chosen.values()]
        mean = torch.cat([s["exp_avg"].flatten() for s in states]).double().numpy()
        square = torch.cat([s["exp_avg_sq"].flatten() / (1 - 0.999 ** int(s["step"])) for s in states])
        d = np.where(square > 0, 1 / (square.sqrt().double() + 1e-8), 0.0)
        return j, f0, mean, d


@pytest.mark.parametrize("kind", ["words", "lora-words", "lora-bert"])
def test_after_warm_up_the_path_is_adamw_with_its_own_moments(kind, tmp_path):
    """Against the linearised parameters stepped by Adam's formulas: B's part and A's, the mean of the gradient too."""
    trainer = make(kind, tmp_path, warmup_steps=WARM, max_grad_norm=0.0)
    late = Late(trainer, WARM)
    late.kind = kind
    for module in trainer.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    trainer.train()
    _, objective, schedule, net, flags = late.read
    assert "labels_seen" in flags
    assert "second_order_left_out" not in flags
    (j, f0, mean, d), q, out = late.then, late.then[1].shape[1], []
    delta = np.zeros(len(d))
    for s, batch in enumerate(schedule.batches):
        out.append(f0 + (j @ delta).reshape(-1, q))
        gradient = objective.rows(batch).gradient(out[-1][batch], np.arange(len(batch))).ravel()
        mean = 0.9 * mean + 0.1 * gradient @ j[(batch[:, None] * q + np.arange(q)).ravel()]
        delta -= schedule.learning_rates[s] * d * mean / (1 - 0.9 ** (WARM + s + 1))
    out.append(f0 + (j @ delta).reshape(-1, q))
    found = trained_path(net, objective, schedule, np.arange(schedule.done, schedule.last + 1))
    # Kernels are sums of float32-sized tiles at worst (1e-6).
    assert np.abs(found - out).max() <= 1e-4 * np.abs(out - out[0]).max()


@pytest.mark.parametrize("kind", ["words", "lora-words"])
@pytest.mark.slow
def test_the_next_steps_are_the_networks_own(kind, tmp_path):
    """The first steps after the reading agree with the network's own; with smaller steps v's share is left."""
    errors = []
    for rate in (1e-3, 1e-4):
        trainer = make(kind, tmp_path, learning_rate=rate, num_train_epochs=4, max_grad_norm=0.0, weight_decay=0.1)
        late = Late(trainer, 8)
        late.kind = kind
        trainer.train()
        _, objective, schedule, net, flags = late.read
        assert flags == ("labels_seen",)
        path = trained_path(net, objective, schedule, np.arange(schedule.done, schedule.done + 4))
        real = np.array(late.outputs)
        errors.append(np.abs(path - real).max() / np.abs(real - real[0]).max())
    # The network bends, which vanishes with the rate, and v keeps moving, a step's share of nine. Of an adapter v moves
    # more: its A's gradients have only begun to grow.
    assert errors[1] < 0.1
    assert kind != "words" or errors[1] < errors[0]
