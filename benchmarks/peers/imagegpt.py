"""Hugging Face's ImageGPT with random weights: when each position of a batch of images was drawn by `generate`.

  python benchmarks/peers/imagegpt.py --batch_size=16 --positions=768

Needs torch and transformers, and nothing of this project; `benchmarks/peers.py` runs it. It has the paper's widths:
12 layers of 512, 4 heads, feed-forward 2,048, 256 intensities, 3,072 positions. It prints JSON.
"""

import argparse
import json
import time

import torch
import transformers
from transformers import ImageGPTConfig, ImageGPTForCausalImageModeling
from transformers import StoppingCriteria, StoppingCriteriaList


class Clock(StoppingCriteria):
  """Never stops; notes the seconds since the begin at every position."""

  def __init__(self):
    self._began = time.perf_counter()
    self.seconds = []

  def __call__(self, input_ids, scores, **kwargs):
    self.seconds.append(time.perf_counter() - self._began)
    return torch.zeros(len(input_ids), dtype=torch.bool)


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--batch_size', type=int, required=True)
  parser.add_argument('--positions', type=int, required=True)
  args = parser.parse_args()
  transformers.logging.set_verbosity_error()
  torch.manual_seed(0)
  config = ImageGPTConfig(vocab_size=257, n_positions=3072, n_embd=512, n_layer=12, n_head=4, n_inner=2048)
  model = ImageGPTForCausalImageModeling(config).eval()
  start = torch.full((args.batch_size, 1), config.vocab_size - 1)

  def draw(positions):
    clock = Clock()
    with torch.inference_mode():
      drawn = model.generate(input_ids=start, attention_mask=torch.ones_like(start), max_length=1 + positions,
                             min_length=1 + positions, do_sample=True, top_k=0, use_cache=True, pad_token_id=0,
                             stopping_criteria=StoppingCriteriaList([clock]))
    assert drawn.shape[1] == 1 + positions == 1 + len(clock.seconds), drawn.shape
    return clock.seconds

  draw(8)
  print(json.dumps({'torch': torch.__version__, 'transformers': transformers.__version__,
                    'threads': torch.get_num_threads(), 'parameters': model.num_parameters(),
                    'seconds': draw(args.positions)}))


if __name__ == '__main__':
  main()
