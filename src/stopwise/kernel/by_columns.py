"""The kernel of many examples from the columns of a few: Nystrom, with the certificate of ``linearized.nystrom``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from stopwise.kernel.ntk import Examples, empirical_ntk
from stopwise.linearized.nystrom import Nystrom, pivoted_cholesky

log = logging.getLogger(__name__)

SMALLEST_BLOCK = 64  # pivots drawn at once
ROUNDS = 8  # blocks that a large rank is drawn in, each with the passes of all examples


def nystrom_ntk(
    model: nn.Module, batch: Examples, rank: int, block: int | None = None, seed: int = 0, **options: Any
) -> tuple[Nystrom, np.ndarray]:
    """Return K~(a, a) of at most ``rank`` columns and f0 [n, columns]; further options as for ``empirical_ntk``.

    K itself is never computed, so that n is bounded by m rank numbers. Cost: the passes of all examples for each
    ``block`` of pivots and once before, and m rank P multiply-adds for P parameters. The block (64 when left out, an
    eighth of a larger ``rank``) decides how often the passes are repeated, and not which pivots are likely: those that
    a larger block draws too boldly are left out again, and cost their columns.
    """
    block = max(SMALLEST_BLOCK, -(-rank // ROUNDS)) if block is None else block
    verbalizers = options.pop("verbalizers", batch.get("verbalizers"))
    options |= {"by": "total", "verbalizers": verbalizers}
    examples = {key: value for key, value in batch.items() if key not in ("verbalizers", "labels")}

    def against(chosen: np.ndarray) -> Any:
        return empirical_ntk(model, examples, _rows(examples, chosen), **options)

    first = against(np.array([0]))
    diagonal = sum((norms**2 for norms in first.row_norms.values()), start=np.zeros(len(first.matrix)))
    q = first.columns

    def columns(rows: np.ndarray) -> np.ndarray:
        chosen = np.unique(rows // q)
        log.info("the kernel of all examples with %d of them", len(chosen))
        return against(chosen).matrix[:, np.searchsorted(chosen, rows // q) * q + rows % q]

    return pivoted_cholesky(diagonal, columns, rank, block, seed), first.outputs


def _rows(batch: Mapping[str, torch.Tensor], chosen: np.ndarray) -> dict[str, torch.Tensor]:
    return {key: value[torch.as_tensor(chosen)] for key, value in batch.items()}
