"""Serves this study and keeps its answers: python serve.py [--port=8000] [--host=127.0.0.1]

Every judge's answers are lines of JSON in answers/JUDGE.jsonl. Needs nothing but Python.
"""

import argparse
import functools
import http.server
import json
import pathlib
import threading

HERE = pathlib.Path(__file__).resolve().parent
ANSWERS = HERE / 'answers'
MAX_BYTES = 10_000  # of a line


class Handler(http.server.SimpleHTTPRequestHandler):
  """Files of the study, POST judge for a new number, and POST record for a line of answers."""

  lock = threading.Lock()

  def send_head(self):
    # The pages and the images, and neither what others answered nor anything else.
    path = pathlib.Path(self.translate_path(self.path)).resolve()
    if path.is_dir() and path != HERE or path.is_file() and (
        path.parent not in (HERE, HERE / 'images') or path.suffix == '.py'):
      self.send_error(404)
      return None
    return super().send_head()

  def do_POST(self):
    try:
      answer = self._new_judge() if self.path == '/judge' else self._record() if self.path == '/record' else None
    except (ValueError, KeyError, TypeError):
      answer = None
    if answer is None:
      self.send_error(400)
      return
    content = json.dumps(answer).encode()
    self.send_response(200)
    self.send_header('Content-Type', 'application/json')
    self.send_header('Content-Length', str(len(content)))
    self.end_headers()
    self.wfile.write(content)

  def _new_judge(self):
    with self.lock:
      ANSWERS.mkdir(exist_ok=True)
      judge = 1 + max((int(path.stem) for path in ANSWERS.glob('*.jsonl') if path.stem.isdecimal()), default=-1)
      (ANSWERS / f'{judge}.jsonl').touch(exist_ok=False)
    return {'judge': judge}

  def _record(self):
    size = int(self.headers['Content-Length'])
    if not 0 < size <= MAX_BYTES:
      raise ValueError(size)
    line = json.loads(self.rfile.read(size))
    judge = int(line['judge'])
    with self.lock:
      ANSWERS.mkdir(exist_ok=True)
      with open(ANSWERS / f'{judge}.jsonl', 'a') as file:
        file.write(json.dumps(line) + '\n')
    return {'recorded': True}

  def log_message(self, *args):
    pass


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--port', type=int, default=8000)
  parser.add_argument('--host', default='127.0.0.1')
  args = parser.parse_args()
  server = http.server.ThreadingHTTPServer((args.host, args.port), functools.partial(Handler, directory=str(HERE)))
  print(f'The study is at http://{args.host}:{server.server_port}/ and its answers in {ANSWERS}', flush=True)
  try:
    server.serve_forever()
  except KeyboardInterrupt:
    pass


if __name__ == '__main__':
  main()
