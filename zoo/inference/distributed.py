r"""Data-parallel SVI over :mod:`torch.distributed`: every rank takes its part of each batch.

Of a batch of :math:`B` rows, rank :math:`r` holds :math:`n_r`, and its plates scale them by :math:`N / n_r`. Then

.. math:: \sum_r \frac{n_r}{B} \nabla L_r
          = \nabla \mathrm{KL} - \frac{N}{B} \sum_r \sum_{i \in r} \nabla \log p(y_i \mid z),

the gradient of one process with all :math:`B` rows: the latents that rows share count once. It holds for every loss
that is a sum over rows and shared terms, that is for the evidence lower bounds, and whether or not :math:`B` can be
divided evenly. Shared latents are drawn on every rank anew, so that the expectation is that of one process, and the
noise of these draws is averaged too.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from zoo.errors import DataError, PairError, RankError
from zoo.types import Elbo, Pair

__all__ = ["Ranks", "check_pair", "join", "together"]

# A step waits for the slowest rank's step; what happens once (compiling, writing a checkpoint) may take long.
_STEP, _ONCE = timedelta(seconds=45), timedelta(minutes=30)


def _group(backend: str, timeout: timedelta) -> dist.ProcessGroup:
    """Return a group of all ranks, of which this one is a member."""
    found = dist.new_group(backend=backend, timeout=timeout)
    assert isinstance(found, dist.ProcessGroup)
    return found


class Ranks:
    """The processes of one fit: who this one is, and what they say to each other.

    Every method that communicates is called by all ranks in the same order. If a rank does not answer, the others get a
    :class:`~zoo.errors.RankError` at once when its connection closes, else after 45 seconds of a step, or 30 minutes of
    what happens once.
    """

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.ended = False  # a rank was lost, and it has been said
        self._device = torch.device("cpu")
        self._gradients: dist.ProcessGroup | None = None
        with self._talking():
            self._words = _group("gloo", _ONCE)

    @property
    def first(self) -> bool:
        """Whether this rank is the one that writes and prints."""
        return self.rank == 0

    @contextmanager
    def on(self, device: str | torch.device) -> Iterator[None]:
        """Average gradients on a device: by nccl on GPUs, of which each rank of a machine takes its own, else by gloo.

        Args:
            device: Of the fit.

        Yields:
            Nothing.

        Raises:
            DataError: If a machine has fewer GPUs than ranks.
            RankError: If a rank does not answer.
        """
        before, cuda = None, torch.device(device).type == "cuda"
        with together(self):
            if cuda:
                local, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
                if local >= count:
                    raise DataError(f"its machine has {count} GPUs; start as many ranks on a machine as it has GPUs")
                before = torch.cuda.current_device()
                torch.cuda.set_device(local)
        try:
            with self._talking():
                self._device = torch.device(device)
                self._gradients = _group("nccl" if cuda else "gloo", _STEP)
            yield
        finally:
            if self._gradients is not None:
                dist.destroy_process_group(self._gradients)
                self._gradients = None
            if before is not None:
                torch.cuda.set_device(before)

    def close(self) -> None:
        """Leave the group in which the ranks talk."""
        dist.destroy_process_group(self._words)

    # ------------------------------------------------------------------------------------------ who does what
    def share(self, total: int) -> slice:
        """Return this rank's part of the rows of a batch.

        Args:
            total: Rows of all ranks.

        Returns:
            Positions; sizes differ by one row at most.

        Raises:
            DataError: If there are fewer rows than ranks.
        """
        if total < self.size:
            raise DataError(
                f"a batch of {total} rows cannot be shared among {self.size} ranks; take a larger batch_size, which "
                "counts the rows of all ranks, or fewer ranks"
            )
        least, more = divmod(total, self.size)
        start = self.rank * least + min(self.rank, more)
        return slice(start, start + least + (self.rank < more))

    def noise(self, seed: int, step: int) -> int:
        """Return the seed of this rank's random numbers at one step.

        Args:
            seed: Of the fit.
            step: Steps taken before.

        Returns:
            A number below 2**63, another for every rank and step: no state of a stream has to be kept, so a resumed
            fit on as many ranks goes on with the same numbers.
        """
        digest = hashlib.sha256(f"{seed} {self.rank} {step}".encode()).digest()
        return int.from_bytes(digest[:8], "little") >> 1

    # ------------------------------------------------------------------------------------------- communication
    def sum(self, value: Tensor) -> None:
        """Replace a tensor by its sum over the ranks, which then is the same on all of them, bit for bit.

        Args:
            value: Changed in place, inside :meth:`on` its device.

        Raises:
            RankError: If a rank does not answer.
        """
        with self._talking():
            dist.all_reduce(value, group=self._gradients)

    def pace(self, count: int) -> int:
        """Return how many steps the first rank takes next.

        Args:
            count: How many this rank would take; inside :meth:`on` its device.

        Returns:
            That of rank 0.

        Raises:
            RankError: If a rank does not answer.
        """
        return self._first_ones(torch.tensor(count, device=self._device), self._gradients)

    def bytes(self, value: bytes = b"") -> bytes:
        """Return the first rank's bytes.

        Args:
            value: Those to send; only read on rank 0.

        Returns:
            Those of rank 0.

        Raises:
            RankError: If a rank does not answer.
        """
        size = self._first_ones(torch.tensor(len(value), device="cpu"), self._words)
        found = torch.zeros(size, dtype=torch.uint8, device="cpu")
        if self.first and size:
            found = torch.frombuffer(bytearray(value), dtype=torch.uint8)
        if size:
            with self._talking():
                dist.broadcast(found, src=0, group=self._words)
        return found.numpy().tobytes()

    def texts(self, text: str) -> list[str]:
        """Return the texts of all ranks.

        Args:
            text: This rank's.

        Returns:
            One per rank, in order.

        Raises:
            RankError: If a rank does not answer.
        """
        mine = text.encode()
        sizes = [torch.zeros((), dtype=torch.int64, device="cpu") for _ in range(self.size)]
        with self._talking():
            dist.all_gather(sizes, torch.tensor(len(mine), device="cpu"), group=self._words)
        longest = max(int(size) for size in sizes)
        if not longest:
            return [""] * self.size
        padded = torch.frombuffer(bytearray(mine.ljust(longest, b"\0")), dtype=torch.uint8)
        found = [torch.empty_like(padded) for _ in range(self.size)]
        with self._talking():
            dist.all_gather(found, padded, group=self._words)
        return [t.numpy().tobytes()[: int(size)].decode() for t, size in zip(found, sizes, strict=True)]

    def check_equal(self, value: Tensor, what: str) -> None:
        """Refuse to go on when a tensor is not the same on all ranks, bit for bit.

        Args:
            value: The tensor.
            what: What it is.

        Raises:
            RankError: If it differs; the first rank that does is named.
        """
        marks = self.texts(hashlib.sha256(value.detach().cpu().contiguous().numpy().tobytes()).hexdigest())
        other = next((rank for rank, mark in enumerate(marks) if mark != marks[0]), None)
        if other is not None:
            raise RankError(
                f"ranks 0 and {other} hold different {what}, as they may on machines with different processors; use "
                "machines of one kind"
            )

    def _first_ones(self, number: Tensor, group: dist.ProcessGroup | None) -> int:
        with self._talking():
            dist.broadcast(number, src=0, group=group)
        return int(number)

    @contextmanager
    def _talking(self) -> Iterator[None]:
        try:
            yield
        except RankError:  # of a signal
            raise
        except RuntimeError as error:  # of gloo or nccl
            self.ended = True
            reason = str(error).splitlines()[0].rpartition("] ")[2].split(". ")[0]
            raise RankError(f"rank {self.rank}: another rank was lost ({reason})", lost=True) from error


@contextmanager
def together(ranks: Ranks | None) -> Iterator[None]:
    """Run a block on every rank; if it fails on one, it fails on all.

    Args:
        ranks: The processes; ``None`` is one alone.

    Yields:
        Nothing.

    Raises:
        RankError: If another rank failed, with what it says.
    """
    failed: Exception | None = None
    try:
        yield
    except RankError:
        raise
    except Exception as error:
        if ranks is None:
            raise
        failed = error
    if ranks is None:
        return
    texts = ranks.texts("" if failed is None else str(failed) or type(failed).__name__)
    if failed is not None:
        raise failed
    for rank, text in enumerate(texts):
        if text:
            raise RankError(f"rank {rank}: {text}")


@contextmanager
def join() -> Iterator[Ranks]:
    """Join the processes that ``torchrun`` started, or those of the process group that exists already.

    Yields:
        The ranks.

    Raises:
        DataError: If this process was not started by ``torchrun``.
        RankError: If the other ranks do not answer.
    """
    mine = not dist.is_initialized()
    missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if mine and missing:
        raise DataError(
            f"a distributed fit needs ranks, but {missing[0]} is not set; start it by `torchrun --nproc-per-node 2 "
            "...`, or call torch.distributed.init_process_group before"
        )
    try:
        if mine:
            try:
                dist.init_process_group("gloo", timeout=_ONCE)
            except (RuntimeError, ValueError) as error:
                raise RankError(f"the ranks do not find each other: {error}", lost=True) from error
        ranks = Ranks()
        try:
            yield ranks
        finally:
            ranks.close()
    finally:
        if mine and dist.is_initialized():
            dist.destroy_process_group()


def check_pair(pair: Pair, *, buffers: bool) -> None:
    """Refuse a pair whose loss is not a sum over rows, which parts of a batch cannot be put together to.

    Args:
        pair: The pair.
        buffers: Whether a step writes buffers of modules.

    Raises:
        PairError: If its objective has several losses or is a Renyi bound, or a step writes buffers.
    """
    why = ""
    if not isinstance(pair.objective, Elbo):
        why = "its losses need not be sums over the rows of a batch"
    elif pair.objective.estimator == "renyi":
        why = "a Renyi bound is not a sum over the rows of a batch"
    elif buffers:
        why = "a step writes buffers of its modules (batch statistics), which depend on all rows of a batch"
    if why:
        raise PairError(f"this pair cannot be fitted by several ranks: {why}; fit it in one process")
