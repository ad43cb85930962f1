"""Text from a transformer with a decoder, one token after the other."""

import weakref
from typing import Any

import keras
import numpy as np
from keras import ops

from revkeras.models.transformer_blocks import AttentionBlock, CrossAttentionBlock

# Not an attribute of the model, which would save it.
_STEPS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


@keras.saving.register_keras_serializable("revkeras")
class GenerativeModel(keras.Model):
    """A functional model with a decoder that goes on from a prompt.

    `ReversibleTransformer` returns one.
    """

    def generate(
        self,
        token_ids: Any,
        max_length: int,
        padding_mask: Any = None,
        *,
        encoder_inputs: dict | None = None,
        temperature: float = 0.0,
        stop_token: int | None = None,
        seed: int | None = None,
    ) -> np.ndarray:
        """Goes on from prompts.

        Keys and values of what was read are kept in a cache, so each step computes
        one position.

        Args:
            token_ids: Integers of shape `(batch, length)`, the prompts.
            max_length: Integer, the length of prompt and what follows together.
            padding_mask: Of the prompts' shape, 1 where there is a token; padding
                is at the end, and what is generated takes its place. Defaults to
                `None`, which means no padding.
            encoder_inputs: With an encoder, a dictionary of its `"token_ids"` and
                `"padding_mask"`. Defaults to `None`.
            temperature: Float. `0` takes the likeliest token, other values draw
                from the scores divided by it. Defaults to `0.0`.
            stop_token: Integer, the token at which a sequence ends: what comes
                behind it is this token again. Defaults to `None`.
            seed: Integer, the seed of what is drawn. Defaults to `None`.

        Returns:
            A NumPy array of shape `(batch, max_length)`.

        Raises:
            ValueError: for tokens that are not in the vocabulary, a bad `max_length`, an
                empty prompt, padding that is not at the end, a negative `temperature`, and
                encoder inputs that are missing or cannot be used.

        Example:

        >>> import numpy as np, revkeras
        >>> model = revkeras.models.ReversibleTransformer(
        ...     50, decoder_layers=1, hidden_dim=8, num_heads=2, max_length=16)
        >>> model.generate(np.ones((1, 4), "int32"), max_length=9).shape
        (1, 9)
        """
        prompt = _as_array(token_ids)
        mask = np.ones(prompt.shape, bool)
        if padding_mask is not None:
            mask = np.asarray(padding_mask).astype(bool)
        lengths = _lengths(prompt, mask)
        prompt = self._tokens("token_ids", prompt, mask)
        if stop_token is not None:
            stop_token = int(self._tokens("stop_token", stop_token))
        self._check(prompt, max_length, temperature, encoder_inputs)
        context = self._context(encoder_inputs)
        cache = np.zeros((len(prompt), *self._cache_shape(max_length)), "float32")
        tokens = np.zeros((len(prompt), max_length), "int32")
        tokens[:, : prompt.shape[1]] = prompt
        done, rng = np.zeros(len(prompt), bool), np.random.default_rng(seed)
        if self not in _STEPS:
            _STEPS[self] = _TokenStep(self, self._prefix())
        step = _STEPS[self]
        start, stop = 0, int(lengths.min())
        while stop < max_length and not done.all():
            index = np.asarray(start, "int32")
            logits, cache = step.predict_on_batch(
                {"tokens": tokens[:, start:stop], "cache": cache, "index": index, **context}
            )
            drawn = _draw(logits, temperature, rng)
            if stop_token is not None:
                drawn = np.where(done, stop_token, drawn)
            is_prompt = stop < lengths
            tokens[:, stop] = np.where(is_prompt, tokens[:, stop], drawn)
            if stop_token is not None:
                done |= ~is_prompt & (tokens[:, stop] == stop_token)
            start, stop = stop, stop + 1
        if done.any():
            tokens[done] = _filled(tokens[done], lengths[done], stop_token)
        return tokens

    def _tokens(self, name: str, value: Any, mask: Any = True) -> np.ndarray:
        """The value of an argument, as tokens of the vocabulary; 0 where the mask is not set."""
        tokens, size = np.array(value), self.get_layer("token_embedding").vocabulary_size
        tokens[~np.broadcast_to(mask, tokens.shape)] = 0
        expected = f"expected integers from 0 to {size - 1}, the model's vocabulary; received"
        if tokens.size and not np.issubdtype(tokens.dtype, np.integer):
            raise ValueError(
                f"Invalid value for argument `{name}`: {expected} dtype {tokens.dtype}. "
                "Text has to go through the tokenizer that the model was trained with."
            )
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < size:
            raise ValueError(
                f"Invalid value for argument `{name}`: {expected} some from {tokens.min()} to "
                f"{tokens.max()}."
            )
        return tokens.astype("int32")

    def _check(
        self,
        prompt: np.ndarray,
        max_length: int,
        temperature: float,
        encoder_inputs: Any,
    ) -> None:
        longest = self.get_layer(f"{self._prefix()}position_embedding").max_length
        if not prompt.shape[1] <= max_length <= longest:
            raise ValueError(
                f"Invalid value for argument `max_length`: expected {prompt.shape[1]}, the length "
                f"of the prompts, to {longest}, that of the model's positions; received "
                f"max_length={max_length}."
            )
        if temperature < 0:
            raise ValueError(
                "Invalid value for argument `temperature`: expected at least 0, received "
                f"temperature={temperature}."
            )
        if bool(self._prefix()) != (encoder_inputs is not None):
            expected = (
                "a dictionary of 'token_ids' and 'padding_mask'" if self._prefix() else "None"
            )
            raise ValueError(
                f"Invalid value for argument `encoder_inputs`: expected {expected} for this model, "
                f"received encoder_inputs={encoder_inputs!r}."
            )

    def _prefix(self) -> str:
        return "decoder_" if "encoder_token_ids" in self.input else ""

    def _blocks(self, kind: type) -> list:
        return [x for x in self.get_layer("decoder").layers if isinstance(x, kind)]

    def _cache_shape(self, max_length: int) -> tuple:
        blocks = self._blocks(AttentionBlock)
        heads = blocks[0].heads
        width = self.get_layer("token_embedding").width
        return len(blocks), 2, max_length, heads, width // heads

    def _context(self, encoder_inputs: dict | None) -> dict:
        """What the decoder's cross-attention reads, computed once."""
        if encoder_inputs is None:
            return {}
        names = "token_ids", "padding_mask"
        if missing := [name for name in names if name not in encoder_inputs]:
            raise ValueError(
                "Invalid value for argument `encoder_inputs`: expected a dictionary of "
                f"{list(names)}, received one without {missing}."
            )
        mask = np.asarray(encoder_inputs["padding_mask"]).astype(bool)
        given = {
            "encoder_token_ids": self._tokens("encoder_inputs", encoder_inputs["token_ids"], mask),
            "encoder_padding_mask": mask.astype("int32"),
        }
        inputs = {name: self.input[name] for name in given}
        encoder = keras.Model(inputs, self.get_layer("encoder_norm").output)
        context = encoder(given, training=False)
        projected = [block.project(context) for block in self._blocks(CrossAttentionBlock)]
        cache = ops.convert_to_numpy(ops.cast(ops.stack(projected, axis=1), "float32"))
        return {"context_cache": cache, "context_mask": given["encoder_padding_mask"]}


class _TokenStep(keras.Model):
    """Tokens and a cache to the scores behind the last token, and the next cache.

    Not a functional model: the decoder returns more than in the graph it was built in,
    which those do not take.
    """

    def __init__(self, model: GenerativeModel, prefix: str):
        super().__init__(name="decoder_step")
        self.embedding = model.get_layer("token_embedding")
        self.positions = model.get_layer(f"{prefix}position_embedding")
        self.decoder = model.get_layer("decoder")
        self.norm = model.get_layer("decoder_norm")

    def call(self, inputs: dict) -> tuple[Any, Any]:
        context = {k: v for k, v in inputs.items() if k.startswith("context")}
        x = self.positions(self.embedding(inputs["tokens"]), start=inputs["index"])
        arguments = {"cache": inputs["cache"], "cache_index": inputs["index"], **context}
        x, *caches = self.decoder(x, **arguments)
        logits = self.embedding(self.norm(x[:, -1:]), reverse=True)
        return logits[:, 0], ops.stack(caches, axis=1)


def _as_array(token_ids: Any) -> np.ndarray:
    try:
        return np.asarray(token_ids)
    except ValueError:
        raise ValueError(
            "Invalid value for argument `token_ids`: expected prompts of shape (batch, length), "
            f"received prompts of the lengths {[len(x) for x in token_ids]}. Fill the shorter ones "
            "up at their end, and pass a `padding_mask` with 0 there."
        ) from None


def _lengths(prompt: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """How many tokens each prompt has; raises unless all have some, and padding behind them."""
    if prompt.ndim == 2 and mask.shape != prompt.shape:
        raise ValueError(
            f"Invalid value for argument `padding_mask`: expected the shape {prompt.shape} of the "
            f"prompts, received the shape {mask.shape}."
        )
    lengths = mask.sum(axis=1) if prompt.ndim == 2 else np.zeros(0, int)
    if not lengths.size or not lengths.min():
        raise ValueError(
            "Invalid value for argument `token_ids`: expected prompts of shape (batch, length) "
            f"with a token each, received the shape {prompt.shape}"
            + (f" with {lengths.tolist()} tokens." if prompt.ndim == 2 else ".")
        )
    if (mask[:, 1:] > mask[:, :-1]).any():
        raise ValueError(
            "Invalid value for argument `padding_mask`: expected padding at the end of each "
            "prompt, received some in front of a token. Move the tokens to the front."
        )
    return lengths


def _draw(logits: np.ndarray, temperature: float, rng: np.random.Generator) -> np.ndarray:
    if not temperature:
        return logits.argmax(axis=-1)
    # The largest of scores with Gumbel noise is a draw from their softmax.
    noise = rng.gumbel(size=logits.shape)
    return (logits.astype("float64") / temperature + noise).argmax(axis=-1)


def _filled(tokens: np.ndarray, lengths: np.ndarray, stop_token: int) -> np.ndarray:
    """`tokens` with everything behind the first stop token that was generated set to it."""
    generated = np.arange(tokens.shape[1]) >= lengths[:, None]
    ended = np.cumsum(generated & (tokens == stop_token), axis=1) > 0
    return np.where(ended, stop_token, tokens)
