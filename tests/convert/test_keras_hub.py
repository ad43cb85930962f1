"""Backbones of KerasHub, built from sizes and converted."""

import keras
import numpy as np
import pytest
from keras_hub import models  # noqa: E402

import revkeras
from tests.convert.models import assert_close, gradients

RNG = np.random.default_rng(0)
TOKENS = RNG.integers(1, 50, (2, 10)).astype("int32")
MASK = np.array([[1] * 10, [1] * 7 + [0] * 3], "int32")
TEXT = {"token_ids": TOKENS, "padding_mask": MASK}
IMAGES = RNG.standard_normal((2, 8, 8, 3)).astype("float32")
SIZES = {"hidden_dim": 16, "intermediate_dim": 32}


def bert(n=3):
    model = models.BertBackbone(50, n, 2, max_sequence_length=16, **SIZES)
    return model, {**TEXT, "segment_ids": np.zeros_like(TOKENS)}


def gpt2(n=3):
    return models.GPT2Backbone(50, n, 2, max_sequence_length=16, **SIZES), TEXT


def llama(n=3):
    return models.LlamaBackbone(50, n, 2, num_key_value_heads=1, **SIZES), TEXT


def gemma(n=3):
    sizes = {"num_key_value_heads": 1, "head_dim": 8, **SIZES}
    sliding = {"use_sliding_window_attention": True, "sliding_window_size": 4}
    return models.GemmaBackbone(50, n, 2, **sizes, **sliding), TEXT


def vit(n=3):
    return models.ViTBackbone((8, 8, 3), (4, 4), n, 2, 16, 32, dropout_rate=0.1), IMAGES


BACKBONES = {f.__name__: f for f in (bert, gpt2, llama, gemma, vit)}


def flat(outputs):
    return np.concatenate([np.ravel(y) for y in keras.tree.flatten(outputs)])


@pytest.mark.parametrize("name", BACKBONES)
def test_outputs_names_files_and_the_way_back(name, tmp_path):
    model, data = BACKBONES[name]()
    original, names = flat(model(data)), [v.path for v in model.variables]
    revkeras.to_momentum_net(model, beta=1e-6)
    assert [len(run.blocks) for run in model.momentum_runs] == [3]
    np.testing.assert_allclose(flat(model(data)), original, atol=1e-4)
    assert [v.path for v in model.variables] == names

    model = revkeras.to_momentum_net(BACKBONES[name]()[0], beta=0.2)
    expected = flat(model(data))
    assert np.abs(expected - original).max() > 1e-3
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(flat(loaded(data)), expected, rtol=1e-5, atol=1e-6)
    plain = revkeras.to_plain(loaded)
    np.testing.assert_allclose(flat(plain(data)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "blocks"), [("bert", 2), ("gpt2", 5), ("llama", 2), ("gemma", 2), ("vit", 2)]
)
def test_gradients_with_dropout_and_masks(name, blocks):
    model, data = BACKBONES[name](blocks)
    revkeras.to_momentum_net(model, beta=0.1)
    assert model.momentum_runs[0].stack.couplings[0].exact == (blocks > 4)
    found = gradients(model, data)
    model.momentum_runs[0].memory_mode = "none"
    assert_close(found, gradients(model, data))


@pytest.mark.tensorflow("KerasHub generates on JAX in 32 bits alone")
@pytest.mark.parametrize("whole", [True, False])
def test_generation_with_a_cache_is_that_without(whole):
    """Of a converted language model, and of one on a converted backbone."""
    backbone, _ = gpt2()
    if not whole:
        revkeras.to_momentum_net(backbone, beta=0.3)
    model = models.GPT2CausalLM(backbone=backbone, preprocessor=None)
    if whole:
        revkeras.to_momentum_net(model, beta=0.3)
    prompt = {
        "token_ids": np.pad(TOKENS[:, :4], ((0, 0), (0, 4))),
        "padding_mask": np.pad(np.ones((2, 4), "int32"), ((0, 0), (0, 4))),
    }
    model.compile(sampler="greedy")
    found = model.generate(prompt, stop_token_ids=None)["token_ids"]
    tokens = prompt["token_ids"].copy()
    for position in range(4, 8):
        logits = model({"token_ids": tokens, "padding_mask": np.ones_like(tokens)})
        tokens[:, position] = np.array(logits)[:, position - 1].argmax(axis=-1)
    np.testing.assert_array_equal(found, tokens)


@pytest.mark.tensorflow("KerasHub generates on JAX in 32 bits alone")
def test_generation_is_traced_anew_after_each_conversion():
    keras.utils.set_random_seed(1)
    model = models.GPT2CausalLM(backbone=gpt2()[0], preprocessor=None)
    for v in model.trainable_variables:
        v.assign_add(0.5 * keras.random.normal(v.shape))
    model.compile(sampler="greedy")
    prompt = {
        "token_ids": np.pad(TOKENS[:, :4], ((0, 0), (0, 6))),
        "padding_mask": np.pad(np.ones((2, 4), "int32"), ((0, 0), (0, 6))),
    }

    def generated():
        return model.generate(prompt, stop_token_ids=None)["token_ids"]

    original = generated()
    revkeras.to_momentum_net(model, beta=0.8)
    converted = generated()
    assert (converted != original).any()
    model.compile(sampler="greedy")
    np.testing.assert_array_equal(generated(), converted)
    revkeras.from_momentum_net(model)
    np.testing.assert_array_equal(generated(), original)
