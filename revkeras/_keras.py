"""All private names of Keras that the package uses, so that a new Keras breaks one file.

Checked on Keras 3.10.0, 3.15.1 and 3.16.0.dev2026102704. Each function says why Keras's public API
does not do.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import keras

# A model's `compute_output_spec` makes the variables only if the model's class defines it so.
from keras.src.backend import compute_output_spec as compute_output_spec

# What `keras.saving` notes about shared objects has no public accessors.
from keras.src.backend.common.global_state import get_global_attribute as get_global_attribute
from keras.src.backend.common.global_state import set_global_attribute as set_global_attribute

# Masks have no public accessors; layers look for them under a private attribute.
from keras.src.backend.common.masking import get_keras_mask as get_keras_mask
from keras.src.backend.common.masking import set_keras_mask as set_keras_mask

# `keras.StatelessScope` is public, but neither asking for the current one is, nor symbolic scopes.
from keras.src.backend.common.stateless_scope import get_stateless_scope as get_stateless_scope
from keras.src.backend.common.symbolic_scope import in_symbolic_scope as in_symbolic_scope

# Arrays and tracers of JAX take no attributes; Keras keeps those of masks beside them.
from keras.src.backend.common.tensor_attributes import get_tensor_attr as get_tensor_attr
from keras.src.backend.common.tensor_attributes import set_tensor_attr as set_tensor_attr

# `keras.Model` makes one of tensors, and the public API does not name its class.
from keras.src.models.functional import Functional as Functional
from keras.src.ops import numpy as operations
from keras.src.saving import saving_lib
from keras.src.saving.keras_saveable import KerasSaveable
from keras.src.saving.serialization_lib import in_safe_mode as in_safe_mode

# What `x + y` calls in a functional model: `keras.ops.add` is a function.
AddOperation = operations.Add

# The store of a `.h5` file inside of a `.keras` file, to which the public API takes a path alone.
H5IOStore = saving_lib.H5IOStore

# While a file is made or read, the global attributes that have its shared objects.
SERIALIZED_OBJECTS = "shared_objects/id_to_config_map"
LOADED_OBJECTS = "shared_objects/id_to_obj_map"

# What an optimizer overrides that looks at all variables of a step: `update_step` alone is public.
WHOLE_STEP = ("_backend_apply_gradients", "_backend_update_step")

# For `__reduce__`: a model's public method names its class, which cannot be pickled if it was made.
unpickle_model = keras.Model._unpickle_model

# What Keras notes about a layer or a variable, and what decides its values alone.
_BOOKKEEPING = {
    "_auto_config",
    "_build_shapes_dict",
    "_called",
    "_call_signature",
    "_distribute_strategy",
    "_inbound_nodes",
    "_initial_seed",
    "_initializer",
    "_lock",
    "_loss_ids",
    "_losses",
    "_losses_override",
    "_metrics",
    "_name",
    "_nodes",
    "_non_trainable_variables",
    "_outbound_nodes",
    "_parent_path",
    "_path",
    "_saved_model_arg_spec",
    "_saved_model_inputs_spec",
    "_seed_generators",
    "_tracked",
    "_tracker",
    "_trainable_variables",
    "_value",
    "build",
    "name",
    "output_names",
    "quantize",
    "seed",
}


# Layers.


def is_bookkeeping(name: str) -> bool:
    """Whether an attribute holds notes of Keras's own: it does not mark them."""
    return name in _BOOKKEEPING or is_tracking(name)


def is_tracking(name: str) -> bool:
    """Whether a backend's tracking keeps an attribute, beside those that Keras sets."""
    return name.startswith("_self_")


def flatten_layers(layer: keras.layers.Layer, include_self: bool = True) -> list:
    """A layer and all layers in it, at any depth. `layers` is public, but models alone have it."""
    return list(layer._flatten_layers(include_self=include_self))


def inner_layers(layer: keras.layers.Layer) -> list:
    """The layers that a layer holds itself. `layers` is public, but models alone have it."""
    return list(layer._layers)


def own_trainable_variables(layer: keras.layers.Layer) -> list:
    """A layer's own. The public `trainable_variables` has those of the layers in it too."""
    return layer._trainable_variables


def own_non_trainable_variables(layer: keras.layers.Layer) -> list:
    """A layer's own. The public `non_trainable_variables` has those of the layers in it too."""
    return layer._non_trainable_variables


def own_seed_generators(layer: keras.layers.Layer) -> list:
    """A layer's own. Publicly, their states alone can be had, among all other variables."""
    return layer._seed_generators


def call_signature(layer: keras.layers.Layer) -> inspect.Signature:
    """What Keras binds arguments by. That of the public `call` is another where a layer sets it."""
    return layer._call_signature


def set_call_signature(layer: keras.layers.Layer, signature: inspect.Signature) -> None:
    """Has Keras bind arguments by it: from `**kwargs` it cannot tell which are tensors."""
    layer._call_signature = signature


def set_called_as(layer: keras.layers.Layer, other: keras.layers.Layer) -> None:
    """Has Keras take a layer as built and called on what another was; only calls tell it so."""
    layer.built = other.built
    layer._called = other._called
    layer._build_shapes_dict = other._build_shapes_dict


def has_training_argument(layer: keras.layers.Layer) -> bool:
    """Whether Keras passes `training` to the `call()` that a class defined first."""
    return layer._call_has_training_arg


def context_arguments(layer: keras.layers.Layer) -> set[str]:
    """Arguments that Keras hands to inner layers, as `training`; only adding one is public."""
    return layer._call_context_args


def calls_in_graphs(layer: keras.layers.Layer) -> int:
    """How many calls of a layer functional models have recorded. No public count."""
    return len(layer._inbound_nodes)


def twin(layer: keras.layers.Layer, own: dict, replaced: Sequence[str]) -> keras.layers.Layer:
    """A layer of the same class with the same variables and layers, not copied, called nowhere yet.

    Of the attributes `replaced` it has those in `own`. Keras copies layers through files alone.
    """
    same = object.__new__(type(layer))
    vars(same).update({k: v for k, v in vars(layer).items() if k not in replaced}, **own)
    vars(same).update(_inbound_nodes=[], _outbound_nodes=[], _losses=[], _metrics=[])
    return same


def take_losses(layer: keras.layers.Layer, call: Callable) -> tuple[Any, list]:
    """`call()`, and what the layer itself added as losses in it; `losses` has regularizers too."""
    layer._clear_losses()
    scope = get_stateless_scope()
    if scope is None:
        return call(), layer._losses
    outputs, losses = call(), layer._get_own_losses()  # which the scope holds, for all layers
    taken = set(map(id, losses))
    scope.losses = [loss for loss in scope.losses if id(loss) not in taken]
    return outputs, losses


def add_metric(layer: keras.layers.Layer, metric: keras.metrics.Metric) -> None:
    """Has a layer report a metric. Assigning an attribute would track it for good."""
    layer._metrics.append(metric)
    carry_metric(layer, metric)


def carry_metric(layer: keras.layers.Layer, metric: keras.metrics.Metric) -> None:
    """Makes the value of a metric with a `generator` a part of a layer's state."""
    if hasattr(metric, "generator"):
        layer._seed_generators.append(metric.generator)


def remove_metric(layer: keras.layers.Layer, metric: keras.metrics.Metric) -> None:
    """Undoes `add_metric`."""
    layer._metrics.remove(metric)
    if hasattr(metric, "generator"):
        layer._seed_generators.remove(metric.generator)


# Models.


class GraphModel:
    """Stands before a functional model's class, and may run another model's graph in its place.

    The public `call` cannot: Keras also runs a graph where it clones a model.
    """

    def graph_to_run(self) -> keras.Model | None:
        """The functional model to run; `None` for this one."""
        raise NotImplementedError

    def _run_through_graph(self, *args: Any, **kwargs: Any) -> Any:
        graph = self.graph_to_run()
        run = super()._run_through_graph if graph is None else graph._run_through_graph
        return run(*args, **kwargs)


def nodes_of(model: keras.Model) -> list:
    """The calls of operations in a functional model, in order. `operations` has no calls."""
    by_depth = model._nodes_by_depth
    return [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]


def inputs_structure(model: keras.Model) -> Any:
    """A functional model's inputs as they were given. The public `inputs` are a flat list."""
    return model._inputs_struct


def outputs_structure(model: keras.Model) -> Any:
    """A functional model's outputs as they were given. The public `outputs` are a flat list."""
    return model._outputs_struct


def jit_compile_of(model: keras.Model) -> bool | None:
    """The public `jit_compile` as it is set; to read that one would set it."""
    return model._jit_compile


def compile_config(model: keras.Model) -> Any:
    """What `compile()` was given, or `None`. `get_compile_config()` makes a new dictionary."""
    return getattr(model, "_compile_config", None)


def set_initial_epoch(model: keras.Model, epoch: int | None) -> None:
    """Has a `fit` that has begun start from an epoch, as Keras's own `BackupAndRestore` does."""
    model._initial_epoch = epoch


def build_metrics(model: keras.Model, batch: Any) -> None:
    """Makes the metrics' variables as `fit` does; the public way is to run a batch."""
    model._symbolic_build(data_batch=batch)


def epoch_iterator(dataset: Any, strategy: Any, made: Callable[[], None]) -> Any:
    """The iterator of `fit`, which calls `made()` for each iterator of the dataset that it makes.

    How often it makes one is not documented.
    """
    from keras.src.backend.tensorflow.trainer import TFEpochIterator

    epochs = TFEpochIterator(x=dataset, distribute_strategy=strategy)
    make = epochs._get_iterator

    def noted() -> Any:
        made()
        return make()

    epochs._get_iterator = noted
    return epochs


# Files.


class SavedOptimizer(KerasSaveable):
    """What files know as an optimizer. Keras tells what it saves by a private method."""

    def _obj_type(self) -> str:
        return "Optimizer"


def save_state(model: keras.Model, store: Any) -> None:
    """Saves a model's variables to a store; the public API takes a path."""
    saving_lib._save_state(model, store, None, "", set())


@contextlib.contextmanager
def saving_to_disk() -> Iterator[None]:
    """Keras would write weights in memory first where it takes that to be enough. No option."""
    with mock.patch.object(saving_lib, "is_memory_sufficient", return_value=False):
        yield


# Variables.


class TakingVariable(keras.Variable):
    """A variable that keeps what is assigned in a way of its own.

    The public `assign` checks the value, and hands it to a `StatelessScope` where there is one.
    """

    def take(self, value: Any) -> None:
        """Keeps a value that was assigned."""
        raise NotImplementedError

    def _direct_assign(self, value: Any) -> None:
        self.take(value)


class ReadingVariable(keras.Variable):
    """A variable that makes what it gives of what it keeps, and the other way round.

    A `StatelessScope` has what it keeps. The public `value` and `assign` give no place to do so.
    """

    def give(self, kept: Any) -> Any:
        """What `value` is, before autocast."""
        raise NotImplementedError

    def keep(self, value: Any) -> Any:
        """What is kept of a value that was assigned."""
        raise NotImplementedError

    @property
    def kept(self) -> Any:
        scope = get_stateless_scope() if keras.src.backend.in_stateless_scope() else None
        found = scope.get_current_value(self) if scope else None
        return self._value if found is None else found

    @property
    def value(self) -> Any:
        return self._maybe_autocast(self.give(self.kept))

    def assign(self, value: Any) -> Any:
        value = self._convert_to_tensor(value, dtype=self._dtype)
        return super().assign(self.keep(value))

    def _direct_assign(self, value: Any) -> None:
        super()._direct_assign(self.keep(value))


def become(variable: keras.Variable, kind: type) -> None:
    """Makes a variable one of another class, with the value that it has. Keras makes them all."""
    value, variable.__class__ = variable._value, kind
    variable._direct_assign(value)


def at_least_float32(dtype: Any) -> str:
    """A floating dtype, but for 16 bits float32. `result_type` has no float64 on JAX."""
    return "float64" if keras.backend.standardize_dtype(dtype) == "float64" else "float32"


def stored_dtype(variable: keras.Variable) -> str:
    """The dtype that a variable has. In a call, the public `dtype` is that of autocast."""
    return variable._dtype


def is_autocast(variable: keras.Variable) -> bool:
    """Whether autocast applies to a variable: `add_weight` takes that and does not show it."""
    return variable._autocast


def autocast(variable: keras.Variable, value: Any) -> Any:
    """A value as the variable would give it; the public `value` gives that of the variable."""
    return variable._maybe_autocast(value)


def raw(variable: keras.Variable) -> Any:
    """What a variable keeps its value in. The public `value` may compute one."""
    return variable._value


def set_raw(variable: keras.Variable, value: Any) -> None:
    """Replaces that; `assign` would write into it."""
    variable._value = value


def set_path(variable: keras.Variable, path: str) -> None:
    """Gives a variable another one's path, which Keras makes of the layers around it alone."""
    variable._path = path


def set_shape(variable: keras.Variable, shape: tuple) -> None:
    """Has a variable claim a shape, so that an optimizer can be built without its memory."""
    variable._shape = shape


def initialize_as(
    variable: keras.Variable, value: Any, initialize: Callable[[keras.Variable, Any], None]
) -> None:
    """Has a variable keep a value of another shape than its own, which Keras 3.16 would refuse."""
    shape, variable._shape = variable._shape, tuple(value.shape)
    try:
        variable._value = None
        initialize(variable, value)
    finally:
        variable._shape = shape


def initializer_of_variables() -> Callable[[keras.Variable, Any], None]:
    """How variables are given their first values. Keras has no hook for the birth of one."""
    return keras.Variable._initialize


def set_initializer_of_variables(initialize: Callable[[keras.Variable, Any], None]) -> None:
    """Puts another function in its place, for all variables."""
    keras.Variable._initialize = initialize


# Optimizers.


def optimizer_variables(optimizer: keras.optimizers.Optimizer) -> list:
    """An optimizer's own. The public `variables` may have those of one that it wraps too."""
    return optimizer._variables


def variables_to_update(optimizer: keras.optimizers.Optimizer) -> list:
    """What an optimizer was built on. No public list."""
    return optimizer._trainable_variables


def index_of(optimizer: keras.optimizers.Optimizer, variable: keras.Variable) -> int:
    """The position of a variable in that list."""
    return optimizer._get_variable_index(variable)


def is_known(optimizer: keras.optimizers.Optimizer, variable: keras.Variable) -> bool:
    """Whether a variable is in that list."""
    return optimizer._var_key(variable) in optimizer._trainable_variables_indices


def check_known(optimizer: keras.optimizers.Optimizer, variables: Sequence) -> None:
    """Raises Keras's own error unless all variables are in that list."""
    optimizer._check_variables_are_known(variables)


def set_variable_key(optimizer: keras.optimizers.Optimizer, key: Callable[[Any], Any]) -> None:
    """Has an optimizer know variables by `key(variable)`; Keras's own key reads their values."""
    optimizer._var_key = key


def track_variable(optimizer: keras.optimizers.Optimizer, variable: keras.Variable) -> None:
    """Adds a variable to an optimizer's own; the public `add_variable` makes one."""
    optimizer._track_variable(variable)


def batch_counter(optimizer: keras.optimizers.Optimizer) -> keras.Variable:
    """The count of batches. The public `iterations` counts accumulated ones as one."""
    return optimizer._iterations


def learning_rate_variable(optimizer: keras.optimizers.Optimizer) -> Any:
    """What an optimizer keeps its learning rate in, if that is a variable; publicly, its value."""
    return optimizer._learning_rate


def set_gradient_clipping(optimizer: keras.optimizers.Optimizer, clip: Callable) -> None:
    """Has `clip(gradients)` take the place of an optimizer's own clipping. No public hook."""
    optimizer._clip_gradients = clip


def exclude_from_weight_decay(
    optimizer: keras.optimizers.Optimizer, stand_ins: Sequence[tuple[Any, Any]]
) -> None:
    """Excludes the second of each pair whose first is excluded; publicly none can be asked for."""
    excluded = getattr(optimizer, "_exclude_from_weight_decay", None)
    if excluded:
        keys = {optimizer._var_key(b) for a, b in stand_ins if optimizer._var_key(a) in excluded}
        optimizer._exclude_from_weight_decay = excluded | keys


def update_some(
    optimizer: keras.optimizers.Optimizer, gradients: Sequence, variables: Sequence
) -> None:
    """Updates some of an optimizer's variables; the public `apply` also ends the step."""
    gradients = optimizer._clip_gradients(gradients)
    optimizer._apply_weight_decay(variables)
    optimizer._backend_update_step(gradients, variables, optimizer.learning_rate)


def end_step(optimizer: keras.optimizers.Optimizer) -> None:
    """Moves averages and the count, where all is updated: the public `apply` wants gradients."""
    optimizer._backend_apply_gradients([], [])
    optimizer.iterations.assign_add(1)
