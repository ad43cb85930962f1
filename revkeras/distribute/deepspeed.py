"""DeepSpeed's configuration files, as far as they say what a `ZeroStrategy` can do."""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

import keras

_BYTES = 4  # DeepSpeed counts buckets in elements; here they are bytes of float32
_DEFAULT_BUCKET = 500_000_000
_DEFAULT_PERSISTENCE = 100_000


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a DeepSpeed configuration asks for.

    Attributes:
        stage: 1, 2 or 3.
        bucket_bytes: Size of the communication buckets. In bytes.
        shard_bytes: At stage 3, parameters of fewer bytes stay whole. In bytes.
        offload: `"host"` or `None`.
        global_clipnorm: The gradients' norm is clipped to it; `None` for no clipping.
        gradient_accumulation_steps: How many steps make one update; `None` for one.
        micro_batch_size: Samples a worker and step; `None` if the file does not say.
        dtype_policy: Keras's name of the mixed precision, or `None`.
        unsupported: Every key of the file that has no effect here, as `"section.key"`.
    """

    stage: int = 2
    bucket_bytes: int = 2**25
    shard_bytes: int = 2**16
    offload: str | None = None
    global_clipnorm: float | None = None
    gradient_accumulation_steps: int | None = None
    micro_batch_size: int | None = None
    dtype_policy: str | None = None
    unsupported: tuple[str, ...] = ()

    def applied_to(self, optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
        """Gives an optimizer that is not built yet the clipping and the accumulation.

        Raises:
            ValueError: if it was made with other values.
        """
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        for name in "global_clipnorm", "gradient_accumulation_steps":
            wanted, own = getattr(self, name), getattr(inner, name)
            if wanted is not None and own not in (None, wanted):
                raise ValueError(
                    f"Invalid value for argument `inner`: the DeepSpeed configuration says {name}="
                    f"{wanted}, and the optimizer has {name}={own}. Expected it in one of the two."
                )
            if wanted is not None:
                setattr(inner, name, wanted)
        return optimizer


def read(config: str | os.PathLike | Mapping, workers: int) -> Settings:
    """Reads a DeepSpeed configuration.

    Args:
        config: Path of a JSON file, or its content as a dictionary.
        workers: Integer, how many workers there are; checks `train_batch_size`.

    Returns:
        `Settings`. Values `"auto"` count as not there.

    Raises:
        ValueError: if it is not such a configuration, or contradicts itself.

    Example:

    >>> from revkeras.distribute import deepspeed
    >>> settings = deepspeed.read({"zero_optimization": {"stage": 2}, "steps_per_print": 10}, 4)
    >>> settings.stage, settings.unsupported
    (2, ('steps_per_print',))
    """
    keys = _Keys(_load(config))
    accumulation, micro = _batches(keys, workers)
    clipnorm = keys.take("gradient_clipping", 0.0)
    offload = _offload(keys)
    threshold = keys.take(
        "zero_optimization.stage3_param_persistence_threshold", _DEFAULT_PERSISTENCE
    )
    return Settings(
        stage=_stage(keys),
        bucket_bytes=_buckets(keys),
        shard_bytes=max(int(_BYTES * threshold), 1),
        offload=offload,
        global_clipnorm=float(clipnorm) or None,
        gradient_accumulation_steps=accumulation if accumulation != 1 else None,
        micro_batch_size=micro,
        dtype_policy=_precision(keys),
        unsupported=keys.left(),
    )


class _Keys:
    """The configuration's leaves by `"section.key"`, each of which is taken once."""

    def __init__(self, config: Mapping) -> None:
        self._leaves = dict(_leaves(config))

    def take(self, key: str, default: Any = None) -> Any:
        value = self._leaves.pop(key, default)
        return default if value == "auto" else value

    def put_back(self, key: str, value: Any) -> None:
        self._leaves[key] = value

    def left(self) -> tuple[str, ...]:
        return tuple(sorted(key for key, value in self._leaves.items() if value != "auto"))


def _load(config: str | os.PathLike | Mapping) -> Mapping:
    if not isinstance(config, Mapping):
        try:
            with open(config) as file:
                config = json.load(file)
        except (OSError, json.JSONDecodeError) as error:
            raise ValueError(
                "Invalid value for argument `config`: expected the path of a DeepSpeed "
                f"configuration in JSON, received config={str(config)!r}: {error}"
            ) from None
    if not isinstance(config, Mapping):
        raise ValueError(
            "Invalid value for argument `config`: expected a JSON object of DeepSpeed's keys, "
            f"received {config!r}."
        )
    return config


def _leaves(config: Mapping, section: str = ""):
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{section}{key}.")
        else:
            yield f"{section}{key}", value


def _stage(keys: _Keys) -> int:
    stage = keys.take("zero_optimization.stage", 0)
    if stage not in (1, 2, 3):
        raise ValueError(
            "Invalid DeepSpeed configuration: expected zero_optimization.stage to be 1, 2 or 3, "
            f"received {stage!r} (DeepSpeed's default is 0, without sharding)."
        )
    return stage


def _buckets(keys: _Keys) -> int:
    """One size serves both directions; a second, different one is not supported."""
    reduce = keys.take("zero_optimization.reduce_bucket_size")
    gather = keys.take("zero_optimization.allgather_bucket_size")
    if reduce is not None and gather is not None and reduce != gather:
        keys.put_back("zero_optimization.allgather_bucket_size", gather)
    elements = reduce or gather or _DEFAULT_BUCKET
    return int(_BYTES * elements)


def _offload(keys: _Keys) -> str | None:
    device = keys.take("zero_optimization.offload_optimizer.device", "none")
    if device not in ("none", "cpu"):
        keys.put_back("zero_optimization.offload_optimizer.device", device)
    parameters = keys.take("zero_optimization.offload_param.device", "none")
    if parameters != "none":
        keys.put_back("zero_optimization.offload_param.device", parameters)
    return "host" if device == "cpu" else None


def _precision(keys: _Keys) -> str | None:
    halves = {"mixed_bfloat16": ("bf16", "bfloat16"), "mixed_float16": ("fp16",)}
    wanted = [
        policy
        for policy, sections in halves.items()
        if any([keys.take(f"{section}.enabled", False) for section in sections])
    ]
    if len(wanted) > 1:
        raise ValueError(
            "Invalid DeepSpeed configuration: expected one of bf16.enabled and fp16.enabled, "
            "received both."
        )
    return wanted[0] if wanted else None


def _batches(keys: _Keys, workers: int) -> tuple[int, int | None]:
    """Accumulation steps and samples a worker: of the three numbers, two give the third."""
    total = keys.take("train_batch_size")
    micro = keys.take("train_micro_batch_size_per_gpu")
    steps = keys.take("gradient_accumulation_steps")
    if total is not None and steps is None and micro is not None:
        steps = max(total // (micro * workers), 1)
    steps = 1 if steps is None else steps
    if total is not None and micro is None:
        micro = total // (steps * workers)
    if total is not None and micro * steps * workers != total:
        raise ValueError(
            "Invalid DeepSpeed configuration: expected train_batch_size = "
            "train_micro_batch_size_per_gpu * gradient_accumulation_steps * workers, received "
            f"{total} where these are {micro}, {steps} and {workers}."
        )
    return steps, micro
