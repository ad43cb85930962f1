"""What is read of DeepSpeed's configuration files, and that the rest is listed."""

import json

import keras
import numpy as np
import pytest

from revkeras.distribute import ZeroStrategy, deepspeed

# As in DeepSpeed's documentation and tutorials.
_CONFIG = {
    "train_batch_size": 128,
    "train_micro_batch_size_per_gpu": 8,
    "gradient_accumulation_steps": 4,
    "gradient_clipping": 1.0,
    "steps_per_print": 2000,
    "bf16": {"enabled": True},
    "fp16": {"enabled": False, "loss_scale": 0},
    "optimizer": {"type": "AdamW", "params": {"lr": 3e-5}},
    "zero_optimization": {
        "stage": 3,
        "overlap_comm": True,
        "reduce_bucket_size": 1e6,
        "stage3_param_persistence_threshold": 1e4,
        "offload_optimizer": {"device": "cpu", "pin_memory": True},
        "offload_param": {"device": "none"},
        "stage3_prefetch_bucket_size": "auto",
    },
}


def test_what_is_read_and_what_is_not(tmp_path):
    file = tmp_path / "ds_config.json"
    file.write_text(json.dumps(_CONFIG))
    assert deepspeed.read(file, workers=4) == deepspeed.Settings(
        stage=3,
        bucket_bytes=4_000_000,
        shard_bytes=40_000,
        offload="host",
        global_clipnorm=1.0,
        gradient_accumulation_steps=4,
        micro_batch_size=8,
        dtype_policy="mixed_bfloat16",
        unsupported=(
            "fp16.loss_scale",
            "optimizer.params.lr",
            "optimizer.type",
            "steps_per_print",
            "zero_optimization.offload_optimizer.pin_memory",
            "zero_optimization.overlap_comm",
        ),
    )


def _zero(**section):
    return {"zero_optimization": {"stage": 2, **section}}


@pytest.mark.parametrize(
    ("config", "unsupported"),
    [
        (_zero(reduce_bucket_size=8, allgather_bucket_size=8), ()),
        (_zero(reduce_bucket_size=8, allgather_bucket_size=9), ("allgather_bucket_size",)),
        (_zero(offload_optimizer={"device": "nvme"}), ("offload_optimizer.device",)),
        (_zero(offload_param={"device": "cpu"}), ("offload_param.device",)),
    ],
)
def test_values_without_a_counterpart_are_listed(config, unsupported):
    names = tuple(f"zero_optimization.{name}" for name in unsupported)
    assert deepspeed.read(config, 2).unsupported == names


def test_no_parameters_stay_whole():
    settings = deepspeed.read(_zero(stage=3, stage3_param_persistence_threshold=0), 2)
    assert ZeroStrategy(3, shard_bytes=settings.shard_bytes).shard_bytes == 1


@pytest.mark.parametrize(
    ("sizes", "steps", "micro"),
    [
        ({}, None, None),
        ({"train_batch_size": 32}, None, 8),
        ({"train_batch_size": 32, "gradient_accumulation_steps": 2}, 2, 4),
        ({"train_batch_size": 32, "train_micro_batch_size_per_gpu": 2}, 4, 2),
        ({"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 3}, 3, 2),
        ({"train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto"}, None, None),
    ],
)
def test_two_batch_sizes_give_the_third(sizes, steps, micro):
    settings = deepspeed.read({**_zero(), **sizes}, workers=4)
    assert (settings.gradient_accumulation_steps, settings.micro_batch_size) == (steps, micro)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "zero_optimization.stage to be 1, 2 or 3, received 0"),
        ([1], r"a JSON object of DeepSpeed's keys, received \[1\]"),
        ({**_zero(), "train_batch_size": 30}, "received 30 where these are 7, 1 and 4"),
        ({**_zero(), "bf16": {"enabled": True}, "fp16": {"enabled": True}}, "received both"),
    ],
)
def test_what_is_wrong(config, message, tmp_path):
    file = tmp_path / "ds_config.json"
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        deepspeed.read(file, workers=4)


def test_files_that_are_none(tmp_path):
    with pytest.raises(ValueError, match="path of a DeepSpeed configuration.*No such file"):
        deepspeed.read(tmp_path / "none.json", 1)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match="path of a DeepSpeed configuration.*line 1"):
        deepspeed.read(tmp_path / "broken.json", 1)


def test_an_optimizer_takes_on_clipping_and_accumulation():
    settings = deepspeed.Settings(global_clipnorm=2.0, gradient_accumulation_steps=4)
    optimizer = settings.applied_to(keras.optimizers.SGD())
    assert (optimizer.global_clipnorm, optimizer.gradient_accumulation_steps) == (2.0, 4)
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())
    assert settings.applied_to(scaled).inner_optimizer.global_clipnorm == 2.0
    with pytest.raises(ValueError, match="says global_clipnorm=2.0, .* has global_clipnorm=1.0"):
        settings.applied_to(keras.optimizers.SGD(global_clipnorm=1.0))


def test_a_strategy_does_what_the_configuration_says():
    config = {**_CONFIG, "train_batch_size": 32}
    with pytest.warns(UserWarning, match="no effect: fp16.loss_scale, .* steps_per_print, "):
        strategy = ZeroStrategy.from_deepspeed(config)
    assert (strategy.stage, strategy.bucket_bytes, strategy.offload) == (3, 4_000_000, "host")
    assert keras.config.dtype_policy().name == "mixed_bfloat16"
    inner = keras.optimizers.SGD()
    strategy.optimizer(inner)
    assert (inner.global_clipnorm, inner.gradient_accumulation_steps) == (1.0, 4)
    (batch,) = next(iter(strategy.shard((np.zeros((16, 2)),))))
    assert batch.shape == (8, 2)
