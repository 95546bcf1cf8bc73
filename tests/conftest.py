"""Tests run on the CPU with eight virtual devices, so that sharding is exercised wherever they run."""

import ctypes
import gc
import os
import shutil
import tempfile

import hypothesis
import pytest

hypothesis.settings.register_profile("suite", derandomize=True, deadline=None)
hypothesis.settings.load_profile("suite")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling is most of the suite's time, so XLA optimises little, and compiles the loops of a program as one module: of
# its own for each of a thousand, they take 2.5 times as long. Flags given from outside come last and win.
FLAGS = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
)
os.environ["XLA_FLAGS"] = " ".join((*FLAGS, os.environ.get("XLA_FLAGS", "")))
# The workers of one run share a folder. In it big programs are kept, compiled once for all of them and for the commands
# that tests run.
FIRST_PROCESS = "AGEMEM_TEST_FOLDER" not in os.environ
if FIRST_PROCESS:
    os.environ["AGEMEM_TEST_FOLDER"] = tempfile.mkdtemp(prefix="agemem-test-")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.environ["AGEMEM_TEST_FOLDER"] + "/compiled")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1")


def pytest_unconfigure():
    if FIRST_PROCESS:
        shutil.rmtree(os.environ["AGEMEM_TEST_FOLDER"], ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def memory_given_back():
    """Compiled programs are dropped after each file, and what compiling used goes back to the system."""
    yield
    import jax

    jax.clear_caches()
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
