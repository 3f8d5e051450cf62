"""Training: the per-device step, and the loop around it."""

from collections.abc import Callable
import dataclasses
import functools
import json
import math
import time
from typing import Any

from etils import epath
from flax import struct
import jax
import jax.numpy as jnp
import optax
from tqdm import tqdm

from image_transformer import data, devices, pictures, superres
from image_transformer.checkpoints import Checkpoints, latest_step
from image_transformer.config import Config, check, shown
from image_transformer.errors import InputError
from image_transformer.evaluate import make_evaluator
from image_transformer.metrics import Evaluation, MetricsLog, bits_per_dim, training_seconds, write_whole
from image_transformer.model import ImageTransformer, init_params, make_model
from image_transformer.optimizers import learning_rate, make_optimizer
from image_transformer.sampling import class_rows, make_sampler


class NonFiniteError(RuntimeError):
  """The loss or its gradient is no longer finite. One line, for the user."""


class TrainState(struct.PyTreeNode):
  """All that a checkpoint holds; what else a step uses follows from the seed and `step`."""

  step: jax.Array  # steps done
  params: Any
  ema_params: Any  # averaged parameters; None where there are none
  opt_state: Any
  # Sum and number of the losses since the last logged step, so that logs survive a restart.
  window_loss: jax.Array
  window_steps: jax.Array

  def eval_params(self, ema: bool) -> Any:
    return self.ema_params if ema and self.ema_params is not None else self.params


def init_state(model: ImageTransformer, optimizer: optax.GradientTransformation, config: Config) -> TrainState:
  """A state before the first step; parameters are drawn from `config.seed`."""
  params = init_params(model, config.seed)
  return TrainState(step=jnp.zeros((), jnp.int32), params=params,
                    ema_params=jax.tree.map(jnp.copy, params) if config.train.ema_decay else None,
                    opt_state=optimizer.init(params), window_loss=jnp.zeros(()),
                    window_steps=jnp.zeros((), jnp.int32))


def make_train_step(model: ImageTransformer, optimizer: optax.GradientTransformation,
                    config: Config) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]:
  """The step of one device, to be run under `devices.pmap`.

  It takes the state and this device's {'image': uint8 [b, H, W, C]} with what they are given, and
  returns the new state and scalars: the loss of this step in nats/dim, its mean since the
  last logged step, and the global norm of the gradient before clipping.
  """
  train = config.train

  def loss_fn(params, batch, key):
    given = {name: batch[name] for name in model.conditions}
    log_prob = model.apply({'params': params}, batch['image'], given, train=True, rngs={'dropout': key},
                           method='log_prob')
    return -log_prob.mean() / model.spec.num_dims

  def train_step(state, batch):
    key = jax.random.fold_in(jax.random.key(config.seed), state.step)
    key = jax.random.fold_in(key, jax.lax.axis_index(devices.AXIS))

    def accumulate(total, part):
      part_batch, index = part
      loss_and_grads = jax.value_and_grad(loss_fn)(state.params, part_batch, jax.random.fold_in(key, index))
      return jax.tree.map(jnp.add, total, loss_and_grads), None

    parts = jax.tree.map(lambda x: x.reshape(train.accumulation, -1, *x.shape[1:]), batch)
    zero = jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.params)
    total, _ = jax.lax.scan(accumulate, zero, (parts, jnp.arange(train.accumulation)))
    loss, grads = jax.lax.pmean(jax.tree.map(lambda x: x / train.accumulation, total), devices.AXIS)

    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema_params = state.ema_params
    if ema_params is not None:
      # Early on, an average over so many steps would still be mostly the initial values.
      decay = jnp.minimum(train.ema_decay, (1 + state.step) / (10 + state.step))
      ema_params = jax.tree.map(lambda average, new: decay * average + (1 - decay) * new, ema_params, params)
    new_window = state.step % train.log_every == 0
    window_loss = jnp.where(new_window, 0, state.window_loss) + loss
    window_steps = jnp.where(new_window, 0, state.window_steps) + 1
    metrics = {'loss': loss, 'window_loss': window_loss / window_steps, 'grad_norm': optax.tree.norm(grads)}
    return TrainState(state.step + 1, params, ema_params, opt_state, window_loss, window_steps), metrics

  return train_step


def _due(step: int, every: int) -> bool:
  return every > 0 and step % every == 0


def num_train_images(workdir: epath.Path) -> int | None:
  """How many images a run is trained on, as `data.json` in its workdir says; None where there is no such file."""
  path = workdir / 'data.json'
  if not path.exists():
    return None
  try:
    number = json.loads(path.read_text())['num_train_images']
    if type(number) is not int:
      raise TypeError(f'num_train_images is {shown(number)}')
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise InputError(f'{path} is damaged ({type(error).__name__}: {error}); put back {{"num_train_images": N}}, or '
                     'choose another --workdir.') from error
  return number


def check_config(config: Config) -> ImageTransformer:
  """Checks all that can be checked without the data, and returns the model.

  Raises:
    InputError: if the configuration does not fit the images or the devices.
  """
  parts = jax.device_count() * config.train.accumulation
  if config.train.batch_size % parts:
    raise InputError(f'train.batch_size is {config.train.batch_size}, but must be a multiple of {parts}: '
                     f'{jax.device_count()} device(s) x train.accumulation = {config.train.accumulation}.')
  model = make_model(config.model, data.image_spec(config))
  data.check_data(config)
  return model


class Trainer:
  """One training run in a workdir, going on from its newest checkpoint.

  Raises InputError, before anything is compiled, if the configuration does not fit the
  data or the devices.
  """

  def __init__(self, config: Config, workdir: epath.Path):
    self.model = check_config(config)
    step = latest_step(workdir)
    check(step is None or step <= config.train.steps, 'train.steps', config.train.steps,
          f'at least {step}, where the run in {workdir} is')
    self.config = config
    self.workdir = workdir
    self.train_source = data.open_split(config, config.train.split)
    self.eval_source = data.open_split(config, config.eval.split)
    check(config.eval.num_images <= len(self.eval_source), 'eval.num_images', config.eval.num_images,
          f'at most {len(self.eval_source)}, what {config.eval.split} holds')
    trained_on, here = num_train_images(workdir), len(self.train_source)
    if step is not None and trained_on not in (None, here):
      raise InputError(f'{config.dataset} {config.train.split} holds {here} images here, but the run in {workdir} was '
                       f'trained on {trained_on}: give the data_dir that it began with, or another --workdir.')
    self._optimizer = make_optimizer(config.optimizer, config.train.steps)
    self._rate = learning_rate(config.optimizer, config.train.steps)
    self._step = devices.pmap(make_train_step(self.model, self._optimizer, config), donate_argnums=0)
    self._evaluate = make_evaluator(self.model, config.eval.batch_size)
    self._draw = make_sampler(self.model, config.sample.batch_size)

  def run(self) -> Evaluation:
    """Trains to `config.train.steps`, then draws samples and evaluates in full.

    Writes checkpoints, metrics.jsonl, TensorBoard events and samples/*.png.

    Raises:
      NonFiniteError: if the loss or the gradient is not finite; the last checkpoint is kept.
    """
    train = self.config.train
    self.workdir.mkdir(parents=True, exist_ok=True)
    write_whole(self.workdir / 'data.json', json.dumps({'num_train_images': len(self.train_source)}) + '\n')
    with Checkpoints(self.workdir, train.keep_checkpoints) as checkpoints:
      state = init_state(self.model, self._optimizer, self.config)
      if checkpoints.latest_step is not None:
        state = checkpoints.restore(state)
      start = int(state.step)
      self._begin_logs(start)
      batches = data.train_batches(
          self.train_source, batch_size=train.batch_size, seed=self.config.seed, start_step=start, flip=train.flip,
          process_index=jax.process_index(), process_count=jax.process_count())
      try:
        state = self._train(devices.replicate(state), start, batches, checkpoints)
        self._progress.close()
        self._log_samples(train.steps, state)
        return self._log_evaluation(train.steps, state, self.config.eval.num_images)
      finally:
        self._progress.close()
        self._log.close()

  def _train(self, state, start, batches, checkpoints):
    train = self.config.train
    # The last step dispatched: the devices work on it while the host reads the one before.
    pending = None
    for step in range(start + 1, train.steps + 1):
      state, metrics = self._step(state, devices.split(next(batches)))
      if pending:
        self._log_step(*pending, checkpoints.latest_step)
      pending = step, metrics
      save = _due(step, train.checkpoint_every) or step == train.steps
      evaluate = _due(step, train.eval_every) and step < train.steps
      draw = _due(step, train.sample_every) and step < train.steps
      # Queued steps of several CPU devices can dead-lock, so there every step is waited for.
      if save or evaluate or draw or jax.default_backend() == 'cpu':
        self._log_step(*pending, checkpoints.latest_step)
        pending = None
      paused = time.time()
      if evaluate:
        self._log_evaluation(step, state, min(self.config.eval.num_images_during_training, len(self.eval_source)))
      if draw:
        self._log_samples(step, state)
      # Last, so that what a step logs is never missing from a run that goes on from it.
      if save:
        checkpoints.save(step, devices.unreplicate(state))
      self._logged_at += time.time() - paused
    return state

  def _begin_logs(self, start):
    steps = self.config.train.steps
    # Lines past the restored step will be written again, and so will the final evaluation.
    self._log = MetricsLog(self.workdir, keep=lambda line: line['step'] < start or (
        line['step'] == start and (line['split'] == 'train' or start < steps)))
    self._log.write_text('config', f'```\n{json.dumps(dataclasses.asdict(self.config), indent=2)}\n```')
    self._progress = tqdm(total=self.config.train.steps, initial=start, unit='step', desc='train')
    self._began = time.time() - training_seconds(self.workdir)
    self._logged_at, self._logged_step = time.time(), start

  def _log_step(self, step, metrics, saved_step):
    """Waits for a step, checks that it is finite, and logs it where that is due."""
    metrics = {name: float(value) for name, value in devices.unreplicate(metrics).items()}
    if not (math.isfinite(metrics['loss']) and math.isfinite(metrics['grad_norm'])):
      kept = f'the checkpoint of step {saved_step} is kept' if saved_step is not None else 'no checkpoint was saved yet'
      raise NonFiniteError(f'Step {step}: the loss is {metrics["loss"]} and the gradient norm {metrics["grad_norm"]}. '
                           f'Stopped; {kept}. In a new --workdir, lower optimizer.learning_rate or set '
                           'optimizer.clip_norm.')
    self._progress.update(step - self._progress.n)
    if _due(step, self.config.train.log_every) or step == self.config.train.steps:
      now = time.time()
      bits = bits_per_dim(metrics['window_loss'], 1)
      images_per_second = (step - self._logged_step) * self.config.train.batch_size / (now - self._logged_at)
      self._log.write(step, 'train', bits_per_dim=bits, learning_rate=float(self._rate(step - 1)),
                      grad_norm=metrics['grad_norm'], images_per_second=images_per_second, seconds=now - self._began)
      self._progress.set_postfix_str(f'{bits:.3f} bits/dim, {images_per_second:.1f} images/s')
      self._logged_at, self._logged_step = now, step

  def _log_evaluation(self, step, state, num_images):
    params = state.eval_params(self.config.eval.ema)
    evaluation = self._evaluate(params, self.eval_source, num_images)
    self._log.write(step, self.config.eval.split, **evaluation.as_dict())
    return evaluation

  def _log_samples(self, step, state):
    """The same seed every time, and the same inputs, so that one can watch the model learn."""
    sample, levels = self.config.sample, self.model.spec.levels
    draw = functools.partial(self._draw, state.eval_params(self.config.eval.ema), self.config.seed)
    if 'low_res' in self.model.conditions:
      number = min(sample.num_images, len(self.eval_source))
      inputs = next(data.eval_batches(self.eval_source, batch_size=number, num_images=number))
      images, _ = draw(number, {name: inputs[name] for name in self.model.conditions}, sample.temperature)
      picture = superres.strips(inputs['low_res'], images[:, None], inputs['image'], levels)
    else:
      given, columns = class_rows(self.model, sample.num_images)
      images, _ = draw(sample.num_images, given, sample.temperature)
      picture = pictures.grid(images, levels, columns)
    pictures.write_png(self.workdir / 'samples' / f'{step:07d}.png', picture)
    self._log.write_picture(step, 'samples', picture)
