"""What users write: `ZeroStrategy`."""

import contextlib
import os
import warnings
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import keras
from keras import ops

import revkeras
from revkeras._engine import verbs
from revkeras._keras import (
    compute_output_spec,
    flatten_layers,
    initializer_of_variables,
    own_non_trainable_variables,
    stored_dtype,
)
from revkeras._stack.stateless import spec_of
from revkeras.distribute import (
    deepspeed,
    engines,
    membership,
    model_optimizers,
    resume,
    sharded_layers,
)
from revkeras.distribute.building import has_call, has_variables
from revkeras.distribute.callbacks import Exact
from revkeras.distribute.compiled_models import intercepted_compile, take_part
from revkeras.distribute.data_sharding import are_arrays, sharded, sources
from revkeras.distribute.first_batches import FirstBatches
from revkeras.distribute.metrics import over_ranks
from revkeras.distribute.parameters import shard
from revkeras.distribute.partition import StatePiece
from revkeras.distribute.state import ReadRange
from revkeras.distribute.training_state import held_by
from revkeras.distribute.variable_creation import Initialize, intercepted_creation
from revkeras.distribute.zero_optimizer import ZeroOptimizer, check_inner

_current: list = []  # the strategy whose scope it is in


class ZeroStrategy:
    """Training over many workers, each of which holds its part of the state (ZeRO).

    The same script runs on one worker or on many, started by
    `python -m revkeras.distribute.launch --workers 4 train.py`, by `horovodrun`, or by any launcher
    that sets `TF_CONFIG`. Each worker is one Keras process, trains on its rows of
    each global batch, and ends a step with the weights that one process would have. Of N workers,
    each holds 1/N of

    | stage | optimizer state | gradients | parameters |
    | --- | --- | --- | --- |
    | 1 | yes | | |
    | 2 | yes | yes | |
    | 3 | yes | yes | yes |

    Stages 1 and 2 send 2 (N-1)/N of the parameters' bytes a step and worker, stage 3 sends
    3 (N-1)/N: a layer's parameters are gathered before its call, and once more before its gradient,
    of which the next block's while one block of a `ReversibleSequential` computes. Under mixed
    precision parameters are gathered in 16 bits; what is updated has 32.

    What reads a model's weights, such as `get_weights()` or `save()`, is to be called
    on all workers, as it gathers them; rank 0 writes the file.

    References:

    - [Rajbhandari et al., 2020](https://arxiv.org/abs/1910.02054)

    Args:
        stage: Integer, 1, 2 or 3. Defaults to `2`.
        engine: `"tensorflow"`, `"horovod"`, `"local"`, or `"auto"`, which takes the one
            that the process was started for. Defaults to `"auto"`.
        bucket_bytes: Integer, how many bytes of gradients one message is made of at
            stages 1 and 2, at least; no variable is cut. In bytes. Defaults to 32 MiB.
        shard_bytes: Integer, from how many bytes on the parameters of a layer that is in no
            `ReversibleSequential` are sharded, at stage 3; those of smaller layers are handled
            as at stage 2. In bytes. Defaults to 64 KiB.
        offload: `"host"` keeps what the optimizer holds in the host's memory. Defaults
            to `None`.

    Raises:
        ValueError: for bad arguments, or where workers differ in them.

    Example:

    >>> import keras, numpy as np, revkeras
    >>> strategy = revkeras.distribute.ZeroStrategy(stage=3)
    >>> with strategy.scope():
    ...     model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
    ...     model.compile(strategy.optimizer(keras.optimizers.AdamW(1e-3)), "mse")
    >>> data = np.ones((32, 8)), np.ones((32, 1))
    >>> dataset = strategy.shard(data, batch_size=8)
    >>> history = model.fit(dataset, callbacks=strategy.callbacks(), verbose=0)
    """

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
        membership.agree(
            {
                "the version of revkeras": revkeras.__version__,
                "the version of Keras": keras.__version__,
                "the runtime of the engine": self.engine.runtime,
                "the floating-point type": keras.config.floatx(),
                "the dtype policy": keras.config.dtype_policy().name,
                "stage": stage,
                "bucket_bytes": bucket_bytes,
                "shard_bytes": shard_bytes,
                "offload": offload,
            }
        )
        self._settings = deepspeed.Settings()
        self.datasets = weakref.WeakSet()  # those whose order Keras has changed each epoch
        # What `shard` has returned, and the first batches that were read for it.
        self._parts = weakref.WeakKeyDictionary()
        self.models: list[keras.Model] = []
        self.unasked_optimizers = weakref.WeakSet()  # Keras's default, where `compile` got none
        self.place: resume.Place = lambda: (None, {})  # in `fit`, as far as it is known
        self._prepared: list[keras.Model] = []
        self._new: list[keras.Variable] = []
        self._initializer = initializer_of_variables()

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
        """Where models that are to be trained are built and compiled.

        All workers start with rank 0's values, but for seeds, which differ. At stage 3, variables
        are sharded as they are made, so no worker holds a model that is larger.

        Raises:
            ValueError: if workers build different models.
        """
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
            with (
                intercepted_creation(self._born),
                intercepted_compile(self),
            ):
                yield self
        finally:
            _current.pop()
        self._start_alike()

    @classmethod
    def from_deepspeed(
        cls, config: str | os.PathLike | Mapping, engine: str = "auto"
    ) -> "ZeroStrategy":
        """Makes a strategy as a DeepSpeed configuration says.

        Read are the stage, bucket sizes, the persistence threshold, `offload_optimizer` to the
        CPU, `bf16.enabled` and `fp16.enabled` (which set Keras's dtype policy),
        `gradient_clipping` and `gradient_accumulation_steps` (which `strategy.optimizer`
        gives to its optimizer), and the batch sizes (which `strategy.shard` uses for
        arrays). A warning lists every other key of the file.

        Args:
            config: Path of the JSON file, or its content as a dictionary.
            engine: As in `ZeroStrategy`. Defaults to `"auto"`.

        Returns:
            A `ZeroStrategy`.

        Raises:
            ValueError: if it is not such a configuration, or contradicts itself.
        """
        settings = deepspeed.read(config, engines.choose(engine).size)
        strategy = cls(
            settings.stage,
            engine,
            bucket_bytes=settings.bucket_bytes,
            shard_bytes=settings.shard_bytes,
            offload=settings.offload,
        )
        strategy._settings = settings
        if settings.dtype_policy is not None:
            keras.config.set_dtype_policy(settings.dtype_policy)
        if settings.unsupported and strategy.rank == 0:
            warnings.warn(
                "These keys of the DeepSpeed configuration have no effect: "
                f"{', '.join(settings.unsupported)}.",
                stacklevel=2,
            )
        return strategy

    def optimizer(self, inner: keras.optimizers.Optimizer) -> ZeroOptimizer:
        """An optimizer for `compile`, which updates this worker's part of the parameters.

        A model whose `train_step()` trains its parts by several optimizers, such as a GAN, gets one
        of these for each, and keeps them in attributes.

        Optimizers of which Keras's own update each element by itself work on slices; all others,
        such as `Muon`, `Lamb` and those of users, on whole variables that are dealt out. Clipping
        by norms, accumulation, moving averages, schedules and loss scaling act as in one process.

        Args:
            inner: A Keras optimizer.

        Raises:
            TypeError: if it is none.
            ValueError: if it updates in a way of its own, as `FusedUpdate` does.
        """
        check_inner(inner)
        return ZeroOptimizer(self._settings.applied_to(inner), self)

    def take_on(self, model: keras.Model) -> None:
        """Trains a compiled model: at once if it is built, else before its first step.

        Raises:
            ValueError: if workers differ in its optimizer.
        """
        facts = model_optimizers.facts(self, model)
        membership.agree({**facts, "the model's dtype policy": model.dtype_policy.name})
        self.models = [m for m in self.models if m is not model] + [model]
        if has_variables(model):
            self._prepare(model)
        if self.size > 1:
            take_part(model, self, lambda x: self._build(model, x))

    def prepare(self, model: keras.Model) -> None:
        """Shards a built model, if that is not done already."""
        if self.size > 1 and not self._is_prepared(model):
            self._prepare(model)

    def _is_prepared(self, model: keras.Model) -> bool:
        return any(m is model for m in self._prepared)

    def _build(self, model: keras.Model, x: Any) -> None:
        """Builds a model that waited for its first batch."""
        if self._is_prepared(model):
            return
        if not has_variables(model):
            if not has_call(model):
                raise ValueError(
                    f"The model '{model.name}' has no `call()` that could build its parts by the "
                    "first batch. Expected parts that know their input shapes: start them with "
                    "keras.Input, or call `build(input_shape)` of each in strategy.scope()."
                )
            with self.scope():
                compute_output_spec(model, spec_of(x), training=False)
        self._prepare(model)

    def _prepare(self, model: keras.Model) -> None:
        if not self._is_prepared(model):
            self._prepared.append(model)
        foreign = [
            v.path for v in model.variables if getattr(v, "_revkeras_strategy", None) is not self
        ]
        if foreign:
            raise ValueError(
                "A model is trained by a strategy in whose scope it was not built, so the workers "
                f"would start with different values of {foreign[:5]}. Expected "
                "`with strategy.scope(): model = build_model()`."
            )
        if self.size == 1:
            return
        trainable = len(model.trainable_variables)
        membership.agree({"the number of the model's trainable variables": trainable})
        if self.stage == 3:
            dtypes = sharded_layers.dtypes_of_reads(flatten_layers(model))
            sharded_layers.arrange(model, self.engine, dtypes, self.shard_bytes, self._initializer)

    def read_in(self, optimizer: ZeroOptimizer) -> dict[int, str]:
        """In which 16-bit dtypes an optimizer's models read their variables."""
        return model_optimizers.dtypes_of_model_reads(self, optimizer)

    def shard(self, dataset: Any, batch_size: int | None = None) -> Any:
        """This worker's rows of each batch, for `fit` and `evaluate`.

        A batch stays the global one: of 4 workers, each has 16 rows of a batch of 64. Of a last,
        smaller batch, rows that are not enough for one more each are left out; if there are fewer
        rows than workers, each has them all.

        Args:
            dataset: A `tf.data.Dataset` of batches, a `keras.utils.PyDataset`, or arrays
                such as `(x, y)`, whose rows come in another order each epoch.
            batch_size: Integer, the rows of a global batch, for arrays. Defaults to
                `None`, which means 32 for arrays.

        Raises:
            ValueError: if workers could not have equally many batches in the same order. `fit`
                raises it too, where the first batches that it reads differ between workers.
        """
        if batch_size is None and self._settings.micro_batch_size and are_arrays(dataset):
            batch_size = self._settings.micro_batch_size * self.size
        first = FirstBatches()
        part = sharded(dataset, self.rank, self.size, batch_size, first)
        if self.size > 1:
            self._parts[part] = first
        if isinstance(part, keras.utils.PyDataset):
            self.datasets.add(part)
        return part

    def first_batches(self, data: Any) -> list[FirstBatches]:
        """Those of what `shard` has returned and the data is made of; none if it has no part."""
        return [self._parts[source] for source in sources(data) if source in self._parts]

    def callbacks(self) -> list[keras.callbacks.Callback]:
        """What `fit` needs; it adds them by itself where they are missing."""
        return [Exact(self)]

    def save_checkpoint(self, directory: str | os.PathLike, keep: int = 3) -> str:
        """Writes parameters, optimizer and step into a new folder; call it on all workers.

        The step is how many batches the optimizer has taken; of several models, it is the sum. The
        place in `fit` is written too where a `SaveAndResume` knows it.

        Each worker writes what it holds, with checksums, one tensor at a time. The folder is
        renamed when it is complete, so an interrupted write leaves the last one as it is.
        `SaveAndResume` does this while `fit` runs.

        Args:
            directory: String or path, the folder of all checkpoints, on a file system that
                all workers share.
            keep: Integer, how many checkpoints stay; older ones are removed. Defaults to
                `3`.

        Returns:
            String, the checkpoint's own folder, such as `"checkpoints/step-00000100"`.

        Raises:
            CheckpointError: if a worker cannot write; says which. Also if no model was compiled
                in the scope, or one is not built.
        """
        return resume.save(self, directory, keep=keep)

    def restore_checkpoint(self, directory: str | os.PathLike) -> int | None:
        """Takes on the last good checkpoint; call it on all workers, with the model built.

        It may have been written by any number of workers, at any stage. One that is
        damaged or was never completed is named in a warning and passed over.

        Args:
            directory: String or path, the folder of all checkpoints.

        Returns:
            Integer, the step at which it was saved; `None` if there is no checkpoint.

        Raises:
            CheckpointError: if all are damaged, or it is not of this model and optimizer. Also
                if no model was compiled in the scope, or one is not built.
        """
        found = resume.restore(self, directory)
        return None if found is None else found.step

    def state_pieces(self) -> list[StatePiece]:
        """What this rank writes of the training state to a checkpoint."""
        return [held.piece(self.rank) for held in held_by(self, written=True)]

    def restore_pieces(self, read_range: ReadRange) -> None:
        """Takes this rank's part of a training state.

        Args:
            read_range: `read_range(name, start, stop)` returns a range of the flattened
                tensor of that name, a 1-D array.
        """
        for held in held_by(self, written=False):
            held.restore(read_range)

    def publish_exactly(self, model: keras.Model) -> None:
        """Gives all ranks the parameters in all their bits."""
        for optimizer in model_optimizers.optimizers(self, model).values():
            if optimizer.built:
                optimizer.publish_exactly()

    def average_state(self, model: keras.Model) -> None:
        """Averages what training steps update beside parameters, such as batch-norm statistics."""
        updated = {
            id(v): v
            for layer in flatten_layers(model)
            for v in own_non_trainable_variables(layer)
            if keras.backend.is_float_dtype(stored_dtype(v))
        }
        values = verbs.snapshot([*updated.values()])
        means = over_ranks(values, ["mean"] * len(values), self.engine)
        for v, mean in zip(updated.values(), means):
            v.assign(mean)

    def _born(self, variable: keras.Variable, value: Any, initialize: Initialize) -> None:
        """Gives a variable that is made under the scope its value."""
        variable._revkeras_strategy = self
        self._initializer = initialize
        if self.stage < 3 or self.size == 1 or not _can_be_sharded(variable, value):
            initialize(variable, value)
            self._new.append(variable)
            return
        membership.agree({"the variable that is made": _description(variable)})
        whole = self.engine.broadcast(ops.convert_to_tensor(value()))
        shard(variable, self.engine, initialize, whole)

    def _start_alike(self) -> None:
        """All ranks take rank 0's values; seeds then differ by rank."""
        new, self._new = self._new, []
        if self.size == 1:
            return
        membership.agree({f"variable {i}": _description(v) for i, v in enumerate(new)})
        for v in new:
            v.assign(self.engine.broadcast(v.value))
            if v.name == "seed_generator_state":
                v.assign(v.value + ops.cast([_SEED_STEP * self.rank % 2**31, 0], stored_dtype(v)))


_SEED_STEP = 1_000_003


def _description(variable: keras.Variable) -> str:
    return f"{variable.name} {tuple(variable.shape)} {stored_dtype(variable)}"


def _can_be_sharded(variable: keras.Variable, value: Any) -> bool:
    return (
        callable(value)
        and variable.trainable
        and keras.backend.is_float_dtype(stored_dtype(variable))
        and len(variable.shape) > 0
    )
