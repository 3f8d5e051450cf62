"""Checkpoints in `workdir/checkpoints`, written by Orbax: atomic, asynchronous, the newest few kept."""

from typing import Any

from etils import epath
import jax
import orbax.checkpoint as ocp

from image_transformer.errors import InputError


def latest_step(workdir: epath.PathLike) -> int | None:
  """The newest step saved in a workdir, which need not exist; None if there is none."""
  folder = epath.Path(workdir) / 'checkpoints'
  names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
  return max((int(name) for name in names if name.isdigit()), default=None)


class Checkpoints:
  """Saves and restores training states; a context manager that waits for the last save."""

  def __init__(self, workdir: epath.PathLike, keep: int = 1):
    self._folder = epath.Path(workdir).resolve() / 'checkpoints'
    self._manager = ocp.CheckpointManager(self._folder, options=ocp.CheckpointManagerOptions(max_to_keep=keep))

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    self._manager.close()

  @property
  def latest_step(self) -> int | None:
    return self._manager.latest_step()

  @property
  def steps(self) -> list[int]:
    """Of all checkpoints, the oldest first."""
    return sorted(self._manager.all_steps())

  def save(self, step: int, state: Any) -> None:
    """Starts saving a tree of arrays under a step; does nothing if that step is saved already."""
    if step != self.latest_step:
      self._manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state)))

  def restore(self, like: Any, step: int | None = None) -> Any:
    """A state that was saved, by default the newest, as host arrays in the structure, shapes and types of `like`.

    Raises:
      InputError: if it does not fit `like`.
    """
    step = self.latest_step if step is None else step
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    try:
      args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
      return self._manager.restore(step, args=args)['state']
    except (ValueError, KeyError, TypeError, OSError) as error:
      reason = str(error).strip().splitlines()
      raise InputError(f'Checkpoint {self._folder}/{step} cannot be restored into this model: '
                       f'{reason[0][:200] if reason else type(error).__name__}') from error
