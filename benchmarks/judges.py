"""Drives a study in headless Chromium with simulated judges, and measures how long images are shown.

  pip install selenium                          # and Chromium with chromedriver
  python main.py --mode=study --workdir=runs/cifar10_fast_superres --num_inputs=20 --output=runs/study
  python benchmarks/judges.py --study=runs/study [--out=FILE.json] [--screenshots=FOLDER]

Judges who are always right, guess, are fooled at 36 %, and one who closes the page half-way. The delays around the
images are shortened, the exposures are not.
"""

import measuring  # first: it sets the process up

import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

from absl import app
from absl import flags
from etils import epath
import numpy as np

from image_transformer import study

_STUDY = flags.DEFINE_string('study', None, 'The folder of the study.', required=True)
_OUT = flags.DEFINE_string('out', None, 'JSON file to write.')
_SCREENSHOTS = flags.DEFINE_string('screenshots', None, 'Folder to write screenshots of each kind of page to.')

# How often a judge is right on what counts, and after how many trials the page is closed.
JUDGES = {'always right': (1.0, None), 'guesses': (0.5, None), 'fooled at 36 %': (0.64, None), 'leaves': (1.0, 6)}


def browser():
  from selenium import webdriver
  options = webdriver.ChromeOptions()
  for argument in ('--headless=new', '--no-sandbox', '--window-size=1000,700', '--disable-dev-shm-usage'):
    options.add_argument(argument)
  return webdriver.Chrome(options=options)


def judge(driver, address: str, content: dict, number: int, right: float, leaves: int | None, shots: dict) -> None:
  """Goes through the study as one judge."""
  from selenium.webdriver.common.by import By
  from selenium.webdriver.support.ui import WebDriverWait
  rng = np.random.default_rng(number)
  wait = WebDriverWait(driver, 60, poll_frequency=0.02)
  driver.get(f'{address}?judge={number}&PROLIFIC_PID=person{number}')

  def see(name):
    if name not in shots:
      shots[name] = driver.get_screenshot_as_png()

  def press(name):
    wait.until(lambda _: driver.find_elements(By.CSS_SELECTOR, '.jspsych-btn'))
    see(name)
    driver.find_element(By.CSS_SELECTOR, '.jspsych-btn').click()

  press('consent')
  press('instructions')
  plan = content['plans'][number % len(content['plans'])]
  for count, trial in enumerate(plan):
    if count == leaves:
      return
    if count and plan[count - 1]['kind'] == 'practice' != trial['kind']:
      press('after practice')
    wait.until(lambda _: driver.find_elements(By.CSS_SELECTOR, f'.pair img[src="{trial["images"][0]}"]'))
    see(f'{content["form"]}, {trial["kind"]}')
    wait.until(lambda _: driver.find_elements(By.CSS_SELECTOR, '.pair b'))
    see(f'{content["form"]}, question')
    certain = trial['kind'] != 'main' or rng.random() < right
    chosen = trial['answer'] if certain else 1 - trial['answer']
    key = content['keys'][chosen]
    driver.find_element(By.TAG_NAME, 'body').send_keys(key.upper() if count % 2 else key)
    if trial['kind'] == 'practice':
      wait.until(lambda _: driver.find_elements(By.CSS_SELECTOR, '.pair p.right, .pair p.wrong'))
      see('feedback')
  wait.until(lambda _: 'Thank you' in driver.page_source)
  see('end')


def main(argv):
  del argv
  shots: dict[str, bytes] = {}
  with tempfile.TemporaryDirectory() as scratch:
    folder = pathlib.Path(scratch, 'study')
    shutil.copytree(_STUDY.value, folder, ignore=shutil.ignore_patterns('answers'))
    content = json.loads((folder / 'study.json').read_text()) | {'fixation_ms': 100, 'mask_ms': 100}
    (folder / 'study.json').write_text(json.dumps(content))
    server = subprocess.Popen([sys.executable, folder / 'serve.py', '--port=0'], stdout=subprocess.PIPE, text=True)
    driver = browser()
    try:
      address = server.stdout.readline().split()[4]
      for number, (name, (right, leaves)) in enumerate(JUDGES.items()):
        began = time.monotonic()
        judge(driver, address, content, number, right, leaves, shots)
        driver.get('about:blank')
        print(f'{name}: {time.monotonic() - began:.0f} s', flush=True)
      time.sleep(1)
      lines = study.read_answers([epath.Path(folder / 'answers')])
    finally:
      driver.quit()
      server.terminate()
  rows, names = [], list(JUDGES)
  for number, name in enumerate(names):
    own = [line for line in lines if line['judge'].endswith(f'/{number}')]
    counts = [line for line in own if line['kind'] == 'main' and (line['form'] == 'choice' or line['answer'] == 1)]
    off = [line['exposure_measured_ms'] - line['exposure_ms'] for line in own]
    fooled = np.mean([line['chosen'] != line['answer'] for line in counts])
    rows.append({'judge': name, 'lines': len(own), 'fooled': float(fooled),
                 'exposure too long, median ms': float(np.median(off)), 'most': float(np.max(off)),
                 'least': float(np.min(off))})
  analysis = study.analyse(lines)
  measuring.report('judges', rows, _OUT.value, form=content['form'], excluded=analysis.excluded,
                   trials=analysis.num_trials, kept=analysis.num_kept)
  print('\n' + study.table(analysis))
  if _SCREENSHOTS.value:
    pathlib.Path(_SCREENSHOTS.value).mkdir(parents=True, exist_ok=True)
    for name, png in shots.items():
      pathlib.Path(_SCREENSHOTS.value, name.replace(', ', '_').replace(' ', '_') + '.png').write_bytes(png)


if __name__ == '__main__':
  app.run(main)
