"""PixelCNN++ (Salimans et al., 2017), trained for given minutes: the public PyTorch port, on CPUs.

  git clone https://github.com/pclucas14/pixel-cnn-pp runs/pixel-cnn-pp
  python benchmarks/peers/pixelcnn.py --source=runs/pixel-cnn-pp --images=IMAGES.npz --seconds=600 --blocks=1
      --filters=48 --batch_size=8 --learning_rate=0.001 --seed=0 --out=FILE.json

Needs torch, and nothing of this project; `benchmarks/race.py` runs it. Network and loss are the port's. Flips, the
cosine schedule (here over the time, not the steps), the warm-up and averaged parameters are as in our own runs; Adam,
as in the port. The clock stands still during evaluations.
"""

import argparse
import json
import math
import pathlib
import sys
import time
import types

import numpy as np
import torch


def port(source):
  """The port's modules, which were written for Python 2 and GPUs: their `utils`, `layers` and `model`."""
  for name in 'utils', 'layers', 'model':
    text = (pathlib.Path(source) / f'{name}.py').read_text()
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(compile(text.replace('print e', 'print(e)').replace('.cuda()', ''), name, 'exec'), module.__dict__)
  return module


def main():
  parser = argparse.ArgumentParser()
  for name, kind in [('source', str), ('images', str), ('seconds', float), ('blocks', int), ('filters', int),
                     ('batch_size', int), ('learning_rate', float), ('seed', int), ('out', str)]:
    parser.add_argument(f'--{name}', type=kind, required=True)
  parser.add_argument('--num_evaluations', type=int, default=10, help='on 64 images, while training')
  args = parser.parse_args()
  torch.manual_seed(args.seed)
  random = np.random.default_rng(args.seed)
  images = {name: torch.from_numpy(array).permute(0, 3, 1, 2).float() / 127.5 - 1
            for name, array in np.load(args.images).items()}
  code = port(args.source)
  make = lambda: code.PixelCNN(nr_resnet=args.blocks, nr_filters=args.filters, nr_logistic_mix=10)
  model, average = make(), make()
  average.load_state_dict(model.state_dict())
  optimizer = torch.optim.Adam(model.parameters(), lr=args.learning_rate)

  def bits(network, batch):
    network.init_padding = None  # it belongs to the size of the batch before
    return code.discretized_mix_logistic_loss(batch, network(batch)) / (batch.numel() * math.log(2))

  def evaluate(batch, size=50):
    average.eval()
    with torch.inference_mode():
      return sum(bits(average, part).item() * len(part) for part in batch.split(size)) / len(batch)

  curve, order, step, seconds = [], [], 0, 0.0
  while seconds < args.seconds:
    began = time.perf_counter()
    if len(order) < args.batch_size:
      order = [*order, *random.permutation(len(images['train']))]
    indices, order = order[:args.batch_size], order[args.batch_size:]
    batch = images['train'][indices]
    flipped = torch.from_numpy(random.random(args.batch_size) < 0.5)
    batch = torch.where(flipped[:, None, None, None], batch.flip(-1), batch)
    rate = min((step + 1) / 100, 0.5 * (1 + math.cos(math.pi * seconds / args.seconds)))
    for group in optimizer.param_groups:
      group['lr'] = args.learning_rate * rate
    loss = bits(model, batch)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    decay = min(0.999, (1 + step) / (10 + step))
    with torch.no_grad():
      for mean, new in zip(average.parameters(), model.parameters()):
        mean.lerp_(new, 1 - decay)
    step += 1
    seconds += time.perf_counter() - began
    if seconds >= (len(curve) + 1) / args.num_evaluations * args.seconds:
      curve.append({'seconds': seconds, 'bits_per_dim': evaluate(images['test'][:64])})
  found = {'bits_per_dim': evaluate(images['test']), 'num_images': len(images['test']), 'seconds': seconds,
           'step': step, 'num_parameters': sum(x.numel() for x in model.parameters()), 'curve': curve,
           'settings': vars(args) | {'source': '', 'images': '', 'out': ''}, 'torch': torch.__version__}
  pathlib.Path(args.out).write_text(json.dumps(found, indent=2) + '\n')


if __name__ == '__main__':
  main()
