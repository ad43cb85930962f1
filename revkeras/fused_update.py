"""Updating a block's weights as soon as their gradients are there."""

from collections.abc import Sequence
from typing import Any

import keras

from revkeras._engine import verbs
from revkeras._keras import (
    WHOLE_STEP,
    end_step,
    is_known,
    optimizer_variables,
    update_some,
    variables_to_update,
)


@keras.saving.register_keras_serializable(package="revkeras")
class FusedUpdate(keras.optimizers.Optimizer):
    """Lets an optimizer update each reversible block inside the backward pass.

    A training step holds the gradients of all weights before the optimizer sees the
    first. With this around the optimizer, the backward pass of a `ReversibleSequential`
    updates a block as soon as it has that block's gradients and forgets them, so only
    one block's exist at a time ([Lv et al., 2023](https://arxiv.org/abs/2306.09782)).
    Weights of other layers, and those that several reversible blocks share, are
    updated at the end as ever. The weights after a step are the same.

    In a training loop of your own, call `scale_loss(loss)` inside the tape, as
    `fit` does, and take the gradient and apply it in one `tf.function`; eagerly
    nothing is fused. After `scale_loss`, the backward pass updates whatever the
    gradient is taken for, and the gradients of updated weights are `None`.

    Args:
        inner_optimizer: A Keras optimizer that updates each variable by itself, or the
            name of one, such as `"adam"`. Of its options `clipnorm`, `clipvalue`,
            `weight_decay`, `use_ema` and learning rate schedules can be used;
            `global_clipnorm` needs all gradients at once, as do
            `gradient_accumulation_steps` and loss scaling.
        name: String, the name of the optimizer.

    Raises:
        TypeError: if `inner_optimizer` is no Keras optimizer.
        ValueError: if it needs all gradients at once.

    Example:

    >>> import keras, revkeras
    >>> blocks = [keras.layers.Dense(4, activation="tanh") for _ in range(6)]
    >>> model = keras.Sequential([keras.Input((8,)), revkeras.ReversibleSequential(blocks)])
    >>> model.compile(revkeras.FusedUpdate(keras.optimizers.AdamW(1e-3)), "mse")
    >>> history = model.fit(keras.ops.ones((4, 8)), keras.ops.ones((4, 8)), verbose=0)
    """

    def __init__(self, inner_optimizer: keras.optimizers.Optimizer | str, name: str | None = None):
        if isinstance(inner_optimizer, str):
            inner_optimizer = keras.optimizers.get(inner_optimizer)
        if not isinstance(inner_optimizer, keras.optimizers.Optimizer):
            raise TypeError(
                "Invalid value for argument `inner_optimizer`: expected a Keras optimizer such as "
                "keras.optimizers.SGD(1e-2), received "
                f"inner_optimizer={inner_optimizer!r} (of type {type(inner_optimizer).__name__})."
            )
        _refuse_all_at_once(inner_optimizer)
        super().__init__(learning_rate=0.0, name=name)
        self.inner_optimizer = inner_optimizer
        self._began_eagerly = True  # or in a graph, as the last step's `scale_loss` did

    def build(self, variables: list) -> None:
        # A step is traced again if its first trace made variables, and that trace came too
        # late to update inside the backward pass. Not all optimizers have variables to make.
        self.add_variable((), dtype="int", name="built")
        # Keras makes them where the variables are, which it can tell eagerly alone.
        with verbs.eager_scope(), verbs.slots_beside(self.inner_optimizer):
            self.inner_optimizer.build(variables)
        super().build(variables)

    @property
    def variables(self) -> list:
        return optimizer_variables(self) + self.inner_optimizer.variables

    @property
    def learning_rate(self) -> Any:
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        self.inner_optimizer.learning_rate = learning_rate

    @property
    def iterations(self) -> keras.Variable:
        return self.inner_optimizer.iterations

    def scale_loss(self, loss: Any) -> Any:
        """`loss` as it is. From here on, the backward pass of this step updates."""
        self._began_eagerly = verbs.is_eager()
        if self.built:
            verbs.offer_update(self._update, self._is_known)
        return loss

    def apply(self, grads: Sequence, trainable_variables: Sequence | None = None) -> None:
        """Updates what the backward pass has not."""
        if not self.built:
            if trainable_variables is not None:
                self.build(list(trainable_variables))
            self.inner_optimizer.apply(grads, trainable_variables)
            return
        grads = [verbs.on_device(g) for g in grads]
        variables = list(trainable_variables or variables_to_update(self))
        updated = verbs.take_updated()
        if updated is None and self._began_eagerly is not verbs.is_eager():
            raise ValueError(
                "FusedUpdate was not told of the step's beginning, so it updated nothing inside "
                "the backward pass. In a training loop of your own, write `loss = "
                "optimizer.scale_loss(loss)` inside the tape, and take the gradient and apply it "
                "in one `tf.function`, or eagerly both. Loss scaling, which a float16 policy "
                "turns on, needs all gradients at once: use bfloat16, or "
                "`compile(auto_scale_loss=False)`."
            )
        if not updated:
            self.inner_optimizer.apply(grads, variables)
            return
        _refuse_subsets([v.path for i, v in updated.items() if i not in set(map(id, variables))])
        pairs = [(g, v) for g, v in zip(grads, variables, strict=True) if g is not None]
        _refuse_other_uses([v.path for _, v in pairs if id(v) in updated])
        if pairs:
            self.inner_optimizer.apply(*zip(*pairs, strict=True))
        else:
            end_step(self.inner_optimizer)
        for variable in updated.values():  # after the moving averages, as in Keras
            if variable.constraint is not None:
                variable.assign(variable.constraint(variable))

    def exclude_from_weight_decay(self, *args: Any, **kwargs: Any) -> None:
        self.inner_optimizer.exclude_from_weight_decay(*args, **kwargs)

    def finalize_variable_values(self, var_list: list) -> None:
        self.inner_optimizer.finalize_variable_values(var_list)

    def get_config(self) -> dict:
        inner = keras.saving.serialize_keras_object(self.inner_optimizer)
        return {"name": self.name, "inner_optimizer": inner}

    @classmethod
    def from_config(cls, config: dict, custom_objects: dict | None = None) -> "FusedUpdate":
        inner = keras.saving.deserialize_keras_object(config["inner_optimizer"], custom_objects)
        return cls(inner, name=config["name"])

    def _is_known(self, variable: Any) -> bool:
        return (
            isinstance(variable, keras.Variable)
            and is_known(self.inner_optimizer, variable)
            and not getattr(variable, "overwrite_with_gradient", False)
        )

    def _update(self, gradients: list, variables: list) -> None:
        update_some(self.inner_optimizer, gradients, variables)


def _refuse_subsets(paths: list[str]) -> None:
    if paths:
        raise ValueError(
            f"FusedUpdate has updated {paths} inside the backward pass, but their gradients were "
            "not to be applied. Build the optimizer with the variables that it is to update."
        )


def _refuse_other_uses(paths: list[str]) -> None:
    if paths:
        raise ValueError(
            f"FusedUpdate has updated {paths} inside the backward pass, but the loss depends on "
            "them outside of their blocks too, by a weight regularizer or another layer that uses "
            "them, so a part of their gradients came too late. Use `weight_decay` instead of "
            "regularizers, or the optimizer without FusedUpdate."
        )


def _refuse_all_at_once(optimizer: keras.optimizers.Optimizer) -> None:
    reasons = {
        "global_clipnorm": "the norm of all gradients; use `clipnorm`, which clips each by its own",
        "loss_scale_factor": "all gradients, to find those that are not finite; use bfloat16",
        "gradient_accumulation_steps": "to keep all gradients; use smaller or larger batches",
    }
    for option, reason in reasons.items():
        if getattr(optimizer, option, None):
            raise ValueError(
                "Invalid value for argument `inner_optimizer`: inside the backward pass there is "
                f"only one block's gradients at a time, and {option}="
                f"{getattr(optimizer, option)!r} needs {reason}."
            )
    own, base = type(optimizer), keras.optimizers.Optimizer
    whole = ("apply", "apply_gradients", *WHOLE_STEP)
    changed = [
        getattr(own, name) for name in whole if getattr(own, name) is not getattr(base, name)
    ]
    # Keras's optimizers on PyTorch update all variables in one call, each by itself.
    if any(not f.__module__.startswith("keras.src.backend.") for f in changed):
        raise ValueError(
            "Invalid value for argument `inner_optimizer`: expected an optimizer that updates each "
            f"variable by itself, such as SGD, Adam or AdamW, received a {type(optimizer).__name__}"
            ", which looks at all variables or gradients of a step."
        )
