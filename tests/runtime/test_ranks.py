"""Two real processes in step: the same values and bits on both, and no rank that waits for ever.

All cases run in one pair of processes, one after another, so every case also shows that the ranks are still in step
after the failures before it.
"""

import os
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from lightning_cvxsnn.patterns import SpikeDictionary
from lightning_cvxsnn.runtime.ranks import Ranks, checksum

TIMEOUT = 240  # seconds for both processes, imports included
NAMES = [torch.bool, torch.uint8, torch.uint16, torch.int64, torch.float16, torch.float32, torch.float64]


class _Unpicklable:
    def __reduce__(self) -> Any:
        raise RuntimeError("this value cannot travel")


def _values(rank: int) -> dict[str, Any]:
    """What one rank holds: tensors of every type, empty and strided ones, and an object with tensors inside."""
    generator = torch.Generator().manual_seed(rank)
    numbers = torch.randint(0, 2, (3 + rank, 4), generator=generator)
    return {
        **{str(dtype): numbers.to(dtype) for dtype in NAMES},
        "nan": torch.tensor([float("nan"), -0.0, float("inf")]) * (rank + 1),
        "empty": torch.zeros(0, 4),
        "strided": torch.arange(12.0).reshape(3, 4).T + rank,
        "scalar": torch.tensor(rank),
        "dictionary": SpikeDictionary.from_values(numbers.double(), 0.25).packed(),
        "plain": ("text", rank, None),
    }


FAILURES: dict[str, tuple[int, BaseException, str]] = {  # the rank at fault, its error, and what the other one raises
    "value": (1, ValueError("negative entry"), "ValueError"),
    "type": (0, TypeError("a list"), "TypeError"),
    "import": (1, ImportError("no cvxpy"), "ImportError"),
    "memory": (0, MemoryError("no room"), "RuntimeError"),
    "arithmetic": (1, FloatingPointError("the solver broke"), "RuntimeError"),
    "interrupt": (0, KeyboardInterrupt(), "RuntimeError"),
}
MEETINGS = ["exchange", "broadcast", "collect"]


def _meet(ranks: Ranks, meeting: str) -> Any:
    """Where the rank that did not fail hears of the other one."""
    if meeting == "exchange":
        return ranks.exchange(ranks.rank)
    if meeting == "broadcast":
        return ranks.broadcast(torch.full((3,), float(ranks.rank)))
    return ranks.collect(torch.full((3,), float(ranks.rank)), torch.device("cpu"))


def _failure(rank: int, meeting: str, at_fault: int, error: BaseException) -> tuple[str, str, float]:
    started = time.perf_counter()
    try:
        with Ranks() as ranks:
            if rank == at_fault:
                raise error
            _meet(ranks, meeting)
    except BaseException as raised:
        return type(raised).__name__, str(raised), time.perf_counter() - started
    return "nothing", "", time.perf_counter() - started


def _process(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timedelta(seconds=TIMEOUT)
    )
    results: dict[str, Any] = {"alone": (Ranks(alone=True).size, Ranks(alone=True).exchange(rank))}
    with Ranks() as ranks:
        results["exchange"] = ranks.exchange((rank, "x" * rank))
        results["collect"] = ranks.collect(_values(rank), torch.device("cpu"))
        results["broadcast"] = {
            name: ranks.broadcast(value if rank == 0 else torch.zeros_like(_values(0)[name]))
            for name, value in _values(0).items()
            if isinstance(value, torch.Tensor)
        }
    results["failures"] = {
        f"{name} before {meeting}": _failure(rank, meeting, at_fault, error)
        for name, (at_fault, error, _) in FAILURES.items()
        for meeting in MEETINGS
    }
    results["unpicklable"] = "nothing", "", 0.0
    started = time.perf_counter()
    try:
        with Ranks() as ranks:
            ranks.collect(_Unpicklable() if rank else 0, torch.device("cpu"))
    except RuntimeError as error:
        results["unpicklable"] = type(error).__name__, str(error), time.perf_counter() - started
    with Ranks() as ranks:
        results["afterwards"] = ranks.exchange(rank)
    torch.save(results, folder / f"{rank}.pt")
    dist.barrier()
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    started = time.perf_counter()
    with pytest.raises(Exception, match=r"peer|reset|closed"), Ranks() as ranks:
        ranks.exchange(rank)
    (folder / "survivor").write_text(str(time.perf_counter() - started))
    os._exit(0)  # gloo's threads, whose peer is dead, now and then abort what exits in order


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes saw."""
    folder = tmp_path_factory.mktemp("ranks")
    context = torch.multiprocessing.get_context("spawn")
    processes = [context.Process(target=_process, args=(rank, folder)) for rank in range(2)]
    deadline = time.monotonic() + TIMEOUT
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(max(deadline - time.monotonic(), 0))
        assert [process.exitcode for process in processes] == [0, -signal.SIGKILL]
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)] + [
        {"seconds": float((folder / "survivor").read_text())}
    ]


def test_plain_values_are_told_to_all(outcomes: list[dict[str, Any]]) -> None:
    for rank in range(2):
        assert outcomes[rank]["exchange"] == [(0, ""), (1, "x")]
        assert outcomes[rank]["alone"] == (1, [rank])


def test_rank_0_collects_the_bits_of_all(outcomes: list[dict[str, Any]]) -> None:
    assert outcomes[1]["collect"] is None
    for rank, found in enumerate(outcomes[0]["collect"]):
        for name, expected in _values(rank).items():
            if isinstance(expected, torch.Tensor):
                assert checksum(found[name]) == checksum(expected), name
        assert found["plain"] == ("text", rank, None)
        dictionary = _values(rank)["dictionary"]
        assert checksum(found["dictionary"].counts) == checksum(dictionary.counts)
        assert (found["dictionary"].scale, found["dictionary"].shape) == (dictionary.scale, dictionary.shape)


def test_all_get_the_bits_of_rank_0(outcomes: list[dict[str, Any]]) -> None:
    for rank in range(2):
        for name, found in outcomes[rank]["broadcast"].items():
            assert checksum(found) == checksum(_values(0)[name]), name


@pytest.mark.parametrize("meeting", MEETINGS)
@pytest.mark.parametrize("name", list(FAILURES))
def test_a_failure_on_one_rank_is_raised_on_both_within_seconds(
    outcomes: list[dict[str, Any]], name: str, meeting: str
) -> None:
    at_fault, error, others = FAILURES[name]
    own = type(error).__name__
    for rank in range(2):
        kind, text, seconds = outcomes[rank]["failures"][f"{name} before {meeting}"]
        assert kind == (own if rank == at_fault else others)
        assert str(error) in text
        assert text.startswith(f"Rank {at_fault} failed with {own}: ") == (rank != at_fault)
        assert seconds < 5


def test_what_cannot_travel_is_refused_on_both(outcomes: list[dict[str, Any]]) -> None:
    for rank in range(2):
        kind, text, seconds = outcomes[rank]["unpicklable"]
        assert (kind, "cannot travel" in text) == ("RuntimeError", True)
        assert seconds < 5


def test_the_ranks_are_in_step_after_every_failure(outcomes: list[dict[str, Any]]) -> None:
    assert outcomes[0]["afterwards"] == outcomes[1]["afterwards"] == [0, 1]


def test_a_rank_that_is_killed_does_not_hang_the_other(outcomes: list[dict[str, Any]]) -> None:
    assert outcomes[2]["seconds"] < 60


def test_a_checksum_tells_bits_types_and_shapes_apart() -> None:
    one = torch.tensor([0.0, 1.0])
    different = [one, -one, one.double(), one[None], torch.tensor([0.0, 1.0 + 1e-7])]
    assert len({checksum(tensor) for tensor in different}) == len(different)
    assert checksum(one, one) == checksum(one.clone(), one.clone())
