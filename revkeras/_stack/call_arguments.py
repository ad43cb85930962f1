"""Which arguments a layer's `call()` takes beside its input and `training`."""

import inspect

import keras

from revkeras._keras import call_signature

_VARIADIC = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD


def argument_names(layer: keras.layers.Layer) -> set[str]:
    """The arguments that `call()` names; `**kwargs` promise nothing and do not count."""
    return {p.name for p in _parameters(layer)}


def required_arguments(layer: keras.layers.Layer) -> set[str]:
    """Those of them that have no default."""
    return {p.name for p in _parameters(layer) if p.default is inspect.Parameter.empty}


def takes_further_shapes(layer: keras.layers.Layer) -> bool:
    """Whether `build()` takes the shapes of such arguments too."""
    return len(inspect.signature(layer.build).parameters) > 1


def merged_signature(own: inspect.Signature, layers: list) -> inspect.Signature:
    """The signature `own`, which ends in `**kwargs`, with all arguments of the layers named."""
    *fixed, rest = own.parameters.values()
    names = set().union(*(argument_names(layer) for layer in layers)) - set(own.parameters)
    named = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None)
        for name in sorted(names)
    ]
    return own.replace(parameters=[*fixed, *named, rest])


def _parameters(layer: keras.layers.Layer) -> list[inspect.Parameter]:
    # Not of `layer.call`: a layer that passes arguments on has a wider one here.
    _, *parameters = call_signature(layer).parameters.values()
    return [p for p in parameters if p.kind not in _VARIADIC and p.name != "training"]
