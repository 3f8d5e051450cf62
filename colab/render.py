"""Runs the notebook from start to end and writes it with its outputs, for reading on the web, as Markdown and pictures.

  python colab/render.py        # writes colab/rendered/README.md
"""

import pathlib
import re
import shutil
import sys
import tempfile

from nbclient import NotebookClient
from nbconvert import MarkdownExporter
import nbformat

HERE = pathlib.Path(__file__).parent
NOTEBOOK = HERE / 'image_transformer.ipynb'


def execute() -> nbformat.NotebookNode:
  """The notebook with its outputs. Raises `nbclient.exceptions.CellExecutionError` where a cell fails."""
  notebook = nbformat.read(NOTEBOOK, as_version=4)
  return NotebookClient(notebook, timeout=1200, kernel_name='python3', resources={'metadata': {'path': HERE}}).execute()


def as_seen(notebook: nbformat.NotebookNode) -> None:
  """Leaves of what was printed what a terminal shows in the end, without paths of this machine."""
  for cell in notebook.cells:
    outputs = []
    for output in cell.get('outputs', []):
      if output.output_type == 'stream' and outputs and outputs[-1].output_type == 'stream':
        outputs[-1].text += output.text
      else:
        outputs.append(output)
    for output in outputs:
      if output.output_type == 'stream':
        # A line that was written over, or from below, is gone, and so is a bar when it is full.
        lines = [line.rstrip('\r').split('\r')[-1] for line in output.text.split('\n') if '\x1b[A' not in line]
        lines = [line for line in lines if line.strip() and '%|' not in line]
        text = re.sub(r'\x1b\[[\d;]*m', '', '\n'.join(lines))
        text = re.sub(re.escape(tempfile.gettempdir()) + r'/\w+/', '', text)
        output.text = text.replace(str(HERE.parent.resolve()), '.') + '\n'
    if 'outputs' in cell:
      cell.outputs = outputs


def main():
  notebook = execute()
  as_seen(notebook)
  markdown, resources = MarkdownExporter().from_notebook_node(notebook)
  folder = HERE / 'rendered'
  shutil.rmtree(folder, ignore_errors=True)
  folder.mkdir()
  for name, content in resources['outputs'].items():
    (folder / name).write_bytes(content)
  (folder / 'README.md').write_text(markdown)
  print(f'Wrote {folder / "README.md"}', file=sys.stderr)


if __name__ == '__main__':
  main()
