"""What users write: `ZeroStrategy`."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

from revkeras.distribute import births, engines, layers, models
from revkeras.distribute.optimizer import ZeroOptimizer
from revkeras.distribute.parameters import is_sharded, shard
from revkeras.stateless import spec_of

_current: list = []  # the strategy whose scope it is in


class ZeroStrategy:
    def __init__(
        self,
        stage: int = 2,
        engine: str = "auto",
        *,
        bucket_bytes: int = 2**25,
        shard_bytes: int = 2**16,
        offload: str | None = None,
    ):
        if stage not in (1, 2, 3) or isinstance(stage, bool):
            raise ValueError(
                "Invalid value for argument `stage`: expected 1 (optimizer state is sharded), 2 "
                f"(gradients too) or 3 (parameters too), received stage={stage!r}."
            )
        for name, value in {"bucket_bytes": bucket_bytes, "shard_bytes": shard_bytes}.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(
                    f"Invalid value for argument `{name}`: expected a positive number of bytes, "
                    f"received {name}={value!r}."
                )
        if offload not in (None, "host"):
            raise ValueError(
                "Invalid value for argument `offload`: expected None or 'host', received "
                f"offload={offload!r}."
            )
        self.stage = stage
        self.engine = engines.choose(engine)
        self.bucket_bytes = bucket_bytes
        self.shard_bytes = shard_bytes
        self.offload = offload
        self.models: list[keras.Model] = []
        self._prepared: list[keras.Model] = []
        self._new: list[keras.Variable] = []
        self._initialize = keras.Variable._initialize

    @property
    def rank(self) -> int:
        """This worker's number. Integer, from 0."""
        return self.engine.rank

    @property
    def size(self) -> int:
        """How many workers there are. Integer."""
        return self.engine.size

    @contextlib.contextmanager
    def scope(self) -> Iterator["ZeroStrategy"]:
        if _current and _current[-1] is not self:
            raise ValueError(
                "A scope of one strategy was entered within that of another. Expected one "
                "strategy for all that is trained together."
            )
        if _current:
            yield self
            return
        _current.append(self)
        try:
            with births.intercepted(self._born), models.intercepted(self):
                yield self
        finally:
            _current.pop()
        self._start_alike()

    def optimizer(self, inner: keras.optimizers.Optimizer) -> ZeroOptimizer:
        return ZeroOptimizer(inner, self)

    def take_on(self, model: keras.Model) -> None:
        """Trains a compiled model: at once if it is built, else before its first step."""
        self.models.append(model)
        if model.built:
            self._prepare(model)
            return
        models.in_step(model, lambda x: self._build(model, x))

    def _build(self, model: keras.Model, x: Any) -> None:
        if model in self._prepared:
            return
        with self.scope():
            keras.src.backend.compute_output_spec(model, spec_of(x), training=False)
        self._prepare(model)

    def _prepare(self, model: keras.Model) -> None:
        self._prepared.append(model)
        foreign = [v.path for v in model.variables if getattr(v, "_strategy", None) is not self]
        if foreign:
            raise ValueError(
                "A model is trained by a strategy in whose scope it was not built, so the workers "
                f"would start with different values of {foreign[:5]}. Expected "
                "`with strategy.scope(): model = build_model()`."
            )
        if self.size == 1:
            return
        dtypes = layers.read_in(model._flatten_layers())
        model.optimizer.read_in(dtypes)
        if self.stage == 3:
            layers.arrange(model, self.engine, dtypes, self.shard_bytes, self._initialize)

    def _born(self, variable: keras.Variable, value: Any, initialize: births.Initialize) -> None:
        """Gives a variable that is made under the scope its value."""
        variable._strategy = self
        self._initialize = initialize
        if self.stage < 3 or self.size == 1 or not _can_be_sharded(variable, value):
            initialize(variable, value)
            self._new.append(variable)
            return
        whole = self.engine.broadcast(ops.convert_to_tensor(value()))
        shard(variable, self.engine, initialize, whole)

    def _start_alike(self) -> None:
        """All ranks take rank 0's values; seeds then differ by rank."""
        new, self._new = self._new, []
        if self.size == 1:
            return
        for v in new:
            if is_sharded(v):
                continue
            v.assign(self.engine.broadcast(v.value))
            if v.name == "seed_generator_state":
                v.assign(v.value + ops.cast([_SEED_STEP * self.rank % 2**31, 0], v.dtype))


_SEED_STEP = 1_000_003


def _can_be_sharded(variable: keras.Variable, value: Any) -> bool:
    return (
        callable(value)
        and variable.trainable
        and keras.backend.is_float_dtype(variable._dtype)
        and len(variable._shape) > 0
    )
