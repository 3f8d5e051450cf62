"""What the command does with a trained run: samples, completes, enlarges and shows, and writes the results."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import functools
import os
import zlib

from etils import epath
import numpy as np

from image_transformer import pictures, reports, runs, study, superres, weights
from image_transformer.conditions import default_given
from image_transformer.config import Config, check
from image_transformer.configs import paper
from image_transformer.data import image_spec
from image_transformer.errors import InputError, RunError, some
from image_transformer.inputs import read_inputs
from image_transformer.library import Run
from image_transformer.model import CONDITIONS, make_model
from image_transformer.paths import as_path
from image_transformer.sampling import positions_in_rows
from image_transformer.workdir import new_path, write_whole

FLAGS = {kind.flag[0]: kind.flag[1] for kind in CONDITIONS if kind.flag}  # the flags for conditions
_MAX_SIDE_BY_SIDE = 32  # images in a figure


def split(flag: str, typed: Sequence[str]) -> list[str]:
  """The words in what was typed for a condition."""
  return next(kind for kind in CONDITIONS if kind.flag and kind.flag[0] == flag).split(typed)


def check_choices(input: str | None, num_inputs: int | None, num_samples: int | None, seed: int) -> None:
  """Checks what does not depend on the run; see `Task`."""
  check(input != '', 'input', '', 'a file or a folder')
  check((num_inputs or 0) >= 0, 'num_inputs', num_inputs, '0 (all) or positive')
  check(num_samples is None or 0 < num_samples <= 10**6, 'num_samples', num_samples, 'in 1..1000000')
  check(0 <= seed < 2**32, 'seed', seed, 'in 0..2^32-1')


@dataclasses.dataclass(frozen=True)
class Task:
  """A run, and what to do with it.

  `typed` holds the conditions that were typed, by the name of the flag. Inputs come from the file or folder `input`,
  or else from `eval.split`; the first `num_inputs` are read (0: all).
  """

  run: Run
  typed: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
  input: str | None = None
  num_inputs: int | None = None  # None: 8, or all to compress and score
  num_samples: int | None = None  # None: sample.num_images, or 4 of each input
  temperatures: Sequence[float] = ()  # none: sample.temperature
  seed: int = 0
  npz: bool = False  # write arrays too

  def sample(self) -> None:
    """Draws images and writes them as a grid."""
    run = self.run
    check('low_res' not in run.model.conditions, 'mode', 'sample', 'superres: this model enlarges images')
    number = self.num_samples or run.config.sample.num_images
    given, columns = default_given(run.model.conditions, number)
    typed, source = self._typed(number), ''
    if given.keys() | typed.keys() != run.model.conditions.keys():  # as in training, all come from the inputs
      (inputs, _), source = read_inputs(run, None, number), run.config.eval.split
      given = {name: values[np.arange(number) % len(values)] for name, values in run.model.given_of(inputs).items()}
    given |= typed
    for temperature in self._temperatures():
      images, log_probs = run.draw(number, given, temperature, self.seed)
      arrays = {'images': images, 'log_probs': log_probs, **given} if self.npz else None
      draw = functools.partial(pictures.grid_of, run.model, given, columns=columns)
      reports.write_drawing(run, self._drawing('', source, (number,)), temperature, draw(images), arrays,
                            pictures.film(draw, images))

  def complete(self, rows: int | None) -> None:
    """Keeps the first rows of inputs, draws the rest, and writes rows of: what was given | samples | original.

    Of videos, the first frames are kept.
    """
    if rows is None:
      raise InputError('rows is missing, but must be the number of rows to keep, or of frames of a video.')
    positions_in_rows(self.run.model, rows)  # checks them before inputs are read
    inputs, levels = self._inputs(originals=True), self.run.model.spec.levels
    captions = pictures.captions_of(self.run.model, inputs)
    shown = inputs['image'].copy()
    shown[:, rows:] = levels // 4
    for temperature, samples, arrays in self._draw_of_each(inputs, rows):
      columns = shown, *np.moveaxis(samples, 1, 0), inputs['image']
      headings = 'given', *pictures.numbered('completion', samples.shape[1]), 'original'
      draw = lambda *columns: pictures.strips(headings, columns, levels, captions)
      name = self._drawing(f'keep{rows}', self._source(), samples.shape[:2])
      reports.write_drawing(self.run, name, temperature, draw(*columns), arrays, pictures.film(draw, *columns))

  def enlarge(self) -> None:
    """Enlarges inputs, writes rows of: input | bicubic | samples | original, and measures them (paper section 5.3)."""
    run = self.run
    check('low_res' in run.model.conditions, 'mode', 'superres',
          'sample or complete: this model does not enlarge images')
    inputs, levels = self._inputs(), run.model.spec.levels
    low_res, originals = inputs['low_res'], inputs.get('image')
    bicubic = run.model.conditions['low_res'].shown(low_res)['bicubic']
    measures = {'bicubic': superres.measure(low_res, bicubic[:, None], originals, levels)}
    for temperature, samples, arrays in self._draw_of_each(inputs):
      measures[reports.way(temperature)] = superres.measure(low_res, samples, originals, levels)
      shape, name = samples.shape[:2], self._drawing('superres', self._source(), samples.shape[:2])
      picture = pictures.samples_of(run.model, inputs, samples, originals)
      reports.write_drawing(run, name, temperature, picture, arrays)
    evaluation = None
    if originals is not None:
      evaluation = run.evaluate_images(originals, **run.model.given_of(inputs))
      print(f'{evaluation}, each given its small form')
    print(superres.table(measures))
    own_split = run.config.eval.split == runs.read_config(run.workdir).eval.split
    for_tables = own_split and not self.input and not self.typed
    name = self._drawing('superres', self._source(), shape, temperature=[f'{t:g}' for t in self._temperatures()])
    reports.write_superres(run, name, measures, evaluation, for_tables, source=self.input or run.config.eval.split,
                           **{flag: self.typed.get(flag) for flag in FLAGS if flag in self.typed or flag == 'labels'},
                           num_samples=shape[1], seed=self.seed)

  def show(self, kind: str, position: Sequence[int] | None) -> None:
    """Draws a figure of inputs: 'attention', of one pixel of the first one, or 'bits', of each pixel."""
    from image_transformer import figures  # here, since matplotlib is slow to import and no other mode needs it
    run, inputs = self.run, self._inputs(originals=True)
    given = run.model.given_of(inputs)
    if kind == 'bits':
      number = len(inputs['image'])
      check(number <= _MAX_SIDE_BY_SIDE, 'num_inputs', number,
            f'at most {_MAX_SIDE_BY_SIDE}: they are shown side by side')
      figure = figures.bits(inputs['image'], -run.pixel_log_probs(inputs['image'], **given), run.model.spec.levels)
      about = str(number)
    else:
      pixel = _pixel(run.model, position)
      figure = figures.attention_of_run(run, inputs['image'], *pixel, **given)
      about = _named(pixel)
    name = reports.file_name(run, [kind, self._source(), about], self.typed)
    reports.write_figure(run.workdir, run.step, kind, name, figures.pixels(figure))

  def compress(self, output: str, verify: bool = True) -> None:
    """Compresses all inputs into one file, and compares its size with what the model promises."""
    path = new_path(output, 'output')
    inputs = self._inputs(originals=True, default=0, exact=True)
    given, originals = self.run.model.given_of(inputs), inputs['image']
    content = self.run.compress(originals, verify, **given)
    write_whole(path, content)
    expected = self.run.evaluate_images(originals, **given)
    print(f'{expected}, and {8 * len(content) / originals.size:.4f} in {path}: {len(content):,} bytes'
          f'{", which give back the same images" if verify else ""}')

  def decompress(self, output: str) -> None:
    """Writes the images of a compressed file as PNG files, named by their index.

    Raises:
      RunError: if some are damaged; the others are written.
    """
    check(self.input, 'input', self.input, 'a compressed file')
    folder = new_path(output, 'output')
    try:
      number, images = self.run.recover(as_path(self.input or '').read_bytes())
    except InputError as error:
      raise InputError(f'{self.input}: {error}') from error
    levels, width = self.run.model.spec.levels, max(len(str(number - 1)), 5)
    for i, image in images.items():
      path = folder / f'{i:0{width}d}'
      frames = {path / f'{t:05d}.png': frame for t, frame in enumerate(image)} if image.ndim == 4 else {
          path.with_suffix('.png'): image}
      for file, frame in frames.items():
        write_whole(file, pictures.png(pictures.as_bytes(frame, levels)))
    print(f'Wrote {len(images):,} images to {folder}')
    damaged = [i for i in range(number) if i not in images]
    if damaged:
      raise RunError(f'{len(damaged)} of {number} images in {self.input} are damaged: {some(damaged)}.')

  def score(self) -> None:
    """Writes a line of scores for each input as CSV; see `scores.measures`."""
    inputs, files = self._named_inputs(True, 0, False, without=('label',))  # all classes are tried
    given = {name: inputs[name] for name in self.run.model.conditions if name != 'label'}
    name = reports.file_name(self.run, [self._source(), str(len(inputs['image']))], self.typed)
    reports.write_scores(self.run.workdir, name, files, self.run.scores(inputs['image'], **given))

  def export(self, output: str) -> None:
    """Writes the parameters as safetensors, with the configuration."""
    self.run.export(new_path(output, 'output'))
    print(f'Wrote {output}: {weights.FILE} and config.json')

  def study(self, output: str, form: str = 'choice') -> None:
    """Makes a study of how often people take generated images for originals; see `study.write`."""
    folder, spec = new_path(output, 'output'), self.run.model.spec
    inputs = self._inputs(originals=True, default=54)
    study.check_study(form, spec, len(inputs['image']), len(self._temperatures()))  # before anything is drawn
    given = self.run.model.given_of(inputs)
    number = len(inputs['image'])
    generated = {temperature: self.run.draw(number, given, temperature, self.seed)[0]
                 for temperature in self._temperatures()}
    study.write(folder, inputs['image'], generated, spec, self.run.workdir.name, form, self.seed)
    print(f'Wrote {output}: fill in the texts of study.json, then python {output}/serve.py')

  def _typed(self, number):
    """The values of conditions that were typed, repeated to a number of images."""
    given = {}
    for kind in CONDITIONS:
      if kind.flag and kind.flag[0] in self.typed:
        words = self.typed[kind.flag[0]]
        check(kind.name in self.run.model.conditions, kind.flag[0], ','.join(words),
              f'absent: this model has no {kind.name}')
        values = self.run.model.conditions[kind.name].parse(words)
        given[kind.name] = values[np.arange(number) % len(values)]
    return given

  def _inputs(self, originals=False, default=8, exact=False):
    """Reads the inputs, `default` of them if `num_inputs` is None, and adds the conditions that were typed."""
    return self._named_inputs(originals, default, exact)[0]

  def _named_inputs(self, originals, default, exact, without=()):
    number = default if self.num_inputs is None else self.num_inputs
    inputs, files = read_inputs(self.run, self.input, number, exact)
    inputs |= self._typed(len(next(iter(inputs.values()))))
    check('image' in inputs or not originals, 'input', self.input,
          'images of the size that the model generates, or larger')
    for name, condition in self.run.model.conditions.items():
      check(name in inputs or name in without, condition.flag[0] if condition.flag else 'input', None,
            f'given: the {name} of each of these images')
    return inputs, files

  def _draw_of_each(self, inputs, rows=0) -> Iterator[tuple]:
    """Yields temperature, samples [inputs, samples, H, W, C], and arrays to write beside the picture."""
    each, number = self.num_samples or 4, len(next(iter(inputs.values())))
    repeated = {name: np.repeat(values, each, axis=0) for name, values in inputs.items()}
    given = self.run.model.given_of(repeated)
    for temperature in self._temperatures():
      images, log_probs = self.run.draw(number * each, given, temperature, self.seed,
                                        repeated['image'] if rows else None, rows)
      samples = images.reshape(number, each, *images.shape[1:])
      arrays = {'samples': samples, 'log_probs': log_probs.reshape(number, each), **inputs}
      yield temperature, samples, arrays if self.npz else None

  def _drawing(self, kind, source, shape, **typed):
    """A file name for images that were drawn."""
    parts = [kind, source, 'x'.join(map(str, shape)), f'seed{self.seed}']
    return reports.file_name(self.run, parts, {**self.typed, **typed})

  def _source(self):
    """Names the inputs; those of other folders may have the same name, or one too long for a file of ours."""
    if not self.input:
      return '_'.join(filter(None, [self.run.config.eval.split, reports.folder_of(self.run)]))
    path = os.fsencode(os.path.abspath(os.path.expanduser(self.input)))
    stem = os.fsencode(as_path(self.input).stem)[:60].decode(errors='ignore')
    return f'{stem}-{zlib.crc32(path):08x}'

  def _temperatures(self):
    return self.temperatures or [self.run.config.sample.temperature]


def _pixel(model, position):
  """The pixel that was typed, or the one in the middle."""
  from image_transformer import figures
  middle = figures.middle(model)
  names = 'ROW,COLUMN,FRAME' if model.spec.frames else 'ROW,COLUMN'
  check(position is None or len(position) == len(middle), 'position', ','.join(map(str, position or ())), names)
  return position or middle


def _named(pixel: Sequence[int]) -> str:
  return '_'.join(f'{axis}{at}' for axis, at in zip(('row', 'column', 'frame'), pixel))


def show_memory(config: Config, workdir: epath.Path, position: Sequence[int] | None) -> None:
  """Draws the memory of one pixel; the run need not have started."""
  from image_transformer import figures
  model = make_model(config.model, image_spec(config))
  pixel = _pixel(model, position)
  reports.write_figure(workdir, 0, 'memory', f'memory_{_named(pixel)}', figures.pixels(figures.memory(model, *pixel)))


def analyse_study(paths: Sequence[str]) -> None:
  """Prints how often the judges of studies were fooled, from files or folders of their answers."""
  published = [(entry.row.model, temperature, f'{judges} %') for entry in paper.entries()
               for temperature, judges in entry.row.judges.items()]
  print(study.table(study.analyse(study.read_answers([as_path(path) for path in paths])), published))


def show_curves(workdir: epath.Path) -> None:
  """Draws bits/dim by step, of a run or of all runs in a folder."""
  from image_transformer import figures
  reports.write_figure(workdir, 0, 'curves', 'curves', figures.pixels(figures.curves(figures.read_logs(workdir))))
