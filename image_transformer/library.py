"""The Python interface to a trained model: NumPy in, NumPy out.

Images are processed in batches, on all devices; conditions are given by name (`label=`, `low_res=`, `text=`), one value
for each image, or a single label or text for all. Anything that does not fit the model raises `InputError`.
"""

from collections.abc import Mapping
import dataclasses
import functools
import os
from typing import Any

from etils import epath
import numpy as np

from image_transformer import batching, data, devices, weights
from image_transformer.codec import Codec
from image_transformer.conditions import default_given
from image_transformer.config import Config, check
from image_transformer.door import check_given, check_images
from image_transformer.evaluate import make_evaluator, make_scorer
from image_transformer.metrics import Evaluation, bits_per_dim
from image_transformer.model import ImageTransformer, make_model
from image_transformer.paths import as_path
from image_transformer.runs import check_same_run, load_params, read_config
from image_transformer.sampling import check_number, make_sampler, positions_in_rows
from image_transformer.scores import measures, with_small_memory
from image_transformer.workdir import new_path


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
  """A trained model, from `load` or `train`.

  Images are integers [N, H, W, C] in 0..levels-1, as `model.spec` says; `model.conditions` holds their conditions
  by name. A seed and the index of an image determine what is drawn.
  """

  config: Config
  model: ImageTransformer
  variables: dict[str, Any]  # {'params': ...}, the averaged ones if `config.eval.ema` and there are any
  step: int  # how many steps it has trained
  workdir: epath.Path
  num_checkpoints: int = 1  # how many checkpoints the parameters are the mean of

  @functools.cached_property
  def _params(self):
    return devices.replicate(self.variables['params'])

  def log_prob(self, images: Any, **given: Any) -> np.ndarray:
    """Log-probabilities of images: nats, float64 [N]."""
    return self._score('log_prob', images, given)

  def pixel_log_probs(self, images: Any, **given: Any) -> np.ndarray:
    """The terms of `log_prob`, by position: nats, float64 [N, H, W, positions of a pixel]."""
    return self._score('pixel_log_probs', images, given)

  def bits_per_dim(self, images: Any, **given: Any) -> np.ndarray:
    """Bits per intensity of each image, float64 [N]."""
    return bits_per_dim(-self.log_prob(images, **given), self.model.spec.num_dims)

  @devices.settings()
  def _score(self, method, images, given):
    arrays = {'image': np.asarray(check_images(images, self.model.spec))}
    number = len(arrays['image'])
    arrays |= self._given(given, number)
    examples = [{name: values[i] for name, values in arrays.items()} for i in range(number)]
    # Few images need no full batch; powers of two limit the number of compiled programs.
    batch_size = min(self.config.eval.batch_size, 1 << (number - 1).bit_length())
    return make_scorer(self.model, batch_size, method)(self._params, examples)

  @functools.cached_property
  def _with_small_memory(self):
    return dataclasses.replace(self, model=with_small_memory(self.model))

  def scores(self, images: Any, **given: Any) -> dict[str, np.ndarray]:
    """How surprising each image is and of which class, by several measures, [N] each; see `scores.measures`.

    Labels are not given: of a class-conditional model all classes are tried.
    """
    images = np.asarray(check_images(images, self.model.spec))
    check('label' not in given, 'label', given.get('label'), 'left out: all classes are tried')
    labels = self.model.conditions.get('label')
    each = [given] if labels is None else [{**given, 'label': k} for k in range(labels.num_values)]
    by_class = [np.stack([run.log_prob(images, **one) for one in each]) for run in (self, self._with_small_memory)]
    return measures(images, self.model.spec.levels, *by_class)

  def evaluate_images(self, images: Any, **given: Any) -> Evaluation:
    """Exact bits/dim over images, with its standard error."""
    return Evaluation(-self.log_prob(images, **given), self.model.spec.num_dims)

  @devices.settings()
  def evaluate(self, split: str = '', num_images: int | None = None) -> Evaluation:
    """Exact bits/dim of a split of the dataset, with its standard error.

    Args:
      split: a TFDS split expression, such as 'train[:90%]'; '': `config.eval.split`.
      num_images: how many images to use, from the first; 0: all; None: `config.eval.num_images`.
    """
    number = self.config.eval.num_images if num_images is None else num_images
    check_number(number or 1)
    source = self._open(split, number, 'eval.num_images' if num_images is None else 'num_images')
    return make_evaluator(self.model, self.config.eval.batch_size)(self._params, source, number)

  def examples(self, num_images: int, split: str = '') -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The first images of a split (see `evaluate`), uint8 [num_images, H, W, C], and what they are conditioned on."""
    check_number(num_images)
    batch = batching.first_examples(self._open(split, num_images, 'num_images'), num_images)
    return batch['image'], self.model.given_of(batch)

  def _open(self, split, number, name):
    """A split that holds this number of images, which a message calls by its name."""
    source = data.open_split(self.config, split or self.config.eval.split)
    check(number <= len(source), name, number, f'at most {len(source)}, the size of the split')
    return source

  def sample(self, num_images: int, temperature: float | None = None, seed: int = 0, **given: Any) -> np.ndarray:
    """Draws images: uint8 [num_images, H, W, C].

    Args:
      num_images: how many.
      temperature: 1 samples from the model; below 1, images are more typical and less varied; None:
        `config.sample.temperature`.
      seed: in 0..2^32-1.
      given: the conditions; without labels, classes are drawn equally often.
    """
    check_number(num_images)
    default, _ = default_given(self.model.conditions, num_images)
    return self.draw(num_images, default | given, temperature, seed)[0]

  def complete(self, images: Any, rows: int, temperature: float | None = None, seed: int = 0,
               **given: Any) -> np.ndarray:
    """Keeps the first rows of images [N, H, W, C] and draws the rest: uint8 [N, H, W, C]; see `sample`."""
    images = check_images(images, self.model.spec)
    return self.draw(len(images), given, temperature, seed, images, rows)[0]

  def enlarge(self, low_res: Any, temperature: float | None = None, seed: int = 0, **given: Any) -> np.ndarray:
    """Enlarges images [N, H / upscale, W / upscale, C] to [N, H, W, C] by super-resolution; see `sample`."""
    check('low_res' in self.model.conditions, 'model.upscale', self.config.model.upscale,
          'at least 2 for a model that enlarges images')
    low_res = check_given({'low_res': low_res}, {'low_res': self.model.conditions['low_res']})['low_res']
    return self.draw(len(low_res), {'low_res': low_res, **given}, temperature, seed)[0]

  @devices.settings()
  def draw(self, num_images: int, given: Mapping[str, Any], temperature: float | None = None, seed: int = 0,
           images: Any = None, rows: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draws as `sample`, `complete` and `enlarge` do.

    Returns:
      uint8 [num_images, H, W, C], and their log-probabilities [num_images] in nats, float32, given the rows that
      were kept. They are computed at temperature 1, whatever the temperature of sampling.
    """
    check_number(num_images)
    num_kept = positions_in_rows(self.model, rows) if images is not None else 0
    draw = make_sampler(self.model, self.config.sample.batch_size, num_kept)
    return draw(self._params, seed, num_images, self._given(given, num_images),
                self.config.sample.temperature if temperature is None else temperature, images)

  @functools.cached_property
  def _codec(self):
    return Codec(self.model, self.variables['params'])

  @devices.settings()
  def compress(self, images: Any, verify: bool = True, **given: Any) -> bytes:
    """Compresses images without loss, to their bits/dim and some 8 bytes each; see `Codec.compress`."""
    images = np.asarray(check_images(images, self.model.spec))
    return self._codec.compress(images, self._given(given, len(images)), verify)

  @devices.settings()
  def decompress(self, content: bytes) -> np.ndarray:
    """The images that were compressed: uint8 [N, H, W, C]; InputError if one of them is damaged."""
    return self._codec.decompress(content)

  @devices.settings()
  def recover(self, content: bytes) -> tuple[int, dict[int, np.ndarray]]:
    """Decompresses a file that may be damaged; returns how many images it has, and the undamaged ones by index."""
    return self._codec.recover(content)

  def export(self, folder: os.PathLike | str) -> None:
    """Writes the parameters as `params.safetensors`, with `config.json`, into a folder that does not exist yet; `load`
    reads it."""
    weights.write(new_path(folder, 'folder'), self.config, self.variables['params'], self.step)

  def _given(self, given, num_images):
    """Conditions as arrays, one value for each image."""
    conditions = self.model.conditions
    given = {name: conditions[name].of_user(value, num_images) if name in conditions else value
             for name, value in given.items()}
    return {name: np.asarray(values) for name, values in check_given(given, conditions, num_images).items()}


@devices.settings()
def load(workdir: os.PathLike | str, config: Config | None = None, num_checkpoints: int = 1) -> Run:
  """Loads a run.

  Args:
    workdir: its folder, or the name of a model that comes with the program (`weights.shipped()`).
    config: its configuration, if fields that do not define the run (such as
      `data_dir` or `eval`) should differ from the saved one.
    num_checkpoints: how many of the newest checkpoints to average the parameters of.

  Raises:
    InputError: if there is no run, there are too few checkpoints, or `config` is another run's.
  """
  folder = as_path(weights.find(workdir))
  saved = read_config(folder)
  if config is not None:  # for how long it was trained, and from what, is not asked here
    train = dataclasses.replace(config.train, steps=saved.train.steps)
    config = dataclasses.replace(config, init_from=saved.init_from, train=train)
    if not saved.folder.path:  # exported weights do not say where their images were
      saved = dataclasses.replace(saved, folder=dataclasses.replace(saved.folder, path=config.folder.path))
    check_same_run(folder, saved, config)
  config = config or saved
  model = make_model(config.model, data.image_spec(config))
  params, step = load_params(folder, config, model, num_checkpoints)
  return Run(config, model, {'params': params}, step, folder, num_checkpoints)
