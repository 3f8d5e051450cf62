"""Lossless compression: images as files whose size is the model's bits/dim, by entropy coding with its probabilities.

Encoder and decoder run the same compiled programs, one position at a time and on batches of one size, since a single
bit of difference between their probabilities garbles all that follows. The header therefore identifies whatever
determines these numbers, and holds a digest of numbers that both sides compute; a file is only read where all of it is
the same. Every image is a stream of its own, with a checksum: a damaged one is recognised and costs no other.

A file: `MAGIC`, the length of the header (2 bytes), the header (JSON, compressed by zlib) and its CRC-32; for every
image the number of 32-bit words of its stream (2 or 4 bytes), 3 bytes of checksum, and the values of its conditions;
then the streams. Numbers are little-endian.

Shape suffixes: those of `sampling.py`, I images of a file.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import concurrent.futures
import dataclasses
import functools
import hashlib
import importlib.metadata
import itertools
import json
from typing import Any
import zlib

import constriction
import jax
import jax.numpy as jnp
import numpy as np

from image_transformer import attention, devices, stopping
from image_transformer.door import check_given, check_images
from image_transformer.errors import InputError, RunError, some
from image_transformer.metrics import num_cpus
from image_transformer.model import ImageTransformer
from image_transformer.progress import Progress

MAGIC = b'\x89ITC'
FORMAT = 2  # of the file
BATCH = 16  # images that are coded side by side: fewer take nearly as long
_CHECKSUM_BYTES = 3
_NUM_TESTED = 8  # slots whose numbers the header identifies

# What the coder expects of one intensity, from the probabilities of all: 24 bits each, none of them 0. Lazy models are
# the fastest for a single number.
_entropy_model = functools.partial(constriction.stream.model.Categorical, perfect=False, lazy=True)

# What two machines must have in common, as the header calls it, and as messages do.
_SAME = {
    'format': 'version of the format', 'model': 'model', 'jax': 'version of JAX', 'jaxlib': 'version of jaxlib',
    'constriction': 'version of constriction', 'backend': 'back end of JAX', 'device': 'kind of device',
    'batch': 'batch size', 'numbers': 'result of the same computation'}


class Codec:
  """Compresses images with a model, and decompresses them."""

  def __init__(self, model: ImageTransformer, params: Any):
    self.model = model
    self._params = jax.device_put(params)  # once, since every step takes them
    self._programs = _programs(model)

  def compress(self, images: Any, given: Mapping[str, Any] = {}, verify: bool = True) -> bytes:
    """Compresses images, losslessly.

    Args:
      images: integers [I, H, W, C].
      given: their conditions, which are stored as well.
      verify: whether to decompress the result and compare it with the images.

    Raises:
      InputError: if the images or the conditions do not fit the model.
      RunError: if the verification fails: this machine does not compute the same numbers twice.
    """
    images = np.asarray(check_images(images, self.model.spec))
    checked = check_given(given, self.model.conditions, len(images))
    given = {name: np.asarray(values, np.int32) for name, values in checked.items()}
    values_ILV = np.asarray(self.model.apply({'params': self._params}, images, method='values'))
    streams = []
    with Progress('compress', 'image', len(images)) as progress:
      for encoded in _side_by_side(lambda part: self._encode(values_ILV[part], _part(given, part)), _parts(images)):
        streams += encoded
        progress.update(len(streams))
    words = max(len(stream) for stream in streams)
    header = self._header() | {'images': len(images), 'length_bytes': 2 if words < 2**16 else 4}
    packed = zlib.compress(json.dumps(header, separators=(',', ':')).encode(), 9)
    packed = len(packed).to_bytes(2, 'little') + packed
    stored = self._stored(given, len(images))
    index = [len(stream).to_bytes(header['length_bytes'], 'little') + _checksum(image, about) + about
             for stream, image, about in zip(streams, images, stored, strict=True)]
    content = b''.join([MAGIC, packed, zlib.crc32(packed).to_bytes(4, 'little'), *index,
                        *(stream.astype('<u4').tobytes() for stream in streams)])
    if verify:
      _, again = self.recover(content)
      wrong = [i for i, image in enumerate(images) if i not in again or not np.array_equal(again[i], image)]
      if wrong:
        raise RunError(f'Images {some(wrong)} do not come out as they went in: this machine does not compute the same '
                       'numbers twice. Nothing was compressed.')
    return content

  def decompress(self, content: bytes) -> np.ndarray:
    """The images in a compressed file: uint8 [I, H, W, C].

    Raises:
      InputError: if the file is damaged, or was compressed by another model or in other surroundings.
    """
    number, images = self.recover(content)
    damaged = [i for i in range(number) if i not in images]
    if damaged:
      raise InputError(f'Of {number} compressed images {len(damaged)} are damaged: {some(damaged)}. Get the file '
                       'again, or recover the others.')
    return np.stack([images[i] for i in range(number)])

  def recover(self, content: bytes) -> tuple[int, dict[int, np.ndarray]]:
    """How many images are in a compressed file, and the undamaged ones by their index; see `decompress`.

    Raises:
      InputError: if the header is damaged, or the file was compressed by another model or in other surroundings.
    """
    header = self.read_header(content)
    begin, number, length_bytes = _header_end(content), header['images'], header['length_bytes']
    about_bytes = sum(size * width for _, size, width in self._conditions())
    entry = length_bytes + _CHECKSUM_BYTES + about_bytes
    index = [content[begin + i * entry:begin + (i + 1) * entry] for i in range(number)]
    lengths = [4 * int.from_bytes(one[:length_bytes], 'little') for one in index]
    images: dict[int, np.ndarray] = {}
    # If a length is damaged or a part is missing, streams before it are found from the front, the others from the end.
    front = begin + number * entry + np.cumsum([0, *lengths])[:-1]
    back = len(content) - np.cumsum(lengths[::-1])[::-1]
    with Progress('decompress', 'image', number) as progress:
      for starts in (front, back) if (front != back).any() else (front,):
        missing = [i for i in range(number) if i not in images and 0 <= starts[i] <= len(content) - lengths[i] and
                   len(index[i]) == entry]
        abouts = [index[i][length_bytes + _CHECKSUM_BYTES:] for i in missing]
        streams = [np.frombuffer(content[starts[i]:starts[i] + lengths[i]], '<u4').astype(np.uint32) for i in missing]
        decoded = _side_by_side(lambda part: self._decode(streams[part], self._given(abouts[part])), _parts(missing))
        for i, image, about in zip(missing, itertools.chain.from_iterable(decoded), abouts):
          if image is not None and _checksum(image, about) == index[i][length_bytes:length_bytes + _CHECKSUM_BYTES]:
            images[i] = image
          progress.update(len(images))
    return number, images

  def read_header(self, content: bytes) -> dict[str, Any]:
    """The header of a compressed file.

    Raises:
      InputError: if it is no such file, its header is damaged, or anything differs that must be the same.
    """
    if not content.startswith(MAGIC):
      raise InputError('This is not a file that was compressed by an Image Transformer.')
    packed, checksum = content[len(MAGIC):_header_end(content) - 4], content[_header_end(content) - 4:]
    if zlib.crc32(packed) != int.from_bytes(checksum[:4], 'little') or len(checksum) < 4:
      raise InputError('The header of the compressed file is damaged: get the file again.')
    header = json.loads(zlib.decompress(packed[2:]))
    for name, here in self._header().items():
      if header.get(name) != here:
        what = {'model': 'load the run that compressed it', 'batch': 'use the version of this program that wrote it',
                'format': 'use the version of this program that wrote it'}.get(
                    name, 'decompress it where the same programs are installed, on the same kind of machine')
        raise InputError(f'The file was compressed with another {_SAME[name]} ({header.get(name)}, here {here}): '
                         f'{what}.')
    return header

  def _header(self) -> dict[str, Any]:
    """What must be the same for encoder and decoder."""
    versions = {name: importlib.metadata.version(name) for name in ('jax', 'jaxlib', 'constriction')}
    return {'format': FORMAT, 'model': self._model_digest, **versions, 'backend': jax.default_backend(),
            'device': jax.devices()[0].device_kind, 'batch': BATCH, 'numbers': self._number_digest}

  @functools.cached_property
  def _model_digest(self):
    """Identifies the network: hashes its parameters and its configuration."""
    # Fields that are added later, and have their defaults, change nothing.
    changed = [{field.name: getattr(part, field.name) for field in dataclasses.fields(part)
                if getattr(part, field.name) != field.default} for part in (self.model.config, self.model.spec)]
    found = hashlib.sha256(repr(changed).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(self._params):
      array = np.asarray(leaf)
      found.update(f'{jax.tree_util.keystr(path)} {array.dtype} {array.shape}'.encode() + array.tobytes())
    return found.hexdigest()[:16]

  @functools.cached_property
  def _number_digest(self):
    """Identifies what this machine computes: hashes the probabilities of a few positions of random images.

    They depend on more than versions, such as the processor's instructions or the number of threads.
    """
    found, rng = hashlib.sha256(), np.random.default_rng(0)
    given = {name: rng.integers(condition.num_values, size=(BATCH, *condition.shape))
             for name, condition in self.model.conditions.items()}

    def draw(index, channel, probabilities_BL):
      del index, channel
      found.update(np.asarray(probabilities_BL).tobytes())
      return rng.integers(self.model.spec.levels, size=BATCH)

    for _ in zip(range(_NUM_TESTED), self._walk(given, draw)):
      pass
    return found.hexdigest()[:16]

  def _walk(self, given: Mapping[str, np.ndarray],
            next_value: Callable[[int, int, np.ndarray], np.ndarray]) -> Iterator[int]:
    """Goes through the positions of a batch in generation order; yields the raster index of each when it is done.

    Args:
      given: the conditions, arrays [BATCH, ...].
      next_value: a function of a position's raster index, a channel of it and the probabilities [BATCH, levels] of its
        intensities, which returns those that images have there, integers [BATCH].
    """
    layout, likelihood, programs = self.model.layout, self.model.likelihood, self._programs
    encoded, windows = programs.begin(self._params, given)
    fed_BV = np.zeros((BATCH, likelihood.values_per_position), np.int32)
    for block in range(layout.num_blocks):
      caches = programs.begin_block(windows)
      for slot in range(layout.block_size):
        index = int(layout.order[block, slot])
        if index < 0:  # padding, which nothing attends to
          continue
        parameters_BP, probabilities_BL, caches = programs.step(self._params, encoded, caches, fed_BV, block, slot)
        fed_BV = np.zeros_like(fed_BV)
        fed_BV[:, 0] = next_value(index, 0, np.asarray(probabilities_BL))
        for channel, program in enumerate(programs.later_channels, 1):
          fed_BV[:, channel] = next_value(index, channel, np.asarray(program(parameters_BP, fed_BV)))
        yield index
      windows = programs.end_block(windows, caches)

  def _encode(self, values_ILV, given) -> list[np.ndarray]:
    """The streams of up to BATCH images: 32-bit words."""
    number = len(values_ILV)
    values_BLV = _padded(values_ILV)
    encoders = [constriction.stream.queue.RangeEncoder() for _ in range(number)]

    def next_value(index, channel, probabilities_BL):
      symbols_B = values_BLV[:, index, channel]
      for encoder, symbol, probabilities_L in zip(encoders, symbols_B.tolist(), probabilities_BL):
        encoder.encode(symbol, _entropy_model(probabilities_L))
      return symbols_B

    for _ in self._walk(jax.tree.map(_padded, given), next_value):
      stopping.poll()
    return [encoder.get_compressed() for encoder in encoders]

  def _decode(self, streams, given) -> list[np.ndarray | None]:
    """The images of up to BATCH streams; None for those that cannot come from an encoder."""
    decoders = dict(enumerate(map(constriction.stream.queue.RangeDecoder, streams)))
    layout, spec = self.model.layout, self.model.spec
    values_BLV = np.zeros((BATCH, layout.num_positions, self.model.likelihood.values_per_position), np.int32)

    def next_value(index, channel, probabilities_BL):
      for i, decoder in list(decoders.items()):
        try:
          values_BLV[i, index, channel] = decoder.decode(_entropy_model(probabilities_BL[i]))
        except AssertionError:  # no encoder writes this
          del decoders[i]
      return values_BLV[:, index, channel]

    for _ in self._walk(jax.tree.map(_padded, given), next_value):
      stopping.poll()
    images = values_BLV.reshape(BATCH, *spec.shape).astype(np.uint8)
    return [images[i] if i in decoders and decoders[i].maybe_exhausted() else None for i in range(len(streams))]

  def _conditions(self) -> list[tuple[str, int, int]]:
    """Of each condition: its name, how many values an image has, and the bytes of each."""
    return [(name, int(np.prod(condition.shape)), 1 if condition.num_values <= 2**8 else 4)
            for name, condition in self.model.conditions.items()]

  def _stored(self, given: Mapping[str, np.ndarray], number: int) -> list[bytes]:
    """The conditions of each image as bytes."""
    parts = [given[name].astype(f'<u{width}').reshape(number, -1).view(np.uint8)
             for name, _, width in self._conditions()]
    return [b''.join(part[i].tobytes() for part in parts) for i in range(number)]

  def _given(self, abouts: Sequence[bytes]) -> dict[str, np.ndarray]:
    """The conditions of images from `_stored` bytes; those of damaged ones may have any values that fit."""
    given, begin = {}, 0
    for name, size, width in self._conditions():
      condition, end = self.model.conditions[name], begin + size * width
      values = np.stack([np.frombuffer(about[begin:end], f'<u{width}') for about in abouts]).astype(np.int64)
      given[name] = np.minimum(values, condition.num_values - 1).reshape(len(abouts), *condition.shape).astype(np.int32)
      begin = end
    return given


class _Programs:
  """The compiled programs of a model, for batches of BATCH images."""

  def __init__(self, model: ImageTransformer):
    layout, likelihood = model.layout, model.likelihood

    def begin(params, given):
      return model.apply({'params': params}, given, None, BATCH, method='encode'), model.empty_windows(BATCH)

    def step(params, encoded, caches, fed_BV, block, slot):
      parameters_BP, caches = model.apply({'params': params}, fed_BV, block, slot, encoded, caches, method='step')
      return parameters_BP, likelihood.drawn_probabilities(parameters_BP, jnp.zeros_like(fed_BV), 0), caches

    self.begin = jax.jit(begin)
    self.begin_block = jax.jit(lambda windows: [attention.begin_block(window, layout) for window in windows])
    self.step = jax.jit(step, donate_argnums=2)
    self.end_block = jax.jit(lambda windows, caches: [attention.end_block(*both) for both in zip(windows, caches)],
                             donate_argnums=0)
    self.later_channels = [jax.jit(functools.partial(likelihood.drawn_probabilities, channel=channel))
                           for channel in range(1, likelihood.values_per_position)]


@functools.lru_cache(maxsize=8)
def _programs(model: ImageTransformer) -> _Programs:
  return _Programs(model)


def _header_end(content: bytes) -> int:
  return len(MAGIC) + 2 + int.from_bytes(content[len(MAGIC):len(MAGIC) + 2], 'little') + 4


def _checksum(image: np.ndarray, about: bytes) -> bytes:
  """Of an image and its conditions."""
  return hashlib.sha256(image.astype(np.uint8).tobytes() + about).digest()[:_CHECKSUM_BYTES]


def _side_by_side(function: Callable[[slice], list], parts: Iterable[slice]) -> Iterator[list]:
  """What a function returns for each batch, in order; batches are computed on as many threads as there are cores."""
  with concurrent.futures.ThreadPoolExecutor(num_cpus()) as pool:
    yield from pool.map(devices.settings()(function), parts)  # JAX's settings are those of a thread


def _parts(items: Sequence) -> list[slice]:
  """Batches of items."""
  return [slice(first, first + BATCH) for first in range(0, len(items), BATCH)]


def _part(given, part):
  return {name: values[part] for name, values in given.items()}


def _padded(array: np.ndarray) -> np.ndarray:
  """Repeats the last row up to a whole batch."""
  return np.concatenate([array, np.repeat(array[-1:], BATCH - len(array), axis=0)])
