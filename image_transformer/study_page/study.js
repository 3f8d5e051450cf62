// A study of whether people can tell generated images from photographs (Image Transformer, section 5.3 and table 5).
//
// What is shown, in which order and on which side was decided when the study was made: study.json holds a plan for each
// judge. Every trial becomes one line of JSON, sent to the server that comes with the study (serve.py) or, where there is
// none, kept for a download at the end. Nothing else leaves this page.

'use strict';

const address = new URLSearchParams(window.location.search);
const lines = [];
let online = true;

async function json(path, options) {
  const answer = await fetch(path, options);
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.json();
}

// The number of this judge, which chooses the plan: from the address, from the server, or any.
async function judgeNumber() {
  if (address.has('judge')) return Number(address.get('judge'));
  try {
    return (await json('judge', {method: 'POST'})).judge;
  } catch (error) {
    return Math.floor(Math.random() * 1e6);
  }
}

async function record(line) {
  lines.push(line);
  if (!online) return;
  try {
    await json('record', {method: 'POST', headers: {'Content-Type': 'application/json'}, body: JSON.stringify(line)});
  } catch (error) {
    online = false;  // the download at the end has everything
  }
}

function image(path, study) {
  return `<img src="${path}" width="${study.width}" height="${study.height}" alt="">`;
}

function pair(trial, study) {
  return `<div class="pair">${trial.images.map(path => image(path, study)).join('')}</div>`;
}

function trialTimeline(trial, number, plan, judge, study, jsPsych) {
  const times = {};
  // From the frame in which the images are painted to the one in which the mask takes their place.
  const atNextFrame = name => requestAnimationFrame(() => requestAnimationFrame(now => { times[name] = now; }));
  const keys = study.keys;
  const question = study.form === 'choice' ?
      `Which was the photograph? <b>${keys[0].toUpperCase()}</b>: left, <b>${keys[1].toUpperCase()}</b>: right` :
      `Was it a photograph? <b>${keys[0].toUpperCase()}</b>: yes, <b>${keys[1].toUpperCase()}</b>: no`;
  const blank = {...trial, images: trial.images.map(() => study.mask)};
  const parts = [
    {type: jsPsychHtmlKeyboardResponse, stimulus: '<div class="pair fixation">+</div>', choices: 'NO_KEYS',
     trial_duration: study.fixation_ms},
    {type: jsPsychHtmlKeyboardResponse, stimulus: pair(trial, study), choices: 'NO_KEYS',
     trial_duration: trial.exposure_ms, on_load: () => atNextFrame('shown')},
    {type: jsPsychHtmlKeyboardResponse, stimulus: pair(blank, study), choices: 'NO_KEYS', trial_duration: study.mask_ms,
     on_load: () => atNextFrame('hidden')},
    {type: jsPsychHtmlKeyboardResponse, stimulus: `<div class="pair"><p>${question}</p></div>`, choices: keys,
     trial_duration: study.response_ms, on_finish: data => {
       const chosen = data.response === null ? null : keys.indexOf(data.response.toLowerCase());
       const {images, ...about} = trial;
       record({study: study.id, judge, plan, trial: number, ...about, chosen, rt_ms: data.rt,
               exposure_measured_ms: Math.round(10 * (times.hidden - times.shown)) / 10,
               time: new Date().toISOString(), screen: [window.innerWidth, window.innerHeight],
               devicePixelRatio: window.devicePixelRatio,
               prolific: Object.fromEntries(['PROLIFIC_PID', 'STUDY_ID', 'SESSION_ID'].map(
                   name => [name, address.get(name)]))});
       data.correct = chosen === trial.answer;
       data.missed = chosen === null;
     }},
  ];
  if (trial.kind === 'practice') {
    parts.push({type: jsPsychHtmlKeyboardResponse, choices: 'NO_KEYS', trial_duration: 1000, stimulus: () => {
      const last = jsPsych.data.get().last(1).values()[0];
      const said = last.missed ? ['wrong', 'Too late'] : last.correct ? ['right', 'Right'] : ['wrong', 'Wrong'];
      return `<div class="pair"><p class="${said[0]}">${said[1]}</p></div>`;
    }});
  }
  return {timeline: parts};
}

function page(html, button) {
  return {type: jsPsychHtmlButtonResponse, stimulus: `<div class="text">${html}</div>`, choices: [button]};
}

function ending(study) {
  const code = study.completion_code ? `<p>Your completion code: <b>${study.completion_code}</b></p>` : '';
  const link = study.completion_url ? `<p><a href="${study.completion_url}">Back to where you came from</a></p>` : '';
  const file = new Blob([lines.map(line => JSON.stringify(line) + '\n').join('')], {type: 'application/jsonl'});
  const download = online ? '' : `<p>Your answers could not be sent. Please <a id="download" download="answers.jsonl"
      href="${URL.createObjectURL(file)}">save them as a file</a> and send it to ${study.contact}.</p>`;
  return `<p>Thank you, that was all.</p>${download}${code}${link}`;
}

async function main() {
  const study = await json('study.json');
  const judge = await judgeNumber();
  const plan = judge % study.plans.length;
  const jsPsych = initJsPsych();
  const trials = study.plans[plan];
  const practice = trials.filter(trial => trial.kind === 'practice');
  const others = trials.filter(trial => trial.kind !== 'practice');
  const all = list => list.map(trial => trialTimeline(
      trial, trials.indexOf(trial), plan, judge, study, jsPsych));
  await jsPsych.run([
    {type: jsPsychPreload, images: [study.mask, ...new Set(trials.flatMap(trial => trial.images))]},
    page(`<h2>${study.title}</h2>${study.consent}<p>Questions: ${study.contact}</p>`, 'I agree'),
    page(study.instructions, 'Practise'),
    ...all(practice),
    page('<p>That was the practice. From now on you are not told whether you were right.</p>', 'Begin'),
    ...all(others),
    {type: jsPsychHtmlButtonResponse, stimulus: () => ending(study), choices: []},
  ]);
}

main().catch(error => {
  document.body.textContent = `The study could not be loaded (${error.message}).`;
});
