"""Training: the loop around the step, with its logs, checkpoints, evaluations and samples."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import json
import math
import os
import time
from typing import Any

from etils import epath
import jax

from image_transformer import batching, data, devices, pictures, stopping, weights
from image_transformer.checkpoints import Checkpoints, saved_steps
from image_transformer.conditions import default_given
from image_transformer.config import Config, check, from_dict
from image_transformer.errors import InputError, RunError
from image_transformer.evaluate import make_evaluator
from image_transformer.library import Run, load
from image_transformer.metrics import Evaluation, MetricsLog, bits_per_dim, read_metrics, training_seconds
from image_transformer.model import ImageTransformer, init_params, make_model
from image_transformer.optimizers import learning_rate, make_optimizer
from image_transformer.paths import as_path, is_address
from image_transformer.progress import Progress
from image_transformer.reports import write_evaluation
from image_transformer.runs import TrainedOn, check_free, own, read_config, read_trained_on, write_trained_on
from image_transformer.sampling import make_sampler
from image_transformer.start import compiled_step, summary, training_flops
from image_transformer.state import init_state
from image_transformer.training_step import make_train_step
from image_transformer.workdir import survive, write_whole


def _due(step: int, every: int) -> bool:
  return every > 0 and step % every == 0


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
  """One training run in a workdir, resumed from its newest checkpoint.

  Raises InputError, before anything is compiled, if the configuration does not fit the
  data or the devices.
  """

  def __init__(self, config: Config, workdir: epath.Path):
    self.model = check_config(config)
    step = max(saved_steps(workdir), default=None)
    self.config = config
    self.workdir = workdir
    self.train_source = data.open_split(config, config.train.split)
    self.eval_source = data.open_split(config, config.eval.split)
    check(config.eval.num_images <= len(self.eval_source), 'eval.num_images', config.eval.num_images,
          f'at most {len(self.eval_source)}, the size of {config.eval.split}')
    self._num_eval_images = min(config.eval.num_images_during_training, len(self.eval_source)) or len(self.eval_source)
    self._images = TrainedOn(len(self.train_source), batching.digest(self.train_source))
    for there, here in zip(read_trained_on(workdir), self._images):
      if step is not None and there not in (None, here):
        what = f'{here} images' if isinstance(here, int) else 'other images'
        raise InputError(f'{config.dataset} {config.train.split} holds {what} here, but the run in {workdir} was '
                         f'trained on {there}: use the data_dir that it started with, or another workdir.')
    self._first_params = load(config.init_from).variables['params'] if config.init_from and step is None else None
    self._optimizer = make_optimizer(config.optimizer, config.train.steps)
    self._rate = learning_rate(config.optimizer, config.train.steps)
    self._step = devices.pmap(make_train_step(self.model, self._optimizer, config), donate_argnums=0)
    self._evaluate = make_evaluator(self.model, config.eval.batch_size)
    self._draw = make_sampler(self.model, config.sample.batch_size)

  def run(self) -> tuple[Any, Evaluation]:
    """Trains to `config.train.steps`, then draws samples and evaluates in full.

    Writes checkpoints, metrics.jsonl, TensorBoard events and samples/*.png.

    Returns:
      The parameters that were evaluated, on the host, and the evaluation.

    Raises:
      stopping.Stopped: if the process is asked to stop; the last step is saved.
      RunError: if the loss or the gradient is not finite, or nothing can be saved; the last checkpoint is kept.
      InputError: if there are checkpoints, but none can be read.
    """
    train = self.config.train
    facts = (dataclasses.replace(self.config, data_dir=''), self._images, len(self.eval_source),
             saved_steps(self.workdir))
    if not devices.same_everywhere(repr(facts)):
      raise InputError('The processes have different configurations, images or checkpoints: give all of them the same '
                       f'command, the same data and one workdir that they share ({self.workdir} here).')
    write_trained_on(self.workdir, self._images)
    with Checkpoints(self.workdir, train.keep_checkpoints, train.checkpoint_every) as self._checkpoints:
      new_state = functools.partial(init_state, self.model, self._optimizer, self.config)
      state = next(self._checkpoints.restore(jax.eval_shape(new_state)), None)
      if state is None:
        state = new_state()
        if self._first_params is not None:
          state = state.replace(params=self._first_params, ema_params=state.ema_params and self._first_params)
      start = int(state.step)
      if devices.is_first():
        print(summary(self.config, self.model, len(self.train_source), len(self.eval_source), start, self.workdir))
        print('compiling the first step', flush=True)
      self._checkpoints.set_aside_after(start)
      self._begin_logs(start)
      batches = batching.train_batches(
          self.train_source, batch_size=train.batch_size, seed=self.config.seed, start_step=start, flip=train.flip,
          process_index=jax.process_index(), process_count=jax.process_count())
      try:
        return self._train(devices.replicate(state), start, batches)
      finally:
        self._progress.close()
        self._log.close()

  def _train(self, state, start, batches):
    train = self.config.train
    step = start
    # The last step dispatched: the devices work on it while the host reads the one before.
    pending = None
    try:
      self._do_what_is_due(step, state, stopped_here=True)
      while step < train.steps:
        stopping.poll()
        state, metrics = self._step(state, devices.split(next(batches)))
        step += 1
        if pending:
          self._log_step(*pending)
        pending = step, metrics
        save = _due(step, train.checkpoint_every) or step == train.steps
        logged = _due(step, train.log_every)
        # Queued steps can deadlock on several CPU devices, so on CPU every step is waited for.
        if save or logged or any(self._is_due(step)) or jax.default_backend() == 'cpu':
          self._log_step(*pending)
          pending = None
        if save or (logged and self._checkpoints.failed()):
          # The log first, so that lines up to a saved step are never missing.
          self._log.flush()
          self._checkpoints.save(step, devices.unreplicate(state))
        self._do_what_is_due(step, state)
      self._progress.close()
      self._log_samples(step, state)
      evaluation = self._log_evaluation(step, state, self.config.eval.num_images)
      self._checkpoints.save_surely(step, devices.unreplicate(state))
      return jax.device_get(devices.unreplicate(state.eval_params(self.config.eval.ema))), evaluation
    except stopping.Stopped as stopped:
      if pending:
        self._log_step(*pending)
      self._log.flush()
      if step > 0:
        self._checkpoints.save_surely(step, devices.unreplicate(state))
      saved = ', which is saved' if step else ''
      raise stopping.Stopped(f'Stopped after step {step} of {train.steps}{saved}. The same command resumes '
                             'from there.') from stopped

  def _is_due(self, step):
    """Whether to evaluate, and whether to draw samples; at the end, both happen anyway."""
    train = self.config.train
    return tuple(_due(step, every) and 0 < step < train.steps for every in (train.eval_every, train.sample_every))

  def _do_what_is_due(self, step, state, stopped_here=False):
    """Evaluates and draws samples if due; where a run was stopped, only what it had not done yet."""
    began = time.monotonic()
    evaluate, draw = self._is_due(step)
    if evaluate and not (stopped_here and devices.any_process(self._log.has_evaluation(step))):
      evaluation = self._log_evaluation(step, state, self._num_eval_images)
      self._progress.say(f'{evaluation} of {self.config.eval.split}, step {step}')
    if draw and not (stopped_here and devices.any_process(devices.is_first() and self._picture(step).exists())):
      self._log_samples(step, state)
    self._logged_at += time.monotonic() - began

  def _picture(self, step):
    return self.workdir / 'samples' / f'{step:07d}.png'

  def _begin_logs(self, start):
    train = self.config.train

    def keep(line):
      # Lines past the restored step will be written again. At this step, those are dropped that an uninterrupted
      # run would not write, such as the final evaluation of a run that was meant to end here.
      if line['step'] != start:
        return line['step'] < start
      if 'num_images' in line:
        return start < train.steps and _due(start, train.eval_every) and line['num_images'] == self._num_eval_images
      return _due(start, train.log_every) or start == train.steps

    self._log = MetricsLog(self.workdir, keep)
    self._log.write_text('config', f'```\n{json.dumps(dataclasses.asdict(self.config), indent=2)}\n```')
    self._progress = Progress('train', 'step', train.steps, keep=True)
    self._began = time.monotonic() - training_seconds(self.workdir)
    self._logged_at, self._logged_step, self._status = time.monotonic(), start, ''

  def _log_step(self, step, metrics):
    """Waits for a step, checks that it is finite, and logs it where that is due."""
    metrics = {name: float(value) for name, value in devices.unreplicate(metrics).items()}
    finite = math.isfinite(metrics['loss']) and math.isfinite(metrics['grad_norm'])
    if not finite and not 0 < metrics['skipped_in_a_row'] <= self.config.optimizer.skip_non_finite:
      steps = self._checkpoints.steps
      kept = f'the checkpoint of step {steps[-1]} is kept' if steps else 'no checkpoint was saved yet'
      raise RunError(f'Step {step}: the loss is {metrics["loss"]} and the gradient norm {metrics["grad_norm"]}. '
                     f'Stopped; {kept}. In a new workdir, lower optimizer.learning_rate or set optimizer.clip_norm '
                     'or optimizer.skip_non_finite.')
    if _due(step, self.config.train.log_every) or step == self.config.train.steps:
      now, skipped = time.monotonic(), int(metrics['skipped'])  # the schedule does not count steps that were skipped
      bits, norm = (x if math.isfinite(x) else None for x in (bits_per_dim(metrics['window_loss'], 1),
                                                               metrics['grad_norm']))
      images_per_second = (step - self._logged_step) * self.config.train.batch_size / (now - self._logged_at)
      self._log.write(step, 'train', bits_per_dim=bits, learning_rate=float(self._rate(step - 1 - skipped)),
                      grad_norm=norm, skipped_steps=skipped, images_per_second=images_per_second,
                      seconds=now - self._began)
      self._logged_at, self._logged_step = now, step
      self._status = f'{bits or math.nan:.3f} bits/dim, {images_per_second:.1f} images/s'
    self._progress.update(step, self._status)

  def _log_evaluation(self, step, state, num_images):
    params = state.eval_params(self.config.eval.ema)
    evaluation = self._evaluate(params, self.eval_source, num_images)
    self._log.write(step, self.config.eval.split, **evaluation.as_dict())
    return evaluation

  def _log_samples(self, step, state):
    """Draws with the same seed and the same inputs every time, so that progress is visible."""
    model, number = self.model, self.config.sample.num_images
    draw = functools.partial(self._draw, state.eval_params(self.config.eval.ema), self.config.seed)
    given, columns = default_given(model.conditions, number)
    if given.keys() == model.conditions.keys():
      images, _ = draw(number, given, self.config.sample.temperature)
      picture = pictures.grid_of(model, given, images, columns)
    else:  # conditions without defaults come from the evaluation split
      number = min(number, len(self.eval_source))
      inputs = batching.first_examples(self.eval_source, number)
      given = model.given_of(inputs)
      images, _ = draw(number, given, self.config.sample.temperature)
      picture = pictures.samples_of(model, given, images[:, None], inputs['image'])
    with survive(f'Writing {self._picture(step)}'):
      write_whole(self._picture(step), pictures.png(picture))
    self._log.write_picture(step, 'samples', picture)


@devices.settings()
def train(config: Config | Mapping[str, Any], workdir: os.PathLike | str) -> Run:
  """Trains a model, or resumes its training, and evaluates it.

  Args:
    config: the configuration, or nested dictionaries as `config.from_dict` takes them.
    workdir: the folder of the run, created if need be.

  Returns:
    The trained model. Its evaluation is in `results.json`.

  Raises:
    InputError: if the configuration does not fit the data, the devices or the run in the workdir.
    RunError, stopping.Stopped: as `Trainer.run`; the same call resumes.
  """
  asked_for, folder, _ = _check(config, workdir)
  config = data.with_stand_in(asked_for)
  if config.dataset != asked_for.dataset:
    print(f'{asked_for.dataset} is not available: training on generated images. This is not a result.')
  trainer = Trainer(config, folder)
  if data.note(config):
    print(data.note(config))
  with own(folder, config):
    params, evaluation = trainer.run()
    run = Run(config, trainer.model, {'params': params}, config.train.steps, folder)
    try:
      write_evaluation(run, evaluation, config.eval.split)
    except OSError as error:
      raise RunError(f'The results could not be written ({error}). Free disk space, then run the same command again.') \
          from error
    if devices.is_first() and (drop := _still_falling(read_metrics(folder), evaluation)):
      print(f'bits/dim in training fell by {drop:.2f} over the last fifth of the steps: more steps would learn more.')
  return run


def _still_falling(lines: Sequence[Mapping[str, Any]], evaluation: Evaluation) -> float:
  """By how much the loss fell over the last fifth of training, if that is noticeable and nothing is memorised yet."""
  losses = [line['bits_per_dim'] for line in lines if line['split'] == 'train' and line['bits_per_dim'] is not None
            and 'num_images' not in line]
  fifth = len(losses) // 5
  if not fifth:
    return 0.0
  before, last = (sum(part) / fifth for part in (losses[-2 * fifth:-fifth], losses[-fifth:]))
  noticeable, memorised = before - last >= 0.02, evaluation.bits_per_dim > last + 0.1
  return before - last if noticeable and not memorised else 0.0


@devices.settings()
def dry_run(config: Config | Mapping[str, Any], workdir: os.PathLike | str) -> str:
  """What `train` would do and what a step would cost, by compiling it; nothing is written, prepared or computed.

  Raises:
    InputError: as `train`, as far as it can be told without opening the data.
  """
  checked, folder, model = _check(config, workdir)
  start = max(saved_steps(folder), default=0)
  lines = [summary(checked, model, *data.check_data(checked), start, folder)]
  megaflops = training_flops(model) * checked.train.batch_size / 1e6
  memory = compiled_step(checked, model).memory_analysis()  # parameters, optimizer state, batch; activations
  gigabytes = (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 2**30
  if checked.stand_in:
    lines.append(f'stand-in  generated images, if {checked.dataset} is not available')
  lines.append(f'step      {megaflops:,.0f} MFLOP; {gigabytes:.2f} GiB on each device')
  return '\n'.join(lines)


def _check(config: Config | Mapping[str, Any],
           workdir: os.PathLike | str) -> tuple[Config, epath.Path, ImageTransformer]:
  """The configuration, folder and model, checked before data are prepared."""
  config = config if isinstance(config, Config) else from_dict(dict(config))
  if config.init_from and not is_address(config.init_from):
    config = dataclasses.replace(config, init_from=weights.lasting_path(config.init_from))
  folder = as_path(workdir)
  model = check_config(config)
  if jax.process_count() == 1:  # another process may have begun to write there already
    check_free(folder, config, *([data.as_stand_in(config)] if config.stand_in else []))
  if config.init_from and not saved_steps(folder):
    _check_same_network(config.init_from, model)
  return config, folder, model


def _check_same_network(workdir: str, model: ImageTransformer) -> None:
  """Checks that the parameters of another run fit this model."""
  other = read_config(as_path(weights.find(workdir)), 'init_from')
  shapes = [{jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
            for params in (jax.eval_shape(functools.partial(init_params, one, 0))
                           for one in (make_model(other.model, data.image_spec(other)), model))]
  for name in sorted(shapes[0].keys() | shapes[1].keys()):
    there, here = (shape.get(name) for shape in shapes)
    check(there == here, 'init_from', workdir, f'a run of the same network, but {name} is {there} there, {here} here')
