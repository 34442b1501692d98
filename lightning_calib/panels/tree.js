// Rows as a tree of modules, and which of its nodes are on show.

/** Nodes {path, label, depth, rows, children, parent}; a leaf is a tensor. Module paths come from the owners, because a
 *  tensor's own name may hold dots. A chain of modules with one child each is one node,
 *  which answers to all their names (`also`). */
export function build(rows, owners) {
  const root = { path: "", label: "", depth: -1, rows: [], children: [], parent: null, modules: new Map() };
  rows.forEach((name, row) => {
    let node = root;
    root.rows.push(row);
    let path = "";
    for (const part of owners[row] === "" ? [] : owners[row].split(".")) {
      path = path === "" ? part : `${path}.${part}`;
      if (!node.modules.has(part)) node.modules.set(part, child(node, path, part));
      node = node.modules.get(part);
      node.rows.push(row);
    }
    const prefix = owners[row] === "" ? "" : `${owners[row]}.`;
    const label = prefix && name.startsWith(prefix) ? name.slice(prefix.length) : name;
    const leaf = child(node, name, label);
    leaf.rows.push(row);
    leaf.leaf = true;
  });
  root.children.forEach(compress);
  level(root, -1);
  return root;
}

function child(parent, path, label) {
  const node = { path, label, depth: 0, rows: [], children: [], parent, modules: new Map(), leaf: false, also: [] };
  parent.children.push(node);
  return node;
}

function compress(node) {
  while (node.children.length === 1) {
    const { path, label, leaf, children } = node.children[0];
    node.also.push(node.path);
    Object.assign(node, { path, label: `${node.label}.${label}`, leaf, children });
    for (const one of children) one.parent = node;
  }
  node.children.forEach(compress);
}

function level(node, depth) {
  node.depth = depth;
  for (const one of node.children) level(one, depth + 1);
}

export function* nodes(node) {
  for (const one of node.children) {
    yield one;
    yield* nodes(one);
  }
}

export const depth = (root) => Array.from(nodes(root)).reduce((deepest, node) => Math.max(deepest, node.depth), 0);

/** How deep to open at first: as deep as 150 rows go, and at least until there is more than one. */
export function startingDepth(root) {
  const all = Array.from(nodes(root));
  const count = (open) => all.filter((node) => shown(node, open)).length;
  let open = 0;
  while (open < depth(root) && (count(open) < 2 || count(open + 1) <= 150)) open++;
  return open;
}

const shown = (node, open) => node.depth <= open && (node.depth === open || !node.children.length);

/** Whether a module shows its children: the level that was chosen, unless it was opened or closed by hand. */
export function isOpen(node, open, toggled) {
  if (!node.children.length) return false;
  return node.depth < open !== toggled.has(node.path);
}

/** Nodes on show in model order; an open module is a heading (`open`) above its children. A layer of two or three
 *  tensors needs no heading: its tensors carry its name (`group`). */
export function listing(root, open, toggled, matches) {
  const list = [];
  const visit = (node) => {
    if (matches && !touches(node, matches)) return;
    const wide = isOpen(node, open, toggled);
    if (wide && isSmall(node)) {
      for (const one of node.children)
        if (!matches || matches.has(one)) list.push({ node: one, open: false, group: node });
      return;
    }
    list.push({ node, open: wide });
    if (wide) node.children.forEach(visit);
  };
  root.children.forEach(visit);
  return list;
}

const isSmall = (node) => node.children.length < 4 && node.children.every((one) => one.leaf);

const touches = (node, matches) => matches.has(node) || node.children.some((one) => touches(one, matches));

/** Nodes whose name holds the text, or fits the pattern if it has * or ?; null when there is nothing to match.
 *  What lies under a module that matches matches too. */
export function matching(root, text) {
  const wanted = text.trim();
  if (!wanted) return null;
  const fits = matcher(wanted);
  const found = new Set();
  for (const node of nodes(root)) if (fits(node.path) || found.has(node.parent)) found.add(node);
  return found;
}

export function matcher(text) {
  const lower = text.toLowerCase();
  if (!/[*?]/.test(text)) return (name) => name.toLowerCase().includes(lower);
  const source = lower
    .replace(/[.+^${}()|[\]\\]/g, "\\$&")
    .replace(/\*+/g, ".*")
    .replace(/\?/g, ".");
  const pattern = new RegExp(`^${source}$`);
  return (name) => pattern.test(name.toLowerCase());
}

/** The node with this path, or the closest module above it. */
export function find(root, path) {
  let best = null;
  for (const node of nodes(root)) {
    if (node.path === path || node.also.includes(path)) return node;
    if (path.startsWith(`${node.path}.`) && (!best || node.path.length > best.path.length)) best = node;
  }
  return best;
}
