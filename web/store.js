// The history and the jobs that are not over, in the browser's database. They survive a reload, and
// the images stay when the server has deleted its own.

const NAME = "flux-fast";
/** The most images that are kept; the oldest are dropped. */
export const MOST_IMAGES = 500;

let database = null;
/** Where the browser has no database (private windows): kept until the page is closed. */
const memory = { images: new Map(), jobs: new Map() };

function opened() {
  database ??= new Promise((done) => {
    let request;
    try {
      request = indexedDB.open(NAME, 1);
    } catch {
      done(null);
      return;
    }
    request.onupgradeneeded = () => {
      request.result.createObjectStore("images", { keyPath: "id" });
      request.result.createObjectStore("jobs", { keyPath: "id" });
    };
    request.onsuccess = () => done(request.result);
    request.onerror = () => done(null);
    request.onblocked = () => done(null);
  });
  return database;
}

async function act(store, mode, action) {
  const db = await opened();
  if (!db) return undefined;
  return new Promise((done, fail) => {
    const transaction = db.transaction(store, mode);
    const request = action(transaction.objectStore(store));
    transaction.oncomplete = () => done(request.result);
    transaction.onerror = () => fail(transaction.error);
    transaction.onabort = () => fail(transaction.error);
  });
}

/** All rows of `images` or `jobs`, newest first. */
export async function all(store) {
  const rows = (await act(store, "readonly", (s) => s.getAll())) ?? [...memory[store].values()];
  return rows.sort((a, b) => b.created - a.created || (a.number ?? 0) - (b.number ?? 0));
}

/** Adds or replaces a row. */
export async function put(store, row) {
  if (!(await opened())) memory[store].set(row.id, row);
  else await act(store, "readwrite", (s) => s.put(row));
}

/** Removes a row. */
export async function remove(store, id) {
  if (!(await opened())) memory[store].delete(id);
  else await act(store, "readwrite", (s) => s.delete(id));
}

/** Removes all rows. */
export async function clear(store) {
  if (!(await opened())) memory[store].clear();
  else await act(store, "readwrite", (s) => s.clear());
}

/** A small value that is kept, such as the form. */
export function load(name, fallback) {
  try {
    return JSON.parse(localStorage.getItem(`flux-fast-${name}`)) ?? fallback;
  } catch {
    return fallback;
  }
}

export function save(name, value) {
  try {
    localStorage.setItem(`flux-fast-${name}`, JSON.stringify(value));
  } catch {
    // The page works without.
  }
}
