"""Block layouts: the order in which positions are generated, and which earlier ones a block sees.

One object describes local self-attention in one, two and more dimensions (paper
section 3.3): a grid is cut into query blocks, the blocks are generated in raster
order, as are the positions inside a block, and each block has a memory around it.

    1D, query block 4, flange 4               2D, query block 2x2, flange 1x1

    m m m m q q q q . . . .    m  memory                . m m m m .
                               q  the query block       . m q q .
                               .  not visible           . m q q .

A query sees all of its memory, and its own block up to and including itself. What
lies to the right in the block's own rows is generated later and never visible.

In 1D the grid is the sequence of positions in the order of a scan: row by row, as
in the paper, or along another path through the image; frame by frame in a video. In
2D its axes are the rows, the columns and the positions inside a pixel, and a block
holds whole pixels; in 3D, for videos, the frames come first.

The order of *slots* is the order of generation with the grid padded to whole
blocks: slot (n, t) is the t-th position of the n-th block. Tensors of the network
are [batch, blocks, slots in a block, ...]. Everything here is static NumPy.
"""

from collections.abc import Sequence
import dataclasses
import functools
import itertools
import math
from typing import Any

import numpy as np

from image_transformer.errors import InputError

# Pairs of a query and a key: attention holds several numbers for each, per image and head.
_MAX_PAIRS = 2**32
# Pieces of a memory are compiled one by one.
_MAX_PIECES = 4_096


def _raster(rows: int, columns: int) -> np.ndarray:
  return np.arange(rows * columns)


def _column(rows: int, columns: int) -> np.ndarray:
  return np.arange(rows * columns).reshape(rows, columns).T.ravel()


def _zigzag(rows: int, columns: int) -> np.ndarray:
  """Diagonal by diagonal in alternating directions, as JPEG orders its coefficients."""
  row, column = np.indices((rows, columns)).reshape(2, -1)
  diagonal = row + column
  return np.lexsort((np.where(diagonal % 2, row, column), diagonal))


def _hilbert(rows: int, columns: int) -> np.ndarray:
  """Hilbert's curve from the top left to the bottom left corner, through the upper half first."""
  if rows != columns or rows & (rows - 1):
    raise InputError(f"model.scan is 'hilbert', but must be another scan for {rows} x {columns} images: Hilbert's "
                     'curve fills squares whose side is a power of two.')
  row = column = np.zeros(1, int)
  size = 1
  while size < rows:
    # Top left (transposed), top right, bottom right, bottom left (transposed along the other diagonal).
    row, column = (np.concatenate([column, row, row + size, 2 * size - 1 - column]),
                   np.concatenate([row, column + size, column + size, size - 1 - row]))
    size *= 2
  return row * columns + column


# By name, `model.scan`: (rows, columns) -> the raster index of each pixel, in the order of generation.
SCANS = {'raster': _raster, 'column': _column, 'zigzag': _zigzag, 'hilbert': _hilbert}


@dataclasses.dataclass(frozen=True)
class Piece:
  """The part of one earlier block that lies in the memory of a block.

  Blocks are generated in raster order, so a fixed offset on the grid of blocks is a
  fixed distance in generation order. Where the offset leaves the grid, the distance
  leads to some other block; `BlockLayout.memory` marks those slots as empty.
  """

  offset: tuple[int, ...]  # in blocks along each axis; the first nonzero one is negative
  distance: int  # blocks back in generation order
  cells: tuple[slice, ...]  # which part of that block


@dataclasses.dataclass(frozen=True)
class BlockLayout:
  """The positions of an image or a video, attended to in blocks.

  Positions have a raster index, (row * columns + column) * positions of a pixel + channel; a video is the image of its
  frames one below another.
  """

  image: tuple[int, ...]  # (frames,) rows, columns, positions of a pixel
  block: tuple[int, ...]  # extent of a query block: one number, along the scan, or one for every axis of `image`
  flange: tuple[int, ...]  # how far the memory extends the block along the same axes
  scan: str = 'raster'  # the order of positions in 1D

  @property
  def grid(self) -> tuple[int, ...]:
    """The shape of what is cut into blocks."""
    return (self.num_positions,) if len(self.block) == 1 else self.image

  @property
  def blocks(self) -> tuple[int, ...]:
    """Blocks along each axis of the grid, the last ones padded."""
    return tuple(-(-size // block) for size, block in zip(self.grid, self.block))

  @property
  def num_blocks(self) -> int:
    return math.prod(self.blocks)

  @property
  def block_size(self) -> int:
    """Slots in a block."""
    return math.prod(self.block)

  @property
  def num_positions(self) -> int:
    return math.prod(self.image)

  @property
  def halo_size(self) -> int:
    """Memory slots outside the block itself."""
    return self.memory.shape[1] - self.block_size

  @property
  def reach(self) -> int:
    """How many blocks back the memory extends, and so how many a sampler keeps."""
    return max((piece.distance for piece in self.pieces), default=0)

  @functools.cached_property
  def pieces(self) -> tuple[Piece, ...]:
    """The parts of earlier blocks that a memory can contain, in generation order."""
    furthest = [min(-(-flange // block), blocks - 1)
                for flange, block, blocks in zip(self.flange, self.block, self.blocks)]
    strides = [math.prod(self.blocks[axis + 1:]) for axis in range(len(self.blocks))]
    pieces = []
    for offset in itertools.product(*(range(-far, far + 1) for far in furthest)):
      if offset < (0,) * len(offset):  # generated earlier
        distance = -sum(step * stride for step, stride in zip(offset, strides))
        pieces.append(Piece(offset, distance, tuple(map(_overlap, offset, self.block, self.flange))))
    return tuple(pieces)

  @functools.cached_property
  def order(self) -> np.ndarray:
    """int32 [blocks, slots]: the raster index of the position in each slot, -1 for padding."""
    index = np.arange(self.num_positions)
    if len(self.block) == 1:
      *frames, rows, columns, depth = self.image
      of_frame = (SCANS[self.scan](rows, columns)[:, None] * depth + np.arange(depth)).ravel()
      index = (np.arange(math.prod(frames))[:, None] * of_frame.size + of_frame).ravel()
    padded = np.full([size * block for size, block in zip(self.blocks, self.block)], -1, np.int32)
    padded[tuple(map(slice, self.grid))] = index.reshape(self.grid)
    cut = padded.reshape([size for sizes in zip(self.blocks, self.block) for size in sizes])
    axes = range(cut.ndim)
    return cut.transpose(*axes[::2], *axes[1::2]).reshape(self.num_blocks, self.block_size)

  @functools.cached_property
  def slots(self) -> np.ndarray:
    """int32 [positions]: the flat slot of each raster index, the inverse of `order`."""
    return np.argsort(self.order, axis=None, kind='stable')[-self.num_positions:].astype(np.int32)

  @functools.cached_property
  def generated(self) -> np.ndarray:
    """int32 [positions]: the flat slots in order of generation, without padding."""
    return np.flatnonzero(self.order >= 0).astype(np.int32)

  @functools.cached_property
  def previous(self) -> np.ndarray:
    """int32 [blocks, slots]: the raster index generated just before each slot, -1 before the first.

    Padding is skipped, and the first position of a block follows the last of the block before.
    """
    previous = np.full(self.order.size, -1, np.int32)
    previous[self.generated[1:]] = self.order.ravel()[self.generated[:-1]]
    return previous.reshape(self.order.shape)

  @functools.cached_property
  def memory(self) -> np.ndarray:
    """int32 [blocks, memory slots]: the raster index in each memory slot, -1 where there is none.

    The pieces come first, in their order, and the block's own slots last.
    """
    cells = self.order.reshape(*self.blocks, *self.block)
    here = np.moveaxis(np.indices(self.blocks), 0, -1)
    parts = []
    for piece in self.pieces:
      there = here + piece.offset
      inside = ((there >= 0) & (there < self.blocks)).all(axis=-1).reshape(-1, 1)
      part = cells[(*np.moveaxis(there % self.blocks, -1, 0), *piece.cells)].reshape(self.num_blocks, -1)
      parts.append(np.where(inside, part, -1))
    return np.concatenate(parts + [self.order], axis=1)

  def visible(self, block: Any = slice(None), slot: Any = slice(None), xp: Any = np) -> Any:
    """Which memory slots a query sees: those that hold a position, generated no later than the query's own.

    Args:
      block, slot: of the query; all blocks, or all slots of a block, if not given.
      xp: `jax.numpy` where `block` and `slot` are traced.

    Returns:
      bool [(blocks,) (slots,) memory slots].
    """
    occupied, causal = xp.asarray(self.memory >= 0)[block], xp.asarray(self._causal)[slot]
    return causal & (occupied if causal.ndim == 1 else occupied[..., None, :])

  @functools.cached_property
  def _causal(self):
    """bool [slots, memory slots]: whether a memory slot is generated no later than a slot."""
    own = np.tri(self.block_size, dtype=bool)
    return np.concatenate([np.ones((self.block_size, self.halo_size), bool), own], axis=1)


def _overlap(offset: int, block: int, flange: int) -> slice:
  """Which cells the flange covers of a block that is `offset` blocks away along one axis."""
  covered = min(flange - (abs(offset) - 1) * block, block) if offset else block
  return slice(0, covered) if offset > 0 else slice(block - covered, block)


def block_layout(image_shape: Sequence[int], values_per_position: int, query_block: Sequence[int],
                 memory_flange: Sequence[int], scan: str = 'raster') -> BlockLayout:
  """The layout for images or videos.

  Args:
    image_shape: (height, width, channels), after the frames of a video.
    values_per_position: intensities predicted at one position: 1 (categorical) or all
      channels of a pixel (DMOL).
    query_block: (l_q,) in positions for 1D attention, (rows, columns) in pixels for 2D,
      (frames, rows, columns) for 3D.
    memory_flange: (l_m,) positions before the block in 1D; in 2D (rows above, columns
      to each side) in pixels; in 3D (frames before, rows, columns).
    scan: a name in `SCANS`, for 1D attention.

  Raises:
    InputError: if the block does not fit the image, or the scan does not.
  """
  *size, channels = image_shape
  if len(query_block) not in (1, len(size)):
    raise InputError(f'model.query_block is {tuple(query_block)}, but must be one number or {len(size)} for '
                     f'{"videos" if len(size) == 3 else "still images"}.')
  image = *size, channels // values_per_position
  if len(query_block) > 1:  # a block holds whole pixels
    query_block, memory_flange = (*query_block, image[-1]), (*memory_flange, 0)
  layout = BlockLayout(image, tuple(query_block), tuple(memory_flange), scan)
  if any(block > size for block, size in zip(layout.block, layout.grid)):
    shown = ' x '.join(map(str, layout.grid[:len(query_block)]))
    raise InputError(f'model.query_block is {tuple(query_block)}, larger than the {shown} positions of a '
                     f'{" x ".join(map(str, image_shape))} image.')
  _check_size(layout)
  SCANS[scan](*image[-3:-1])  # checks whether it fits
  return layout


def _check_size(layout: BlockLayout) -> None:
  """Rejects layouts that are too large, by arithmetic alone: computing `pieces` or `memory` would already fail."""
  flange = [min(flange, (blocks - 1) * block)
            for flange, block, blocks in zip(layout.flange, layout.block, layout.blocks)]
  # Half of everything around a block is generated earlier.
  num_pieces = math.prod(1 + 2 * -(-one // block) for one, block in zip(flange, layout.block)) // 2
  around = math.prod(block + 2 * one for one, block in zip(flange, layout.block))
  num_pairs = layout.num_blocks * layout.block_size * (around + layout.block_size) // 2
  if num_pieces > _MAX_PIECES or num_pairs > _MAX_PAIRS:
    raise InputError(f'model.query_block and model.memory_flange give every block {num_pieces:,} earlier blocks to see '
                     f'(at most {_MAX_PIECES:,}) and the image {num_pairs:,} pairs of positions (at most '
                     f'{_MAX_PAIRS:,}): choose smaller blocks if there are too many pairs, larger ones if there are '
                     'too many blocks, or a smaller flange.')
