// The value of `<<expression=` as our calculator in Python writes it (chapter 7, calculator): exact fractions, limits.
const NUMBER = String.raw`[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]*)?|\.[0-9]+`;
const MOST = 100, NESTING = 20, TOP = 10n ** 18n;

const gcd = (a, b) => { a = a < 0n ? -a : a; while (b) [a, b] = [b, a % b]; return a; };
function fraction(n, d) {
  if (d === 0n) throw new Error("division by zero");
  if (d < 0n) [n, d] = [-n, -d];
  const g = gcd(n, d) || 1n;
  return [n / g, d / g];
}
function number(text) {
  const [whole, part = ""] = text.replaceAll(",", "").split(".");
  return fraction(BigInt((whole || "0") + part), 10n ** BigInt(part.length));
}
const floored = (n, d) => n / d - (n % d !== 0n && n < 0n !== d < 0n ? 1n : 0n);
const OPERATIONS = {
  "+": ([a, b], [c, d]) => fraction(a * d + c * b, b * d),
  "-": ([a, b], [c, d]) => fraction(a * d - c * b, b * d),
  "*": ([a, b], [c, d]) => fraction(a * c, b * d),
  "/": ([a, b], [c, d]) => fraction(a * d, b * c),
  "//": (x, y) => { const [n, d] = OPERATIONS["/"](x, y); return [floored(n, d), 1n]; },
};
OPERATIONS["×"] = OPERATIONS["*"]; OPERATIONS["÷"] = OPERATIONS["/"];

function value(expression) {
  const symbols = [...expression.slice(0, MOST + 1).matchAll(new RegExp(`${NUMBER}|//|[-+*/×÷()]`, "g"))].map(m => m[0]);
  if (expression.length > MOST || symbols.join("") !== expression.replace(/\s/g, "")) throw new Error("no expression");
  let at = 0;
  const chain = (known, part, depth) => {
    let v = part(depth);
    while (known.includes(symbols[at])) v = OPERATIONS[symbols[at++]](v, part(depth));
    return v;
  };
  const sum = depth => chain(["+", "-"], product, depth), product = depth => chain(["*", "×", "/", "÷", "//"], operand, depth);
  function operand(depth) {
    const first = symbols[at++];
    if (first === undefined || depth > NESTING) throw new Error("no operand");
    if (first === "+" || first === "-") { const [n, d] = operand(depth + 1); return first === "-" ? [-n, d] : [n, d]; }
    if (first !== "(") { if (!/[0-9]/.test(first)) throw new Error("no number"); return number(first); }
    const v = sum(depth + 1);
    if (symbols[at++] !== ")") throw new Error("an open parenthesis");
    return v;
  }
  const v = sum(0);
  if (at !== symbols.length) throw new Error("something is left");
  return v;
}

// Half to even, as Python rounds.
function rounded(n, d) {
  const low = floored(n, d), rest = 2n * (n - low * d);
  return rest > d || (rest === d && low % 2n !== 0n) ? low + 1n : low;
}
export function compute(expression) {
  let n, d;
  try { [n, d] = value(expression); } catch { return null; }
  const size = n < 0n ? -n : n;
  if (size >= TOP * d) return null;
  let places = [0, 1, 2, 3, 4, 5, 6].find(k => (10n ** BigInt(k)) % d === 0n || (n * 10n ** BigInt(k)) % d === 0n);
  places ??= size >= d ? 2 : 4;
  const digits = rounded(n * 10n ** BigInt(places), d);
  if (n !== 0n && digits === 0n) return null;
  const text = (digits < 0n ? -digits : digits).toString().padStart(places + 1, "0");
  const whole = text.slice(0, text.length - places), part = text.slice(text.length - places).replace(/0+$/, "");
  return (digits < 0n ? "-" : "") + whole + (part ? "." + part : "");
}

// Where the calculator has written in an answer: [start, end] of the characters.
export function computedSpans(text) {
  const found = [];
  for (const m of text.matchAll(/<<([^<>=]{1,100})=([^<>=]+)/g)) {
    const end = m.index + m[0].length, v = compute(m[1]) ?? "", behind = text.slice(end, end + 2);
    if ((m[2] === v && [">", ">>"].includes(behind)) || (!behind && v.startsWith(m[2]))) found.push([end - m[2].length, end]);
  }
  return found;
}
// What has to follow a text that ends with an open annotation; "" where the model goes on by itself.
export function toWrite(text) {
  const m = /<<([^<>=]{1,100})=$/.exec(text), v = m && compute(m[1]);
  return v ? v + ">>" : "";
}
