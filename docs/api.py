"""Writes docs/api.md, the Python interface, from its docstrings: python docs/api.py"""

import inspect
import pathlib
import sys

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import image_transformer as it

HEAD = """# The Python interface

Written from the docstrings by `python docs/api.py`.

```python
import image_transformer as it

run = it.load('runs/digits')  # or it.train(it.load_config('digits', {'train.steps': 500}), 'runs/quick')
threes = run.sample(10, label=3, temperature=0.9)
bits_per_dim = run.bits_per_dim(threes, label=3)
completed = run.complete(threes, rows=4, label=3, seed=1)
evaluation = run.evaluate()
```

Images are integers `[N, H, W, C]` in 0..levels-1, as `run.model.spec` says. What a model is conditioned on is given by
name, for each image or once for all: `label` (a class), `low_res` (small images), `text` (strings).
`run.model.conditions` has the names.
"""


def described(name: str, thing: object) -> str:
  """A function or method: its signature and docstring."""
  signature = str(inspect.signature(thing)).replace('self, ', '').replace('(self)', '()')
  for module in ('collections.abc.', 'image_transformer.config.', 'image_transformer.library.',
                 'image_transformer.metrics.', 'numpy.', 'np.', 'typing.'):
    signature = signature.replace(module, '')
  text = inspect.getdoc(thing) or ''
  return f'```python\n{name}{signature}\n```\n\n{indented_as_code(text)}\n'


def indented_as_code(text: str) -> str:
  """A docstring in Markdown: its sections of arguments, results and errors as they are written."""
  lines, inside = [], False
  for line in text.splitlines():
    if line in ('Args:', 'Returns:', 'Raises:'):
      lines += [f'**{line[:-1]}**', '']
      inside = True
    elif inside and line.startswith('  ') and not line.startswith('    '):
      name, colon, rest = line.strip().partition(': ')
      lines.append(f'* `{name}`: {rest}' if colon and len(name) < 40 else line.strip())
    else:
      lines.append(f'  {line.strip()}' if inside and line.strip() else line)
  return '\n'.join(lines)


def page() -> str:
  functions = [name for name in it.__all__ if inspect.isfunction(getattr(it, name))]
  methods = [name for name, _ in inspect.getmembers(it.Run, inspect.isfunction) if not name.startswith('_')]
  others = [name for name in it.__all__ if inspect.isclass(getattr(it, name)) and name != 'Run']
  titles = 'Functions', 'A trained run', 'Others'
  parts = [HEAD, *(f'* [{title}](#{title.lower().replace(" ", "-")})' for title in titles), '\n## Functions\n',
           *(described(f'it.{name}', getattr(it, name)) for name in functions),
           f'## A trained run\n\n{inspect.getdoc(it.Run)}\n',
           *(described(f'run.{name}', inspect.unwrap(getattr(it.Run, name))) for name in methods),
           '## Others\n', *(f'* `it.{name}`: {inspect.getdoc(getattr(it, name)).splitlines()[0]}' for name in others)]
  return '\n'.join(parts) + '\n'


if __name__ == '__main__':
  (ROOT / 'docs' / 'api.md').write_text(page())
