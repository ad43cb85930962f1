"""Run in every worker: each verb of the engine against the same in NumPy."""

import numpy as np
import tensorflow as tf

from revkeras.distribute import engines

engine = engines.choose()
rank, size = engine.rank, engine.size
DTYPES = ("float32", "float16", "bfloat16", "float64", "int32", "int64", "uint8")
if size > 2:  # dtypes are passed on as they are, between however many workers
    DTYPES = ("float32", "bfloat16", "int32")


def equal(actual, expected, *what):
    actual = tf.cast(actual, tf.float64).numpy()
    np.testing.assert_array_equal(actual, expected, err_msg=f"{what} on rank {rank}")


def verbs(dtype):
    x = tf.cast(tf.range(size * 3) % 2 + rank, dtype)
    return {
        "sum": engine.all_reduce(x),
        "max": engine.all_reduce(x, "max"),
        "min": engine.all_reduce(tf.cast(rank + 1, dtype), "min"),
        "mean": engine.all_reduce(tf.reshape(x, [size, 3]) * size, "mean"),
        "reduce_scatter": engine.reduce_scatter(x),
        "all_gather": engine.all_gather(x),
        "broadcast": engine.broadcast(tf.reshape(x, [3, size]), root=size - 1),
    }


def expected_verbs():
    base = np.arange(size * 3) % 2
    every = np.stack([base + each for each in range(size)])
    return {
        "sum": every.sum(0),
        "max": every.max(0),
        "min": 1,
        "mean": every.sum(0).reshape(size, 3),
        "reduce_scatter": every.sum(0)[rank * 3 : rank * 3 + 3],
        "all_gather": every.ravel(),
        "broadcast": every[-1].reshape(3, size),
    }


def check_verbs():
    @tf.function
    def all_dtypes():
        return {dtype: verbs(dtype) for dtype in DTYPES}

    for results in {dtype: verbs(dtype) for dtype in DTYPES}, all_dtypes(), all_dtypes():
        for dtype, by_verb in results.items():
            for verb, expected in expected_verbs().items():
                assert by_verb[verb].dtype == dtype
                equal(by_verb[verb], expected, verb, dtype)


def check_exact_copies():
    """A gather copies bits: those of a bfloat16 NaN with a payload, too."""
    bits = tf.constant([0x7FC1, 0x8000, 0x0001], tf.uint16)
    gathered = tf.bitcast(engine.all_gather(tf.bitcast(bits, tf.bfloat16)), tf.uint16)
    equal(gathered, np.tile(bits.numpy(), size), "bits")


def check_shapes_known_at_run_time():
    @tf.function(input_signature=[tf.TensorSpec([None])])
    def total(x):
        return engine.all_reduce(x)

    for length in 3, 5, 3, 0, 1:
        equal(engine.all_reduce(tf.ones([length])), np.full(length, size), "eager", length)
        if length:
            equal(total(tf.ones([length])), np.full(length, size), "graph", length)
    equal(engine.all_gather(tf.ones([0])), np.ones(0), "nothing")


def check_one_worker_traces_more_than_others():
    @tf.function
    def total(x, _):
        return engine.all_reduce(x)

    for step in range(3):
        equal(total(tf.ones([4]), step if rank else 0), np.full(4, size), "retraced")


def check_control_flow():
    @tf.function
    def loop(x):
        for step in tf.range(3):
            x = engine.all_reduce(x, "max")
            x = x + engine.all_reduce(x) if step < 2 else x
        return engine.all_gather(x)

    equal(loop(tf.ones([2])), np.full(2 * size, (1.0 + size) ** 2), "loop")


def check_what_one_worker_could_do_without():
    """A graph's optimizer sees one worker: it folds what is constant, drops what nobody reads."""
    idle = rank == size - 1

    @tf.function
    def step(x):
        own = engine.reduce_scatter(x)
        if idle:
            own = tf.zeros([2])
        return engine.all_gather(own), engine.all_reduce(tf.zeros([3]) if idle else x[:3])

    for _ in range(2):
        gathered, total = step(tf.ones([2 * size]))
        equal(gathered, np.repeat([size] * (size - 1) + [0], 2), "gathered")
        equal(total, np.full(3, size - 1), "total")


def check_bytes_sent():
    """As many as the best algorithm has to send, and counted where a collective runs."""
    share = (size - 1) / size
    for verb, times in (engine.all_reduce, 2), (engine.reduce_scatter, 1), (engine.broadcast, 1):
        before = engine.bytes_sent()
        function = tf.function(verb)
        function(tf.zeros([size * 5]))
        function(tf.zeros([size * 5]))
        assert engine.bytes_sent() - before == 2 * times * share * size * 20
    before = engine.bytes_sent()
    engine.all_gather(tf.zeros([5], tf.float16))
    assert engine.bytes_sent() - before == share * size * 10


for check in (
    check_verbs,
    check_exact_copies,
    check_shapes_known_at_run_time,
    check_one_worker_traces_more_than_others,
    check_control_flow,
    check_what_one_worker_could_do_without,
    check_bytes_sent,
):
    check()
engine.barrier()
engine.close()
