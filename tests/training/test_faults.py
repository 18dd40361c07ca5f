"""What goes wrong in real runs: training goes on or stops with a clear error, and a network is all old or all new."""

import copy
import gc
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from networks import Net, assert_same_state, loader, rows, state, trainer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Dataset, TensorDataset, get_worker_info

from lightning_cvxsnn import ConvexReconstruction, reconstruct
from lightning_cvxsnn.runtime.memory import available_memory, check_memory, check_witness_memory, free_memory

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

HERE = Path(__file__).parent
ROWS, BATCH = 60, 16  # four batches, the last one short


def small(**kwargs):
    torch.manual_seed(1)
    return Net(width=8, **kwargs)


class Before(pl.Callback):
    """The network and its optimiser as the last solve finds them; comes before the callback, and sets the fault."""

    def __init__(self, fault=None):
        self.fault, self.solving = fault, False

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.is_last_batch:
            self.seen = everything(trainer, pl_module)
            self.solving = True
            if self.fault is not None:
                self.fault()


def everything(run, net):
    return copy.deepcopy((state(net), [o.state_dict() for o in run.optimizers], [p.grad for p in net.parameters()]))


def assert_same(left, right):
    torch.testing.assert_close(left, right, rtol=0, atol=0)


def last_solve(**kwargs):
    return ConvexReconstruction(beta=0.02, warm_start=False, every_n_epochs=0, apply="replace", **kwargs)


# -- exceptions ---------------------------------------------------------------------------------------------------


class Writes(TorchDispatchMode):
    """Fails at the k-th operation that changes a parameter in place, once it is armed."""

    def __init__(self, net, k):
        super().__init__()
        self.k, self.armed = k, False
        self.places = {p.untyped_storage().data_ptr() for p in net.parameters()}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if self.armed and func._schema.is_mutable and args[0].untyped_storage().data_ptr() in self.places:
            self.k -= 1
            if self.k < 0:
                self.armed = False
                raise OSError("no such bit")
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("apply", ["replace", "shadow"])
def test_an_exception_at_any_write_to_a_parameter_undoes_all_of_them(apply):
    """A dead network with Adam's history: the last solve repairs hidden weights and writes, or puts in, the readout."""
    k, failures = 0, 0
    while True:
        net = small(gain=0.05, lr=1e-4)
        writes = Writes(net, k)
        before = Before(lambda writes=writes: setattr(writes, "armed", True))
        callback = ConvexReconstruction(beta=0.02, warm_start=False, every_n_epochs=0, apply=apply)
        run = trainer(before, callback, max_epochs=1)
        with writes, warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            run.fit(net, loader(ROWS, BATCH))
        if callback.reports:
            break
        failures += 1
        assert any("leaves out the final solve" in str(w.message) and "OSError" in str(w.message) for w in told)
        assert before.seen[1][0]["state"]
        assert_same(everything(run, net), before.seen)
        k += 1
    assert failures >= 4
    assert callback.reports[0].accepted
    after, found = everything(run, net), before.seen
    assert not any(torch.equal(after[0][name], found[0][name]) for name in found[0])  # all new
    trained_on = [name for name, _ in net.named_parameters() if apply == "replace" or name.startswith("hidden")]
    remembered = {name for name, p in net.named_parameters() if p in run.optimizers[0].state}
    assert remembered == found[0].keys() - set(trained_on)


class AtTheStart(pl.Callback):
    """Sets the fault for the warm start alone; comes before the callback."""

    def __init__(self, writes):
        self.writes = writes

    def on_train_start(self, trainer, pl_module):
        self.writes.armed = True

    def on_train_epoch_start(self, trainer, pl_module):
        self.writes.armed = False


@pytest.mark.parametrize("witnesses", ["calibrated", "pairs"])
def test_an_exception_at_any_write_of_a_warm_start_undoes_all_of_them(witnesses):
    k = 0
    while True:
        net = small()
        before, writes = state(net), Writes(net, k)
        callback = ConvexReconstruction(beta=0.02, witnesses=witnesses, every_n_epochs=0, final_solve=False)
        try:
            with writes:
                trainer(AtTheStart(writes), callback, max_epochs=1, max_steps=1).fit(net, loader(ROWS, BATCH))
        except OSError:
            assert callback.reports == []
            assert_same_state(net, before)
            k += 1
        else:
            break
    assert k >= 4
    assert callback.reports[0].accepted


class Interrupted(Net):
    """A person presses Ctrl+C in the middle of a solve."""

    press = False

    def forward(self, x):
        if self.press and not self.training:
            signal.raise_signal(signal.SIGINT)
        return super().forward(x)


def test_a_keyboard_interrupt_in_a_solve_leaves_the_network_and_shuts_down_gracefully(tmp_path):
    torch.manual_seed(1)
    net, handler = Interrupted(width=8), signal.signal(signal.SIGINT, signal.default_int_handler)
    before = Before(lambda: setattr(net, "press", True))
    callback = ConvexReconstruction(beta=0.02, max_overhead=None)

    class Farewell(pl.Callback):
        def on_exception(self, trainer, pl_module, exception):
            seen.append(exception)

    seen = []
    run = trainer(before, callback, Farewell(), max_epochs=2)
    try:
        with pytest.raises(SystemExit):
            run.fit(net, loader(ROWS, BATCH))
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning ignores further ones while it shuts down
    assert run.interrupted
    assert [type(e) for e in seen] == [KeyboardInterrupt]
    assert len(callback.reports) == 1
    assert_same(everything(run, net), before.seen)
    net.press = False
    again = trainer(callback, max_epochs=1)
    again.fit(net, loader(ROWS, BATCH))
    assert callback.reports[-1].reason.startswith("final solve")


class Faulty(Dataset):
    """Digits-like rows; once ``flag`` exists, row 50 is broken as ``how`` says."""

    def __init__(self, flag, how):
        self.flag, self.how, self.rows = flag, how, rows(ROWS)

    def __len__(self):
        return ROWS

    def __getitem__(self, index):
        x, y = (t[index] for t in self.rows)
        if index == 50 and self.flag.exists():
            if self.how == "NaN":
                return x * float("nan"), y
            if self.how == "killed":
                assert get_worker_info() is not None
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError("the file is gone")
        return x, y


@pytest.mark.parametrize(
    ("how", "workers", "message"),
    [
        ("killed", 1, r"RuntimeError: DataLoader worker \(pid"),
        ("gone", 1, "OSError: (.|\n)*the file is gone"),
        ("gone", 0, "OSError: the file is gone"),
        ("NaN", 0, r"ValueError: .*inputs of training batch \d hold 6 NaN or infinite values"),
    ],
)
def test_rows_that_break_in_a_later_solve_leave_it_out_with_their_error(tmp_path, how, workers, message):
    flag, net = tmp_path / "broken", small()
    before, callback = Before(flag.touch), last_solve()
    run = trainer(before, callback, max_epochs=1)
    with pytest.warns(UserWarning, match="leaves out the final solve, and training goes on. " + message):
        run.fit(net, DataLoader(Faulty(flag, how), BATCH, num_workers=workers))
    assert_same(everything(run, net), before.seen)
    assert callback.reports == []
    gc.collect()
    assert multiprocessing.active_children() == []


# -- crash and resume ---------------------------------------------------------------------------------------------


class Resumable(DataLoader):
    """Shuffles every epoch by a seed of its own, and goes on in the middle of one."""

    def __init__(self):
        super().__init__(TensorDataset(*rows(ROWS)), batch_size=-(-ROWS // STEPS))
        self.epoch = self.position = 0

    def __iter__(self):
        if self.position == len(self):
            self.epoch, self.position = self.epoch + 1, 0
        order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(self.epoch)).split(self.batch_size)
        for batch in order[self.position :]:
            self.position += 1
            yield tuple(tensor[batch] for tensor in self.dataset.tensors)

    def state_dict(self):
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, saved):
        self.epoch, self.position = saved["epoch"], saved["position"]


class PowerCut(pl.Callback):
    def __init__(self, at):
        self.at, self.batches = at, 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.batches == self.at:
            raise RuntimeError("power cut")
        self.batches += 1


STEPS, EPOCHS = 4, 3


def to_the_end(folder, callbacks, crash=None):
    """The network at the end, after a crash before training batch ``crash`` and a resume from the last checkpoint."""
    if crash is not None:
        saves = ModelCheckpoint(dirpath=folder, filename="{step}", every_n_train_steps=1, save_top_k=1)
        with pytest.raises(RuntimeError, match="power cut"):
            run = trainer(*callbacks(), PowerCut(crash), saves, max_epochs=EPOCHS, checkpoint=True)
            run.fit(small(lr=0.005), Resumable())
    torch.manual_seed(5)
    net, callbacks = Net(width=8, lr=0.005) if crash else small(lr=0.005), callbacks()
    saved = saves.best_model_path if crash else None
    trainer(*callbacks, max_epochs=EPOCHS).fit(net, Resumable(), ckpt_path=saved, weights_only=True)
    return net, callbacks


def timeless(report):
    return {k: v for k, v in report.state().items() if not k.startswith("seconds")}


@pytest.mark.parametrize("convex", [False, True], ids=["control", "callback"])
def test_a_crash_at_any_step_changes_nothing(tmp_path, convex):
    """Resumed from a checkpoint of the step before, in the middle of epochs and at their ends."""

    def callbacks():
        return [ConvexReconstruction(beta=0.05, max_overhead=None)] if convex else []

    whole, ours = to_the_end(tmp_path, callbacks)
    for crash in range(1, STEPS * EPOCHS):  # at STEPS the checkpoint before it holds the solve at the end of an epoch
        resumed, theirs = to_the_end(tmp_path / str(crash), callbacks, crash)
        assert_same_state(resumed, state(whole))
        for callback, other in zip(ours, theirs, strict=True):
            assert [timeless(r) for r in callback.reports] == [timeless(r) for r in other.reports]
    if convex:
        assert len(ours[0].reports) == EPOCHS + 1
        assert sum(report.accepted for report in ours[0].reports) >= 2


# -- memory and what is left behind -------------------------------------------------------------------------------


class Census(pl.Callback):
    """Counts what a solve might leave behind, after the 10th, 30th and 49th epoch."""

    def __init__(self):
        self.counts, self.resident = [], []

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch in (9, 29, 48):  # with a shadow each; the last epoch need not leave one
            gc.collect()
            kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks")
            hooks = sum(len(getattr(m, kind)) for m in pl_module.modules() for kind in kinds)
            tensors = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
            files = len(os.listdir("/proc/self/fd"))
            self.counts.append((hooks, threading.active_count(), files, tensors))
            self.resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize())


def test_fifty_solves_leave_nothing_behind():
    torch.manual_seed(1)
    census, callback = Census(), ConvexReconstruction(beta=0.5, max_overhead=None)
    trainer(callback, census, max_epochs=50).fit(Net(width=100), loader(ROWS, 30))
    assert len(callback.reports) == 51
    first, *later = census.counts
    assert first[0] == 0
    assert all(counts == first for counts in later)  # hooks, threads, open files, tensors
    assert census.resident[2] - census.resident[0] < 8 * 2**20


def test_too_much_is_refused_with_both_figures_and_the_remedy(monkeypatch):
    """At the bound itself nothing is refused; ``max_samples`` as told fits."""
    monkeypatch.setattr("lightning_cvxsnn.runtime.memory.available_memory", lambda: 200_000)
    net = Net()
    before = state(net)
    with pytest.raises(
        MisconfigurationException,
        match=r"240 rows x 24 units needs about .* MiB of memory .* and 0.2 MiB are available. Use fewer rows, such as "
        r"max_samples=(\d+)",
    ) as error:
        reconstruct(net, loader(), beta=0.02)
    assert_same_state(net, before)
    fitting = int(str(error.value).split("max_samples=")[1].split(";")[0])
    assert 20 < fitting < 240
    assert reconstruct(net, loader(), beta=0.02, max_samples=fitting).rows in (fitting, fitting - fitting // 5)
    with pytest.raises(MisconfigurationException, match="GiB of memory"):
        check_memory(10**6, 4000, 10, 1, 1)
    monkeypatch.setattr("lightning_cvxsnn.runtime.memory.available_memory", lambda: None)  # an unknown system
    check_memory(10**9, 4000, 10, 1, 1)


def test_a_search_for_witnesses_that_does_not_fit_is_refused(monkeypatch):
    """On a GPU its own memory counts, what torch holds there unused included; elsewhere the host's."""
    held = {"memory_reserved": 500_000, "memory_allocated": 300_000}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (700_000, 10**9))
    for name, count in held.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, count=count: count)
    monkeypatch.setattr("lightning_cvxsnn.runtime.memory.available_memory", lambda: 40_000)
    assert free_memory(torch.device("cuda", 1)) == 900_000
    assert free_memory(torch.device("cpu")) == 40_000
    inputs = torch.zeros(4, 16, 6)
    fitting = 40_000 // (2 * 4 * 6 * 4)
    check_witness_memory(inputs, fitting)
    with pytest.raises(
        MisconfigurationException,
        match=rf"{fitting + 1} samples x 4 steps x 6 features, which takes about 0.0 MiB of memory, and 0.0 MiB are "
        rf"available on 'cpu'. Use fewer rows, such as max_samples={fitting}, or witnesses='calibrated'",
    ):
        check_witness_memory(inputs, fitting + 1)
    monkeypatch.setattr("lightning_cvxsnn.runtime.memory.available_memory", lambda: None)  # an unknown system
    check_witness_memory(inputs, 10**9)


def test_a_network_whose_search_for_witnesses_does_not_fit_is_left_alone(monkeypatch):
    monkeypatch.setattr("lightning_cvxsnn.runtime.memory.free_memory", lambda device: 30_000)
    net = Net()
    before = state(net)
    with pytest.raises(
        MisconfigurationException, match=r"240 samples x 4 steps x 6 features.*max_samples=156"
    ) as error:
        reconstruct(net, loader(), beta=0.02, witnesses="pairs")
    assert_same_state(net, before)
    fitting = int(str(error.value).split("max_samples=")[1].split(",")[0])
    assert reconstruct(net, loader(), beta=0.02, witnesses="pairs", max_samples=fitting).accepted


def test_the_available_memory_is_the_least_of_all_limits(tmp_path):
    def write(name, text):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    assert available_memory(tmp_path) is None
    write("proc/meminfo", "MemTotal: 9000 kB\nMemAvailable: 8000 kB\n")
    assert available_memory(tmp_path) == 8000 * 1024
    write("proc/self/cgroup", "0::/user/job\n")
    write("sys/fs/cgroup/user/job/memory.max", "max\n")
    write("sys/fs/cgroup/user/memory.max", "5000000\n")
    write("sys/fs/cgroup/user/memory.current", "3000000\n")
    write("sys/fs/cgroup/user/memory.stat", "anon 7\ninactive_file 500000\n")
    assert available_memory(tmp_path) == 2_500_000
    write("proc/self/cgroup", "5:cpu:/\n4:memory,cpuset:/box\n0::/\n")
    write("sys/fs/cgroup/memory/memory.limit_in_bytes", "4000000\n")  # the container sees its own group as the root
    write("sys/fs/cgroup/memory/memory.usage_in_bytes", "3000000\n")
    assert available_memory(tmp_path) == 1_000_000
    assert 0 < available_memory() < 2**60


LIMITED = """
import resource, sys, warnings
sys.path[:0] = sys.argv[1:3]
warnings.simplefilter("ignore")
import torch
from networks import Net, assert_same_state, loader, state, trainer
from lightning_cvxsnn import ConvexReconstruction

def limit(extra):  # above what is taken now; None: no limit
    pages = int(open("/proc/self/statm").read().split()[0])
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    taken = pages * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (hard if extra is None else taken + extra, hard))

class Tightening(Net):
    passes, late = 0, 6
    def forward(self, x):
        self.passes += not self.training
        if self.passes == self.late:  # the capture is under way, its estimate was accepted
            limit(2**20)
            torch.empty(2**28)  # a GiB
        return super().forward(x)

def solve(net, rows, **arguments):
    before = state(net)
    callback = ConvexReconstruction(beta=0.5, witnesses="keep", every_n_epochs=0, final_solve=False, **arguments)
    try:
        trainer(callback, max_epochs=1, max_steps=1).fit(net, loader(rows, 200))
    except Exception as error:
        limit(None)
        assert_same_state(net, before)
        print(type(error).__name__, error)
    else:
        limit(None)
        print("solved", callback.reports[0].rows in (100, 80))

net = Net()
limit(150 * 2**20)
solve(net, 200_000)
solve(net, 200_000, max_samples=100)
net = Tightening()
solve(net, 1000)
net.late = None
solve(net, 1000, max_samples=100)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="address-space limits as Linux has them")
def test_an_address_space_limit():
    """Too much is refused before capture; a limit that tightens in the middle ends in an error and the old network."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(HERE.parents[1]), str(HERE.parent)],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    early, first, *late, second = done.stdout.splitlines()
    assert re.match(
        r"MisconfigurationException The convex programme of 200000 rows x 24 units needs about .* and \d+.\d MiB are "
        r"available. Use fewer rows, such as max_samples=\d+; nothing was written",
        early,
    )
    assert re.match(r"(MemoryError|RuntimeError) .*(alloc|memory)", late[0])
    assert first == second == "solved True"
