"""The state of a training run: all that a checkpoint holds. What else a step uses follows from the seed and `step`."""

from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import optax

from image_transformer.config import Config
from image_transformer.model import ImageTransformer, init_params


class TrainState(struct.PyTreeNode):
  step: jax.Array  # steps done
  params: Any
  ema_params: Any  # averaged parameters; None where there are none
  opt_state: Any
  # Sum and number of the losses since the last logged step, so that logs survive a restart.
  window_loss: jax.Array
  window_steps: jax.Array

  def eval_params(self, ema: bool) -> Any:
    """The parameters to evaluate and sample with: averaged ones if `ema` and there are any."""
    return self.ema_params if ema and self.ema_params is not None else self.params


def init_state(model: ImageTransformer, optimizer: optax.GradientTransformation, config: Config) -> TrainState:
  """A state before the first step; parameters are drawn from `config.seed`."""
  params = init_params(model, config.seed)
  return TrainState(step=jnp.zeros((), jnp.int32), params=params,
                    ema_params=jax.tree.map(jnp.copy, params) if config.train.ema_decay else None,
                    opt_state=optimizer.init(params), window_loss=jnp.zeros(()),
                    window_steps=jnp.zeros((), jnp.int32))
