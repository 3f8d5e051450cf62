"""The rows of the paper's tables: which configuration gives which published number. (Not a configuration itself.)"""

from image_transformer.experiments import load_config
from image_transformer.tables import Entry, Row

_CIFAR10 = 'CIFAR-10'
_BLOCKS = 'CIFAR-10, block size'
_IMAGENET = 'ImageNet 32x32, the old release'
_CIFAR10_SUPERRES = 'CIFAR-10, super-resolution 8x8 to 32x32'
_CELEBA_SUPERRES = 'CelebA, super-resolution 8x8 to 32x32'
_T2T = 'the original code'

# Numbers are on the test set, for ImageNet on the validation set. Those without a configuration are others' models,
# as the paper cites them.
ROWS = (
    Row(_CIFAR10, 'PixelCNN', '3.14'),
    Row(_CIFAR10, 'Gated PixelCNN', '3.03'),
    Row(_CIFAR10, 'Row PixelRNN', '3.00'),
    Row(_CIFAR10, 'PixelCNN++', '2.92'),
    Row(_CIFAR10, 'PixelSNAIL', '2.85'),
    Row(_CIFAR10, '1D, categorical, 12 layers', '2.90', 'cifar10_1d.py'),
    Row(_CIFAR10, '1D, DMOL, 12 layers', '2.90', 'cifar10_1d_dmol.py'),
    Row(_CIFAR10, '1D, DMOL, 14 layers', f'2.92 ({_T2T})', 'cifar10_1d_dmol_14.py'),
    Row(_CIFAR10, '1D, categorical, class-conditional, 10 layers', '"similar"', 'cifar10_conditional.py'),
    Row(_CIFAR10, '2D, categorical, 12 layers', '', 'cifar10_2d.py'),
    Row(_CIFAR10, '2D, DMOL, 12 layers', '', 'cifar10_2d_dmol.py'),
    Row(_BLOCKS, '1D, categorical, 8 layers, block 8', '4.06', 'cifar10_blocks.py:8'),
    Row(_BLOCKS, '1D, categorical, 8 layers, block 16', '3.47', 'cifar10_blocks.py:16'),
    Row(_BLOCKS, '1D, categorical, 8 layers, block 64', '3.13', 'cifar10_blocks.py:64'),
    Row(_BLOCKS, '1D, categorical, 8 layers, block 256', '2.99', 'cifar10_blocks.py:256'),
    Row(_IMAGENET, 'Row PixelRNN', '3.86'),
    Row(_IMAGENET, 'Gated PixelCNN', '3.83'),
    Row(_IMAGENET, 'PixelSNAIL', '3.80'),
    Row(_IMAGENET, '1D, categorical, 12 layers, mean of checkpoints', '3.77', 'imagenet32_1d.py', num_checkpoints=8),
    Row(_CIFAR10_SUPERRES, '1D, categorical', '', 'cifar10_superres_1d.py'),
    Row(_CIFAR10_SUPERRES, '2D, categorical', '', 'cifar10_superres_2d.py'),
    Row(_CELEBA_SUPERRES, 'ResNet', '', judges={'': '4.0'}),
    Row(_CELEBA_SUPERRES, 'srez GAN', '', judges={'': '8.5'}),
    Row(_CELEBA_SUPERRES, 'PixelRecursive', '', judges={'1': '11.0'}),
    Row(_CELEBA_SUPERRES, '1D, categorical', '', 'celeba_superres_1d.py', judges={'0.8': '35.94 +- 3.0'}),
    Row(_CELEBA_SUPERRES, '2D, categorical', '', 'celeba_superres_2d.py', judges={'0.8': '36.11 +- 2.5'}),
    Row(_CELEBA_SUPERRES, '2D, categorical, pre-norm, 6 + 12 layers', '', 'celeba_superres_2d_best.py'),
)


def smoke(name: str) -> str:
  """The small form of a configuration, as typed after `configs/`."""
  return name + (',smoke' if ':' in name else ':smoke')


def entries() -> list[Entry]:
  """All rows, each with the configurations of its runs."""
  return [Entry(row, {'full': load_config(row.config), 'smoke': load_config(smoke(row.config))} if row.config else {})
          for row in ROWS]
