"""The verbs of each engine, in real processes."""

import subprocess
import textwrap
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from revkeras.distribute import engines
from revkeras.distribute.engines.local import LocalEngine
from revkeras.distribute.engines.tensorflow import TensorFlowEngine
from tests.distribute.workers import ROOT, needs_horovod, run_under_horovod, run_workers
from tests.warm import python

_VERBS = Path(__file__).with_name("verbs.py")
_ORDER = Path(__file__).with_name("order.py")


@pytest.mark.parametrize("workers", [2, 3, 4])
def test_tensorflow(workers):
    assert run_workers(_VERBS, workers) == 0


@needs_horovod
@pytest.mark.parametrize("workers", [2, 3, 4])
def test_horovod(workers):
    assert run_under_horovod(_VERBS, workers)[0] == 0


def test_collectives_keep_their_order_whenever_their_inputs_are_ready():
    """Without the order, two workers' collectives meet the wrong ones, and fail or hang."""
    assert run_workers(_ORDER, 2, seconds=40) == 0
    assert run_workers(_ORDER, 2, ["unordered"], seconds=40) != 0


def test_a_port_in_use_is_named():
    code = """
        import socket
        from revkeras.distribute.cluster import Cluster
        from revkeras.distribute.engines.tensorflow import _start_server
        with socket.create_server(("127.0.0.1", 0)) as other:
            address = f"127.0.0.1:{other.getsockname()[1]}"
            try:
                _start_server(Cluster("TF_CONFIG", 0, 2, (("worker", 0, address),), None))
            except RuntimeError as error:
                assert f"Worker 0 cannot listen on its address {address} (TF_CONFIG)" in str(error)
            else:
                raise AssertionError("no error")
    """
    subprocess.run([*python(), "-c", textwrap.dedent(code)], check=True, cwd=ROOT)


def test_a_runtime_that_runs_already_is_refused():
    code = """
        import tensorflow as tf
        from revkeras.distribute.cluster import Cluster
        from revkeras.distribute.engines.tensorflow import _start_server
        tf.constant(1)
        try:
            _start_server(Cluster("TF_CONFIG", 0, 2, (("worker", 0, "127.0.0.1:1"),), None))
        except RuntimeError as error:
            assert "Expected `ZeroStrategy(...)` before anything" in str(error)
        else:
            raise AssertionError("no error")
    """
    subprocess.run([*python(), "-c", textwrap.dedent(code)], check=True, cwd=ROOT)


def test_local_gives_back_what_it_is_given():
    engine, x = LocalEngine(), np.arange(4.0)
    for verb in engine.all_reduce, engine.reduce_scatter, engine.all_gather, engine.broadcast:
        assert verb(x) is x
    engine.barrier()
    engine.close()
    assert (engine.rank, engine.size, engine.bytes_sent()) == (0, 1, 0)


def test_choose(monkeypatch):
    monkeypatch.setattr(engines, "_chosen", None)
    with pytest.raises(ValueError, match="expected one of .* received engine='mpi'"):
        engines.choose("mpi")
    with pytest.raises(ValueError, match="'tensorflow' needs the addresses of all workers"):
        engines.choose("tensorflow")
    assert engines.choose().name == "local"
    assert engines.choose("auto") is engines.choose("local")
    with pytest.raises(ValueError, match="already communicates by 'local'"):
        engines.choose("tensorflow")


def test_each_worker_on_a_machine_takes_a_gpu_of_its_own(monkeypatch):
    from revkeras.distribute.engines import horovod

    taken, gpus = [], ["GPU:0", "GPU:1"]
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: gpus)
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda gpu, kind: taken.append(gpu))
    for local_rank in range(3):
        horovod._take_own_gpu(local_rank)
    assert taken == ["GPU:0", "GPU:1", "GPU:0"]
    gpus.pop()
    horovod._take_own_gpu(1)
    assert len(taken) == 3


@pytest.mark.parametrize(
    ("has_gpu", "dtype", "hint"),
    [(True, "float32", "nccl"), (True, "float16", "nccl"), (True, "int32", "auto")]
    + [(False, "float32", "auto")],
)
def test_tensorflow_is_asked_for_nccl_between_gpus(has_gpu, dtype, hint):
    engine = object.__new__(TensorFlowEngine)
    engine._has_gpu = has_gpu
    assert engine._hint(tf.as_dtype(dtype)) == hint
