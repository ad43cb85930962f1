"""The reversible transformer: masks, chunks, the cache, generation, bad input."""

import keras
import numpy as np
import pytest

from revkeras.models import ReversibleTransformer
from revkeras.models.transformer_blocks import FeedForwardBlock
from tests.differentiation import COMPILED, gradients
from tests.models.counting import parameters

RNG = np.random.default_rng(0)
TOKENS = RNG.integers(1, 20, (3, 6)).astype("int32")
PADDED = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0]], "int32")
SIZES = {"hidden_dim": 8, "num_heads": 2, "max_length": 12}


def inputs(tokens=TOKENS, mask=None, prefix=""):
    mask = np.ones_like(tokens) if mask is None else mask
    return {f"{prefix}token_ids": tokens, f"{prefix}padding_mask": mask}


def both(tokens, context=TOKENS, context_mask=PADDED):
    return {**inputs(context, context_mask, "encoder_"), **inputs(tokens, prefix="decoder_")}


def test_base_has_the_parameters_of_the_original_transformer():
    """65 million in the paper's table, with a vocabulary of about 37000."""
    found = parameters(lambda: ReversibleTransformer(37000, 6, 6))
    assert found == pytest.approx(65e6, rel=0.025)


@pytest.mark.parametrize("layers", [(2, 0), (0, 2), (1, 1)])
def test_gradients_are_those_of_plain_training(layers):
    modes = "reversible", "none"
    ours, plain = (
        ReversibleTransformer(20, *layers, dropout=0.0, memory_mode=mode, **SIZES) for mode in modes
    )
    plain.set_weights(ours.get_weights())
    data = both(TOKENS) if all(layers) else inputs(mask=PADDED)
    found = []
    for model in ours, plain:
        weights = model.trainable_variables
        own = gradients(
            lambda model=model: model(data, training=True) ** 2, [], weights, graph=COMPILED
        )
        found.append(list(map(np.array, own)))
    norm = np.linalg.norm([np.linalg.norm(g) for g in found[1]])
    for a, b in zip(*found):
        assert np.linalg.norm(a - b) < 1e-4 * norm


def test_a_decoder_sees_nothing_behind_and_no_padding():
    model = ReversibleTransformer(20, decoder_layers=2, **SIZES)
    changed = TOKENS.copy()
    changed[:, 4:] = 0
    before, after = model(inputs()), model(inputs(changed))
    np.testing.assert_allclose(before[:, :4], after[:, :4], atol=1e-5)
    assert np.abs(before[:, 4:] - after[:, 4:]).max() > 1e-3


def test_an_encoder_sees_all_but_padding():
    model = ReversibleTransformer(20, 2, **SIZES)
    changed = np.where(PADDED, TOKENS, 0)
    seen = PADDED.astype(bool)
    before, after = (np.array(model(inputs(t, PADDED))) for t in (TOKENS, changed))
    np.testing.assert_allclose(before[seen], after[seen], atol=1e-5)
    swapped = TOKENS.copy()
    swapped[:, 2] = (swapped[:, 2] + 1) % 20
    assert np.abs(model(inputs(swapped, PADDED))[:, 0] - before[:, 0]).max() > 1e-4


def test_classes_are_of_the_mean_without_padding():
    model = ReversibleTransformer(20, 1, classes=3, classifier_activation="softmax", **SIZES)
    scores = model(inputs(np.where(PADDED, TOKENS, 7), PADDED))
    assert scores.shape == (3, 3)
    np.testing.assert_allclose(scores, model(inputs(TOKENS * PADDED, PADDED)), atol=1e-5)


def test_features_without_the_top_and_a_fixed_length():
    model = ReversibleTransformer(20, 1, include_top=False, input_shape=(6,), **SIZES)
    assert model.output_shape == (None, 6, 8)


def test_sizes_of_numpy_and_weights_of_a_file(tmp_path):
    sizes = {name: np.int64(size) for name, size in SIZES.items()}
    model = ReversibleTransformer(20, np.int64(1), classes=np.int64(3), **sizes)
    model.save_weights(tmp_path / "m.weights.h5")
    found = ReversibleTransformer(20, 1, classes=3, weights=tmp_path / "m.weights.h5", **SIZES)
    np.testing.assert_array_equal(found(inputs()), model(inputs()))


def test_chunks_change_nothing():
    whole, chunked = FeedForwardBlock(16), FeedForwardBlock(16, chunks=4)
    x = RNG.standard_normal((2, 10, 8)).astype("float32")
    whole(x), chunked(x)
    chunked.set_weights(whole.get_weights())
    results = []
    for block in whole, chunked:
        results.append(
            [block(x), *gradients(lambda x, block=block: block(x) ** 2, [x], block.weights)]
        )
    for a, b in zip(*results):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    short = x[:, :2]  # some chunks are empty
    np.testing.assert_allclose(chunked(short), whole(short), rtol=1e-4, atol=1e-6)


def greedy(model, prompt, mask, length, wrap):
    """Generation without a cache: the whole sequence again for each token."""
    tokens = np.zeros((len(prompt), length), "int32")
    tokens[:, : prompt.shape[1]] = prompt * mask
    lengths = mask.sum(axis=1)
    for position in range(lengths.min(), length):
        best = np.array(model(wrap(tokens)))[:, position - 1].argmax(axis=-1)
        tokens[:, position] = np.where(position < lengths, tokens[:, position], best)
    return tokens


def test_generation_with_a_cache_is_that_without():
    model = ReversibleTransformer(20, decoder_layers=2, feed_forward_chunks=2, **SIZES)
    found = model.generate(TOKENS, 10, PADDED)
    np.testing.assert_array_equal(found, greedy(model, TOKENS, PADDED, 10, inputs))


def test_translation_with_a_cache_is_that_without_and_survives_a_file(tmp_path):
    model = ReversibleTransformer(20, 1, 2, **SIZES)
    start = TOKENS[:, :2]
    expected = greedy(model, start, np.ones_like(start), 8, both)
    np.testing.assert_array_equal(
        model.generate(start, 8, encoder_inputs=inputs(TOKENS, PADDED)), expected
    )
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    found = loaded.generate(start, 8, encoder_inputs=inputs(TOKENS, PADDED))
    np.testing.assert_array_equal(found, expected)


def test_drawn_tokens_repeat_with_their_seed_and_stop():
    model = ReversibleTransformer(20, decoder_layers=1, **SIZES)
    drawn = [model.generate(TOKENS, 12, temperature=1.5, seed=s) for s in (0, 0, 1)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any()
    stop = int(drawn[0][0, 8])
    stopped = model.generate(TOKENS, 12, temperature=1.5, seed=0, stop_token=stop)
    first = int(np.argmax(drawn[0][0, 6:] == stop)) + 6
    np.testing.assert_array_equal(stopped[0, : first + 1], drawn[0][0, : first + 1])
    assert (stopped[0, first:] == stop).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "`encoder_layers` and `decoder_layers`: expected a positive number"),
        ({"encoder_layers": -1}, "`encoder_layers`: expected an integer of at least 0"),
        ({"encoder_layers": 1, "num_heads": 3}, "`num_heads`: expected a divisor"),
        ({"encoder_layers": 1, "max_length": 0}, "`max_length`: expected a positive"),
        ({"encoder_layers": 1, "intermediate_dim": 0}, "`intermediate_dim`: expected a positive"),
        ({"decoder_layers": 1, "classes": 3}, "`classes`: expected None beside a decoder"),
        ({"encoder_layers": 1, "classes": -3}, "`classes`: expected a positive"),
        ({"encoder_layers": 1, "input_shape": (20,)}, "a length of at most max_length=12"),
        ({"encoder_layers": 1, "input_shape": (2, 3)}, r"`input_shape`: expected \(length,\)"),
        ({"encoder_layers": 1, "feed_forward_chunks": 0}, "`feed_forward_chunks`"),
    ],
)
def test_bad_sizes(arguments, message):
    with pytest.raises(ValueError, match=message):
        ReversibleTransformer(20, **{**SIZES, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_length": 13}, "`max_length`: expected 6.* to 12"),
        ({"max_length": 5}, "`max_length`: expected 6"),
        ({"temperature": -1.0}, "`temperature`: expected at least 0"),
        ({"padding_mask": np.zeros((3, 6))}, "`token_ids`: expected prompts"),
        ({"encoder_inputs": {}}, "`encoder_inputs`: expected None"),
        ({"token_ids": TOKENS + 20}, "`token_ids`: expected integers from 0 to 19"),
        ({"token_ids": TOKENS / 2}, "`token_ids`: expected integers.* received dtype float64"),
        ({"token_ids": TOKENS.astype(str)}, "`token_ids`: expected integers.* the tokenizer"),
        ({"stop_token": -1}, "`stop_token`: expected integers.* received some from -1 to -1"),
        ({"stop_token": "."}, "`stop_token`: expected integers"),
        ({"padding_mask": PADDED[:, ::-1]}, "`padding_mask`: expected padding at the end"),
        ({"padding_mask": PADDED[:, :5]}, r"`padding_mask`: expected the shape \(3, 6\).*\(3, 5\)"),
        ({"token_ids": TOKENS[0]}, r"`token_ids`: expected prompts of shape \(batch, length\)"),
    ],
)
def test_bad_prompts(arguments, message):
    model = ReversibleTransformer(20, decoder_layers=1, **SIZES)
    with pytest.raises(ValueError, match=message):
        model.generate(**{"token_ids": TOKENS, "max_length": 8, **arguments})


def test_padding_need_not_be_of_the_vocabulary():
    model = ReversibleTransformer(20, decoder_layers=1, **SIZES)
    padded = np.where(PADDED, TOKENS, -1)
    expected = model.generate(TOKENS, 8, PADDED)
    np.testing.assert_array_equal(model.generate(padded, 8, PADDED), expected)


def test_missing_encoder_inputs():
    model = ReversibleTransformer(20, 1, 1, **SIZES)
    with pytest.raises(ValueError, match="expected a dictionary of 'token_ids'"):
        model.generate(TOKENS, 8)
    with pytest.raises(ValueError, match="without \\['padding_mask'\\]"):
        model.generate(TOKENS, 8, encoder_inputs={"token_ids": TOKENS})
