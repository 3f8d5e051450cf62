"""Where numbers go: metrics.jsonl, TensorBoard, and bits/dim."""

import dataclasses
import importlib.metadata
import json
import math
import os
import subprocess
from typing import Any

from etils import epath
import jax
import numpy as np
import tensorboardX

from image_transformer.config import Config


def bits_per_dim(nats: Any, num_dims: int) -> Any:
  """Bits per intensity from nats per image."""
  return nats / (num_dims * math.log(2))


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Bits/dim over a set of images, from their nats in float64."""

  nats: np.ndarray  # float64 [images], the negative log-probability of each
  num_dims: int

  @property
  def num_images(self) -> int:
    return len(self.nats)

  @property
  def bits_per_dim(self) -> float:
    return float(bits_per_dim(self.nats.mean(), self.num_dims))

  @property
  def standard_error(self) -> float:
    """Of the mean over images, in bits/dim; NaN for a single image."""
    if self.num_images < 2:
      return math.nan
    return float(bits_per_dim(self.nats.std(ddof=1), self.num_dims) / math.sqrt(self.num_images))

  def as_dict(self) -> dict[str, float]:
    return {'bits_per_dim': self.bits_per_dim, 'standard_error': self.standard_error, 'num_images': self.num_images}


class MetricsLog:
  """Appends to `metrics.jsonl` and TensorBoard in a workdir.

  Opening it for a run that goes on from `step` removes the lines past that step: the
  run is about to write them again.
  """

  def __init__(self, workdir: epath.Path, step: int = 0):
    self._path = workdir / 'metrics.jsonl'
    kept = [line for line in read_metrics(workdir) if line['step'] <= step]
    self._path.write_text(''.join(json.dumps(line) + '\n' for line in kept))
    self._board = tensorboardX.SummaryWriter(str(workdir), purge_step=step + 1 if step else None)

  def write(self, step: int, split: str, **values: float) -> None:
    """One line, with `step` and `split` first."""
    with self._path.open('a') as file:
      file.write(json.dumps({'step': step, 'split': split, **values}) + '\n')
    for name, value in values.items():
      self._board.add_scalar(f'{split}/{name}', value, step)

  def write_picture(self, step: int, name: str, picture: np.ndarray) -> None:
    """A uint8 [height, width, 3] picture, for TensorBoard."""
    self._board.add_image(name, picture, step, dataformats='HWC')

  def write_text(self, name: str, text: str) -> None:
    self._board.add_text(name, text)

  def close(self) -> None:
    self._board.close()


def read_metrics(workdir: epath.Path) -> list[dict[str, Any]]:
  """The lines of `metrics.jsonl`; a last one cut off by a crash is ignored."""
  path = workdir / 'metrics.jsonl'
  lines = []
  for line in path.read_text().splitlines() if path.exists() else []:
    try:
      lines.append(json.loads(line))
    except json.JSONDecodeError:
      break
  return lines


def training_seconds(workdir: epath.Path) -> float:
  """Wall-clock seconds of training so far, over all restarts."""
  return max((line['seconds'] for line in read_metrics(workdir) if 'seconds' in line), default=0.0)


def write_results(workdir: epath.Path, config: Config, *, params: Any, step: int, num_train_images: int,
                  evaluation: Evaluation) -> None:
  """Writes results.json: the exact bits/dim of a checkpoint and all that is needed to read the number.

  Args:
    workdir: the run.
    config: its configuration.
    params: the parameters evaluated, for their number.
    step: after how many steps.
    num_train_images: how many images `config.train.split` holds.
    evaluation: of `config.eval.split`.
  """
  results = {
      'dataset': config.dataset,
      'split': config.eval.split,
      **evaluation.as_dict(),
      'num_train_images': num_train_images,
      'ema': config.eval.ema and config.train.ema_decay > 0,
      'step': step,
      'seed': config.seed,
      'num_parameters': sum(leaf.size for leaf in jax.tree.leaves(params)),
      'training_seconds': training_seconds(workdir),
      **environment(),
  }
  (workdir / 'results.json').write_text(json.dumps(results, indent=2) + '\n')


def environment() -> dict[str, Any]:
  """Devices, commit and versions: what a measured number depends on besides its configuration."""
  return {
      'device_kind': jax.devices()[0].device_kind,
      'num_devices': jax.device_count(),
      'num_cpus': os.cpu_count(),
      'commit': _commit(),
      'versions': {name: importlib.metadata.version(name) for name in ('jax', 'jaxlib', 'flax', 'optax', 'numpy')},
  }


def _commit() -> str | None:
  """The commit of the code that runs, with '+' where files differ from it; None outside a checkout."""
  try:
    command = ['git', 'describe', '--always', '--abbrev=12', '--dirty=+', '--exclude=*']
    return subprocess.run(command, cwd=os.path.dirname(__file__), check=True, capture_output=True,
                          text=True).stdout.strip()
  except (OSError, subprocess.CalledProcessError):
    return None
