"""Small language models, trained by `fit` on batches whose size is not static.

`python language.py OUT` is run in every worker at stage 3; rank 0 writes OUT/MODEL.npz.
"""

import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import revkeras
from revkeras.distribute import ZeroStrategy
from tests.compiling import compiled

L = keras.layers
ROWS, LENGTH, VOCABULARY, WIDTH, BATCH = 20, 6, 1024, 16, 8  # an embedding has 64 KiB; 20 = 8+8+4


def before_a_stack():
    blocks = [L.Dense(WIDTH // 2, "tanh") for _ in range(2)]
    return keras.Sequential(
        [
            keras.Input((LENGTH,), dtype="int32"),
            L.Embedding(VOCABULARY, WIDTH),
            revkeras.ReversibleSequential(blocks),
            L.Dense(VOCABULARY),
        ]
    )


def transformer():
    model = revkeras.models.ReversibleTransformer(
        VOCABULARY, decoder_layers=1, hidden_dim=WIDTH, num_heads=2, max_length=LENGTH, dropout=0.0
    )
    tokens = keras.Input((LENGTH,), dtype="int32")
    return keras.Model(tokens, model(_inputs(tokens)))


def gpt2():
    from keras_hub import models

    backbone = models.GPT2Backbone(
        vocabulary_size=VOCABULARY,
        num_layers=1,
        num_heads=2,
        hidden_dim=WIDTH,
        intermediate_dim=2 * WIDTH,
        max_sequence_length=LENGTH,
        dropout=0.0,
    )
    tokens = keras.Input((LENGTH,), dtype="int32")
    hidden = backbone(_inputs(tokens))
    return keras.Model(tokens, backbone.token_embedding(hidden, reverse=True))


def _inputs(tokens):
    return {"token_ids": tokens, "padding_mask": keras.ops.ones_like(tokens)}


MODELS = {model.__name__: model for model in (before_a_stack, transformer)}
MODELS["gpt2"] = gpt2


def train(name, strategy):
    """The weights after an epoch on arrays, and one on a dataset without `drop_remainder`."""
    keras.utils.set_random_seed(strategy.rank)
    with strategy.scope():
        model = MODELS[name]()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        compiled(model, strategy.optimizer(keras.optimizers.SGD(0.1, momentum=0.9)), loss)
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (ROWS, LENGTH + 1))
    x, y = tokens[:, :-1], tokens[:, 1:]
    arrays = strategy.shard((x, y), batch_size=BATCH)
    batches = strategy.shard(tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH))
    for data in arrays, batches:
        model.fit(data, shuffle=False, verbose=0)
    return model.get_weights()


if __name__ == "__main__":
    strategy = ZeroStrategy(stage=3)
    for name in MODELS:
        weights = train(name, strategy)
        if strategy.rank == 0:
            np.savez(Path(sys.argv[1]) / f"{name}.npz", *weights)
    strategy.engine.close()
