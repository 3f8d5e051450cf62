"""The training step of one device: gradients, the optimizer, averaged parameters and what is logged."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from image_transformer import devices
from image_transformer.config import Config
from image_transformer.model import ImageTransformer
from image_transformer.optimizers import num_skipped
from image_transformer.state import TrainState


def make_train_step(model: ImageTransformer, optimizer: optax.GradientTransformation,
                    config: Config) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]:
  """The step of one device, to be run under `devices.pmap`.

  It takes the state and this device's {'image': uint8 [b, H, W, C]} with their conditions, and
  returns the new state and scalars: the loss of this step in nats/dim, its mean since the last
  logged step over those where it was finite, the global norm of the gradient before clipping, and
  how many steps were skipped, in total and in a row.
  """
  train = config.train

  def loss_fn(params, batch, first_index, key):
    log_prob = model.apply({'params': params}, batch['image'], model.given_of(batch), True, first_index,
                           rngs={'dropout': key}, method='log_prob')
    return -log_prob.mean() / model.spec.num_dims

  def train_step(state, batch):
    key = jax.random.fold_in(jax.random.key(config.seed), state.step)
    parts = jax.tree.map(lambda x: x.reshape(train.accumulation, -1, *x.shape[1:]), batch)
    size = parts['image'].shape[1]
    first_part = jax.lax.axis_index(devices.AXIS) * train.accumulation

    def accumulate(total, part):
      part_batch, index = part
      loss_and_grads = jax.value_and_grad(loss_fn)(state.params, part_batch, (first_part + index) * size, key)
      return jax.tree.map(jnp.add, total, loss_and_grads), None

    zero = jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.params)
    total, _ = jax.lax.scan(accumulate, zero, (parts, jnp.arange(train.accumulation)))
    loss, grads = jax.lax.pmean(jax.tree.map(lambda x: x / train.accumulation, total), devices.AXIS)

    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema_params = state.ema_params
    if ema_params is not None:
      # Early on, the full decay would leave the average mostly at the initial values.
      decay = jnp.minimum(train.ema_decay, (1 + state.step) / (10 + state.step))
      ema_params = jax.tree.map(lambda average, new: decay * average + (1 - decay) * new, ema_params, params)
    new_window = state.step % train.log_every == 0
    window_loss = jnp.where(new_window, 0, state.window_loss) + jnp.where(jnp.isfinite(loss), loss, 0)
    window_steps = jnp.where(new_window, 0, state.window_steps) + jnp.isfinite(loss)
    skipped, skipped_in_a_row = num_skipped(opt_state)
    metrics = {'loss': loss, 'window_loss': window_loss / window_steps, 'grad_norm': optax.tree.norm(grads),
               'skipped': skipped, 'skipped_in_a_row': skipped_in_a_row}
    return TrainState(state.step + 1, params, ema_params, opt_state, window_loss, window_steps), metrics

  return train_step
