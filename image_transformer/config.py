"""Configuration: frozen dataclasses that hold the defaults and validate themselves.

Every field is documented here; `configs/base.py` turns these defaults into the ml_collections tree that experiments
override. A bad value raises `InputError` naming the field as the user would type it (`model.num_heads`).
"""

import dataclasses
import difflib
import math
import os
from typing import Any, Literal

import numpy as np

from image_transformer.checks import (
  FRACTION,
  MAX_FLOAT,
  OR_ZERO,
  POSITIVE,
  check,
  check_choices,
  check_ranges,
  check_whole,
  positive_float,
)
from image_transformer.errors import InputError, shown
from image_transformer.paths import is_address

_MAX_COUNT = 2**31 - 1  # steps are counted in int32
_MAX_BATCH = _MAX_WIDTH = 1_000_000  # far more than any machine has memory for
_MAX_LAYERS = 1_000  # they are compiled one by one
_MAX_WEIGHTS = 10**11  # every device holds all of them, in training four times over
_MAX_SIDE = 4_096  # of the user's own images


@dataclasses.dataclass(frozen=True)
class ImageSpec:
  """The format of a dataset's images or videos; comes from the dataset, not the user."""

  height: int
  width: int
  channels: int  # 1 (grey) or 3 (RGB)
  levels: int = 256  # intensities are 0 .. levels - 1
  num_classes: int = 0  # 0: the dataset has no labels
  frames: int = 0  # of a video; 0: still images
  has_texts: bool = False  # whether every image has a text

  def __post_init__(self):
    check_whole('image', self, 1, _MAX_SIDE, 'height', 'width')
    check_whole('image', self, 0, _MAX_SIDE, 'frames', zero='a still image')
    check(self.channels in (1, 3), 'image.channels', self.channels, '1 or 3')
    check(2 <= self.levels <= 256, 'image.levels', self.levels, 'in 2..256')

  @property
  def shape(self) -> tuple[int, ...]:
    """[H, W, C], or [T, H, W, C] of a video."""
    still = self.height, self.width, self.channels
    return (self.frames, *still) if self.frames else still

  @property
  def stacked_shape(self) -> tuple[int, int, int]:
    """[T * H, W, C]: the frames of a video one below another."""
    return max(self.frames, 1) * self.height, self.width, self.channels

  @property
  def num_dims(self) -> int:
    """Intensities per image, the divisor of bits/dim."""
    return math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """The network (paper sections 3 and 5). Defaults: the paper's CIFAR-10 model."""

  # One number: 1D, in positions (intensities, or pixels under DMOL); two: 2D, (rows, columns) in pixels; three: 3D, for
  # videos, (frames, rows, columns).
  query_block: tuple[int, ...] = (256,)
  # Memory around the block: positions before it in 1D; in 2D (rows above, columns beside those and to its left); in 3D
  # (frames before, and rows and columns to all sides in those).
  memory_flange: tuple[int, ...] = (256,)
  # The order of pixels in 1D: by rows (the paper's), columns or diagonals, or along Hilbert's curve.
  scan: Literal['raster', 'column', 'zigzag', 'hilbert'] = 'raster'
  likelihood: Literal['categorical', 'dmol'] = 'categorical'  # dmol: discretized mixture of logistics
  num_mixtures: int = 10  # DMOL components
  num_layers: int = 12  # of the decoder
  hidden_size: int = 512  # d, the width of the residual stream
  num_heads: int = 4  # of attention
  ffn_size: int = 2048  # hidden width of the feed-forward sub-layer
  qkv_size: int = 0  # total width of queries, keys and values; 0: hidden_size
  norm: Literal['post', 'pre'] = 'post'  # post: LN(x + f(x)), the paper's; pre: x + f(LN(x))
  qk_norm: bool = False  # RMS norm of each head's queries and keys
  # sine and learned encodings are added to the input of the first layer; rotary ones rotate queries and keys.
  coordinates: Literal['sine', 'learned', 'rotary'] = 'sine'
  # Multiplies the initial weights that embed intensities or pixels. At 1, the official value, these embeddings are much
  # smaller than the position encodings that are added to them.
  embedding_gain: float = 1.0
  embedding_bias: float = 0.0  # standard deviation of the initial biases that embed pixels; 0: the official ones
  class_conditional: bool = False  # adds a class embedding at every position
  upscale: int = 1  # super-resolution: images are generated given themselves downsampled by this factor; 1: none
  text_length: int = 0  # images are generated given a text of at most so many bytes; longer ones are cut; 0: none
  text_dropout: float = 0.0  # how often training hides the text, so that images without one can be scored and drawn
  num_encoder_layers: int = 0  # of each encoder: of small images (super-resolution) and of texts
  # With sine coordinates: pixels of the small image get the encodings of their places in the large one, and the initial
  # cross-attention of a position is to its own place.
  align_encoder: bool = False
  dropout: float = 0.3  # on the embedded input and on every residual branch
  attention_dropout: float = 0.0  # on the attention weights; the original has none
  # fused: by JAX's kernel, which keeps no weights in memory. auto: fused on a GPU in bfloat16, if possible.
  attention: Literal['auto', 'einsum', 'fused'] = 'auto'
  remat: bool = False  # recompute each layer in the backward pass: less memory, more time
  # The compute type of the layers; parameters, softmax, norms and likelihoods stay float32.
  dtype: Literal['float32', 'bfloat16'] = 'float32'

  def __post_init__(self):
    for field in ('query_block', 'memory_flange'):
      object.__setattr__(self, field, tuple(getattr(self, field)))
    dims = len(self.query_block)
    check(dims in (1, 2, 3) and min(self.query_block) > 0, 'model.query_block', self.query_block,
          'one (1D), two (2D) or, for videos, three (3D) positive integers')
    check(len(self.memory_flange) == dims and min(self.memory_flange) >= 0, 'model.memory_flange',
          self.memory_flange, f'{dims} non-negative integer(s), like model.query_block')
    check_choices('model', self)
    check(dims == 1 or self.scan == 'raster', 'model.scan', self.scan,
          'raster with attention in 2D or 3D (model.query_block)')
    check_whole('model', self, 1, _MAX_LAYERS, 'num_layers')
    check_whole('model', self, 1, _MAX_WIDTH, 'num_mixtures', 'hidden_size', 'num_heads', 'ffn_size')
    check_whole('model', self, 0, _MAX_WIDTH, 'qkv_size', zero='model.hidden_size')
    check_ranges('model', self, POSITIVE, positive_float, 'embedding_gain')
    check_ranges('model', self, *OR_ZERO, 'embedding_bias')
    check(not self.embedding_bias or self.likelihood == 'dmol', 'model.embedding_bias', self.embedding_bias,
          '0 with the categorical likelihood, which embeds intensities by a table')
    check_ranges('model', self, *FRACTION, 'dropout', 'attention_dropout', 'text_dropout')
    check(1 <= self.upscale <= _MAX_SIDE, 'model.upscale', self.upscale, f'1 (no super-resolution) to {_MAX_SIDE}')
    check_whole('model', self, 0, _MAX_WIDTH, 'text_length', zero='no texts')
    check(not self.text_dropout or self.text_length, 'model.text_dropout', self.text_dropout,
          '0 without texts (model.text_length = 0)')
    least, most = (1, _MAX_LAYERS) if self.upscale > 1 or self.text_length else (0, 0)
    check(least <= self.num_encoder_layers <= most, 'model.num_encoder_layers', self.num_encoder_layers,
          f'in 1..{_MAX_LAYERS} for super-resolution or texts, else 0 (model.upscale = 1, model.text_length = 0)')
    check(not self.align_encoder or (self.upscale > 1 and self.coordinates == 'sine'), 'model.align_encoder', True,
          'False without super-resolution (model.upscale = 1) or with coordinates other than sine')
    check(self.qkv_width % self.num_heads == 0, 'model.num_heads', self.num_heads,
          f'a divisor of the query width {self.qkv_width}')
    check(self.coordinates != 'rotary' or self.head_width in range(6, _MAX_WIDTH, 2), 'model.num_heads', self.num_heads,
          f'such that heads with rotary coordinates have an even width, 6 or more, not {self.head_width}')
    layers = self.num_layers + self.num_encoder_layers
    weights = self.hidden_size * (layers * (4 * self.qkv_width + 2 * self.ffn_size) + 3 * self.num_mixtures)
    if weights > _MAX_WEIGHTS:  # these are most of them
      raise InputError('model.num_layers, model.hidden_size, model.qkv_size, model.ffn_size and model.num_mixtures '
                       f'make {weights:,} weights, but no device holds {_MAX_WEIGHTS:,}: reduce one of them.')

  @property
  def qkv_width(self) -> int:
    return self.qkv_size or self.hidden_size

  @property
  def head_width(self) -> int:
    return self.qkv_width // self.num_heads


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  split: str = 'train'  # TFDS split expression, such as 'train[:90%]'
  steps: int = 500_000  # optimizer steps; the paper states none
  batch_size: int = 32  # images per step over all devices (the paper: 4 on each of 8)
  accumulation: int = 1  # gradient accumulation: each step's batch is processed in this many parts, one after another
  flip: bool = False  # random horizontal flips; the paper has no augmentation
  ema_decay: float = 0.0  # of the exponential moving average of the parameters; 0: none
  log_every: int = 100  # steps between lines of metrics.jsonl
  checkpoint_every: int = 2_000  # steps between checkpoints
  keep_checkpoints: int = 3  # how many, of the newest
  eval_every: int = 10_000  # steps between evaluations; 0: only at the end
  sample_every: int = 10_000  # steps between grids of samples; 0: only at the end

  def __post_init__(self):
    check_whole('train', self, 1, _MAX_COUNT, 'steps', 'log_every', 'checkpoint_every', 'keep_checkpoints')
    check_whole('train', self, 1, _MAX_BATCH, 'batch_size', 'accumulation')
    check_whole('train', self, 0, _MAX_COUNT, 'eval_every', 'sample_every', zero='only at the end')
    check_ranges('train', self, *FRACTION, 'ema_decay')
    check(self.batch_size % self.accumulation == 0, 'train.batch_size', self.batch_size,
          f'a multiple of train.accumulation = {self.accumulation}')


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  split: str = 'test'  # which images, like train.split
  batch_size: int = 32  # images at a time over all devices; the result does not depend on it
  num_images: int = 0  # how many images of the split to use, from the first; 0: all
  num_images_during_training: int = 512  # the same, for evaluations during training
  ema: bool = True  # evaluate and sample with the averaged parameters, where there are any

  def __post_init__(self):
    check_whole('eval', self, 1, _MAX_BATCH, 'batch_size')
    check_whole('eval', self, 0, _MAX_COUNT, 'num_images', 'num_images_during_training', zero='all')


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """T2T's "learning rate" hp is a peak of 10 * hp * (d * warm-up steps)^-0.5 for Adam."""

  # muon: Muon (Jordan et al., 2024) for the matrices of the layers, Adam for all other parameters.
  name: Literal['adam', 'muon'] = 'adam'
  learning_rate: float = 3.5e-3  # the peak
  warmup_steps: int = 4_000  # steps in which the rate rises to the peak
  schedule: Literal['rsqrt', 'cosine'] = 'rsqrt'  # rsqrt: ~ min(t/w, sqrt(w/t)), the paper's; cosine: 0 at the end
  b1: float = 0.9  # of Adam, like the next two
  b2: float = 0.98
  epsilon: float = 1e-9
  clip_norm: float = 0.0  # global norm to which gradients are clipped; 0: not clipped, as in the paper
  skip_non_finite: int = 0  # steps in a row to skip for a gradient that is not finite; one more stops the run

  def __post_init__(self):
    check_ranges('optimizer', self, POSITIVE, positive_float, 'learning_rate', 'epsilon')
    check_whole('optimizer', self, 1, _MAX_COUNT, 'warmup_steps')
    check_ranges('optimizer', self, *FRACTION, 'b1', 'b2')
    check_ranges('optimizer', self, *OR_ZERO, 'clip_norm')
    check_whole('optimizer', self, 0, _MAX_COUNT, 'skip_non_finite')
    check_choices('optimizer', self)


@dataclasses.dataclass(frozen=True)
class SampleConfig:
  num_images: int = 36  # in the grids drawn during training and at its end
  temperature: float = 1.0  # 1: the model's own distribution; lower: safer and duller
  batch_size: int = 36  # images at a time over all devices

  def __post_init__(self):
    check_whole('sample', self, 1, _MAX_BATCH, 'num_images', 'batch_size')
    check_ranges('sample', self, POSITIVE, positive_float, 'temperature')


def _absolute(path):
  """Wherever a run is resumed or evaluated, this is the same folder; what is no local path stays as it is."""
  expanded = os.path.expanduser(os.fspath(path))
  return expanded if not expanded or is_address(expanded) or expanded.startswith('~') else os.path.abspath(expanded)


@dataclasses.dataclass(frozen=True)
class FolderConfig:
  """The dataset `folder`: images of your own, read once and kept in `data_dir`."""

  path: str = ''  # PNG, JPEG or WebP files, in sub-folders too
  size: tuple[int, ...] = (32, 32)  # height and width to which they are downsampled
  crop: bool = True  # crop from the centre to the proportions of `size`; False: squeeze the whole image into it
  test_fraction: float = 0.1  # of the images, kept out of training as the split 'test'
  texts: bool = False  # read a text for every image, from NAME.txt beside NAME.png or from metadata.jsonl
  frames: int = 0  # videos: GIFs, or the images of a sub-folder in order, of which so many are used; 0: still images

  def __post_init__(self):
    object.__setattr__(self, 'size', tuple(self.size))
    object.__setattr__(self, 'path', _absolute(self.path))
    check(len(self.size) == 2 and all(0 < side <= _MAX_SIDE for side in self.size), 'folder.size', self.size,
          f'a height and a width, each in 1..{_MAX_SIDE}')
    check_whole('folder', self, 0, _MAX_SIDE, 'frames', zero='still images')
    check(0 < self.test_fraction < 1, 'folder.test_fraction', self.test_fraction, 'between 0 and 1')


@dataclasses.dataclass(frozen=True)
class Config:
  """All settings of a run; `config.py` explains each field."""

  seed: int = 0  # with the step, determines every random number
  data_dir: str = ''  # where TFDS keeps data; '': $TFDS_DATA_DIR, else ~/tensorflow_datasets
  dataset: str = 'cifar10'  # a name in image_transformer/datasets
  # If the dataset is not available, train on generated images of its shape instead. Not a result.
  stand_in: bool = False
  # The workdir of a run of the same network: training starts from its parameters. '': from random ones.
  init_from: str = ''
  folder: FolderConfig = FolderConfig()
  model: ModelConfig = ModelConfig()
  train: TrainConfig = TrainConfig()
  eval: EvalConfig = EvalConfig()
  optimizer: OptimizerConfig = OptimizerConfig()
  sample: SampleConfig = SampleConfig()

  def __post_init__(self):
    object.__setattr__(self, 'data_dir', _absolute(self.data_dir))
    check(0 <= self.seed < 2**32, 'seed', self.seed, 'in 0..2^32-1')


def from_dict(values: dict[str, Any]) -> Config:
  """Builds a Config from nested dictionaries; missing fields keep their defaults.

  Raises:
    InputError: for an unknown field (naming the nearest), a wrong type or a bad value.
  """
  return _build(Config, values, '')


def _build(cls, values, prefix):
  if not isinstance(values, dict):
    raise InputError(f'{prefix[:-1] or "The configuration"} is {shown(values)}, but must be a dictionary of fields.')
  fields = {field.name: field for field in dataclasses.fields(cls)}
  kwargs = {}
  for name, value in values.items():
    if name not in fields:
      raise unknown_field(f'{prefix}{name}')
    default = fields[name].default
    if dataclasses.is_dataclass(default):
      value = _build(type(default), value, f'{prefix}{name}.')
    else:
      value = _cast(prefix + name, value, default)
    kwargs[name] = value
  return cls(**kwargs)


def flatten(tree: dict[str, Any], prefix: str = '') -> dict[str, Any]:
  """Flattens nested dictionaries into one, keyed by dotted fields such as model.num_heads."""
  flat = {}
  for name, value in tree.items():
    flat.update(flatten(value, f'{prefix}{name}.') if isinstance(value, dict) else {prefix + name: value})
  return flat


def fields() -> list[str]:
  """All fields, dotted."""
  return list(flatten(dataclasses.asdict(Config())))


def unknown_field(field: str) -> InputError:
  """The error for an unknown field; suggests fields of the same name in other sections, or else the nearest."""
  sections = [one.name for one in dataclasses.fields(Config)]
  last = lambda one: one.rpartition('.')[2]
  near = [one for one in fields() if last(one) == last(field)] or \
      difflib.get_close_matches(field, [*sections, *fields()], n=1)
  hint = f'did you mean {" or ".join(near)}?' if near else f'known: {", ".join(sections)}.'
  return InputError(f'Unknown configuration field {field}; {hint}')


def _cast(field, value, default):
  """Converts lists to tuples, integers to floats and NumPy scalars, as needed; then requires the default's type."""
  value = _plain(value)
  if isinstance(default, tuple) and isinstance(value, (list, tuple)):
    value = tuple(map(_plain, value))
    check(all(type(item) is int and item <= _MAX_COUNT for item in value), field, value,
          f'integers of at most {_MAX_COUNT}')
    return value
  if isinstance(default, float) and type(value) is int:
    check(abs(value) <= MAX_FLOAT, field, value, 'a number that float32 holds')
    value = float(value)
  check(type(value) is type(default), field, value, f'of type {type(default).__name__}')
  check(not isinstance(value, float) or math.isfinite(value), field, value, 'finite')
  check(not isinstance(value, str) or '\0' not in value, field, value, 'without null characters')
  return value


def _plain(value):
  return value.item() if isinstance(value, np.generic) else value
