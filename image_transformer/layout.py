"""Block layouts: in which order positions are generated, and which earlier ones a block sees.

Local self-attention in one and in two dimensions (paper section 3.3) differs in
nothing else. Both are one object here: a grid of cells is cut into query blocks,
the blocks are generated in raster order and so are the positions inside a block,
and around each block lies a memory. 1D attention is the grid with a single row.

    2D, query block 2x2, flange 1x1           1D, query block 4, flange 4

    . m m m m .      m  memory                m m m m q q q q . . . .
    . m q q .        q  the query block
    . m q q .        .  not visible

A query sees all of its memory, and its own block up to and including itself. What
lies to the right in the block's own rows is generated later and never visible.

The order of *slots* is the order of generation with the grid padded to whole
blocks: slot (n, t) is the t-th position of the n-th block. Tensors of the network
are [batch, blocks, slots in a block, ...]. Everything here is static NumPy.
"""

import dataclasses
import functools
import math

import numpy as np

from image_transformer.errors import InputError

# Pairs of a query and a key: attention holds several numbers for each, per image and head.
_MAX_PAIRS = 2**32
# Pieces of a memory are compiled one by one.
_MAX_PIECES = 4_096


@dataclasses.dataclass(frozen=True)
class Piece:
  """The part of one earlier block that lies in the memory of a block.

  Blocks are generated in raster order, so a fixed step on the grid of blocks is a
  fixed distance in generation order. Where the step leaves the grid, the distance
  leads to some other block; `BlockLayout.memory` marks those slots as empty.
  """

  up: int  # blocks above
  right: int  # blocks to the right; negative: to the left
  distance: int  # blocks back in generation order
  rows: slice  # which cells of that block
  columns: slice


@dataclasses.dataclass(frozen=True)
class BlockLayout:
  """A grid of `grid` cells with `depth` positions each, attended to in blocks.

  Positions have a raster index (row * columns + column) * depth + channel.
  """

  grid: tuple[int, ...]  # rows, columns
  depth: int  # positions per cell, generated together (R, G, B of a pixel)
  block: tuple[int, ...]  # rows and columns of a query block
  flange: tuple[int, ...]  # memory rows above, memory columns to the left and right

  @property
  def blocks(self) -> tuple[int, int]:
    """Rows and columns of blocks, the last ones padded."""
    return -(-self.grid[0] // self.block[0]), -(-self.grid[1] // self.block[1])

  @property
  def num_blocks(self) -> int:
    return math.prod(self.blocks)

  @property
  def block_size(self) -> int:
    """Slots in a block."""
    return math.prod(self.block) * self.depth

  @property
  def num_positions(self) -> int:
    return math.prod(self.grid) * self.depth

  @property
  def halo_size(self) -> int:
    """Memory slots outside the block itself."""
    return self.memory.shape[1] - self.block_size

  @property
  def reach(self) -> int:
    """How many blocks back the memory goes: what a sampler has to remember."""
    return max((piece.distance for piece in self.pieces), default=0)

  @functools.cached_property
  def pieces(self) -> tuple[Piece, ...]:
    """What a memory can consist of besides the block itself, in generation order."""
    (block_rows, block_columns), (height, width), (above, aside) = self.blocks, self.block, self.flange
    furthest_up = min(-(-above // height), block_rows - 1)
    furthest_aside = min(-(-aside // width), block_columns - 1)
    pieces = []
    for up in range(furthest_up, -1, -1):
      num_rows = min(above - (up - 1) * height, height) if up else height
      for right in range(-furthest_aside, furthest_aside + 1 if up else 0):
        num_columns = min(aside - (abs(right) - 1) * width, width) if right else width
        columns = slice(0, num_columns) if right > 0 else slice(width - num_columns, width)
        pieces.append(Piece(up, right, up * block_columns - right, slice(height - num_rows, height), columns))
    return tuple(pieces)

  @functools.cached_property
  def order(self) -> np.ndarray:
    """int32 [blocks, slots]: the raster index of the position in each slot, -1 for padding."""
    (block_rows, block_columns), (height, width) = self.blocks, self.block
    index = np.full((block_rows * height, block_columns * width, self.depth), -1, np.int32)
    index[:self.grid[0], :self.grid[1]] = np.arange(self.num_positions).reshape(*self.grid, self.depth)
    index = index.reshape(block_rows, height, block_columns, width, self.depth)
    return index.transpose(0, 2, 1, 3, 4).reshape(self.num_blocks, self.block_size)

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
    cells = self.order.reshape(*self.blocks, *self.block, self.depth)
    row, column = np.indices(self.blocks)
    parts = []
    for piece in self.pieces:
      source_row, source_column = row - piece.up, column + piece.right
      inside = (source_row >= 0) & (source_column >= 0) & (source_column < self.blocks[1])
      part = cells[source_row % self.blocks[0], source_column % self.blocks[1], piece.rows, piece.columns]
      part = np.where(inside[..., None, None, None], part, -1)
      parts.append(part.reshape(self.num_blocks, -1))
    return np.concatenate(parts + [self.order], axis=1)

  @property
  def occupied(self) -> np.ndarray:
    """bool [blocks, memory slots]: the memory slot holds a position."""
    return self.memory >= 0

  @functools.cached_property
  def causal(self) -> np.ndarray:
    """bool [slots, memory slots]: generated no later. Visible is what is causal and occupied."""
    own = np.tri(self.block_size, dtype=bool)
    return np.concatenate([np.ones((self.block_size, self.halo_size), bool), own], axis=1)


def block_layout(image_shape: tuple[int, int, int], values_per_position: int,
                 query_block: tuple[int, ...], memory_flange: tuple[int, ...]) -> BlockLayout:
  """The layout for images of shape (height, width, channels).

  Args:
    image_shape: (height, width, channels).
    values_per_position: intensities predicted at one position: 1 (categorical) or all
      channels of a pixel (DMOL).
    query_block: (l_q,) in positions for 1D attention, (rows, columns) in pixels for 2D.
    memory_flange: (l_m,) positions before the block in 1D; in 2D (rows above, columns
      to each side) in pixels.

  Raises:
    InputError: if the block is larger than the image.
  """
  height, width, channels = image_shape
  depth = channels // values_per_position
  grid = (height, width) if len(query_block) == 2 else (height * width * depth,)
  if any(block > size for block, size in zip(query_block, grid)):
    raise InputError(f'model.query_block is {tuple(query_block)}, larger than the {" x ".join(map(str, grid))} '
                     f'positions of a {height} x {width} x {channels} image.')
  if len(query_block) == 1:
    grid, depth, query_block, memory_flange = (1, *grid), 1, (1, *query_block), (0, *memory_flange)
  layout = BlockLayout(grid, depth, tuple(query_block), tuple(memory_flange))
  _check_size(layout)
  return layout


def _check_size(layout):
  """By arithmetic alone: `pieces` and `memory` themselves may be too large to make."""
  (block_rows, block_columns), (height, width), (above, aside) = layout.blocks, layout.block, layout.flange
  above, aside = min(above, (block_rows - 1) * height), min(aside, (block_columns - 1) * width)
  up, beside = -(-above // height), -(-aside // width)
  num_pieces = up * (1 + 2 * beside) + beside
  num_slots = (above * (width + 2 * aside) + height * (aside + width)) * layout.depth
  num_pairs = layout.num_blocks * layout.block_size * num_slots
  if num_pieces > _MAX_PIECES or num_pairs > _MAX_PAIRS:
    raise InputError(f'model.query_block and model.memory_flange give every block {num_pieces:,} earlier blocks to see '
                     f'(at most {_MAX_PIECES:,}) and the image {num_pairs:,} pairs of positions (at most '
                     f'{_MAX_PAIRS:,}): make the blocks smaller where it is pairs, larger where it is blocks, or the '
                     'flange smaller.')
