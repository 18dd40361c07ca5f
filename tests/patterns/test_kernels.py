"""The kernels: compiled for GPUs without one, run on the CPU thread by thread, and on a GPU where there is one."""

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from neurons import cases, spikes_of, ties

from lightning_cvxsnn.network.neurons import neuron_of
from lightning_cvxsnn.patterns import Neuron, kernels, resolve_backend, spike_patterns

FOLDER = Path(__file__).parent
FOLDER_OF_KERNELS = Path(kernels.__file__).parent
KINDS = ["last", "membrane", "mean", "sum"]
no_gpu = None if torch.cuda.is_available() else "torch finds no CUDA device"
gpu = [pytest.mark.gpu, pytest.mark.skipif(no_gpu is not None, reason=no_gpu or "")]
thorough = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    """`kernels.launch` on the CPU: kernels.cu compiled by g++."""
    if shutil.which("g++") is None:
        pytest.fail("g++ is not installed; it compiles the kernels for this test (Debian and Ubuntu: apt install g++).")
    path = tmp_path_factory.mktemp("twin") / "kernels.so"
    options = ["-std=c++17", "-O2", "-ffp-contract=off", "-fPIC", "-shared", "-Wall", "-Wno-unknown-pragmas"]
    command = ["g++", *options, "-Werror", f"-I{FOLDER_OF_KERNELS}", FOLDER / "cuda_on_cpu.cpp", "-o", path]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    library = ctypes.CDLL(str(path))

    def launch(name, blocks, threads, arguments):
        values = []
        for value in arguments:
            if isinstance(value, torch.Tensor):
                assert value.is_contiguous()
                values.append(ctypes.c_void_p(value.data_ptr()))
            else:
                values.append(ctypes.c_longlong(value))
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        code = library.launch(name.encode(), *blocks, *threads, pointers)
        assert code == 0, {1: f"no kernel {name}", 2: "threads left a warp before its ballot"}[code]

    return launch


@pytest.fixture(params=[pytest.param("cpu", id="g++"), pytest.param("cuda", marks=gpu, id="cupy")])
def device(request, monkeypatch):
    """A device on which the kernels run, in place of torch."""
    if request.param == "cpu":
        monkeypatch.setattr(kernels, "launch", request.getfixturevalue("twin"))
        monkeypatch.setattr(kernels, "resolve_backend", lambda backend, _: "torch" if backend == "torch" else "cupy")
    else:
        pytest.importorskip("cupy", reason="CuPy is not installed")
    return request.param


def on_a_grid_of_one_row(launch):
    """`kernels.launch` as for more rows than a grid has: every thread strides over the rows."""
    return lambda name, blocks, threads, arguments: launch(name, (blocks[0], 1), threads, arguments)


@thorough
@given(case=cases(), kind=st.sampled_from(KINDS), strided=st.booleans())
def test_patterns_are_torchs_and_spikingjellys_bit_for_bit(device, case, kind, strided):
    module, currents = case
    described = neuron_of(module)
    with pytest.MonkeyPatch.context() as patch:
        if strided:
            patch.setattr(kernels, "launch", on_a_grid_of_one_row(kernels.launch))
        found = spike_patterns(described, currents.to(device), kind, backend="cupy")
    expected = spike_patterns(described, currents, kind, backend="torch")
    assert found.counts.device.type == device
    assert found.counts.dtype == expected.counts.dtype
    assert torch.equal(found.counts.cpu(), expected.counts)  # the same bytes, padding included
    assert (found.scale, found.packed_columns) == (expected.scale, expected.packed_columns)
    if kind != "membrane":
        spikes = spikes_of(module, currents)
        of_module = spikes[-1] if kind == "last" else spikes.sum(0)
        assert torch.equal(found.to_dense().cpu(), of_module.double() * expected.scale)


def test_ties_of_rounded_voltages_fire_as_in_torch(device):
    for module, currents in ties():
        described = neuron_of(module)
        found = spike_patterns(described, currents.to(device), "sum", backend="cupy")
        assert torch.equal(found.counts.cpu(), spike_patterns(described, currents, "sum", backend="torch").counts)


def test_patterns_of_many_steps_and_of_strided_currents(device):
    currents = torch.randn(300, 40, 3).transpose(1, 2).requires_grad_()
    for kind in KINDS:
        found = spike_patterns(Neuron(tau=2.0), currents.to(device), kind, backend="cupy")
        expected = spike_patterns(Neuron(tau=2.0), currents, kind, backend="torch")
        assert torch.equal(found.to_dense().cpu(), expected.to_dense())


def test_the_columns_of_patterns_on_a_device_are_told_apart(device):
    currents = torch.randn(3, 50, 20)[:, :, torch.randint(20, (100,))]
    for kind in ("last", "sum"):
        on_device = spike_patterns(Neuron(tau=2.0), currents.to(device), kind, backend="cupy")
        expected = spike_patterns(Neuron(tau=2.0), currents, kind, backend="torch").distinct_columns()
        found = on_device.distinct_columns()
        assert found.dictionary.counts.device.type == device
        assert torch.equal(found.dictionary.to_dense().cpu(), expected.dictionary.to_dense())
        assert torch.equal(found.owner.cpu(), expected.owner)


# ---- Compilation, by the library that CuPy compiles with.


def nvrtc():
    site = Path(torch.__file__).parents[1]
    found = sorted([*site.glob("nvidia/**/libnvrtc.so.*"), *site.glob("torch/lib/libnvrtc*.so*")])
    if not found:
        pytest.fail(
            f"No libnvrtc in {site}; it compiles the kernels for this test. It comes with torch's CUDA wheels, as "
            "nvidia-cuda-nvrtc; with a CPU build of torch, pip install that package."
        )
    return ctypes.CDLL(str(found[0]))


def compile_kernels(architecture):
    """What NVRTC makes of the kernels: a cubin for ``sm_*``, PTX for ``compute_*``."""
    library = nvrtc()
    program = ctypes.c_void_p()
    code = kernels.source().encode()
    assert library.nvrtcCreateProgram(ctypes.byref(program), code, b"kernels.cu", 0, None, None) == 0
    options = [option.encode() for option in (*kernels.OPTIONS, f"--gpu-architecture={architecture}")]
    result = library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))

    def read(what):
        size = ctypes.c_size_t()
        assert getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)) == 0
        text = ctypes.create_string_buffer(size.value)
        assert getattr(library, f"nvrtcGet{what}")(program, text) == 0
        return text.raw

    assert result == 0, read("ProgramLog").decode()
    return read("CUBIN" if architecture.startswith("sm") else "PTX")


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_120"])
def test_the_kernels_compile(architecture):
    binary = compile_kernels(architecture)
    assert binary.startswith(b"\x7fELF")
    for name in ("spike_bits", "spike_counts_uint8", "spike_counts_uint16"):
        assert f".text.{name}".encode() in binary


def test_every_float_operation_of_a_neuron_is_rounded_once_as_in_torch():
    entries = compile_kernels("compute_90").decode().rstrip("\0").split(".entry ")[1:]
    neurons = [entry for entry in entries if entry.startswith("spike_")]
    assert len(neurons) == 3
    for entry in neurons:
        operations = set(re.findall(r"\b((?:add|sub|mul|div|fma|mad|rcp)\.[\w.]*f32)\b", entry))
        assert operations == {"add.rn.f32", "sub.rn.f32", "mul.rn.f32", "div.rn.f32"}


# ---- The choice of a backend.


def test_torch_is_the_backend_without_a_gpu():
    assert resolve_backend("auto", "cpu") == resolve_backend("torch", torch.device("cpu")) == "torch"


def test_cupy_without_a_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: name)
    with pytest.raises(ValueError, match=r"CUDA device and found them on 'cpu'.*cuda12 or cuda13"):
        resolve_backend("cupy", "cpu")
    assert resolve_backend("auto", "cuda:1") == "cupy"


def test_cupy_that_is_not_installed_names_the_extra(monkeypatch):
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install '\.\[cuda1\d\]'"):
        spike_patterns(Neuron(), torch.zeros(1, 1, 1), "last", backend="cupy")
    assert resolve_backend("auto", "cuda") == "torch"


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="backend='numba'"):
        resolve_backend("numba", "cpu")
