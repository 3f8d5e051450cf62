"""Adam with the paper's learning-rate schedule, and Muon."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from image_transformer.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, num_steps: int) -> Callable[[jax.Array], jax.Array]:
  """The rate of step t = count + 1, float32.

  'rsqrt' is the Transformer's: peak * min(t / w, sqrt(w / t)) with warm-up w. 'cosine'
  warms up in the same way and falls to zero at `num_steps`, where that is after the warm-up.
  Steps that are skipped do not count.
  """
  peak, warmup = config.learning_rate, config.warmup_steps

  def rate(count):
    t = jnp.asarray(count, jnp.float32) + 1
    if config.schedule == 'rsqrt':
      return peak * jnp.minimum(t / warmup, jnp.sqrt(warmup / t))
    progress = jnp.clip((t - warmup) / max(num_steps - warmup, 1), 0, 1)
    return peak * jnp.minimum(t / warmup, 0.5 * (1 + jnp.cos(jnp.pi * progress)))

  return rate


def make_optimizer(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
  """Adam or Muon in float32, after clipping if configured; skips gradients that are not finite if configured."""
  clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
  rate = learning_rate(config, num_steps)
  if config.name == 'muon':
    update = optax.contrib.muon(
        rate, muon_weight_dimension_numbers=_matrices, adam_b1=config.b1, adam_b2=config.b2, eps=config.epsilon)
  else:
    update = optax.adam(rate, b1=config.b1, b2=config.b2, eps=config.epsilon)
  optimizer = optax.chain(clip, update)
  # The trainer stops before optax reaches its limit and applies an update that is not finite.
  return optax.apply_if_finite(optimizer, config.skip_non_finite + 1) if config.skip_non_finite else optimizer


def _matrices(params):
  """Marks the parameters that Muon updates: the matrices of the layers. Embeddings and the output are not."""

  def mark(path, leaf):
    names = {key.key for key in path}
    of_layers = names & {'decoder', 'encoder', 'text_encoder'}
    return optax.contrib.MuonDimensionNumbers() if leaf.ndim == 2 and of_layers else None

  return jax.tree_util.tree_map_with_path(mark, params)


def num_skipped(state: optax.OptState) -> tuple[jax.Array, jax.Array]:
  """How many steps `make_optimizer`'s optimizer has skipped, in total and in a row until now."""
  if not isinstance(state, optax.ApplyIfFiniteState):
    return jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
  return state.total_notfinite, state.notfinite_count
