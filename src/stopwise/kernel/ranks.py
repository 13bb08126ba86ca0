"""One kernel on several processes of torch.distributed: each runs its share of the passes and of the products.

Passes go round by batch, products by module. A layer's inputs and output gradients travel to the process that
multiplies their module, and the products to the first process, which adds them in name order: the sums are those of one
process, to the last bit (to rounding where layers are not kept: one process adds a layer's modules up in one go). NCCL
carries tensors of GPUs, gloo those of CPUs; ``torchrun`` starts the processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from stopwise.kernel.formulas import Dense, Features, Outer, Sparse, Term

KINDS = (Outer, Dense, Sparse)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32)
HEADER = 16  # numbers that announce a tensor: its type, its dimensions, its sizes
Found = tuple[list[torch.Tensor], list[torch.Tensor]]


@dataclass(frozen=True)
class Ranks:
    """This process among all: its number, how many there are, and the device that its tensors travel from."""

    rank: int
    world: int
    device: torch.device

    @classmethod
    def here(cls, device: torch.device) -> Ranks:
        """Return this process's place. Raises ValueError where torch.distributed has not been set up."""
        if not dist.is_available() or not dist.is_initialized():
            raise ValueError(
                "kernel over ranks: torch.distributed is not initialised; call"
                " torch.distributed.init_process_group() first and start the script with torchrun"
            )
        return cls(dist.get_rank(), dist.get_world_size(), device)

    def own(self, items: Sequence) -> list:
        """Return the items whose turn is this process's."""
        return list(items[self.rank :: self.world])

    def owner(self, number: int) -> int:
        """Return the process whose turn an item is, by its number."""
        return number % self.world

    def moved(self, tensor: torch.Tensor | None, source: int, target: int) -> torch.Tensor | None:
        """Return a tensor (or None) of ``source`` on ``target``; None on all others. All three may call it."""
        if source == target or self.rank not in (source, target):
            return tensor if self.rank == source == target else None
        if self.rank == source:
            dist.send(self._header(tensor), target)
            if tensor is not None and tensor.numel():
                dist.send(tensor.contiguous(), target)
            return None
        header = torch.empty(HEADER, dtype=torch.int64, device=self.device)
        dist.recv(header, source)
        kind, dimensions, *sizes = header.tolist()
        if kind < 0:
            return None
        found = torch.empty(sizes[:dimensions], dtype=DTYPES[kind], device=self.device)
        if found.numel():
            dist.recv(found, source)
        return found

    def _header(self, tensor: torch.Tensor | None) -> torch.Tensor:
        told = [-1] if tensor is None else [DTYPES.index(tensor.dtype), tensor.dim(), *tensor.shape]
        return torch.tensor(told + [0] * (HEADER - len(told)), dtype=torch.int64, device=self.device)

    def features(self, one: Features | None, source: int, target: int) -> Features | None:
        """Return the features (or None) of ``source`` on ``target``; None elsewhere."""
        if source == target or self.rank not in (source, target):
            return one if self.rank == source == target else None
        kind = None if one is None else torch.tensor(KINDS.index(type(one)), device=self.device)
        told = self.moved(kind, source, target)
        fields = [None, None] if one is None else list(vars(one).values())
        tensors: list = [self.moved(field, source, target) for field in fields]
        return None if told is None else KINDS[int(told)](*tensors)

    def everywhere(self, tensor: torch.Tensor | None, source: int) -> torch.Tensor:
        """Return a tensor of ``source`` on every process."""
        found = tensor
        for target in range(self.world):
            if target != source:
                here = self.moved(tensor, source, target)
                found = here if self.rank == target else found
        assert found is not None
        return found


def multiplied(ranks: Ranks, modules: Sequence[str], multiply: Callable[[str], Found], take: Callable) -> None:
    """Let every module be multiplied by its owner, then ``take(module, matrices, norms)`` on the first process.

    ``multiply(module)`` returns the matrices of all pairs and the row norms of each.
    """
    done = {name: multiply(name) for number, name in enumerate(modules) if ranks.owner(number) == ranks.rank}
    for number, name in enumerate(modules):
        owner = ranks.owner(number)
        counts = torch.tensor([len(done[name][0])], device=ranks.device) if name in done else None
        size = int(ranks.everywhere(counts, owner))
        lists = done.pop(name) if name in done else ([None] * size, [None] * size)
        matrices, norms = ([ranks.moved(one, owner, 0) for one in some] for some in lists)
        if ranks.rank == 0:
            take(name, matrices, norms)


def multiplied_shares(terms: Sequence[Term], processes: int) -> tuple[float, float]:
    """Return how much the process with most to multiply has: of all products, and of one layer's at most.

    A layer's modules go round by name and processes wait for each other after every layer, so that more processes than
    modules gain nothing.
    """
    layers: dict[str, dict[str, float]] = {}
    for term in terms:
        modules = layers.setdefault(term.layer, {})
        modules[term.module] = modules.get(term.module, 0.0) + term.parameter.numel()
    most = []
    for modules in layers.values():
        sizes = [modules[name] for name in sorted(modules)]
        most.append((max(sum(sizes[rank::processes]) for rank in range(processes)), sum(sizes)))
    whole = max(sum(size for _, size in most), 1.0)
    return sum(own for own, _ in most) / whole, max((own / max(size, 1.0) for own, size in most), default=1.0)
