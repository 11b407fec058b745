/* The reader's own picture, attacked in the page. No dependency, no server, nothing uploaded.

   Four parts: 1 the network and its gradient, 2 defences on rows, 3 attacks, 4 the page.
   Parts 1 to 3 stand in `flcEngine`, which runs in a Web Worker and knows no page; the attacks get the
   weights, the row that was sent and what the protocol makes public, never the picture.
   The mathematics: chapters 03 (searching) and 05 (closed form) and flcourse/attacks. */
"use strict";

function flcEngine() {
  // ---------- Arithmetic on Float64Array ----------------------------------------------------------
  const floats = (count, fill) => Float64Array.from({ length: count }, (_, i) => fill(i));
  const norm = (a) => Math.sqrt(dot(a, a));
  const add = (to, factor, a) => { for (let i = 0; i < a.length; i++) to[i] += factor * a[i]; };

  function dot(a, b) {
    let one = 0, two = 0, i = 0; // two sums at once: an addition need not wait for the last
    for (; i + 1 < a.length; i += 2) {
      one += a[i] * b[i];
      two += a[i + 1] * b[i + 1];
    }
    return i < a.length ? one + two + a[i] * b[i] : one + two;
  }

  // Lines of `size` values, in place.
  const views = (a, size) => Array.from({ length: a.length / size }, (_, i) => a.subarray(i * size, (i + 1) * size));

  // ---------- 1. The network and its gradient: all in float64 -------------------------------------
  // LeNet of chapter 03 with ten classes. A picture is [3, 32, 32], a kernel 5x5 with padding 2.
  const LAYERS = [
    { inputs: 3, outputs: 12, size: 32, stride: 2 },
    { inputs: 12, outputs: 12, size: 16, stride: 2 },
    { inputs: 12, outputs: 12, size: 8, stride: 1 },
  ];
  const CLASSES = 10, FEATURES = 12 * 8 * 8, PIXELS = 32 * 32, PICTURE = 3 * PIXELS;
  let length = 0;
  for (const layer of LAYERS) {
    layer.area = (layer.size / layer.stride) ** 2;
    layer.fan = layer.inputs * 25;
    layer.taps = tapTable(layer);
    layer.weight = length;
    layer.bias = length + layer.outputs * layer.fan;
    length = layer.bias + layer.outputs;
  }
  const HEAD = length, HEAD_BIAS = HEAD + CLASSES * FEATURES, LENGTH = HEAD_BIAS + CLASSES;

  // taps[k * area + p]: which input value weight k (channel, row, column) meets at output p. What
  // lies outside the picture is the value behind the last, which is always 0.
  function tapTable({ inputs, size, stride, area, fan }) {
    const out = size / stride, taps = new Int32Array(fan * area).fill(inputs * size * size);
    for (let k = 0; k < fan; k++)
      for (let p = 0; p < area; p++) {
        const row = Math.floor(p / out) * stride + (Math.floor(k / 5) % 5) - 2, column = (p % out) * stride + (k % 5) - 2;
        const inside = row >= 0 && row < size && column >= 0 && column < size;
        if (inside) taps[k * area + p] = (Math.floor(k / 25) * size + row) * size + column;
      }
    return taps;
  }

  // Whole numbers of 32 bits from a seed (mulberry32); flcourse.models.mulberry_ is its twin.
  function randomBits(seed) {
    let state = seed >>> 0;
    return () => {
      state = (state + 0x6d2b79f5) >>> 0;
      let t = Math.imul(state ^ (state >>> 15), state | 1);
      t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
      return (t ^ (t >>> 14)) >>> 0;
    };
  }

  // uniform(-0.5, 0.5) in steps of 2^-24, which float32 holds exactly.
  function makeWeights(seed) {
    const bits = randomBits(seed);
    return floats(LENGTH, () => (bits() >>> 8) / 2 ** 24 - 0.5);
  }

  // The patches of x under the kernel, [fan, area]: a convolution is then a product of matrices.
  function unfold(layer, x) {
    const padded = new Float64Array(x.length + 1), patches = new Float64Array(layer.taps.length);
    padded.set(x);
    for (let i = 0; i < patches.length; i++) patches[i] = padded[layer.taps[i]];
    return patches;
  }

  function convolve(layer, weights, patches) {
    const { outputs, fan, area, weight } = layer, z = new Float64Array(outputs * area), lines = views(patches, area);
    views(z, area).forEach((out, o) => lines.forEach((line, k) => add(out, weights[weight + o * fan + k], line)));
    return z;
  }

  // The transposed convolution: from the loss's gradient by the output to the one by the input.
  function convolveBack(layer, weights, delta) {
    const { inputs, size, fan, area, weight, taps } = layer, deltas = views(delta, area);
    const result = new Float64Array(inputs * size * size + 1), patch = new Float64Array(area);
    for (let k = 0; k < fan; k++) {
      patch.fill(0);
      deltas.forEach((part, o) => add(patch, weights[weight + o * fan + k], part));
      for (let p = 0; p < area; p++) result[taps[k * area + p]] += patch[p];
    }
    return result.subarray(0, result.length - 1);
  }

  const headRow = (row, c) => row.subarray(HEAD + c * FEATURES, HEAD + (c + 1) * FEATURES);

  // Cross-entropy of one picture: { row: its gradient by the weights, picture: by the picture }.
  function gradient(weights, picture, label, wanted = "row") {
    const patches = [], hidden = [];
    let h = picture;
    for (const layer of LAYERS) {
      patches.push(unfold(layer, h));
      const z = convolve(layer, weights, patches[patches.length - 1]);
      h = z.map((value, i) => 1 / (1 + Math.exp(-value - weights[layer.bias + Math.floor(i / layer.area)])));
      hidden.push(h);
    }
    const row = new Float64Array(LENGTH);
    let delta = new Float64Array(FEATURES);
    const logits = floats(CLASSES, (c) => dot(h, headRow(weights, c)) + weights[HEAD_BIAS + c]), most = Math.max(...logits);
    const total = logits.reduce((sum, z) => sum + Math.exp(z - most), 0);
    for (let c = 0; c < CLASSES; c++) {
      const error = Math.exp(logits[c] - most) / total - (c === label ? 1 : 0);
      row[HEAD_BIAS + c] = error;
      add(headRow(row, c), error, h);
      add(delta, error, headRow(weights, c));
    }
    for (let n = LAYERS.length - 1; n >= 0; n--) {
      const layer = LAYERS[n], lines = views(patches[n], layer.area);
      delta = delta.map((value, i) => value * hidden[n][i] * (1 - hidden[n][i]));
      if (wanted === "row")
        views(delta, layer.area).forEach((part, o) => {
          lines.forEach((line, k) => { row[layer.weight + o * layer.fan + k] = dot(part, line); });
          row[layer.bias + o] = part.reduce((sum, value) => sum + value, 0);
        });
      if (n > 0 || wanted === "picture") delta = convolveBack(layer, weights, delta);
    }
    return wanted === "row" ? row : delta;
  }

  // ---------- 2. Defences on rows: the same formulas as flcourse.defences -------------------------
  const scaled = (row, factor) => row.map((value) => value * factor);
  const clip = (row, most) => scaled(row, Math.min(1, most / norm(row)));

  function addNoise(row, std, seed) {
    const bits = randomBits(seed), uniform = () => (bits() + 0.5) / 2 ** 32;
    return row.map((value) => value + std * Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform()));
  }

  function prune(row, keep) {
    const count = Math.max(Math.round(keep * row.length), 1);
    const order = Array.from(row.keys()).sort((i, j) => Math.abs(row[j]) - Math.abs(row[i]) || i - j);
    const kept = new row.constructor(row.length);
    for (const i of order.slice(0, count)) kept[i] = row[i];
    return kept;
  }

  const quantiseStep = (row, bits) => row.reduce((most, value) => Math.max(most, Math.abs(value)), 0) / (2 ** (bits - 1) - 1);

  function quantise(row, bits) {
    const step = quantiseStep(row, bits) || 1; // a row of zeros stays one
    return row.map((value) => Math.round(value / step) * step);
  }

  // What is sent, in float32, and what everybody knows about it. Noise comes after a clip to 1, as
  // in differential privacy; `bytes` counts 4 a value, an index of 4 with each value kept, or bits.
  function defend(row, defence, strength, seed) {
    const sent = {
      none: () => row,
      clip: () => clip(row, strength),
      noise: () => addNoise(clip(row, 1), strength, seed),
      prune: () => prune(row, strength),
      quantise: () => quantise(row, strength),
    }[defence]();
    const std = { noise: strength, quantise: quantiseStep(row, strength) / Math.sqrt(12) }[defence] || 0;
    const known = { std, clipNorm: { clip: strength, noise: 1 }[defence] || Infinity, pruned: defence === "prune" };
    const bytes = { prune: 8 * sent.reduce((n, v) => n + (v !== 0), 0), quantise: Math.ceil((row.length * strength) / 8) + 4 };
    return { row: Float32Array.from(sent), known, bytes: bytes[defence] || 4 * row.length };
  }

  // ---------- 3. Attacks: from the weights and the row that was sent ------------------------------
  // The label. Every row of the last layer's gradient is (p_c - 1[c = y]) times the same positive
  // features, so only the label's sum is negative; noise averages out over 769 values.
  function readLabel(row) {
    const sums = floats(CLASSES, (c) => headRow(row, c).reduce((sum, value) => sum + value, row[HEAD_BIAS + c]));
    return sums.indexOf(Math.min(...sums));
  }

  // Layer by layer from the end: h from the linear layer by a division, z = logit(h), then for each
  // convolution the x with G x_i = dW_i for every channel i and conv(x) = z.
  function closedForm(weights, row) {
    const error = row.subarray(HEAD_BIAS), size = dot(error, error);
    let h = new Float64Array(FEATURES), delta = new Float64Array(FEATURES);
    for (let c = 0; c < CLASSES; c++) {
      add(h, error[c] / size, headRow(row, c));
      add(delta, error[c], headRow(weights, c));
    }
    for (const layer of [...LAYERS].reverse()) {
      const z = h.map((value, i) => Math.log(value / (1 - value)) - weights[layer.bias + Math.floor(i / layer.area)]);
      delta = delta.map((value, i) => value * h[i] * (1 - h[i]));
      if (!z.every(Number.isFinite)) return null; // no sigmoid gives such features: not exact
      h = solveInput(layer, weights, row, delta, z);
      delta = convolveBack(layer, weights, delta);
    }
    return h;
  }

  // Every channel shares one matrix G, [outputs * 25, pixels]: copies of delta, shifted by the taps.
  function solveInput(layer, weights, row, delta, z) {
    const { inputs, outputs, size, area, fan, taps } = layer, pixels = size * size, rows = [];
    for (let o = 0; o < outputs; o++)
      for (let k = 0; k < 25; k++) {
        const line = new Float64Array(pixels + inputs); // an equation and its value in each channel
        for (let p = 0; p < area; p++) {
          const at = taps[k * area + p];
          if (at < pixels) line[at] += delta[o * area + p];
        }
        for (let i = 0; i < inputs; i++) line[pixels + i] = row[layer.weight + o * fan + i * 25 + k];
        rows.push(line);
      }
    return leastSquares(layer, weights, whiten(rows, pixels), z);
  }

  // Rows made orthonormal, always the longest remainder next: the pivoted Cholesky factor of G Gᵀ,
  // without squaring G. Remainders that are only rounding are dropped.
  function whiten(rows, width, least = 1e-4) {
    const done = [], length = (line) => norm(line.subarray(0, width));
    for (let left = rows, first = null; left.length; ) {
      const sizes = left.map(length), size = Math.max(...sizes), best = sizes.indexOf(size);
      if (!(size > least * (first ??= size))) break;
      const line = left[best].map((value) => value / size), unit = line.subarray(0, width);
      done.push(line);
      left = left.filter((_, i) => i !== best);
      for (const other of left) add(other, -dot(unit, other), line);
    }
    return done;
  }

  // CGLS on [mu Q ; conv]: conjugate gradients for least squares.
  function leastSquares(layer, weights, equations, z, tolerance = 1e-6, most = 2000) {
    const { inputs, size, outputs } = layer, pixels = size * size, count = equations.length;
    const units = equations.map((line) => line.subarray(0, pixels));
    const mu = norm(weights.subarray(layer.weight, layer.bias)) / Math.sqrt(outputs);
    const apply = (x) => {
      const result = new Float64Array(count * inputs + z.length);
      views(x, pixels).forEach((channel, i) => units.forEach((unit, r) => { result[i * count + r] = mu * dot(channel, unit); }));
      result.set(convolve(layer, weights, unfold(layer, x)), count * inputs);
      return result;
    };
    const back = (y) => {
      const result = convolveBack(layer, weights, y.subarray(count * inputs));
      views(result, pixels).forEach((channel, i) => units.forEach((unit, r) => add(channel, mu * y[i * count + r], unit)));
      return result;
    };
    const off = new Float64Array(count * inputs + z.length), x = new Float64Array(inputs * pixels);
    for (let i = 0; i < inputs; i++) for (let r = 0; r < count; r++) off[i * count + r] = mu * equations[r][pixels + i];
    off.set(z, count * inputs);
    let slope = back(off), direction = slope, left = dot(slope, slope);
    const enough = left * tolerance ** 2;
    for (let n = 0; n < most && left > enough; n++) {
      const image = apply(direction), step = left / dot(image, image);
      add(x, step, direction);
      add(off, -step, image);
      slope = back(off);
      const next = dot(slope, slope), share = next / left;
      direction = direction.map((value, i) => slope[i] + share * value);
      left = next;
    }
    return x;
  }

  // Where the algebra fails: the likeliest picture, -log p(row | x) - log p(x) made small by L-BFGS.
  // x = 0.5 + waves of u: cosines in opponent colours, each as strong as it usually is in pictures.
  const COSINES = floats(PIXELS, (i) => Math.sqrt((i < 32 ? 1 : 2) / 32) * Math.cos((Math.PI * Math.floor(i / 32) * ((i % 32) + 0.5)) / 32));
  const COLOURS = [[1, 1, 1], [1, 0, -1], [1, -2, 1]].map((c) => c.map((v) => v / norm(c)));
  const USUAL = floats(PICTURE, (i) => ([0.4, 0.09, 0.04][Math.floor(i / PIXELS)] * 32) / (1 + Math.hypot(Math.floor(i / 32) % 32, i % 32)) ** 1.5);

  // The orthonormal transform of [3, 32, 32] and, as `inverse`, its transpose.
  function waves(x, inverse) {
    const mixed = new Float64Array(PICTURE), half = new Float64Array(PICTURE), result = new Float64Array(PICTURE);
    for (let c = 0; c < 3; c++)
      for (let d = 0; d < 3; d++) add(mixed.subarray(c * PIXELS), inverse ? COLOURS[d][c] : COLOURS[c][d], x.subarray(d * PIXELS, (d + 1) * PIXELS));
    const pass = (from, to) => { // along each line of 32, and lines become columns
      for (let line = 0; line < 96; line++)
        for (let k = 0; k < 32; k++) {
          let sum = 0;
          for (let n = 0; n < 32; n++) sum += COSINES[inverse ? n * 32 + k : k * 32 + n] * from[line * 32 + n];
          to[Math.floor(line / 32) * PIXELS + k * 32 + (line % 32)] = sum;
        }
    };
    pass(mixed, half);
    pass(half, result);
    return result;
  }

  // Loss and slope at u. The second derivative is never formed: the slope of <g(x), r> by x is the
  // derivative of x's gradient along r in the weights, a difference of two of them.
  function makeObjective(weights, row, known, label) {
    const std = Math.max(known.std, 1e-4 * norm(row)), tail = 0.05; // of values beyond [0, 1]
    const scale = USUAL.map(Math.sqrt); // a wave is u * scale: halfway from the picture's scale to the prior's
    const loss = (u) => {
      const x = waves(u.map((value, i) => value * scale[i]), true).map((value) => value + 0.5);
      const g = gradient(weights, x, label), size = norm(g);
      const factor = Math.min(1, known.clipNorm / size), off = new Float64Array(LENGTH);
      for (let i = 0; i < LENGTH; i++)
        if (!known.pruned || row[i] !== 0) off[i] = (factor * g[i] - row[i]) / std;
      const beyond = x.map((value) => (value - Math.min(1, Math.max(0, value))) / tail), usual = u.map((value, i) => value / scale[i]);
      const value = (dot(off, off) + dot(beyond, beyond) + dot(usual, usual)) / 2;
      return { value, u, x, g, size, factor, off, beyond };
    };
    const slope = ({ u, x, g, size, factor, off, beyond }) => {
      const along = factor < 1 ? dot(off, g) / size ** 2 : 0;
      const r = off.map((value, i) => ((value - along * g[i]) * factor) / std);
      const step = 1e-3 / norm(r), shifted = (sign) => gradient(weights.map((w, i) => w + sign * step * r[i]), x, label, "picture");
      const up = shifted(1), down = shifted(-1);
      const byPicture = beyond.map((value, i) => (up[i] - down[i]) / (2 * step) + value / tail);
      return waves(byPicture, false).map((value, i) => value * scale[i] + u[i] / USUAL[i]);
    };
    return { loss, slope };
  }

  // L-BFGS (Nocedal & Wright, algorithm 7.4) with a step that is halved until the loss falls.
  function search(weights, row, known, label, onFrame, evaluations = 300, memory = 50) {
    const { loss, slope } = makeObjective(weights, row, known, label), pairs = [];
    let u = new Float64Array(PICTURE), now = loss(u), g = slope(now), count = 1;
    while (count < evaluations) {
      let direction = g.slice(), shares = [];
      for (const { s, y, curvature } of [...pairs].reverse()) {
        shares.push(dot(s, direction) / curvature);
        add(direction, -shares[shares.length - 1], y);
      }
      const last = pairs[pairs.length - 1];
      direction = scaled(direction, last ? last.curvature / dot(last.y, last.y) : 1 / norm(g));
      for (const { s, y, curvature } of pairs) add(direction, shares.pop() - dot(y, direction) / curvature, s);
      const fall = 1e-4 * dot(g, direction);
      let step = 2, next;
      do {
        step /= 2;
        next = loss(u.map((value, i) => value - step * direction[i]));
        count++;
      } while (!(next.value <= now.value - step * fall) && step > 1e-6);
      if (!(next.value < now.value)) break;
      const there = slope(next), s = scaled(direction, -step), y = there.map((value, i) => value - g[i]), curvature = dot(s, y);
      if (curvature > 1e-10 * dot(y, y)) pairs.push({ s, y, curvature });
      if (pairs.length > memory) pairs.shift();
      const done = now.value - next.value < 1e-7 * now.value;
      [u, now, g] = [next.u, next, there];
      onFrame(now.x);
      if (done) break;
    }
    return now.x;
  }

  // What a server can do: the algebra first; where its answer would not have sent this row, search.
  function attack(weights, sent, known, onFrame) {
    const row = Float64Array.from(sent), label = readLabel(row), exact = closedForm(weights, row);
    if (exact) {
      const again = gradient(weights, exact, label);
      if (1 - dot(again, row) / norm(again) / norm(row) < 1e-6) return { label, picture: exact, method: "algebra" };
    }
    return { label, picture: search(weights, row, known, label, onFrame), method: "search" };
  }

  return { makeWeights, gradient, defend, clip, addNoise, prune, quantise, attack };
}

// The worker: the phone's half, then the server's, which gets the message alone.
function flcWorker(engine) {
  self.onmessage = ({ data: { seed, picture, label, defence, strength } }) => {
    const weights = engine.makeWeights(seed), started = performance.now();
    const message = engine.defend(engine.gradient(weights, picture, label), defence, strength, seed + 1);
    self.postMessage({ kind: "sent", row: message.row, bytes: message.bytes });
    let shown = performance.now();
    const onFrame = (x) => {
      if (performance.now() - shown < 80) return;
      shown = performance.now();
      self.postMessage({ kind: "frame", picture: x });
    };
    const answer = engine.attack(weights, message.row, message.known, onFrame);
    self.postMessage({ kind: "done", ...answer, seconds: (performance.now() - started) / 1000 });
  };
}

// ---------- 4. The page: starts only where it finds its element -----------------------------------
function flcAttackPage(root) {
  const SIZE = 32, AREA = SIZE ** 2, find = (name) => root.querySelector(".flc-attack-" + name);
  const STRENGTHS = { // positions of the slider: [value, how it is written]
    none: [],
    clip: [10, 3, 1, 0.3, 0.1, 0.01].map((c) => [c, `at most ${c} long`]),
    noise: [1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3].map((s) => [s, `σ = ${s} on length 1`]),
    prune: [50, 20, 10, 5, 2, 1, 0.5, 0.1].map((k) => [k / 100, `${k} % kept`]),
    quantise: [16, 12, 10, 8, 6, 5, 4, 3, 2].map((b) => [b, `${b} bits`]),
  };
  const START = { none: 0, clip: 2, noise: 4, prune: 5, quantise: 6 };
  const url = URL.createObjectURL(new Blob([`"use strict";(${flcWorker})((${flcEngine})())`], { type: "text/javascript" }));
  let worker = null, truth = null, latest = 0, opening = false, failed = false; // `latest`: pictures asked for

  const chosen = () => root.querySelector("[type=radio]:checked").value;
  const stills = () => document.querySelectorAll(root.dataset.replaces || ":not(*)"); // where the attack does not run
  const swapStills = () => stills().forEach((still) => { still.hidden = !failed; });

  // The state of the page in words: at work, a result, or (`wrong`) why there is none.
  function say(working, result = "", wrong = false) {
    root.setAttribute("aria-busy", String(!result));
    find("working").textContent = working;
    find("result").classList.toggle("flc-attack-wrong", wrong);
    find("result").textContent = result;
  }

  function refuse(text) {
    worker?.terminate(); // or its answer would stand over the refusal
    say("", text, true);
  }

  function refuseWorker() {
    failed = true;
    swapStills();
    refuse("The attack does not run in this browser (its Web Worker failed). The chapters show it as pictures.");
  }

  const clamp = (x) => x.map((value) => Math.min(1, Math.max(0, value)));

  // A canvas from a function of the pixel's number that gives red, green, blue in [0, 1].
  function paint(name, size, colour) {
    const canvas = find(name), context = canvas.getContext("2d"), image = context.createImageData(size, size);
    canvas.width = canvas.height = size;
    for (let p = 0; p < size * size; p++) image.data.set([...clamp(colour(p)).map((v) => Math.round(255 * v)), 255], 4 * p);
    context.putImageData(image, 0, 0);
  }
  const paintGrey = (name, size, grey) => paint(name, size, (p) => [grey(p), grey(p), grey(p)]);
  const paintPicture = (name, x) => paint(name, SIZE, (p) => [x[p], x[p + AREA], x[p + 2 * AREA]]);
  const psnr = (x, y) => -10 * Math.log10(x.reduce((sum, value, i) => sum + (value - y[i]) ** 2, 0) / x.length);
  const decibels = (value) => (value > 99 ? "over 99" : value.toFixed(1));

  // The picture as the model sees it: the middle square, 32 x 32, [3, 32, 32] in [0, 1].
  function read(source, width, height) {
    const canvas = document.createElement("canvas"), context = canvas.getContext("2d"), side = Math.min(width, height);
    let size = SIZE;
    while (2 * size <= Math.min(side, 2048)) size *= 2;
    canvas.width = canvas.height = size;
    context.fillStyle = "#fff"; // behind what is transparent
    context.fillRect(0, 0, size, size);
    context.drawImage(source, (width - side) / 2, (height - side) / 2, side, side, 0, 0, size, size);
    for (; size > SIZE; size /= 2) // by halves: not every browser averages when it shrinks by more
      context.drawImage(canvas, 0, 0, size, size, 0, 0, size / 2, size / 2);
    const pixels = context.getImageData(0, 0, SIZE, SIZE).data;
    return Float64Array.from({ length: 3 * AREA }, (_, i) => pixels[4 * (i % AREA) + Math.floor(i / AREA)] / 255);
  }

  // A new picture (and the button that it came from), another label or defence: attack once more.
  function start(picture, pressed) {
    if (picture) {
      [truth, latest] = [picture, latest + 1];
      closeCamera();
      for (const button of root.querySelectorAll("[aria-pressed]")) button.setAttribute("aria-pressed", String(button === pressed));
    }
    const defence = chosen(), slider = find("strength"), [strength, text] = STRENGTHS[defence][slider.value] || [0, ""];
    find("strength-text").textContent = text;
    slider.setAttribute("aria-valuetext", text);
    paintPicture("truth", truth);
    for (const name of ["guess", "error"]) paintGrey(name, SIZE, () => 0.5);
    find("guess-text").textContent = "";
    say("The server works …");
    worker?.terminate();
    try { worker = new Worker(url); } catch { return refuseWorker(); }
    worker.onerror = refuseWorker;
    worker.onmessage = ({ data }) => ({ sent: showSent, frame: showFrame, done: showDone })[data.kind](data);
    worker.postMessage({ seed: Number(root.dataset.seed), picture: truth, label: find("label").selectedIndex, defence, strength });
  }

  // Signed fourth roots, so that small values are seen beside large ones: 0 is grey.
  function showSent({ row, bytes }) {
    const most = row.reduce((largest, value) => Math.max(largest, Math.abs(value)), 1e-30);
    const grey = (value) => 0.5 + (Math.sign(value) * (Math.abs(value) / most) ** 0.25) / 2;
    paintGrey("row", Math.ceil(Math.sqrt(row.length)), (p) => grey(row[p] || 0));
    find("row-text").textContent = `${row.length.toLocaleString("en")} numbers, ${bytes.toLocaleString("en")} bytes`;
  }

  function showFrame({ picture }) {
    const shown = clamp(picture), off = shown.map((value, i) => Math.abs(value - truth[i]));
    paintPicture("guess", shown);
    paintGrey("error", SIZE, (p) => (off[p] + off[p + AREA] + off[p + 2 * AREA]) / 3 / 0.5);
  }

  function showDone({ picture, label, method, seconds }) {
    showFrame({ picture });
    const mean = (c) => truth.subarray(c * AREA, (c + 1) * AREA).reduce((sum, value) => sum + value, 0) / AREA;
    const flat = [mean(0), mean(1), mean(2)], floor = psnr(truth.map((_, i) => flat[Math.floor(i / AREA)]), truth);
    const score = psnr(clamp(picture), truth), measured = `${decibels(score)} dB (a flat colour: ${decibels(floor)} dB)`;
    let verdict = "The server has a likeness";
    if (score > 45 || (score > 28 && score > floor + 10)) verdict = "The server has the picture";
    if (score < floor + 3) verdict = "Hardly more than a flat colour";
    if (score < floor) verdict = "Worse than a flat colour";
    if (floor > 45) verdict = "The picture is hardly more than one flat colour itself";
    Object.assign(root.dataset, { psnr: score, floor, label, method, seconds });
    find("guess-text").textContent = measured;
    const { options, selectedIndex } = find("label"), right = label === selectedIndex ? "right" : "wrong";
    say(`By ${method}, in ${seconds.toFixed(1)} s on this device. Nothing was uploaded.`,
      `${verdict}: ${measured}. It reads the label “${options[label].text}”, which is ${right}.`);
  }

  async function useFile({ target }) {
    const file = target.files[0], turn = ++latest;
    if (!file) return;
    target.value = ""; // so that the same file, chosen again, is a change
    try {
      const bitmap = await createImageBitmap(file);
      if (turn === latest) start(read(bitmap, bitmap.width, bitmap.height));
    } catch {
      if (turn === latest) refuse(`“${file.name}” cannot be read as a picture. Choose a JPEG, PNG, GIF or WebP.`);
    }
  }

  // The first click opens the camera, the second takes the picture; any other picture closes it.
  async function useCamera() {
    const video = find("video");
    if (opening) return;
    if (video.srcObject) return start(read(video, video.videoWidth, video.videoHeight));
    opening = true;
    try {
      video.srcObject = await navigator.mediaDevices.getUserMedia({ video: true });
      await video.play();
      [video.hidden, find("camera").textContent] = [false, "Take the picture"];
    } catch {
      closeCamera();
      refuse("No camera can be used here (none found, not allowed, or a page without https). Choose a file.");
    }
    opening = false;
  }

  function closeCamera() {
    const video = find("video");
    video.srcObject?.getTracks().forEach((track) => track.stop());
    [video.srcObject, video.hidden, find("camera").textContent] = [null, true, "Camera"];
  }

  function changeDefence() {
    const positions = STRENGTHS[chosen()], slider = find("strength");
    slider.max = Math.max(positions.length - 1, 0);
    slider.value = START[chosen()];
    find("slider").hidden = !positions.length;
    start();
  }

  for (const button of root.querySelectorAll("[aria-pressed]"))
    button.addEventListener("click", () => {
      const image = button.querySelector("img");
      find("label").value = button.dataset.label;
      start(read(image, image.naturalWidth, image.naturalHeight), button);
    });
  for (const radio of root.querySelectorAll("[type=radio]")) radio.addEventListener("change", changeDefence);
  find("strength").addEventListener("input", () => start());
  find("label").addEventListener("change", () => start());
  find("file").addEventListener("change", useFile);
  find("camera").addEventListener("click", useCamera);
  root.hidden = false;
  swapStills();
  addEventListener("DOMContentLoaded", swapStills); // those below the script
  const first = root.querySelector("[aria-pressed] img");
  new IntersectionObserver((seen, watch) => { // far down a page it waits until the reader comes near
    if (!seen.some(({ isIntersecting }) => isIntersecting)) return;
    watch.disconnect();
    first.decode().then(() => first.closest("button").click());
  }, { rootMargin: "50% 0%" }).observe(root);
}

for (const root of document.querySelectorAll(".flc-attack")) flcAttackPage(root);
