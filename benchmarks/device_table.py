"""The Markdown table of what `benchmarks/device.sh` has measured so far.

  python benchmarks/device_table.py DIR
"""

import json
import pathlib
import sys
import xml.etree.ElementTree

COLUMNS = {'of limit': '{:.1%}', 'seconds': '{:.4f} s', 'milliseconds': '{:.2f} ms', 'images/s': '{:.1f} images/s',
           'seconds_per_image': '{:.4f} s per image', 'temporary_GiB': '{:.1f} GiB', 'temporary_MiB': '{:.0f} MiB',
           'compilation': 'compiles in {:.0f} s', 'error': 'error {:.1e}', 'gradient error': 'of gradients {:.1e}'}


def table(out: pathlib.Path) -> str:
  lines = ['| part | what | figures |', '|---|---|---|']
  for path in sorted(out.glob('*.json')):
    measured = json.loads(path.read_text())
    for row in measured.get('rows', []):
      what = ', '.join(str(row[name]) for name in ('query_block', 'kind', 'dtype', 'batch_size') if name in row)
      figures = '; '.join(text.format(row[name]) for name, text in COLUMNS.items()
                          if isinstance(row.get(name), (int, float)))
      lines.append(f'| {path.stem} | {what} | {figures} |')
    if 'bits_per_dim' in measured:
      lines.append(f'| {path.stem} | step {measured["step"]} | {measured["bits_per_dim"]:.3f} bits/dim |')
  log = out / 'logged' / 'metrics.jsonl'
  if log.exists():
    rates = [line['images_per_second'] for line in map(json.loads, log.read_text().splitlines())
             if line['split'] == 'train'][1:]
    lines.append(f'| logged | main.py | {", ".join(f"{rate:.0f}" for rate in rates)} images/s |')
  if (out / 'tests.xml').exists():
    suite = xml.etree.ElementTree.parse(out / 'tests.xml').getroot().find('testsuite').attrib
    lines.append(f'| tests | {suite["tests"]} | {suite["failures"]} failed, {suite["errors"]} with errors |')
  return '\n'.join(lines) + '\n'


if __name__ == '__main__':
  print(table(pathlib.Path(sys.argv[1])), end='')
