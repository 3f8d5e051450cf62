"""Images conditioned on a free-form text, which the paper names as future work (section 6).

A text is its UTF-8 bytes, cut or padded with zeros to `model.text_length`. An encoder reads them, and every layer of
the decoder attends to it. An empty text is one byte of padding: images without a text.

Shape suffixes: B batch, C bytes of a text, D features.
"""

from collections.abc import Sequence
import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from image_transformer.attention import full_attention
from image_transformer.conditions import Condition, Encoding
from image_transformer.config import ModelConfig, check
from image_transformer.dropout import Dropout, drop
from image_transformer.embeddings import Coordinates, Table, rotation
from image_transformer.transformer import Rotations, Stack, is_fused

_NUM_BYTES = 256


class _TextEncoder(nn.Module):
  config: ModelConfig

  def setup(self):
    c = self.config
    self.text_embedding = Table(_NUM_BYTES, c.hidden_size)
    self.text_coordinates = Coordinates(1, c.text_length, c.hidden_size, c.coordinates)
    self.text_encoder = Stack(c, c.num_encoder_layers)
    self.hide = Dropout(c.text_dropout)

  def __call__(self, texts_BC: jax.Array, batch_index_B: jax.Array | None) -> Encoding:
    c = self.config
    kept_B1 = drop(jnp.ones((len(texts_BC), 1)), self.hide.drops(batch_index_B)) > 0
    texts_BC = jnp.where(kept_B1, texts_BC, 0)
    visible_BC = (texts_BC > 0).at[:, 0].set(True)  # of an empty text, too, there is something to attend to
    index_C = jnp.arange(c.text_length)
    embedded_BCD = self.text_embedding(texts_BC) + self.text_coordinates(jnp.zeros_like(index_C), index_C)
    places_C = rotation(c, [index_C])
    attention_fn = functools.partial(full_attention, visible_BC=visible_BC, fused=is_fused(c))
    layers = c.num_encoder_layers
    encoded_BCD, _ = self.text_encoder(embedded_BCD, [attention_fn] * layers, batch_index_B,
                                       Rotations(places_C, places_C), [None] * layers)
    return Encoding(context_BCD=encoded_BCD, visible_BC=visible_BC)


class Text(Condition):
  """A text that describes an image."""

  name = source = 'text'
  has_context = True
  flag = 'text', ('A text to draw, or several, each with a --text of its own, repeated to fill the images. Default: '
                  'those of the inputs.')

  def __post_init__(self):
    check(self.spec.has_texts, 'model.text_length', self.config.text_length, '0 for a dataset without texts')

  @classmethod
  def is_used(cls, config):
    return config.text_length > 0

  @property
  def shape(self):
    return (self.config.text_length,)

  @property
  def num_values(self):
    return _NUM_BYTES

  def encoder(self):
    return _TextEncoder(self.config)

  def of_example(self, example):
    """Cuts longer texts, between two characters."""
    text = example['text']
    return self._encode(text.decode() if isinstance(text, bytes) else text)

  def captions(self, values):
    return [bytes(row[row > 0].astype(np.uint8).tolist()).decode(errors='replace') for row in values]

  def of_user(self, given, num_images):
    words = [given] * num_images if isinstance(given, str) else given
    is_text = isinstance(words, Sequence) and words and all(isinstance(word, str) for word in words)
    return self.parse(words) if is_text else given

  def parse(self, words):
    for word in words:
      length = len(word.encode(errors='replace'))
      check(length <= self.config.text_length, 'text', word,
            f'at most {self.config.text_length} bytes (model.text_length), not {length}')
    return np.stack([self._encode(word) for word in words])

  def _encode(self, text):
    """uint8 [C]."""
    whole = text.replace('\0', ' ').encode(errors='replace')[:self.config.text_length]
    content = whole.decode(errors='ignore').encode()
    return np.frombuffer(content.ljust(self.config.text_length, b'\0'), np.uint8)
