// A reply that goes round in circles, found and cut as in Python (chapter 7, repetition). `ids` are those of the reply.
const LONGEST_PERIOD = 64, CIRCLE = [8, 4], REPEATED_TOKENS = 32;
export const MOST_REPEATED = 256;

// The period and the number of tokens of the longest end that consists of the same tokens again and again.
export function cycleAtEnd(ids) {
  const length = ids.length;
  let best = [0, 0];
  for (let period = 1; period <= Math.min(LONGEST_PERIOD, Math.floor(length / 2)); period++) {
    if (best[0] && period % best[0] === 0 && 2 * period <= best[1]) continue;
    let n = period;
    while (n < length && ids[length - n - 1] === ids[length - n - 1 + period]) n++;
    if (n >= 2 * period && n > best[1]) best = [period, n];
  }
  return best;
}
// Where the first of the circles begins that follow each other up to the end, and its period.
function circlesAtEnd(ids, last = CIRCLE) {
  let start = ids.length, first = 0, least = last;
  for (;;) {
    const [period, n] = cycleAtEnd(ids.slice(0, start));
    if (!period || n < Math.max(least[0], least[1] * period)) return [start, first];
    start -= n; first = period; least = CIRCLE;
  }
}
export const repeatsItself = (ids, n = REPEATED_TOKENS) => ids.length - circlesAtEnd(ids)[0] >= n;
export function withoutRepetition(ids) {
  const [start, period] = circlesAtEnd(ids);
  return ids.length - start >= REPEATED_TOKENS ? ids.slice(0, start + period) : ids;
}
export function heldTokens(ids) {
  const [start, period] = circlesAtEnd(ids, [2, 2]);
  return ids.length - start - period;
}
