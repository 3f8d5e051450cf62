"""The notebook runs from start to end, and is kept without outputs."""

import pathlib
import sys

import nbformat
import pytest

COLAB = pathlib.Path(__file__).parent.parent / 'colab'
sys.path.insert(0, str(COLAB))

import render


def pictures(notebook):
  outputs = [output for cell in notebook.cells for output in cell.get('outputs', [])]
  return [output for output in outputs if 'image/png' in output.get('data', {})]


def test_outputs_are_stripped_and_shown_elsewhere():
  notebook = nbformat.read(render.NOTEBOOK, as_version=4)
  assert not any(cell.get('outputs') or cell.get('execution_count') for cell in notebook.cells)
  rendered = (COLAB / 'rendered' / 'README.md').read_text()
  for cell in notebook.cells:  # it is of this notebook
    assert cell.source.strip() in rendered


def test_what_is_printed_reads_as_on_a_terminal():
  texts = '10%|#\r20', '%|##\r\nabove\x1b[A\none\rtwo\n\x1b[1mend\n'
  notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell('', outputs=[
      nbformat.v4.new_output('stream', text=text) for text in texts])])
  render.as_seen(notebook)
  assert [output.text for output in notebook.cells[0].outputs] == ['two\nend\n']


@pytest.mark.long
def test_the_notebook_runs():
  assert len(pictures(render.execute())) >= 9
