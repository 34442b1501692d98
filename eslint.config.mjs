// How the panels are linted: `make lint-js`, which asks npm for eslint. Nothing of it is needed to use or to test them.

const names = `window document performance fetch Blob Image ResizeObserver MutationObserver MessageChannel CSSMediaRule
  CustomEvent DataView Response TextDecoder URL XMLSerializer atob getComputedStyle globalThis requestAnimationFrame
  setTimeout clearTimeout DecompressionStream`;

const rules = `array-callback-return consistent-return default-case-last eqeqeq for-direction getter-return
  no-async-promise-executor no-class-assign no-compare-neg-zero no-cond-assign no-const-assign no-constant-condition
  no-dupe-args no-dupe-else-if no-dupe-keys no-duplicate-case no-else-return no-eval no-ex-assign no-fallthrough
  no-func-assign no-implicit-globals no-implied-eval no-import-assign no-loss-of-precision no-new-func no-obj-calls
  no-script-url no-self-assign no-self-compare no-setter-return no-shadow no-shadow-restricted-names no-sparse-arrays
  no-throw-literal no-undef no-unmodified-loop-condition no-unreachable no-unsafe-finally no-unsafe-negation
  no-unsafe-optional-chaining no-unused-expressions no-unused-vars no-useless-rename no-useless-return no-var
  object-shorthand prefer-const prefer-template use-isnan valid-typeof`;

const each = (text, value) => Object.fromEntries(text.split(/\s+/).map((name) => [name, value]));

export default [
  {
    files: ["lightning_calib/panels/*.js"],
    languageOptions: { globals: each(names, "readonly") },
    linterOptions: { reportUnusedDisableDirectives: "error" },
    rules: each(rules, "error"),
  },
];
